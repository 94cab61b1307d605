// safetensors: there and back, conversions, and every kind of damage named.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/float16.h"
#include "runtime/safetensors.h"
#include "runtime/tensor.h"
#include "tests/runtime/full_disk.h"
#include "tests/runtime/temporary_folder.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

std::string file_of(const std::string& header, size_t data_bytes, uint64_t claimed = ~uint64_t{0}) {
  const uint64_t length = claimed == ~uint64_t{0} ? header.size() : claimed;
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  bytes += header;
  for (size_t i = 0; i < data_bytes; ++i) bytes += static_cast<char>(i);
  return bytes;
}

}  // namespace

TEST_CASE("safetensors: round trip of all types, a scalar, an empty tensor, and metadata") {
  const TemporaryFolder folder;
  const std::string path = folder / "a.safetensors";
  const Tensor a = Tensor::of<float>({2, 3}, {1, 2, 3, 4, 5, -6.5});
  const Tensor b = Tensor::of<int8_t>({3}, {-1, 0, 127});
  const Tensor c = Tensor::of<double>({}, {3.25});
  const Tensor d = Tensor::of<bfloat16>({1, 2, 1, 2}, {bfloat16(1), bfloat16(2), bfloat16(3), bfloat16(4)});
  const Tensor e({0, 4}, DType::f32);
  const Tensor f = Tensor::of<int64_t>({1}, {int64_t{1} << 60});
  const Tensor g = Tensor::of<int32_t>({1}, {-5});
  const Tensor h = Tensor::of<uint8_t>({1}, {255});
  const std::vector<std::pair<std::string, Tensor>> all{
      {"a", a}, {"b.weight", b}, {"logit_scale", c}, {"d", d}, {"e", e}, {"f", f}, {"g", g}, {"h", h}};
  SafetensorsWriter writer;
  for (const auto& [name, tensor] : all) writer.add(name, tensor);
  writer.set_metadata("step", "300");
  writer.set_metadata("text", "\"quotes\" and \n lines and ü");
  writer.write(path);

  const SafetensorsFile file(path);
  CHECK_EQ(file.names().size(), all.size());
  CHECK_EQ(file.metadata().at("step"), "300");
  CHECK_EQ(file.metadata().at("text"), "\"quotes\" and \n lines and ü");
  for (const auto& [name, tensor] : all) {
    CAPTURE(name);
    REQUIRE(file.contains(name));
    const StoredTensor& stored = file.at(name);
    REQUIRE_EQ(stored.bytes.size(), CView(tensor).bytes());
    CHECK_EQ(reinterpret_cast<uintptr_t>(stored.bytes.data()) % size_of(tensor.dtype()), 0);
    Tensor back(tensor.shape(), tensor.dtype());
    file.load_into(name, back);
    CHECK_EQ(std::memcmp(back.data(), tensor.data(), stored.bytes.size()), 0);
  }
  CHECK(file.at("logit_scale").shape.empty());
  CHECK_EQ(file.at("d").dtype, "BF16");
  CHECK(file.at("d").shape == std::vector<int64_t>{1, 2, 1, 2});

  // What the reference reader demands: a header padded to 8 bytes, data without gaps and nothing after them.
  const std::string bytes = read_file(path);
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  CHECK_EQ(header % 8, 0);
  CHECK_EQ(bytes[8], '{');
  size_t next = 8 + header;
  for (const std::string& name : file.names()) {
    const auto stored = file.at(name).bytes;
    CHECK_EQ(std::memcmp(stored.data(), bytes.data() + next, stored.size()), 0);
    next += stored.size();
  }
  CHECK_EQ(next, bytes.size());
}

TEST_CASE("safetensors: a file without tensors") {
  const TemporaryFolder folder;
  SafetensorsWriter().write(folder / "a");
  CHECK(SafetensorsFile(folder / "a").names().empty());
}

