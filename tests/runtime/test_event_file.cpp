// TensorBoard event files: known checksums, what is written comes back through a parser written here from the
// format's description, and resuming.
#include "runtime/event_file.h"

#include <unistd.h>

#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "runtime/check.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

struct Folder {
  std::filesystem::path path;
  Folder() {
    static int count = 0;
    path = std::filesystem::temp_directory_path() /
           ("switchback_event_file_" + std::to_string(getpid()) + "_" + std::to_string(count++));
  }
  ~Folder() { std::filesystem::remove_all(path); }
};

std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// ---- a reader: bit by bit, sharing nothing with the writer ------------------------------------------------
uint32_t slow_crc32c(const std::string& bytes) {
  uint32_t crc = 0xffffffff;
  for (char c : bytes)
    for (int bit = 0; bit < 8; ++bit) {
      const bool odd = (crc ^ (static_cast<unsigned char>(c) >> bit)) & 1;
      crc >>= 1;
      if (odd) crc ^= 0x82f63b78;
    }
  return ~crc;
}

uint32_t slow_mask(uint32_t crc) { return ((crc >> 15) | (crc << 17)) + 0xa282ead8; }

template <class T>
T at(const std::string& bytes, size_t place) {
  REQUIRE(place + sizeof(T) <= bytes.size());
  T value;
  std::memcpy(&value, bytes.data() + place, sizeof(T));  // the test machine is little-endian
  return value;
}

std::vector<std::string> records(const std::string& file) {
  std::vector<std::string> all;
  for (size_t place = 0; place < file.size();) {
    const auto length = at<uint64_t>(file, place);
    REQUIRE(at<uint32_t>(file, place + 8) == slow_mask(slow_crc32c(file.substr(place, 8))));
    const std::string bytes = file.substr(place + 12, length);
    REQUIRE(bytes.size() == length);
    REQUIRE(at<uint32_t>(file, place + 12 + length) == slow_mask(slow_crc32c(bytes)));
    all.push_back(bytes);
    place += 12 + length + 4;
  }
  return all;
}

struct Field {
  unsigned number, wire_type;
  uint64_t integer = 0;  // of varint, fixed64, fixed32
  std::string bytes;
};

std::vector<Field> fields(const std::string& message) {
  std::vector<Field> all;
  size_t place = 0;
  auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = at<uint8_t>(message, place++);
      value |= static_cast<uint64_t>(byte & 127) << shift;
      if (byte < 128) return value;
    }
  };
  while (place < message.size()) {
    const uint64_t key = varint();
    Field f{static_cast<unsigned>(key >> 3), static_cast<unsigned>(key & 7), 0, ""};
    if (f.wire_type == 0) f.integer = varint();
    if (f.wire_type == 1) f.integer = at<uint64_t>(message, place), place += 8;
    if (f.wire_type == 5) f.integer = at<uint32_t>(message, place), place += 4;
    if (f.wire_type == 2) {
      const uint64_t length = varint();
      f.bytes = message.substr(place, length);
      REQUIRE(f.bytes.size() == length);
      place += length;
    }
    all.push_back(f);
  }
  return all;
}

struct Event {
  double wall_time = 0;
  int64_t step = 0;
  std::string file_version;
  bool start = false;
  std::vector<std::pair<std::string, float>> scalars;
};

std::vector<Event> events(const std::filesystem::path& path) {
  std::vector<Event> all;
  for (const std::string& record : records(contents(path))) {
    Event event;
    for (const Field& f : fields(record)) {
      if (f.number == 1) event.wall_time = std::bit_cast<double>(f.integer);
      if (f.number == 2) event.step = static_cast<int64_t>(f.integer);
      if (f.number == 3) event.file_version = f.bytes;
      if (f.number == 7) event.start = f.bytes == std::string("\x08\x01");
      if (f.number != 5) continue;
      for (const Field& value : fields(f.bytes)) {
        REQUIRE(value.number == 1);
        const std::vector<Field> parts = fields(value.bytes);
        REQUIRE(parts.size() == 2);
        event.scalars.emplace_back(parts[0].bytes,
                                   std::bit_cast<float>(static_cast<uint32_t>(parts[1].integer)));
      }
    }
    all.push_back(event);
  }
  return all;
}

}  // namespace

