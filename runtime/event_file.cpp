#include "runtime/event_file.h"

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <system_error>

#include "runtime/check.h"

namespace switchback {
namespace {

constexpr std::string_view file_version = "brain.Event:2";

// ---- little-endian numbers and protobuf fields ------------------------------------------------------------
template <class Unsigned>
void put_fixed(std::string& to, Unsigned value) {
  for (size_t i = 0; i < sizeof(Unsigned); ++i) to.push_back(static_cast<char>(value >> (8 * i) & 0xff));
}

template <class Unsigned>
Unsigned get_fixed(const char* from) {
  Unsigned value = 0;
  for (size_t i = 0; i < sizeof(Unsigned); ++i)
    value |= static_cast<Unsigned>(static_cast<unsigned char>(from[i])) << (8 * i);
  return value;
}

void put_varint(std::string& to, uint64_t value) {  // seven bits a byte, the lowest first
  for (; value >= 0x80; value >>= 7) to.push_back(static_cast<char>(value | 0x80));
  to.push_back(static_cast<char>(value));
}

enum WireType : unsigned { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

void put_key(std::string& to, unsigned field, WireType type) { put_varint(to, field << 3 | type); }

void put_bytes(std::string& to, unsigned field, std::string_view value) {
  put_key(to, field, bytes);
  put_varint(to, value.size());
  to += value;
}

std::string event_at(int64_t step) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  std::string event;
  put_key(event, 1, fixed64);
  put_fixed(event, std::bit_cast<uint64_t>(now.count()));
  put_key(event, 2, varint);
  put_varint(event, static_cast<uint64_t>(step));
  return event;
}

// ---- CRC-32C, a byte at a time: a few hundred bytes a step ------------------------------------------------
constexpr std::array<uint32_t, 256> crc_table = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit) remainder = remainder >> 1 ^ (remainder & 1 ? 0x82f63b78u : 0u);
    table[byte] = remainder;
  }
  return table;
}();

// ---- what is there already --------------------------------------------------------------------------------
constexpr size_t header_size = 12, trailer_size = 4;

// The length of the whole records at the start of the file; the rest is the torn end of a killed run.
uintmax_t intact_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const uintmax_t size = std::filesystem::file_size(path);
  uintmax_t intact = 0;
  std::string header(header_size, '\0');
  while (file.read(header.data(), header_size)) {
    const auto length = get_fixed<uint64_t>(header.data());
    if (masked_crc32c({header.data(), 8}) != get_fixed<uint32_t>(header.data() + 8)) break;
    if (length > size - intact - header_size) break;  // before anything of that size is allocated
    std::string rest(length + trailer_size, '\0');
    if (!file.read(rest.data(), static_cast<std::streamsize>(rest.size()))) break;
    if (masked_crc32c({rest.data(), length}) != get_fixed<uint32_t>(rest.data() + length)) break;
    intact += header_size + rest.size();
  }
  return intact;
}

}  // namespace

uint32_t crc32c(std::string_view data) {
  uint32_t crc = 0xffffffffu;
  for (char c : data) crc = crc >> 8 ^ crc_table[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  return ~crc;
}

uint32_t masked_crc32c(std::string_view data) { return std::rotr(crc32c(data), 15) + 0xa282ead8u; }

EventFile::EventFile(const std::filesystem::path& folder, int64_t first_step)
    : path_(folder / "events.out.tfevents.switchback") {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail("cannot create the folder ", folder.string(), " for TensorBoard events: ", error.message());

  uintmax_t intact = 0;
  if (std::filesystem::exists(path_)) {
    intact = intact_bytes(path_);
    const uintmax_t size = std::filesystem::file_size(path_);
    // A torn end is at most one record; a file without a single record of ours is somebody else's.
    if (intact == 0 && size >= header_size)
      fail(path_.string(), " exists and is no TensorBoard event file: move it away or choose another --name");
    if (intact < size) std::filesystem::resize_file(path_, intact, error);
    if (error) fail("cannot cut the unfinished record off ", path_.string(), ": ", error.message());
  }
  file_.reset(std::fopen(path_.c_str(), "ab"));
  if (!file_) fail("cannot write ", path_.string(), ": ", std::strerror(errno));
  if (intact == 0) {
    std::string event = event_at(0);
    put_bytes(event, 3, file_version);
    write_record(event);
  }
  if (first_step > 0) {
    std::string event = event_at(first_step), session_log;
    put_key(session_log, 1, varint);
    put_varint(session_log, 1);  // START
    put_bytes(event, 7, session_log);
    write_record(event);
  }
  flush();
}

void EventFile::add(int64_t step, std::span<const std::pair<std::string, double>> scalars) {
  std::string summary;
  for (const auto& [tag, number] : scalars) {
    std::string value;
    put_bytes(value, 1, tag);
    put_key(value, 2, fixed32);
    put_fixed(value, std::bit_cast<uint32_t>(static_cast<float>(number)));
    put_bytes(summary, 1, value);
  }
  std::string event = event_at(step);
  put_bytes(event, 5, summary);
  write_record(event);
}

void EventFile::add(int64_t step, std::string_view tag, double value) {
  const std::pair<std::string, double> scalar{tag, value};
  add(step, {&scalar, 1});
}

void EventFile::write_record(std::string_view data) {
  std::string record;
  put_fixed(record, static_cast<uint64_t>(data.size()));
  put_fixed(record, masked_crc32c({record.data(), 8}));
  record += data;
  put_fixed(record, masked_crc32c(data));
  if (std::fwrite(record.data(), 1, record.size(), file_.get()) != record.size())
    fail("cannot write ", path_.string(), ": ", std::strerror(errno));
}

void EventFile::flush() {
  if (std::fflush(file_.get()) != 0) fail("cannot write ", path_.string(), ": ", std::strerror(errno));
}

}  // namespace switchback
