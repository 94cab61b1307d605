// Log lines, once-only warnings, JSON records.
#include <cctype>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>
#include <vector>

#include "runtime/file.h"
#include "runtime/logger.h"
#include "tests/runtime/full_disk.h"
#include "tests/runtime/temporary_folder.h"

#undef CHECK  // from here on it is doctest's
#include <doctest/doctest.h>

using namespace switchback;

namespace {

std::vector<std::string> lines_of(const std::string& path) {
  std::istringstream text(read_file(path));
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  return lines;
}

// The line after "2024-05-01,12:30:59"; the whole line when it does not begin so.
std::string without_time(const std::string& line) {
  const std::string pattern = "0000-00-00,00:00:00";
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (i >= line.size() || (pattern[i] == '0' ? !std::isdigit(line[i]) : line[i] != pattern[i])) return line;
  }
  return line.substr(pattern.size());
}

}  // namespace

TEST_CASE("logger: open_clip's prefix, appended, warnings once") {
  const TemporaryFolder folder;
  const std::string path = folder / "out.log";
  {
    Logger log(path, true);
    log.info("Start epoch 0");
    log.error("bad");
    CHECK_EQ(lines_of(path).size(), 2);  // flushed per line
    CHECK(log.warn_once("webp", "WebP images are skipped"));
    CHECK_FALSE(log.warn_once("webp", "WebP images are skipped again"));
    CHECK(log.warn_once("other", "something else"));
  }
  Logger(path, true).info("resumed");
  const auto lines = lines_of(path);
  REQUIRE_EQ(lines.size(), 5);
  CHECK_EQ(without_time(lines[0]), " | INFO | Start epoch 0");
  CHECK_EQ(without_time(lines[1]), " | ERROR | bad");
  CHECK_EQ(without_time(lines[2]), " | WARNING | WebP images are skipped");
  CHECK(contains(lines[4], "resumed"));
  CHECK(contains(error_of([&] { Logger(folder / "none/out.log"); }), "cannot write"));
}

TEST_CASE("logger: lines of several threads stay whole") {
  const TemporaryFolder folder;
  const std::string path = folder / "out.log";
  Logger log(path, true);
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) log.info("a line of some length that must not be torn apart");
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto lines = lines_of(path);
  CHECK_EQ(lines.size(), 600);
  for (const std::string& line : lines)
    REQUIRE(line.ends_with(" | INFO | a line of some length that must not be torn apart"));
}

TEST_CASE("json lines: every record parses, values come back bit for bit, non-finite numbers are null") {
  const TemporaryFolder folder;
  const std::string path = folder / "train.jsonl";
  const double third = 1.0 / 3;
  {
    JsonLines records(path);
    records.write({{"kind", "step"},
                   {"step", 7},
                   {"samples", int64_t{1} << 60},
                   {"loss", third},
                   {"small", 1e-300},
                   {"rms", std::nan("")},
                   {"norm", std::numeric_limits<double>::infinity()},
                   {"skipped", true},
                   {"text \"x\"", std::string("a\\b\n\t\x01\"ü")},
                   {"broken", std::string("\xff\xc3(\xed\xa0\x80\xf0\x9f\x98\x80\xf0\x9f")}});
    CHECK_EQ(lines_of(path).size(), 1);  // flushed
    records.write(R"({"a": 1})");
    CHECK_THROWS_AS(records.write("{\n}"), Error);
  }
  write_file(path, read_file(path) + "{\"torn\": 1");  // as a killed process leaves it
  JsonLines(path).write({{"last", 1}});
  JsonLines(path).write({{"last", 2}});
  const auto lines = lines_of(path);
  REQUIRE_EQ(lines.size(), 5);
  const auto record = nlohmann::json::parse(lines[0]);
  CHECK_EQ(record["kind"], "step");
  CHECK_EQ(record["step"], 7);
  CHECK_EQ(record["samples"], int64_t{1} << 60);
  CHECK_EQ(record["loss"].get<double>(), third);
  CHECK_EQ(record["small"].get<double>(), 1e-300);
  CHECK(record["rms"].is_null());
  CHECK(record["norm"].is_null());
  CHECK_EQ(record["skipped"], true);
  CHECK_EQ(record["text \"x\""], "a\\b\n\t\x01\"ü");
  const std::string unknown = "\xef\xbf\xbd";
  CHECK_EQ(record["broken"],
           unknown + unknown + "(" + unknown + unknown + unknown + "\xf0\x9f\x98\x80" + unknown + unknown);
  CHECK_EQ(nlohmann::json::parse(lines[1])["a"], 1);
  CHECK_FALSE(nlohmann::json::accept(lines[2]));
  CHECK_EQ(nlohmann::json::parse(lines[3])["last"], 1);
  CHECK_EQ(nlohmann::json::parse(lines[4])["last"], 2);
  CHECK(contains(error_of([&] { JsonLines(folder / "none/x"); }), "cannot write"));
}

TEST_CASE("json lines: a full disk does not end the run") {
  const TemporaryFolder folder;
  JsonLines records(folder / "train.jsonl");
  const FullDisk full(10);
  records.write({{"a", "0123456789"}});  // says so on stderr, once
  records.write({{"a", "0123456789"}});
}
