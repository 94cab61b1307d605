#include "data/csv.h"

#include <algorithm>
#include <mutex>

#include "data/input_file.h"
#include "data/utf8_repair.h"
#include "runtime/check.h"

namespace switchback {
namespace {

constexpr size_t read_bytes = 1 << 20;

class CsvBlock final : public SampleBlock {
 public:
  CsvBlock(const std::string& path, const CsvColumns& columns, Reasons& reasons)
      : file_(path), separator_(columns.separator), reasons_(reasons) {
    CsvReader reader(file_, separator_);
    std::vector<std::string> fields;
    if (!reader.next(fields)) fail(path, " is empty: expected a first row that names the columns");
    image_column_ = find_csv_column(path, fields, columns.image, separator_);
    caption_column_ = find_csv_column(path, fields, columns.caption, separator_);
    const size_t needed = std::max(image_column_, caption_column_) + 1;
    while (reader.next(fields)) {
      if (fields.size() < needed) {
        reasons.count("CSV row with too few columns",
                      concat(path, " line ", reader.line(), ": ", fields.size(), " of ", needed));
        continue;
      }
      if (reader.row_size() > UINT32_MAX) fail(path, " line ", reader.line(), " has more than 4 GiB");
      offsets_.push_back(reader.row_offset());
      sizes_.push_back(static_cast<uint32_t>(reader.row_size()));
    }
  }

  int64_t size() const override { return static_cast<int64_t>(offsets_.size()); }
  const std::string& name() const override { return file_.path(); }
  std::string key(int64_t sample) const override { return row(sample)[image_column_]; }

  void read(int64_t sample, RawSample& to) const override {
    to.clear();
    std::vector<std::string> fields = row(sample);
    to.caption = std::move(fields[caption_column_]);
    if (repair_utf8(to.caption)) reasons_.count("caption of invalid UTF-8 (repaired)", fields[image_column_]);
    if (to.caption.find_first_not_of(" \t\r\n\v\f") == std::string::npos) to.problem = "caption is empty";
    try {
      const InputFile image(fields[image_column_]);
      to.bytes.resize(image.size());
      image.read(0, to.bytes);
      to.image = to.bytes;
      if (to.bytes.empty()) to.problem = "image of 0 bytes";
    } catch (const Error& error) {
      to.problem = "image file cannot be read";
      to.detail = error.what();
    }
  }

 private:
  std::vector<std::string> row(int64_t sample) const {
    const size_t i = static_cast<size_t>(sample);
    CHECK(i < offsets_.size(), file_.path(), " has ", size(), " rows, asked for ", sample);
    std::string text(sizes_[i], '\0');
    file_.read(offsets_[i], {reinterpret_cast<uint8_t*>(text.data()), text.size()});
    std::vector<std::string> fields;
    if (parse_csv_row(text, separator_, true, fields) == 0 ||
        fields.size() <= std::max(image_column_, caption_column_)) {
      fail(file_.path(), " changed while in use");
    }
    return fields;
  }

  InputFile file_;
  char separator_;
  Reasons& reasons_;
  size_t image_column_ = 0, caption_column_ = 0;
  std::vector<uint64_t> offsets_;  // of each usable row
  std::vector<uint32_t> sizes_;
};

class CsvSource final : public SampleSource {
 public:
  CsvSource(const std::string& path, const CsvColumns& columns) : path_(path), columns_(columns) {}
  int64_t block_count() const override { return 1; }
  std::string block_name(int64_t) const override { return path_; }
  std::optional<uint64_t> declared_count() const override {
    return static_cast<uint64_t>(const_cast<CsvSource*>(this)->block(0)->size());
  }
  std::string why_empty() const override {
    return path_ + " has no usable row below the names of its columns";
  }
  std::shared_ptr<const SampleBlock> block(int64_t) override {
    std::lock_guard lock(mutex_);
    if (!block_) block_ = std::make_shared<const CsvBlock>(path_, columns_, reasons());
    return block_;
  }

