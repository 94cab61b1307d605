// The file of timed choices among the kernels for a product (gemm_plan.h): what one process chose, the next
// one takes from there, so both get the same bits; what the file says wrongly is ignored.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "kernels/cuda/choice_file.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/gemm_bf16.cuh"
#include "kernels/cuda/gemm_plan.h"
#include "tests/cuda/testing.h"

using namespace switchback;
using namespace switchback::cuda;

namespace {

// An environment variable while it lives.
class Setting {
 public:
  Setting(const char* name, const std::string& value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before, was_set_ = true;
    setenv(name, value.c_str(), 1);
  }
  ~Setting() { was_set_ ? setenv(name_, before_.c_str(), 1) : unsetenv(name_); }

 private:
  const char* name_;
  std::string before_;
  bool was_set_ = false;
};

std::string contents(const std::filesystem::path& path) {
  std::ifstream file(path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// Products of a process that starts now: in f32, in bf16 with a bias, and, where the GPU has it, with a GELU.
std::vector<Array> products() {
  const auto& k = dynamic_cast<CudaKernels&>(kernels(gpu));
  GemmPlans plans(gpu, k.stream());
  const int64_t m = 257, n = 264, c = 712;
  std::vector<Array> results;
  for (DType dtype : {DType::f32, DType::bf16}) {
    const auto operand = [&](const char* name, Shape shape) {
      const Tensor t(shape, dtype, gpu);
      kernels(gpu).cast(t, to_device(Tensor::of<double>(shape, random(name, shape).values), gpu));
      return t;
    };
    const Tensor x = operand("x", {m, c}), w = operand("w", {n, c}), bias = operand("bias", {n}),
                 y({m, n}, dtype, gpu), u({m, n}, dtype, gpu);
    const GemmProblem problem{.m = m,
                              .n = n,
                              .k = c,
                              .b_transposed = true,
                              .inputs = dtype,
                              .output = dtype,
                              .epilogue = dtype == DType::bf16 ? GemmProblem::add_bias : GemmProblem::plain};
    CHECK(plans.multiply(problem, y.data(), x.data(), w.data(), bias.data()));
    results.push_back(as_doubles(y));
    GemmBf16 fused{m, n, c, x.data(), w.data()};
    fused.bias = bias.data(), fused.y = y.data(), fused.second = u.data(), fused.after = After::gelu;
    if (dtype == DType::bf16 && plans.multiply(fused)) {
      results.push_back(as_doubles(y));
      results.push_back(as_doubles(u));
    }
  }
  return results;
}

}  // namespace

TEST_CASE("the file of choices: the next process has the same bits and times nothing again") {
  if (no_gpu() || std::getenv("SWITCHBACK_TINY")) return;
  const auto folder = std::filesystem::temp_directory_path() / concat("switchback-choices-", getpid());
  const auto path = folder / "new folder" / "choices.txt";
  const Setting file("SWITCHBACK_GEMM_CACHE", path.string()), tuning("SWITCHBACK_GEMM_TUNING", "1");

  const std::vector<Array> first = products();
  const std::string chosen = contents(path);
  CHECK(std::ranges::count(chosen, '\n') >= 2);
  for (int times = 0; times < 3; ++times) CHECK(products() == first);
  CHECK(contents(path) == chosen);

  // Candidates that do not exist, and a file of something else
  std::istringstream lines(chosen);
  std::string wrong, problem, candidate;
  while (lines >> problem >> candidate) wrong += problem + " 987654\n";
  for (const std::string& text : {wrong, std::string("\x01\x02 not a file of choices\n\n"), std::string()}) {
    std::ofstream(path) << text;
    const std::vector<Array> results = products();
    REQUIRE(results.size() == first.size());
    for (size_t i = 0; i < first.size(); ++i) CHECK(error_of(results[i], first[i]) < 1e-2);
  }

  // Nowhere to write: choices live as long as the process.
  std::filesystem::remove_all(folder);
  std::ofstream(folder) << "a file where the folder should be";
  CHECK(products().size() == first.size());
  std::filesystem::remove(folder);

  const Setting untuned("SWITCHBACK_GEMM_TUNING", "0");
  const std::vector<Array> results = products();
  CHECK(products() == results);
  CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE(
    "the file of choices: processes that time the same problem at once agree, and candidates may vanish") {
  const auto folder = std::filesystem::temp_directory_path() / concat("switchback-agreement-", getpid());
  const auto path = folder / "choices.txt";
  const auto all = [](int) { return true; };
  const auto small = [](int candidate) { return candidate < 10; };
  {
    ChoiceFile one(path), other(path);  // both before the first line
    CHECK(!one.find("a", all));
    CHECK(!other.find("a", all));
    CHECK(one.add("a", 7, all) == 7);
    CHECK(other.add("a", 8, all) == 7);
    CHECK(one.find("a", all) == 7);
    CHECK(other.add("b", 3, all) == 3);
    CHECK(one.find("b", all) == 3);  // added since
  }
  ChoiceFile later(path);
  CHECK(later.find("a", all) == 7);
  CHECK(later.add("c", 12, all) == 12);
  CHECK(!later.find("c", small));
  CHECK(later.add("c", 4, small) == 4);
  CHECK(ChoiceFile(path).find("c", small) == 4);  // not timed again
  CHECK(ChoiceFile(path).find("c", all) == 12);
  ChoiceFile nowhere, unwritable("/proc/no/such/folder/choices.txt");
  for (ChoiceFile* file : {&nowhere, &unwritable}) {
    CHECK(!file->find("a", all));
    CHECK(file->add("a", 5, all) == 5);
    CHECK(file->find("a", all) == 5);
  }
  std::filesystem::remove_all(folder);
}
