#include "data/reasons.h"

#include <algorithm>
#include <cstdio>
#include <vector>

#include "runtime/check.h"

namespace switchback {
namespace {

// The count-th warning of a reason is written for 1, 2, 3, 10, 100, 1000 ...
bool worth_a_line(uint64_t count) {
  if (count <= 3) return true;
  while (count % 10 == 0) count /= 10;
  return count == 1;
}

}  // namespace

void warn_on_stderr(const std::string& line) { std::fprintf(stderr, "warning: %s\n", line.c_str()); }

void Reasons::set_warn(Warn warn) {
  std::lock_guard lock(mutex_);
  warn_ = std::move(warn);
}

void Reasons::count(const std::string& reason, const std::string& example, uint64_t times) {
  Warn warn;
  uint64_t total = 0;
  {
    std::lock_guard lock(mutex_);
    uint64_t& count = counts_[reason];
    for (uint64_t i = 1; i <= times && !warn; ++i) {
      if (worth_a_line(count + i)) warn = warn_;
    }
    total = count += times;
  }
  if (!warn) return;
  warn(concat("data: ", reason, ": ", example, total > 1 ? concat(" (", total, " so far)") : std::string()));
}

std::map<std::string, uint64_t> Reasons::counts() const {
  std::lock_guard lock(mutex_);
  return counts_;
}

std::string Reasons::summary() const {
  std::vector<std::pair<std::string, uint64_t>> sorted;
  for (const auto& entry : counts()) sorted.push_back(entry);
  std::stable_sort(sorted.begin(), sorted.end(), [](auto& a, auto& b) { return a.second > b.second; });
  std::string line;
  for (const auto& [reason, count] : sorted) line += concat(line.empty() ? "" : ", ", count, " ", reason);
  return line;
}

}  // namespace switchback
