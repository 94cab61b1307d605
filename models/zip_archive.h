// zip_archive.h: the members of a zip archive that are stored as they are, as PyTorch writes them.
//
//   local header + bytes, again and again ... central directory (a record per member) ... end record
//
// Read from the end: end record (or its 64-bit twin) -> central directory -> local header -> bytes. Nothing
// of the file is believed before it was held against the file's size.
#pragma once

#include <map>
#include <span>
#include <string>

#include "runtime/file.h"

namespace switchback {

class ZipArchive {
 public:
  // Errors: not a zip archive, or a damaged one.
  explicit ZipArchive(const std::string& path);

  static bool looks_like_one(std::span<const std::byte> bytes);  // by its first bytes

  const std::string& path() const { return file_.path(); }
  bool contains(const std::string& name) const { return members_.count(name) > 0; }
  // Errors: no such member; a compressed or encrypted one.
  std::span<const std::byte> at(const std::string& name) const;

  struct Member {
    uint64_t header = 0, size = 0;  // of the local header; of the bytes
    bool stored = true;
  };
  const std::map<std::string, Member>& members() const { return members_; }

 private:
  MappedFile file_;
  std::map<std::string, Member> members_;
};

}  // namespace switchback