TEST_CASE("safetensors: conversion among floating-point types, also from unaligned data") {
  const TemporaryFolder folder;
  const std::string path = folder / "a";
  // F16 1.5, -2, 65504, smallest subnormal; after one byte of another tensor, so that it is unaligned
  std::string text = file_of(R"({"pad":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("h":{"dtype":"F16","shape":[4],"data_offsets":[1,9]},)"
                             R"("w":{"dtype":"F32","shape":[2],"data_offsets":[9,17]}})",
                             1);
  const uint16_t half[4] = {0x3e00, 0xc000, 0x7bff, 0x0001};
  const float wide[2] = {1.00390625f, -3.0e38f};  // the first is halfway between two bf16
  text.append(reinterpret_cast<const char*>(half), 8);
  text.append(reinterpret_cast<const char*>(wide), 8);
  write_file(path, text);
  const SafetensorsFile file(path);
  for (DType dtype : {DType::f64, DType::f32}) {
    Tensor t({4}, dtype);
    file.load_into("h", t);
    const auto value = [&](size_t i) {
      return dtype == DType::f64 ? t.span<double>()[i] : static_cast<double>(t.span<float>()[i]);
    };
    CHECK_EQ(value(0), 1.5);
    CHECK_EQ(value(1), -2);
    CHECK_EQ(value(2), 65504);
    CHECK_EQ(value(3), std::ldexp(1.0, -24));
  }
  Tensor b({2}, DType::bf16);
  file.load_into("w", b);
  CHECK_EQ(static_cast<float>(b.span<bfloat16>()[0]), 1.0f);
  CHECK_EQ(b.span<bfloat16>()[1].bits, bfloat16(-3.0e38f).bits);
  Tensor d({2}, DType::f64);
  file.load_into("w", d);
  CHECK_EQ(d.span<double>()[0], 1.00390625);
  Tensor integers({2}, DType::i32);
  CHECK(contains(error_of([&] { file.load_into("w", integers); }), "tensor w is F32, expected I32"));
  Tensor one({1}, DType::f32);
  CHECK(contains(error_of([&] { file.load_into("pad", one); }), "tensor pad is U8, expected F32"));
}

TEST_CASE("safetensors: a wrong shape or name is told with what would be right") {
  const TemporaryFolder folder;
  SafetensorsWriter writer;
  const Tensor a({2, 3}, DType::f32);
  writer.add("visual.conv1.weight", a);
  writer.write(folder / "a");
  const SafetensorsFile file(folder / "a");
  Tensor other({3, 2}, DType::f32);
  CHECK(contains(error_of([&] { file.load_into("visual.conv1.weight", other); }),
                 "tensor visual.conv1.weight has shape (2, 3), expected (3, 2)"));
  Tensor flat({6}, DType::f32);
  CHECK(contains(error_of([&] { file.load_into("visual.conv1.weight", flat); }), "(2, 3), expected (6)"));
  CHECK(contains(error_of([&] { file.at("visual.conv.weight"); }), "similar name is visual.conv1.weight"));
  CHECK_THROWS_AS(writer.add("visual.conv1.weight", a), Error);
  CHECK_THROWS_AS(writer.add("nothing", CView()), Error);
}

