#include "models/zip_archive.h"

#include <algorithm>

#include "runtime/check.h"

namespace switchback {
namespace {

using Bytes = std::span<const std::byte>;

uint64_t number(Bytes bytes, uint64_t at, size_t size) {  // little endian; the caller has checked the bounds
  uint64_t value = 0;
  for (size_t i = 0; i < size; ++i) value |= std::to_integer<uint64_t>(bytes[at + i]) << 8 * i;
  return value;
}

constexpr uint32_t local_magic = 0x04034b50, central_magic = 0x02014b50, end_magic = 0x06054b50;
constexpr uint32_t end64_magic = 0x06064b50, locator64_magic = 0x07064b50;
constexpr uint64_t in_64_bits = 0xffffffff;  // the value stands in the 64-bit field
constexpr uint64_t most_members = 10'000'000;

struct Directory {
  uint64_t offset = 0, size = 0, members = 0;
};

Directory find_directory(const std::string& path, Bytes bytes) {
  // The end record has 22 bytes and a comment of at most 65535.
  const uint64_t first = bytes.size() > 22 + 65535 ? bytes.size() - 22 - 65535 : 0;
  for (uint64_t at = bytes.size() < 22 ? 0 : bytes.size() - 21; at-- > first;) {
    if (number(bytes, at, 4) != end_magic) continue;
    Directory d{number(bytes, at + 16, 4), number(bytes, at + 12, 4), number(bytes, at + 10, 2)};
    if (at >= 20 && number(bytes, at - 20, 4) == locator64_magic) {
      const uint64_t end64 = number(bytes, at - 12, 8);
      if (end64 > bytes.size() || bytes.size() - end64 < 56 || number(bytes, end64, 4) != end64_magic)
        fail(path, ": damaged zip archive (its 64-bit end record is not where it should be)");
      d = {number(bytes, end64 + 48, 8), number(bytes, end64 + 40, 8), number(bytes, end64 + 32, 8)};
    }
    if (d.offset > bytes.size() || bytes.size() - d.offset < d.size)
      fail(path, ": damaged zip archive (its directory lies outside of the file)");
    if (d.members > most_members || d.members * 46 > d.size)
      fail(path, ": damaged zip archive (a directory of ", d.size, " bytes cannot have ", d.members,
           " members)");
    return d;
  }
  fail(path, ": not a zip archive, or one whose end is missing (truncated?)");
}

// The 64-bit values of a directory record, in the order of the fields that say "in 64 bits".
void read_extra(Bytes extra, uint64_t& size, uint64_t& compressed, uint64_t& header) {
  for (uint64_t at = 0; at + 4 <= extra.size();) {
    const uint64_t id = number(extra, at, 2), length = number(extra, at + 2, 2);
    at += 4;
    if (length > extra.size() - at) return;
    if (id == 1) {
      uint64_t from = at;
      for (uint64_t* value : {&size, &compressed, &header}) {
        if (*value != in_64_bits) continue;
        if (from + 8 > at + length) return;
        *value = number(extra, from, 8);
        from += 8;
      }
      return;
    }
    at += length;
  }
}

}  // namespace

bool ZipArchive::looks_like_one(Bytes bytes) {
  return bytes.size() >= 4 && number(bytes, 0, 4) == local_magic;
}

ZipArchive::ZipArchive(const std::string& path) : file_(path) {
  const Bytes bytes = file_.bytes();
  const Directory directory = find_directory(path, bytes);
  const Bytes records = bytes.subspan(directory.offset, directory.size);
  uint64_t at = 0;
  for (uint64_t i = 0; i < directory.members; ++i) {
    if (records.size() - at < 46 || number(records, at, 4) != central_magic)
      fail(path, ": damaged zip archive (record ", i, " of ", directory.members, " of its directory)");
    const uint64_t flags = number(records, at + 8, 2), method = number(records, at + 10, 2);
    uint64_t compressed = number(records, at + 20, 4), size = number(records, at + 24, 4);
    const uint64_t name_size = number(records, at + 28, 2), extra_size = number(records, at + 30, 2);
    const uint64_t comment_size = number(records, at + 32, 2);
    uint64_t header = number(records, at + 42, 4);
    if (records.size() - at - 46 < name_size + extra_size + comment_size)
      fail(path, ": damaged zip archive (record ", i, " of its directory is cut off)");
    const Bytes name = records.subspan(at + 46, name_size);
    read_extra(records.subspan(at + 46 + name_size, extra_size), size, compressed, header);
    at += 46 + name_size + extra_size + comment_size;
    const bool stored = method == 0 && (flags & 1) == 0 && compressed == size;
    members_[std::string(reinterpret_cast<const char*>(name.data()), name.size())] = {header, size, stored};
  }
}

std::span<const std::byte> ZipArchive::at(const std::string& name) const {
  const auto found = members_.find(name);
  if (found == members_.end()) fail(path(), " has no member ", name);
  const Member& member = found->second;
  if (!member.stored)
    fail(path(), ": member ", name, " is compressed or encrypted, which PyTorch does not do");
  const Bytes bytes = file_.bytes();
  const auto bad = [&] {
    fail(path(), ": damaged zip archive (member ", name, " lies outside of the file)");
  };
  if (member.header > bytes.size() || bytes.size() - member.header < 30) bad();
  if (number(bytes, member.header, 4) != local_magic) bad();
  const uint64_t skip = 30 + number(bytes, member.header + 26, 2) + number(bytes, member.header + 28, 2);
  if (bytes.size() - member.header < skip || bytes.size() - member.header - skip < member.size) bad();
  return bytes.subspan(member.header + skip, member.size);
}

}  // namespace switchback
