#include "data/tar.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <optional>

#include "data/input_file.h"
#include "runtime/check.h"

namespace switchback {
namespace {

constexpr uint64_t block_bytes = 512;
constexpr uint64_t longest_name = 1 << 20;  // of GNU 'L' and pax headers; a larger one is damage

uint64_t padded(uint64_t size) { return (size + block_bytes - 1) / block_bytes * block_bytes; }

// A field of octal digits between blanks and NULs, or (first bit set) a big-endian number in base 256.
std::optional<uint64_t> parse_number(std::span<const uint8_t> field) {
  uint64_t value = 0;
  if (field[0] & 0x80) {
    if (field[0] != 0x80) return std::nullopt;  // negative or absurd
    for (size_t i = 1; i < field.size(); ++i) {
      if (value >> 55) return std::nullopt;
      value = value << 8 | field[i];
    }
    return value;
  }
  size_t i = 0;
  while (i < field.size() && field[i] == ' ') ++i;
  for (; i < field.size() && field[i] != ' ' && field[i] != 0; ++i) {
    if (field[i] < '0' || field[i] > '7') return std::nullopt;
    value = value << 3 | (field[i] - '0');
  }
  return value;
}

uint64_t checksum(std::span<const uint8_t> header) {
  uint64_t sum = 0;
  for (size_t i = 0; i < block_bytes; ++i) sum += i >= 148 && i < 156 ? ' ' : header[i];
  return sum;
}

std::string text(std::span<const uint8_t> field) {
  const auto end = std::find(field.begin(), field.end(), 0);
  return std::string(field.begin(), end);
}

// What an extension header says about the next member.
struct Extension {
  bool has_name = false, has_size = false;
  std::string name;
  uint64_t size = 0;
};
// The records "LENGTH key=value\n" of a pax header that matter here. False: not a well-formed header.
bool parse_pax(std::string_view records, Extension& next) {
  while (!records.empty() && records[0] != '\0') {
    size_t digits = 0, length = 0;
    while (digits < records.size() && digits < 9 && records[digits] >= '0' && records[digits] <= '9') {
      length = length * 10 + static_cast<size_t>(records[digits++] - '0');
    }
    if (digits == 0 || length > records.size() || length < digits + 3 || records[digits] != ' ') return false;
    if (records[length - 1] != '\n') return false;
    const std::string_view record = records.substr(digits + 1, length - digits - 2);
    const size_t equals = record.find('=');
    if (equals == std::string_view::npos) return false;
    const std::string_view key = record.substr(0, equals), value = record.substr(equals + 1);
    if (key == "path") {
      next.name = std::string(value);
      next.has_name = true;
    }
    if (key == "size") {
      uint64_t n = 0;
      if (value.empty() || value.size() > 18) return false;
      for (char c : value) {
        if (c < '0' || c > '9') return false;
        n = n * 10 + static_cast<uint64_t>(c - '0');
      }
      next.size = n;
      next.has_size = true;
    }
    records.remove_prefix(length);
  }
  return true;
}

const char* guess(std::span<const uint8_t> start) {
  if (start.size() > 2 && start[0] == 0x1f && start[1] == 0x8b)
    return " (it is gzip-compressed: gunzip it first)";
  if (start.size() > 4 && start[0] == 0x28 && start[1] == 0xb5)
    return " (it is zstd-compressed: unpack it first)";
  if (start.size() > 2 && start[0] == 'P' && start[1] == 'K')
    return " (it is a zip archive: repack it as tar)";
  return "";
}

}  // namespace

TarReader::TarReader(const InputFile& file) : file_(file) {}

// The 512 bytes at `offset`, or as many as the file has.
std::span<const uint8_t> TarReader::block(uint64_t offset) {
  const bool inside = offset >= window_offset_ && offset + block_bytes <= window_offset_ + window_.size();
  if (!inside) {
    window_.resize(window_bytes);
    window_.resize(file_.read_some(offset, window_));
    window_offset_ = offset;
  }
  const size_t from = offset - window_offset_;
  return std::span<const uint8_t>(window_).subspan(from,
                                                   std::min<size_t>(block_bytes, window_.size() - from));
}

std::string TarReader::contents(uint64_t offset, uint64_t size, const char* what) {
  if (size > longest_name) {
    fail(file_.path(), ": ", what, " of ", size, " bytes at byte ", offset,
         " is not believable: the archive is damaged");
  }
  std::string bytes(size, '\0');
  file_.read(offset, {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()});
  return bytes;
}

bool TarReader::next(TarMember& member) {
  Extension extended;  // from 'L' and 'x' headers
  while (true) {
    const std::span<const uint8_t> header = block(offset_);
    if (header.empty()) return false;  // no block of zeros at the end: many writers forget it
    if (header.size() < block_bytes) {
      if (offset_ == 0) fail(file_.path(), " is not a tar archive: ", header.size(), " bytes", guess(header));
      fail(file_.path(), " is truncated: ", header.size(), " bytes of a tar header at byte ", offset_);
    }
    if (std::all_of(header.begin(), header.end(), [](uint8_t b) { return b == 0; })) return false;

    const auto sum = parse_number(header.subspan(148, 8));
    const auto header_size = parse_number(header.subspan(124, 12));
    if (!sum || *sum != checksum(header) || !header_size) {
      if (offset_ == 0) fail(file_.path(), " is not a tar archive: no tar header at byte 0", guess(header));
      fail(file_.path(), " is damaged: no tar header at byte ", offset_, " (wrong checksum)");
    }
    const char type = static_cast<char>(header[156]);
    const bool extension = type == 'L' || type == 'K' || type == 'x' || type == 'g';
    const uint64_t size = !extension && extended.has_size ? extended.size : *header_size;
    const uint64_t start = offset_ + block_bytes;
    const bool has_contents =
        type < '1' || type > '6';  // links, devices, directories have none, whatever they say
    if (has_contents && (start > file_.size() || size > file_.size() - start)) {
      fail(file_.path(), " is truncated: the member ",
           (extended.has_name ? extended.name : text(header.first(100))), " at byte ", start, " needs ", size,
           " bytes, the file has ", file_.size() - std::min(start, file_.size()), " left");
    }
    const std::string short_name = text(header.first(100));
    const bool posix = std::memcmp(header.data() + 257, "ustar\0", 6) == 0;
    const std::string prefix = posix ? text(header.subspan(345, 155)) : "";
    offset_ = start + (has_contents ? padded(size) : 0);

    if (type == 'L') {
      extended.name = contents(start, size, "a long name").c_str();  // ends at its first NUL
      extended.has_name = true;
    } else if (type == 'x') {
      if (!parse_pax(contents(start, size, "a pax header"), extended)) {
        fail(file_.path(), " is damaged: malformed pax header at byte ", start);
      }
    } else if (!extension) {
      std::string name = extended.has_name ? extended.name
                         : prefix.empty()  ? short_name
                                           : prefix + "/" + short_name;
      extended = {};
      const bool regular = type == '0' || type == '\0' || type == '7';
      if (!regular || name.empty() || name.back() == '/')
        continue;  // V7 marks a directory by the last character
      member = {std::move(name), start, size};
      return true;
    }
  }
}

TarWriter::TarWriter(std::string path) : file_(std::move(path)) {}

// Header, contents, zeros up to the next multiple of 512.
void TarWriter::add_entry(std::string_view name, std::string_view contents, char type) {
  char block[block_bytes] = {};
  std::memcpy(block, name.data(), std::min<size_t>(name.size(), 100));
  std::snprintf(block + 100, 8, "0000644");
  std::snprintf(block + 108, 8, "0000000");
  std::snprintf(block + 116, 8, "0000000");
  std::snprintf(block + 124, 12, "%011llo", static_cast<unsigned long long>(contents.size()));
  std::snprintf(block + 136, 12, "00000000000");
  block[156] = type;
  std::memcpy(block + 257, "ustar\00000", 8);
  const auto* bytes = reinterpret_cast<const uint8_t*>(block);
  std::snprintf(block + 148, 8, "%06llo", static_cast<unsigned long long>(checksum({bytes, block_bytes})));
  block[155] = ' ';
  file_.write(std::string_view(block, block_bytes));
  file_.write(contents);
  static constexpr char zeros[block_bytes] = {};
  file_.write(std::string_view(zeros, padded(contents.size()) - contents.size()));
}

void TarWriter::add(std::string_view name, std::string_view contents) {
  if (contents.size() >= (uint64_t{1} << 33))
    fail("a tar member of 8 GiB or more (", name, ") is not supported");
  if (name.size() > 100) {  // pax header "LENGTH path=NAME\n"; LENGTH counts its own digits
    const std::string rest = concat(" path=", name, "\n");
    size_t length = rest.size() + 1;
    while (rest.size() + std::to_string(length).size() != length) ++length;
    add_entry("PaxHeader", std::to_string(length) + rest, 'x');
  }
  add_entry(name, contents, '0');
}

void TarWriter::add(std::string_view name, std::span<const uint8_t> contents) {
  add(name, std::string_view(reinterpret_cast<const char*>(contents.data()), contents.size()));
}

void TarWriter::finish() {
  static constexpr char zeros[2 * block_bytes] = {};
  file_.write(std::string_view(zeros, sizeof zeros));
  file_.commit();
}

}  // namespace switchback