TEST_CASE("safetensors: damaged files are refused with one line that says what is wrong") {
  const TemporaryFolder folder;
  const std::string path = folder / "damaged.safetensors";
  const auto entry = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return "{\"t\":{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}}";
  };
  struct Damage {
    std::string bytes, message;
  };
  const std::vector<Damage> damages{
      {"", "0 bytes are too few"},
      {"1234567", "7 bytes are too few"},
      {file_of("{}", 0, 3), "the header claims 3 bytes, but the file has 10"},
      {file_of("{}", 0, ~uint64_t{0} - 1), "the header claims 18446744073709551614 bytes"},
      {"<html>this is an error page of some server", "not a safetensors file"},
      {file_of("{\"t\":", 0), "not valid JSON"},
      {file_of("{\"t\":\xff\xfe}", 0), "not valid JSON"},
      {file_of("[1]", 0), "not a JSON object"},
      {file_of("{\"t\":3}", 0), "tensor t: the header must give dtype, shape and data_offsets"},
      {file_of(entry("\"F32\"", "[2]", "[0,4]"), 8),
       "tensor t: F32 of shape (2) takes 8 bytes, but data_offsets [0,4] hold 4"},
      {file_of(entry("\"F32\"", "[2]", "[0,8]"), 7),
       "tensor t: data_offsets [0,8] are outside of the file, which has 7 bytes"},
      {file_of(entry("\"F32\"", "[0]", "[8,4]"), 8), "data_offsets [8,4] are outside"},
      {file_of(entry("\"F4\"", "[2]", "[0,8]"), 8), "tensor t: dtype \"F4\" is none of"},
      {file_of(entry("7", "[2]", "[0,8]"), 8), "dtype 7 is none of"},
      {file_of(entry("\"F32\"", "[-2]", "[0,8]"), 8), "must consist of whole numbers"},
      {file_of(entry("\"F32\"", "[2.0]", "[0,8]"), 8), "must consist of whole numbers"},
      {file_of(entry("\"F32\"", "2", "[0,8]"), 8), "is not a list"},
      {file_of(entry("\"F32\"", "[4294967296,4294967296]", "[0,0]"), 8), "more than 2^64"},
      {file_of(entry("\"F32\"", "[9223372036854775808,0]", "[0,0]"), 8), "more than 2^64"},
      {file_of(entry("\"F32\"", "[2]", "[0]"), 8), "must be two whole numbers"},
      {file_of(entry("\"F32\"", "[2]", "[-8,0]"), 8), "must be two whole numbers"},
      {file_of(
           R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[4],"data_offsets":[7,11]}})",
           12),
       "tensors a and b share bytes"},
      {file_of(
           R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
           2),
       "tensor a is in the header twice"},
      {file_of(R"({"__metadata__":{"step":3}})", 0), "__metadata__ step is not a text"},
  };
  for (const Damage& damage : damages) {
    write_file(path, damage.bytes);
    const std::string text = error_of([&] { SafetensorsFile file(path); });
    CHECK_MESSAGE(contains(text, path), text);
    CHECK_MESSAGE(contains(text, damage.message), text, " <- wanted: ", damage.message);
    CHECK_FALSE(contains(text, "\n"));
  }
  // Gaps are allowed, and so is every truncation an error.
  const std::string good = file_of(entry("\"U8\"", "[4]", "[2,6]"), 6);
  for (size_t size = 0; size < good.size(); ++size) {
    write_file(path, good.substr(0, size));
    CHECK_THROWS_AS(SafetensorsFile{path}, Error);
  }
  write_file(path, good);
  CHECK_EQ(std::to_integer<int>(SafetensorsFile(path).at("t").bytes[0]), 2);
}

TEST_CASE("safetensors: a full disk while saving keeps the old weights") {
  const TemporaryFolder folder;
  const std::string path = folder / "weights";
  SafetensorsWriter old;
  const Tensor one = Tensor::of<float>({1}, {7});
  old.add("w", one);
  old.write(path);
  SafetensorsWriter writer;
  const Tensor large = Tensor({100000}, DType::f32);
  std::memset(large.data(), 0, 400000);
  writer.add("w", large);
  std::string text;
  {
    const FullDisk full(200000);
    text = error_of([&] { writer.write(path); });
  }
  CHECK_MESSAGE(contains(text, "cannot write " + path), text);
  Tensor back({1}, DType::f32);
  SafetensorsFile(path).load_into("w", back);
  CHECK_EQ(back.span<float>()[0], 7);
  CHECK_EQ(folder.entries(), 1);
}

TEST_CASE("half precision: every value survives, and rounding goes to the nearest, ties to even") {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float wide = float_from_half(half);
    if (std::isnan(wide))
      REQUIRE(std::isnan(float_from_half(half_from_float(wide))));
    else
      REQUIRE_EQ(half_from_float(wide), half);
  }
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {  // between neighbours, 0x7c00 standing for 65536
    const double low = float_from_half(static_cast<uint16_t>(bits));
    const double high = bits == 0x7bff ? 65536 : float_from_half(static_cast<uint16_t>(bits + 1));
    const float middle = static_cast<float>((low + high) / 2);
    REQUIRE_EQ(half_from_float(middle), bits + (bits & 1));
    REQUIRE_EQ(half_from_float(std::nextafter(middle, 0.0f)), bits);
    REQUIRE_EQ(half_from_float(std::nextafter(middle, 1e9f)), bits + 1);
    REQUIRE_EQ(half_from_float(-middle), (bits + (bits & 1)) | 0x8000);
  }
  CHECK_EQ(half_from_float(1e30f), 0x7c00);
  CHECK_EQ(half_from_float(-std::numeric_limits<float>::infinity()), 0xfc00);
}
