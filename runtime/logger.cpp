#include "runtime/logger.h"

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <ctime>
#include <utility>

#include "runtime/check.h"

namespace switchback {
namespace {

std::FILE* open_for_append(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "ae");
  if (!file) fail("cannot write ", path, ": ", std::strerror(errno));
  return file;
}

// True when the line is in the system's hands.
bool append(std::FILE* file, std::string_view line) {
  return std::fwrite(line.data(), 1, line.size(), file) == line.size() && std::fflush(file) == 0;
}

void complain_once(bool& complained, const std::string& path) {
  if (!std::exchange(complained, true)) {
    std::fprintf(stderr, "cannot write %s: %s; going on without it\n", path.c_str(), std::strerror(errno));
  }
}

std::string timestamp() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char text[32];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%d,%H:%M:%S", &local)};
}

// Quotes, backslashes and control characters escaped; bytes that are not UTF-8 become U+FFFD.
std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (size_t i = 0; i < text.size();) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (c < 0x80) {
      if (c == '"' || c == '\\') {
        out += '\\';
        out += static_cast<char>(c);
      } else if (c == '\n') {
        out += "\\n";
      } else if (c == '\t') {
        out += "\\t";
      } else if (c < 0x20) {
        char code[8];
        std::snprintf(code, sizeof code, "\\u%04x", c);
        out += code;
      } else {
        out += static_cast<char>(c);
      }
      ++i;
      continue;
    }
    const size_t length = c >= 0xc2 && c < 0xe0   ? 2
                          : c >= 0xe0 && c < 0xf0 ? 3
                          : c >= 0xf0 && c < 0xf5 ? 4
                                                  : 0;
    uint32_t code = length == 2 ? c & 0x1fu : length == 3 ? c & 0x0fu : c & 0x07u;
    bool good = length > 0 && i + length <= text.size();
    for (size_t k = 1; good && k < length; ++k) {
      const unsigned char next = static_cast<unsigned char>(text[i + k]);
      good = (next & 0xc0) == 0x80;
      code = code << 6 | (next & 0x3fu);
    }
    // neither overlong, nor half of a surrogate pair, nor beyond Unicode
    good = good && !(length == 3 && (code < 0x800 || (code >= 0xd800 && code < 0xe000))) &&
           !(length == 4 && (code < 0x10000 || code > 0x10ffff));
    out += good ? text.substr(i, length) : std::string_view("\xef\xbf\xbd");
    i += good ? length : 1;
  }
  return out + '"';
}

struct Text {
  std::string operator()(const std::string& value) const { return quoted(value); }
  std::string operator()(bool value) const { return value ? "true" : "false"; }
  std::string operator()(int64_t value) const { return std::to_string(value); }
  std::string operator()(double value) const {
    if (!std::isfinite(value)) return "null";
    char text[32];  // the shortest digits that give the same double back
    return {text, std::to_chars(text, text + sizeof text, value).ptr};
  }
};

}  // namespace

// ---- Logger ----

Logger::Logger(const std::string& path, bool quiet) : path_(path), quiet_(quiet) {
  if (!path.empty()) file_ = open_for_append(path);
}

Logger::~Logger() {
  if (file_) std::fclose(file_);
}

void Logger::line(const char* level, std::string_view message) {
  const std::string text = concat(timestamp(), " | ", level, " | ", message, '\n');
  const std::lock_guard lock(mutex_);
  if (!quiet_) std::fwrite(text.data(), 1, text.size(), stderr);
  if (file_ && !append(file_, text)) complain_once(complained_, path_);
}

bool Logger::warn_once(std::string_view key, std::string_view message) {
  {
    const std::lock_guard lock(mutex_);
    if (!said_.emplace(key).second) return false;
  }
  warning(message);
  return true;
}

// ---- JsonLines ----

JsonLines::JsonLines(const std::string& path) : path_(path), file_(open_for_append(path)) {
  if (std::FILE* reader = std::fopen(path.c_str(), "rbe")) {
    if (std::fseek(reader, -1, SEEK_END) == 0 && std::fgetc(reader) != '\n') append(file_, "\n");
    std::fclose(reader);
  }
}

JsonLines::~JsonLines() { std::fclose(file_); }

void JsonLines::write(std::initializer_list<JsonField> record) {
  std::string line = "{";
  for (const JsonField& field : record) {
    if (line.size() > 1) line += ", ";
    line += quoted(field.name) + ": " + std::visit(Text{}, field.value);
  }
  write(line + "}");
}

void JsonLines::write(std::string_view json) {
  CHECK(json.find('\n') == json.npos, path_, ": a record must be one line");
  const std::string line = std::string(json) + '\n';
  const std::lock_guard lock(mutex_);
  if (!append(file_, line)) complain_once(complained_, path_);
}

}  // namespace switchback
