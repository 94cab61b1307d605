// tar.h: reading and writing tar archives, the container of WebDataset shards.
//
// A tar is a chain: a 512-byte header (name, size, checksum), the contents rounded up to 512 bytes, the next
// header, and so on up to a block of zeros. So the members of a shard are found by hopping from header to
// header without reading any contents, and a member is later read by its offset.
//
//   offset 0    100 name         124  12 size, octal       257  6 magic "ustar"
//          148    8 checksum: sum of the header's bytes    345 155 prefix of the name (POSIX ustar only)
//                   with the checksum itself as blanks     156   1 type: '0' or NUL regular file
//
// Understood: ustar, GNU (long names 'L', sizes in base 256), pax ('x' headers with path and size), old V7.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/file.h"

namespace switchback {

class InputFile;

struct TarMember {
  std::string name;
  uint64_t offset = 0;  // of the contents in the archive
  uint64_t size = 0;
};

class TarReader {
 public:
  explicit TarReader(const InputFile& file);

  // The next regular file; false at the end of the archive. Directories, links and devices are skipped.
  // Errors name the archive and the offset: damaged header, contents cut short.
  bool next(TarMember& member);

 private:
  static constexpr size_t window_bytes = 4096;  // small members share a read with the header after them
  std::span<const uint8_t> block(uint64_t offset);
  std::string contents(uint64_t offset, uint64_t size, const char* what);

  const InputFile& file_;
  uint64_t offset_ = 0;  // of the next header
  std::vector<uint8_t> window_;
  uint64_t window_offset_ = 0;
};

// Writes an archive whose bytes depend on the members only (owner 0, time 0, mode 644). It appears under its
// name when finish() is called: nobody sees half a shard. Without finish() nothing is left behind.
class TarWriter {
 public:
  explicit TarWriter(std::string path);

  void add(std::string_view name, std::span<const uint8_t> contents);
  void add(std::string_view name, std::string_view contents);
  void finish();

 private:
  void add_entry(std::string_view name, std::string_view contents, char type);

  AtomicFile file_;
};

}  // namespace switchback
