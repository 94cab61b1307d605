#include "kernels/cuda/choice_file.h"

#include <algorithm>
#include <fstream>

namespace switchback::cuda {

ChoiceFile::ChoiceFile(std::filesystem::path path) : path_(std::move(path)) { read(); }

void ChoiceFile::read() {
  std::ifstream file(path_);
  if (!file) return;  // nobody has written one yet, or it cannot be read: what is known stays
  lines_.clear();
  std::string problem;
  for (int candidate = 0; file >> problem >> candidate;) lines_[problem].push_back(candidate);
}

std::optional<int> ChoiceFile::known(const std::string& problem, const Exists& exists) const {
  for (const auto* lines : {&lines_, &unwritten_}) {
    const auto found = lines->find(problem);
    if (found == lines->end()) continue;
    const auto first = std::find_if(found->second.begin(), found->second.end(), exists);
    if (first != found->second.end()) return *first;
  }
  return std::nullopt;
}

std::optional<int> ChoiceFile::find(const std::string& problem, const Exists& exists) {
  if (auto choice = known(problem, exists)) return choice;
  read();  // another process may have added it since
  return known(problem, exists);
}

int ChoiceFile::add(const std::string& problem, int candidate, const Exists& exists) {
  if (!path_.empty()) {
    std::error_code ignored;
    std::filesystem::create_directories(path_.parent_path(), ignored);
    std::ofstream(path_, std::ios::app)
        << problem + ' ' + std::to_string(candidate) + '\n';  // one write: lines stay whole
    read();
  }
  if (!known(problem, exists)) unwritten_[problem].push_back(candidate);
  return *known(problem, exists);
}

}  // namespace switchback::cuda
