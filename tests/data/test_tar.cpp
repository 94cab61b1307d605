// Archives written by TarWriter, by hand (GNU, V7), and by the system's tar; damage at every kind of place.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "data/input_file.h"
#include "data/tar.h"
#include "tests/data/temporary_folder.h"

using namespace switchback;

namespace {

std::map<std::string, std::string> members_of(const std::string& path) {
  const InputFile file(path);
  TarReader reader(file);
  std::map<std::string, std::string> members;
  for (TarMember member; reader.next(member);) {
    std::string contents(member.size, '\0');
    file.read(member.offset, {reinterpret_cast<uint8_t*>(contents.data()), contents.size()});
    members[member.name] = contents;
  }
  return members;
}

void set_checksum(std::string& header) {
  header.replace(148, 8, "        ");
  unsigned sum = 0;
  for (size_t i = 0; i < 512; ++i) sum += static_cast<uint8_t>(header[i]);
  char checksum[9];
  std::snprintf(checksum, sizeof checksum, "%06o", sum);
  header.replace(148, 6, checksum, 6);
  header[154] = '\0';
}

// One member the way other writers do it; magic "ustar  " is GNU's, "" is V7's.
std::string raw_member(const std::string& name, const std::string& contents, char type,
                       const std::string& magic, const std::string& prefix = "", bool base256 = false) {
  std::string header(512, '\0');
  header.replace(0, name.size(), name);
  header.replace(100, 7, "0000644");
  char size[13];
  std::snprintf(size, sizeof size, "%011zo", contents.size());
  header.replace(124, 11, size, 11);
  if (base256) {
    header.replace(124, 12, std::string("\x80") + std::string(11, '\0'));
    header[134] = static_cast<char>(contents.size() >> 8);
    header[135] = static_cast<char>(contents.size() & 255);
  }
  header[156] = type;
  header.replace(257, magic.size(), magic);
  header.replace(345, prefix.size(), prefix);
  set_checksum(header);
  return header + contents + std::string((512 - contents.size() % 512) % 512, '\0');
}

const std::string posix_magic("ustar\00000", 8);

}  // namespace

TEST_CASE("tar: what is written is read back, long names and all sizes") {
  const TemporaryFolder folder;
  std::map<std::string, std::string> members;
  for (size_t size : {0, 1, 511, 512, 513, 5000, 100000}) {
    members["folder/size" + std::to_string(size)] = std::string(size, static_cast<char>('a' + size % 7));
  }
  for (size_t length : {99, 100, 101, 155, 256, 3000})
    members[std::string(length, 'n')] = std::to_string(length);
  TarWriter writer(folder / "a.tar");
  for (const auto& [name, contents] : members) writer.add(name, contents);
  CHECK_FALSE(std::filesystem::exists(folder / "a.tar"));  // not before it is whole
  writer.finish();
  CHECK(members_of(folder / "a.tar") == members);

  TarWriter again(folder / "b.tar");
  for (const auto& [name, contents] : members) again.add(name, contents);
  again.finish();
  CHECK(read_file(folder / "a.tar") == read_file(folder / "b.tar"));
  {
    TarWriter abandoned(folder / "c.tar");
    abandoned.add("x", "y");
  }
  const auto files =
      std::filesystem::directory_iterator(std::filesystem::path(folder / "a.tar").parent_path());
  CHECK(std::distance(begin(files), end(files)) == 2);  // no c.tar, no temporary file
}

TEST_CASE("tar: archives of other writers") {
  const TemporaryFolder folder;
  const std::string long_name = std::string(150, 'd') + "/" + std::string(90, 'f');
  const std::string end(1024, '\0');
  std::string tar = raw_member("v7", "old", '\0', "");
  tar += raw_member("v7folder/", "", '\0', "");
  tar += raw_member("file", "in prefix", '0', posix_magic, "some/folder");
  tar += raw_member("gnu", "no prefix", '0', "ustar  ", "1234567");  // GNU keeps times there
  tar += raw_member("././@LongLink", long_name + '\0', 'L', "ustar  ");
  tar += raw_member(long_name.substr(0, 100), "long", '0', "ustar  ");
  tar += raw_member("big", std::string(700, 'x'), '0', "ustar  ", "", true);
  tar += raw_member("folder", "", '5', posix_magic);
  tar += raw_member("link", "", '2', posix_magic);
  tar += raw_member("g", "20 comment=whatever\n", 'g', posix_magic);
  tar += raw_member("x", "17 path=n\xc3\xa4m=e.x\n11 mtime=1\n10 size=3\n", 'x', posix_magic);
  tar += raw_member("short", "pax", '0', posix_magic);
  const std::map<std::string, std::string> expected = {
      {"v7", "old"},       {"some/folder/file", "in prefix"}, {"gnu", "no prefix"},
      {long_name, "long"}, {"big", std::string(700, 'x')},    {"n\xc3\xa4m=e.x", "pax"}};
  CHECK(members_of(folder.write("a.tar", tar + end)) == expected);
  CHECK(members_of(folder.write("b.tar", tar)) == expected);                 // no end mark
  CHECK(members_of(folder.write("c.tar", tar + end + "rest")) == expected);  // nothing counts after it
  CHECK(members_of(folder.write("d.tar", end)).empty());
  CHECK(members_of(folder.write("e.tar", "")).empty());
}