TEST_CASE("CRC-32C: published values") {
  CHECK(crc32c("") == 0);
  CHECK(crc32c("123456789") == 0xe3069283);
  CHECK(crc32c(std::string(32, '\0')) == 0x8a9136aa);   // iSCSI (RFC 3720, B.4)
  CHECK(crc32c(std::string(32, '\xff')) == 0x62a8ab43);
  CHECK(masked_crc32c("123456789") == slow_mask(slow_crc32c("123456789")));
}

TEST_CASE("event file: the version first, then what was added") {
  Folder folder;
  std::filesystem::path path;
  {
    EventFile file(folder.path / "deep" / "tensorboard");
    path = file.path();
    CHECK(path.filename().string().find("tfevents") != std::string::npos);
    file.add(0, "train/loss", 9.25);
    const std::vector<std::pair<std::string, double>> scalars{
        {"train/lr", 5e-4}, {"train/λ", -0.0}, {std::string(300, 'x'), 1e300}, {"nan", NAN}};
    file.add(int64_t{1} << 40, scalars);
    file.add(7, {});
    file.flush();
    CHECK(events(path).size() == 4);
  }
  const std::vector<Event> all = events(path);
  REQUIRE(all.size() == 4);
  CHECK(all[0].file_version == "brain.Event:2");
  CHECK(all[1].step == 0);
  CHECK(all[1].scalars == std::vector<std::pair<std::string, float>>{{"train/loss", 9.25f}});
  CHECK(all[2].step == int64_t{1} << 40);
  REQUIRE(all[2].scalars.size() == 4);
  CHECK(all[2].scalars[0] == std::pair<std::string, float>{"train/lr", 5e-4f});
  CHECK(std::signbit(all[2].scalars[1].second));
  CHECK(all[2].scalars[2] == std::pair<std::string, float>{std::string(300, 'x'), INFINITY});
  CHECK(std::isnan(all[2].scalars[3].second));
  CHECK(all[3].scalars.empty());
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  for (const Event& event : all) CHECK(std::abs(event.wall_time - now) < 60);
}

TEST_CASE("event file: resuming appends after a START, whatever a killed run left unfinished") {
  Folder folder;
  {
    EventFile file(folder.path);
    for (int64_t step : {1, 2, 3}) file.add(step, "loss", static_cast<double>(step));
  }
  const std::filesystem::path path = folder.path / "events.out.tfevents.switchback";
  const std::string whole = contents(path);
  const size_t last = 12 + records(whole).back().size() + 4;
  for (size_t cut : {size_t{0}, size_t{1}, size_t{4}, last - 12, last - 1}) {
    CAPTURE(cut);
    std::ofstream(path, std::ios::binary) << whole.substr(0, whole.size() - cut);
    {
      EventFile file(folder.path, 2);
      file.add(2, "loss", 20);
    }
    const std::vector<Event> all = events(path);
    const size_t kept = cut == 0 ? 4 : 3;
    REQUIRE(all.size() == kept + 2);
    CHECK(all[0].file_version == "brain.Event:2");
    CHECK(all[kept].start);
    CHECK(all[kept].step == 2);
    CHECK(all[kept + 1].scalars == std::vector<std::pair<std::string, float>>{{"loss", 20.0f}});
  }
}

TEST_CASE("event file: a file of another kind is not touched, a folder that cannot be is named") {
  Folder folder;
  std::filesystem::create_directories(folder.path);
  const std::filesystem::path path = folder.path / "events.out.tfevents.switchback";
  const std::string text = "these are somebody's notes\n";
  std::ofstream(path) << text;
  CHECK_THROWS_AS(EventFile{folder.path}, Error);
  CHECK(contents(path) == text);
  try {
    EventFile inside_a_file(path);
    CHECK(false);
  } catch (const Error& error) {
    CHECK(std::string(error.what()).find(path.string()) != std::string::npos);
  }
}
