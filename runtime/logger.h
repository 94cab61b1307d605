// logger.h: what a program says, for people (Logger) and for programs (JsonLines).
//
// Both may be used from several threads. A disk that fills up must not end a run of days: a line that cannot
// be written is reported once on stderr and the run goes on.
#pragma once

#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>

namespace switchback {

// Lines as open_clip writes them, "2024-05-01,12:30:59 | INFO | message" in local time, to stderr and to a
// file.
class Logger {
 public:
  // path: appended to; empty: stderr only. quiet: nothing goes to stderr. Error: the file cannot be opened.
  explicit Logger(const std::string& path = "", bool quiet = false);
  ~Logger();
  Logger(const Logger&) = delete;
  Logger& operator=(const Logger&) = delete;

  void info(std::string_view message) { line("INFO", message); }
  void warning(std::string_view message) { line("WARNING", message); }
  void error(std::string_view message) { line("ERROR", message); }
  // The first time for this key: a warning. Later ones are dropped. True when it was said.
  bool warn_once(std::string_view key, std::string_view message);

 private:
  void line(const char* level, std::string_view message);

  std::mutex mutex_;
  std::string path_;
  std::FILE* file_ = nullptr;
  bool quiet_ = false, complained_ = false;
  std::set<std::string, std::less<>> said_;
};

using JsonValue = std::variant<std::string, double, int64_t, bool>;

// One field of a record, from any C++ number or text.
struct JsonField {
  std::string name;
  JsonValue value;
  JsonField(std::string_view n, std::string_view v) : name(n), value(std::string(v)) {}
  JsonField(std::string_view n, const char* v) : JsonField(n, std::string_view(v)) {}
  JsonField(std::string_view n, bool v) : name(n), value(v) {}
  JsonField(std::string_view n, double v) : name(n), value(v) {}
  template <class Integer>
    requires std::is_integral_v<Integer>
  JsonField(std::string_view n, Integer v) : name(n), value(static_cast<int64_t>(v)) {}
};

// A .jsonl file: one record a line, appended and flushed at once. JSON has no NaN and no infinity: they
// become null. Doubles are written with as many digits as bring back the same bits. A line that a killed run
// left half written is closed when the file is opened again, so that it spoils no other.
class JsonLines {
 public:
  explicit JsonLines(const std::string& path);  // error: the file cannot be opened
  ~JsonLines();
  JsonLines(const JsonLines&) = delete;
  JsonLines& operator=(const JsonLines&) = delete;

  void write(std::initializer_list<JsonField> record);
  void write(std::string_view json);  // a record that is JSON already, in one line

 private:
  std::mutex mutex_;
  std::string path_;
  std::FILE* file_ = nullptr;
  bool complained_ = false;
};

}  // namespace switchback
