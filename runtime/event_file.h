// event_file.h: scalar curves in the file format that TensorBoard reads.
//
// The file is a sequence of records:
//   u64 length, u32 crc(length), `length` bytes, u32 crc(bytes)          little-endian
// where crc is CRC-32C, rotated and offset ("masked") so that a checksum of checksums stays useful. Each
// record is one Event in protobuf encoding, which for scalars needs five fields and is written by hand:
//   Event   1: wall_time (double)  2: step (varint)  3: file_version (string)  5: Summary
//           7: SessionLog {1: START = 1}
//   Summary 1: Value {1: tag (string), 2: simple_value (float)}, repeated
// The first record is the file_version "brain.Event:2".
//
// Resuming: opening an existing file appends to it. A record that a killed run left unfinished is cut off
// first, and a SessionLog START at the resumed step makes TensorBoard forget what the killed run wrote beyond
// it.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace switchback {

class EventFile {
 public:
  // The file `events.out.tfevents.switchback` in `folder` (created when absent), at its end. first_step: the
  // step from which this process goes on; 0 for a fresh start. Errors: the folder or file cannot be written,
  // or the file holds something else.
  explicit EventFile(const std::filesystem::path& folder, int64_t first_step = 0);

  // One point of each curve, all in one record, stamped with the time of the call.
  void add(int64_t step, std::span<const std::pair<std::string, double>> scalars);
  void add(int64_t step, std::string_view tag, double value);
  void
  flush();  // to the system, so that TensorBoard sees it; also done on destruction. Error: the disk is full

  const std::filesystem::path& path() const { return path_; }

 private:
  void write_record(std::string_view bytes);

  std::filesystem::path path_;
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::unique_ptr<std::FILE, Close> file_;
};

// CRC-32C (Castagnoli, reflected, as in iSCSI) of the bytes, and TensorBoard's mask over it.
uint32_t crc32c(std::string_view bytes);
uint32_t masked_crc32c(std::string_view bytes);

}  // namespace switchback
