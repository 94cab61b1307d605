// choice_file.h: timed choices among ways to compute the same product, kept from process to process.
//
// Lines "problem candidate", added at the end. The first line of a problem whose candidate exists is the one
// that counts, for everybody: candidates differ in the order of their sums, and ranks of one run, which may
// time the same problem at the same time, and later runs should have the same bits. So whoever has added a
// line looks which one is first.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace switchback::cuda {

class ChoiceFile {
 public:
  using Exists = std::function<bool(int candidate)>;

  ChoiceFile() = default;  // without a file: choices live as long as this
  explicit ChoiceFile(std::filesystem::path path);

  // What the problem's lines say; nothing where no candidate of theirs exists.
  std::optional<int> find(const std::string& problem, const Exists& exists);
  // Adds a line. Returns the candidate that counts, which may be another process's.
  int add(const std::string& problem, int candidate, const Exists& exists);

 private:
  void read();
  std::optional<int> known(const std::string& problem, const Exists& exists) const;
  std::filesystem::path path_;
  std::map<std::string, std::vector<int>> lines_, unwritten_;
};

}  // namespace switchback::cuda
