// The layers are acyclic: every #include of the project goes to a folder of the same layer or of one below
// it. Read from the source, so that it cannot be forgotten.
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>

#undef CHECK
#include <doctest/doctest.h>

namespace fs = std::filesystem;

namespace {

// Folder -> folders it may include beside itself (docs/architecture.md).
const std::map<std::string, std::set<std::string>> may_include = {
    {"runtime", {}},
    {"kernels", {"runtime"}},
    {"distributed", {"runtime", "kernels"}},
    {"autograd", {"runtime", "kernels", "distributed"}},
    {"nn", {"runtime", "kernels", "distributed", "autograd"}},
    {"optim", {"runtime", "kernels", "distributed", "autograd", "nn"}},
    {"models", {"runtime", "kernels", "distributed", "autograd", "nn"}},
    {"data", {"runtime"}},
    {"apps", {"runtime", "kernels", "distributed", "autograd", "nn", "optim", "models", "data"}},
};

// The folder in `#include "folder/file.h"`; empty for any other line.
std::string included_folder(const std::string& line) {
  const size_t start = line.find_first_not_of(" \t");
  if (start == std::string::npos || line.compare(start, 8, "#include") != 0) return {};
  const size_t quote = line.find('"', start), slash = line.find('/', quote);
  if (quote == std::string::npos || slash == std::string::npos) return {};
  return line.substr(quote + 1, slash - quote - 1);
}

}  // namespace

TEST_CASE("includes go down only") {
  const fs::path root(SWITCHBACK_SOURCE);
  int files = 0;
  for (const auto& [folder, allowed] : may_include) {
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension().string();
      if (extension != ".h" && extension != ".cpp" && extension != ".cu" && extension != ".cuh") continue;
      ++files;
      std::ifstream in(entry.path());
      for (std::string line; std::getline(in, line);) {
        const std::string to = included_folder(line);
        if (to.empty() || to == folder) continue;
        INFO(entry.path().string(), ": ", line);
        CHECK(allowed.count(to) == 1);
      }
    }
  }
  CHECK_GT(files, 100);  // the folders were found
}