 private:
  std::string path_;
  CsvColumns columns_;
  std::mutex mutex_;
  std::shared_ptr<const CsvBlock> block_;
};

}  // namespace

size_t parse_csv_row(std::string_view text, char separator, bool complete, std::vector<std::string>& fields) {
  fields.clear();
  std::string field;
  bool quoted = false;   // inside quotes
  bool at_start = true;  // of a field
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c != '"') {
        field += c;
      } else if (i + 1 < text.size() && text[i + 1] == '"') {
        field += '"';
        ++i;
      } else if (i + 1 == text.size() && !complete) {
        return 0;  // a closing quote, or the first of two
      } else {
        quoted = false;
      }
    } else if (c == '"' && at_start) {
      quoted = true;
      at_start = false;
    } else if (c == separator) {
      fields.push_back(std::move(field));
      field.clear();
      at_start = true;
    } else if (c == '\n' || c == '\r') {
      if (c == '\r' && i + 1 == text.size() && !complete) return 0;
      fields.push_back(std::move(field));
      return i + (c == '\r' && i + 1 < text.size() && text[i + 1] == '\n' ? 2 : 1);
    } else {
      field += c;
      at_start = false;
    }
  }
  if (quoted || !complete || text.empty()) return 0;
  fields.push_back(std::move(field));
  return text.size();
}

CsvReader::CsvReader(const InputFile& file, char separator) : file_(file), separator_(separator) {
  buffer_.resize(read_bytes);
  buffer_.resize(file_.read_some(0, {reinterpret_cast<uint8_t*>(buffer_.data()), buffer_.size()}));
  if (std::string_view(buffer_).starts_with("\xef\xbb\xbf")) used_ = 3;
}

bool CsvReader::next(std::vector<std::string>& fields) {
  while (true) {
    const uint64_t buffer_end = buffer_offset_ + buffer_.size();
    const bool complete = buffer_end >= file_.size();
    const std::string_view rest = std::string_view(buffer_).substr(used_);
    if (rest.empty() && complete) return false;
    const size_t size = parse_csv_row(rest, separator_, complete, fields);
    if (size == 0) {
      if (complete) fail(file_.path(), " line ", next_line_, ": a quote is opened and never closed");
      buffer_.erase(0, used_);
      buffer_offset_ += used_;
      used_ = 0;
      const size_t kept = buffer_.size();
      buffer_.resize(kept + std::max(read_bytes, kept));  // a long row doubles the buffer: linear time in all
      buffer_.resize(kept + file_.read_some(buffer_end, {reinterpret_cast<uint8_t*>(buffer_.data()) + kept,
                                                         buffer_.size() - kept}));
      if (buffer_.size() == kept) fail(file_.path(), " was truncated while being read");
      continue;
    }
    row_offset_ = buffer_offset_ + used_;
    row_size_ = size;
    line_ = next_line_;
    const std::string_view row = rest.substr(0, size);
    const auto line_feeds = std::count(row.begin(), row.end(), '\n');
    next_line_ += static_cast<uint64_t>(std::max<std::ptrdiff_t>(line_feeds, 1));
    used_ += size;
    if (fields.size() > 1 || !fields[0].empty()) return true;
  }
}

char parse_csv_separator(const std::string& text) {
  if (text == "\\t" || text == "tab") return '\t';
  if (text.size() != 1 || text[0] == '"' || text[0] == '\n') {
    fail("the CSV separator is one character such as ',' or ';', or 'tab'; got '", text, "'");
  }
  return text[0];
}

size_t find_csv_column(const std::string& path, const std::vector<std::string>& header,
                       const std::string& name, char separator) {
  const auto found = std::find(header.begin(), header.end(), name);
  if (found != header.end()) return static_cast<size_t>(found - header.begin());
  std::string columns;
  for (const std::string& column : header) columns += (columns.empty() ? "'" : ", '") + column + "'";
  repair_utf8(columns);
  if (columns.size() > 500) columns = columns.substr(0, 500) + " ...";
  fail(path, ": no column '", name, "'; split at ", separator == '\t' ? "tabs" : concat("'", separator, "'"),
       " its columns are ", columns, " (--csv-separator, --csv-img-key and --csv-caption-key choose others)");
}

std::shared_ptr<SampleSource> open_csv(const std::string& path, const CsvColumns& columns) {
  return std::make_shared<CsvSource>(path, columns);
}

}  // namespace switchback
