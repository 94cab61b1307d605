// shard_pattern.cpp: "a/{0000..0003}.tar::b/{x,y}.tar" as lists of files that exist.
#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <optional>

#include "data/input_file.h"
#include "data/shards.h"
#include "runtime/check.h"

namespace switchback {
namespace {

constexpr size_t most_paths = 50'000'000;  // a typing error in a range should not eat the memory

std::optional<int64_t> parse_integer(std::string_view text) {
  int64_t value = 0;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || parsed.ec != std::errc() || parsed.ptr != text.data() + text.size())
    return std::nullopt;
  return value;
}

// "0000..0137" or "0..9..3"; zero padding is that of the wider end.
std::optional<std::vector<std::string>> expand_range(std::string_view body) {
  const size_t dots = body.find("..");
  if (dots == std::string_view::npos) return std::nullopt;
  const std::string_view first_text = body.substr(0, dots);
  std::string_view last_text = body.substr(dots + 2), step_text = "1";
  if (const size_t more = last_text.find(".."); more != std::string_view::npos) {
    step_text = last_text.substr(more + 2);
    last_text = last_text.substr(0, more);
  }
  const auto first = parse_integer(first_text), last = parse_integer(last_text),
             step = parse_integer(step_text);
  if (!first || !last || !step) return std::nullopt;
  const auto padded = [](std::string_view t) {
    return t.size() > 1 && (t[0] == '0' || t.substr(0, 2) == "-0");
  };
  const size_t width =
      padded(first_text) || padded(last_text) ? std::max(first_text.size(), last_text.size()) : 0;
  const uint64_t stride = static_cast<uint64_t>(*step == 0 ? 1 : std::abs(*step));
  const uint64_t span = *first <= *last ? static_cast<uint64_t>(*last) - static_cast<uint64_t>(*first)
                                        : static_cast<uint64_t>(*first) - static_cast<uint64_t>(*last);
  if (span / stride >= most_paths) fail("the range {", body, "} stands for more than ", most_paths, " files");
  std::vector<std::string> names;
  for (uint64_t offset = 0; offset <= span; offset += stride) {
    const int64_t value =
        *first <= *last ? *first + static_cast<int64_t>(offset) : *first - static_cast<int64_t>(offset);
    std::string digits = std::to_string(value < 0 ? -value : value);
    const size_t sign = value < 0 ? 1 : 0;
    if (digits.size() + sign < width) digits.insert(0, width - sign - digits.size(), '0');
    names.push_back((sign ? "-" : "") + digits);
  }
  return names;
}

// Position of the brace that closes the one at `open`; npos when there is none.
size_t closing(std::string_view pattern, size_t open) {
  int depth = 0;
  for (size_t i = open; i < pattern.size(); ++i) {
    if (pattern[i] == '{') ++depth;
    if (pattern[i] == '}' && --depth == 0) return i;
  }
  return std::string_view::npos;
}

std::vector<std::string_view> split_at_top_commas(std::string_view body) {
  std::vector<std::string_view> parts;
  size_t start = 0;
  int depth = 0;
  for (size_t i = 0; i <= body.size(); ++i) {
    if (i == body.size() || (body[i] == ',' && depth == 0)) {
      parts.push_back(body.substr(start, i - start));
      start = i + 1;
    } else if (body[i] == '{') {
      ++depth;
    } else if (body[i] == '}') {
      --depth;
    }
  }
  return parts;
}

std::vector<std::string> expand(std::string_view pattern, int depth) {
  if (depth > 100) fail("the shard pattern nests or repeats braces more than 100 times");
  for (size_t open = pattern.find('{'); open != std::string_view::npos; open = pattern.find('{', open + 1)) {
    const size_t close = closing(pattern, open);
    if (close == std::string_view::npos) break;
    const std::string_view body = pattern.substr(open + 1, close - open - 1);
    std::vector<std::string> middles;
    if (const auto parts = split_at_top_commas(body); parts.size() > 1) {
      for (std::string_view part : parts) {
        for (std::string& text : expand(part, depth + 1)) middles.push_back(std::move(text));
      }
    } else if (auto range = expand_range(body)) {
      middles = std::move(*range);
    } else {
      continue;  // "{x}" stands for itself
    }
    const std::string_view before = pattern.substr(0, open);
    const std::vector<std::string> ends = expand(pattern.substr(close + 1), depth + 1);
    if (middles.size() * ends.size() > most_paths) {
      fail("the shard pattern ", pattern, " stands for more than ", most_paths, " files");
    }
    std::vector<std::string> all;
    for (const std::string& middle : middles) {
      for (const std::string& end : ends) all.push_back(concat(before, middle, end));
    }
    return all;
  }
  return {std::string(pattern)};
}

// ${NAME} -> the value of WDS_NAME; what is not set stays, for the shell of a pipe: to see.
std::string replace_variables(std::string_view pattern) {
  std::string result;
  while (true) {
    const size_t open = pattern.find("${"),
                 close = open == std::string_view::npos ? open : pattern.find('}', open);
    if (close == std::string_view::npos) return result + std::string(pattern);
    const std::string name = concat("WDS_", pattern.substr(open + 2, close - open - 2));
    const char* value = std::getenv(name.c_str());
    result += pattern.substr(0, open);
    result += value ? std::string(value) : std::string(pattern.substr(open, close - open + 1));
    pattern.remove_prefix(close + 1);
  }
}

}  // namespace

std::vector<std::string> expand_braces(std::string_view pattern) { return expand(pattern, 0); }

std::vector<std::vector<std::string>> expand_shards(std::string_view given) {
  namespace fs = std::filesystem;
  const std::string replaced = replace_variables(given);
  std::string_view patterns = replaced;
  std::vector<std::vector<std::string>> sources;
  while (true) {
    const size_t separator = patterns.find("::");
    const std::string_view pattern = patterns.substr(0, separator);
    if (pattern.empty()) fail("empty shard pattern: expected something like 'shards/{0000..0009}.tar'");
    std::vector<std::string> paths = expand_braces(pattern);
    size_t missing = 0;
    const std::string* first_missing = nullptr;
    for (const std::string& path : paths) {
      if (is_stream(path)) continue;
      std::error_code ignored;
      const fs::file_status status = fs::status(path, ignored);
      if (fs::is_directory(status)) {
        fail(path, " is a directory: name its shards, for example '",
             (fs::path(path) / "{000000..000009}.tar").string(), "'");
      }
      if (fs::exists(status)) continue;
      if (missing++ == 0) first_missing = &path;
    }
    if (missing > 0) {
      const bool glob = first_missing->find_first_of("*?[") != std::string::npos;
      fail("shard pattern '", pattern, "': ", missing, " of ", paths.size(),
           paths.size() == 1 ? " file does" : " files do", " not exist, the first is ", *first_missing,
           glob ? "; * and ? are not expanded here, write '{0000..0009}' and put quotes around it" : "");
    }
    sources.push_back(std::move(paths));
    if (separator == std::string_view::npos) break;
    patterns.remove_prefix(separator + 2);
  }
  return sources;
}

}  // namespace switchback
