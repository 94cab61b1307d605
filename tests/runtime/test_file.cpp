// Files: whole, mapped, and replaced in one piece even when the disk is full.

#include <cstring>

#include "runtime/file.h"
#include "tests/runtime/full_disk.h"
#include "tests/runtime/temporary_folder.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

TEST_CASE("file: what is written is read and mapped, for any mix of sizes") {
  const TemporaryFolder folder;
  const std::string path = folder / "a.bin";
  std::string want;
  {
    AtomicFile file(path);
    for (size_t size : {0, 1, 100, 65535, 65536, 65537, 3, 200000, 7}) {
      const std::string part(size, static_cast<char>('a' + want.size() % 26));
      file.write(part);
      want += part;
    }
    CHECK_FALSE(std::filesystem::exists(path));  // not before commit
    file.commit();
  }
  CHECK(read_file(path) == want);
  CHECK_EQ(folder.entries(), 1);
  MappedFile mapped(path);
  CHECK_EQ(mapped.size(), want.size());
  CHECK_EQ(std::memcmp(mapped.bytes().data(), want.data(), want.size()), 0);
  const MappedFile moved = std::move(mapped);
  CHECK_EQ(moved.path(), path);
  CHECK_EQ(moved.bytes().size(), want.size());

  write_file(path, "");
  CHECK_EQ(read_file(path), "");
  CHECK_EQ(MappedFile(path).size(), 0);
  CHECK_FALSE(read_file("/proc/self/status").empty());  // has no size
}

TEST_CASE("file: without commit nothing happens") {
  const TemporaryFolder folder;
  const std::string path = folder / "a.txt";
  write_file(path, "old");
  {
    AtomicFile file(path);
    file.write("new");
  }
  CHECK_EQ(read_file(path), "old");
  CHECK_EQ(folder.entries(), 1);
}

TEST_CASE("file: errors name the path and the reason") {
  const TemporaryFolder folder;
  CHECK_EQ(error_of([&] { read_file(folder / "none"); }),
           "cannot open " + (folder / "none") + ": No such file or directory");
  CHECK(contains(error_of([&] { MappedFile(folder / "none"); }), "No such file"));
  CHECK(contains(error_of([&] { read_file(folder.path()); }), "it is a folder"));
  CHECK(contains(error_of([&] { MappedFile(folder.path()); }), "it is a folder"));
  CHECK(contains(error_of([&] { write_file(folder / "none/a", "x"); }), "cannot write"));
  std::filesystem::create_directories(folder / "taken/inside");
  CHECK(contains(error_of([&] { write_file(folder / "taken", "x"); }), "cannot replace"));
  CHECK_EQ(folder.entries(), 1);
}

TEST_CASE("file: a full disk leaves the old file and no rubbish") {
  const TemporaryFolder folder;
  const std::string path = folder / "a.txt";
  write_file(path, "old");
  std::string text;
  {
    const FullDisk full(100000);
    text = error_of([&] { write_file(path, std::string(300000, 'x')); });
  }
  CHECK_MESSAGE(contains(text, "cannot write " + path + " (100000 bytes were written): "), text);
  CHECK(contains(text, "nothing was changed"));
  CHECK_EQ(read_file(path), "old");
  CHECK_EQ(folder.entries(), 1);
}
