// reasons.h: what was left out of the data, counted by reason and never silently.
//
// count() adds one to a reason and warns about it: the first three times with the example, then at 10, 100,
// 1000 ... so that a data set with a million broken images writes eight lines. All functions may be called
// from any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>

namespace switchback {

using Warn = std::function<void(const std::string& line)>;
void warn_on_stderr(const std::string& line);

class Reasons {
 public:
  explicit Reasons(Warn warn = {}) : warn_(std::move(warn)) {}

  void set_warn(Warn warn);
  // reason: "image does not decode"; example: where and why, "000003.tar: 000000012.jpg: premature end".
  void count(const std::string& reason, const std::string& example, uint64_t times = 1);

  std::map<std::string, uint64_t> counts() const;
  std::string summary() const;  // "12 image does not decode, 3 no caption"; empty when nothing was counted

 private:
  mutable std::mutex mutex_;
  Warn warn_;
  std::map<std::string, uint64_t> counts_;
};

}  // namespace switchback