TEST_CASE("tar: the system's tar reads ours and we read its") {
  if (std::system("tar --version > /dev/null 2>&1") != 0) {
    MESSAGE("skipped: no tar program");
    return;
  }
  const TemporaryFolder folder;
  const std::string name = std::string(120, 'n') + ".txt";
  TarWriter writer(folder / "ours.tar");
  writer.add("a.txt", "one");
  writer.add(name, "two");
  writer.finish();
  for (const char* format : {"gnu", "ustar", "pax", "v7"}) {
    const std::string at = folder / format;
    const bool long_names = std::string(format) == "gnu" || std::string(format) == "pax";
    const std::string files = long_names ? "a.txt " + name : "a.txt";
    const std::string command = "mkdir " + at + " && tar -xf " + (folder / "ours.tar") + " -C " + at +
                                " && tar --format=" + format + " -cf " + at + ".tar -C " + at + " " + files;
    CAPTURE(command);
    REQUIRE(std::system(command.c_str()) == 0);
    const auto members = members_of(at + ".tar");
    CHECK(members.at("a.txt") == "one");
    if (long_names) CHECK(members.at(name) == "two");
  }
}

TEST_CASE(
    "tar: truncated at every byte, it is either whole up to a member or an error that names the place") {
  const TemporaryFolder folder;
  std::string tar = raw_member("first", std::string(600, '1'), '0', posix_magic) +
                    raw_member("././@LongLink", std::string(130, 'k') + '\0', 'L', "ustar  ") +
                    raw_member("second", "2", '0', posix_magic) + std::string(1024, '\0');
  for (size_t size = 0; size < tar.size(); size += 37) {
    const std::string path = folder.write("cut.tar", tar.substr(0, size));
    const std::string error = error_of([&] { members_of(path); });
    CAPTURE(size);
    CAPTURE(error);
    const bool whole = size == 0 || size % 512 == 0 || size > 512 * 6 + 1;
    if (whole) continue;
    const bool says =
        contains(error, "cut.tar") && (contains(error, "truncated") || contains(error, "not a tar"));
    // Between the end of the contents and the end of its padding nothing is missing; the next header is.
    const bool in_padding =
        (size >= 512 + 600 && size < 512 * 3) || (size >= 512 * 4 + 131 && size < 512 * 5);
    CHECK((says || in_padding));
  }
  CHECK(contains(error_of([&] { members_of(folder.write("cut.tar", tar.substr(0, 900))); }),
                 "truncated: the member first at byte 512 needs 600 bytes, the file has 388 left"));
}

TEST_CASE("tar: garbage is an error with a hint") {
  const TemporaryFolder folder;
  const auto error = [&](const std::string& bytes) {
    return error_of([&] { members_of(folder.write("x.tar", bytes)); });
  };
  CHECK(contains(error(std::string(4000, 'g')), "x.tar is not a tar archive: no tar header at byte 0"));
  CHECK(contains(error("\x1f\x8b" + std::string(4000, 'g')), "gunzip it first"));
  CHECK(contains(error("short"), "is not a tar archive: 5 bytes"));
  std::string tar = raw_member("first", "1", '0', posix_magic) + raw_member("second", "2", '0', posix_magic);
  tar[1024 + 3] ^= 1;
  CHECK(contains(error(tar), "x.tar is damaged: no tar header at byte 1024"));
  CHECK(contains(error(raw_member("x", "5 path", 'x', posix_magic)), "malformed pax header"));
  CHECK(contains(error(raw_member("x", "99999999 path=1\n", 'x', posix_magic)), "malformed pax header"));
  std::string huge = raw_member("x", "1", '0', posix_magic);
  for (const char* size :
       {"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", "\x80\0\0\0\0\0\0\0\xff\xff\xff\xff"}) {
    huge.replace(124, 12, size, 12);
    set_checksum(huge);
    const std::string line = error(huge);
    CHECK(
        (contains(line, "truncated: the member x at byte 512 needs") || contains(line, "not a tar archive")));
  }
}

TEST_CASE("tar: no damage makes the reader crash, hang or leave the file") {
  const TemporaryFolder folder;
  const std::string tar = raw_member("first", "one", '0', posix_magic) +
                          raw_member("././@LongLink", std::string(130, 'k') + '\0', 'L', "ustar  ") +
                          raw_member("second", "2", '0', "ustar  ") +
                          raw_member("x", "17 path=n\xc3\xa4m=e.x\n10 size=3\n", 'x', posix_magic) +
                          raw_member("short", "pax", '0', posix_magic) + std::string(1024, '\0');
  uint32_t state = 7;
  const auto random = [&](size_t n) { return (state = state * 1664525u + 1013904223u) / 65536 % n; };
  for (int round = 0; round < 1500; ++round) {
    std::string damaged = tar;
    for (size_t i = 0; i <= random(4); ++i) damaged[random(damaged.size())] = static_cast<char>(random(256));
    if (round % 3 == 0) {  // with headers that still look right, so that the damage is met further in
      for (size_t at = 0; at + 512 <= damaged.size(); at += 512) {
        if (tar[at + 148] != '\0') {
          std::string header = damaged.substr(at, 512);
          set_checksum(header);
          damaged.replace(at, 512, header);
        }
      }
    }
    if (round % 5 == 0) damaged.resize(random(damaged.size()));
    const std::string path = folder.write("x.tar", damaged);
    const std::string error = error_of([&] {
      for (const auto& [name, contents] : members_of(path)) CHECK(contents.size() <= damaged.size());
    });
    CHECK((error == "nothing was thrown" || contains(error, "x.tar")));
  }
}
