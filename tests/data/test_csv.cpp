#include "data/csv.h"
#include "data/input_file.h"
#include "tests/data/temporary_folder.h"

using namespace switchback;
using Rows = std::vector<std::vector<std::string>>;

namespace {

Rows rows_of(const std::string& path, char separator = ',') {
  const InputFile file(path);
  CsvReader reader(file, separator);
  Rows rows;
  for (std::vector<std::string> fields; reader.next(fields);) rows.push_back(fields);
  return rows;
}

}  // namespace

TEST_CASE("csv: quotes, line ends, byte order mark") {
  const TemporaryFolder folder;
  const auto rows = [&](const std::string& text) { return rows_of(folder.write("t.csv", text)); };
  CHECK(rows("a,b\n1,2\n") == Rows{{"a", "b"}, {"1", "2"}});
  CHECK(rows("a,b\r\n1,2") == Rows{{"a", "b"}, {"1", "2"}});
  CHECK(rows("a,b\r1,2\r") == Rows{{"a", "b"}, {"1", "2"}});
  CHECK(rows("\xef\xbb\xbf"
             "a,b\n") == Rows{{"a", "b"}});
  CHECK(rows("\"a,\n\r\n b\",\"say \"\"hi\"\"\"\nx,\n") == Rows{{"a,\n\r\n b", "say \"hi\""}, {"x", ""}});
  CHECK(rows("5\" disk,\"quoted\" tail\n") == Rows{{"5\" disk", "quoted tail"}});
  CHECK(rows("\n\na\n\r\n\nb") == Rows{{"a"}, {"b"}});
  CHECK(rows(",\n").size() == 1);
  CHECK(rows("").empty());
  CHECK(rows("\"\"").empty());
  CHECK(contains(error_of([&] { rows("a,b\n\n1,\"2\n3\n"); }),
                 "t.csv line 3: a quote is opened and never closed"));
}

TEST_CASE("csv: rows across the reader's buffer") {
  const TemporaryFolder folder;
  std::string text;
  Rows expected;
  for (int i = 0; i < 400; ++i) {
    std::string value =
        std::string(static_cast<size_t>(i * i % 9000), static_cast<char>('a' + i % 26)) + "\r\n\"";
    if (i == 200) value.assign(3'000'000, 'L');
    std::string quoted = value;
    for (size_t at = 0; (at = quoted.find('"', at)) != std::string::npos; at += 2) quoted.insert(at, 1, '"');
    text += std::to_string(i) + ",\"" + quoted + "\"\r\n";
    expected.push_back({std::to_string(i), value});
  }
  const std::string path = folder.write("t.csv", text);
  CHECK((rows_of(path) == expected));
  const InputFile file(path);
  CsvReader reader(file, ',');
  size_t row = 0;
  for (std::vector<std::string> fields; reader.next(fields); ++row) {  // offsets point at the row
    std::string bytes(reader.row_size(), '\0');
    file.read(reader.row_offset(), {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()});
    std::vector<std::string> again;
    REQUIRE(parse_csv_row(bytes, ',', true, again) == bytes.size());
    REQUIRE((again == expected[row]));
  }
}

TEST_CASE("csv: a source of samples") {
  const TemporaryFolder folder;
  const std::vector<uint8_t> png = flat_png(7);
  folder.write("i.png", std::string(png.begin(), png.end()));
  const std::string image = folder / "i.png";
  const std::string path =
      folder.write("t.csv", "id\ttitle\tfilepath\n0\tA \"cat\"\t" + image + "\n1\t \t" + image +
                                "\nshort row\n2\tmissing\t" + (folder / "none.png") + "\n3\tbad \xff\xfe\t" +
                                image + "\n");
  const auto source = open_csv(path, {});
  REQUIRE(source->block_count() == 1);
  const auto block = source->block(0);
  REQUIRE(block->size() == 4);
  RawSample sample;
  block->read(0, sample);
  CHECK(sample.caption == "A \"cat\"");
  CHECK(std::vector<uint8_t>(sample.image.begin(), sample.image.end()) == png);
  CHECK(sample.problem.empty());
  CHECK(block->key(0) == image);
  block->read(1, sample);
  CHECK(sample.problem == "caption is empty");
  block->read(2, sample);
  CHECK(sample.problem == "image file cannot be read");
  CHECK(contains(sample.detail, "none.png: No such file"));
  block->read(3, sample);
  CHECK(sample.caption == "bad \xef\xbf\xbd\xef\xbf\xbd");
  CHECK(source->reasons().counts() ==
        std::map<std::string, uint64_t>{{"CSV row with too few columns", 1},
                                        {"caption of invalid UTF-8 (repaired)", 1}});
  CHECK(source->declared_count() == 4);
}

TEST_CASE("csv: a missing column lists those found") {
  const TemporaryFolder folder;
  const std::string path = folder.write("t.csv", "image,caption\nx,y\n");
  const auto open = [&](CsvColumns columns) { return error_of([&] { open_csv(path, columns)->block(0); }); };
  CHECK(contains(open({}), "no column 'filepath'; split at tabs its columns are 'image,caption'"));
  CHECK(contains(open({.separator = ','}),
                 "no column 'filepath'; split at ',' its columns are 'image', 'caption'"));
  CHECK(contains(open({.image = "image", .separator = ','}), "no column 'title'"));
  CHECK(open({.image = "image", .caption = "caption", .separator = ','}) == "nothing was thrown");
  CHECK(contains(error_of([&] { open_csv(folder.write("e.csv", ""), {})->block(0); }), "is empty"));
  CHECK(parse_csv_separator("\\t") == '\t');
  CHECK(parse_csv_separator(";") == ';');
  CHECK(contains(error_of([] { parse_csv_separator("::"); }), "one character"));
}
