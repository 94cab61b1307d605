// bench_loader: images per second of processor time through the whole loader (read, decode, crop, resize,
// tokenise, batch), and the memory that it holds after every pass over the data.
//
//   bench_loader SHARDS VOCABULARY [--passes 3] [--batch-size 64] [--workers 1] [--image-size 224]
//                [--fast-decode] [--max-images N]
//
// Processor time counts all threads, the system's part included, so a figure hardly depends on what else the
// machine does. bench/loader_baseline.py runs open_clip's own pipeline over the same shards beside it and
// prints the ratio.
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>

#include "apps/flags.h"
#include "data/loader.h"
#include "data/sample_source.h"
#include "data/tokenizer.h"
#include "runtime/check.h"
#include "runtime/program.h"

namespace {

using namespace switchback;

double processor_seconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double resident_mib() {
  std::ifstream in("/proc/self/statm");
  double whole = 0, resident = 0;
  in >> whole >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE)) / (1 << 20);
}

int run(int argc, char** argv) {
  std::string shards, vocabulary;
  int64_t passes = 3, batch_size = 64, workers = 1, image_size = 224, max_images = 0;
  bool fast_decode = false;
  CLI::App app("bench_loader: images per second of processor time through the whole loader");
  app.add_option("shards", shards, "as clip_train's --train-data")->required();
  app.add_option("vocabulary", vocabulary, "as clip_train's --tokenizer")->required();
  app.add_option("--passes", passes, "over the data; the fastest one counts")->check(positive());
  app.add_option("--batch-size", batch_size, "")->check(positive());
  app.add_option("--workers", workers, "threads that decode")->check(positive());
  app.add_option("--image-size", image_size, "")->check(positive());
  app.add_option("--max-images", max_images, "of a pass, for large sets");
  app.add_flag("--fast-decode", fast_decode, "as clip_train's");
  if (!parse_flags(app, argc, argv)) return 0;

  SourceOptions source_options;
  source_options.data = shards;
  const std::shared_ptr<SampleSource> source = open_source(source_options);
  int64_t images = static_cast<int64_t>(source->count());
  if (max_images > 0) images = std::min(images, max_images);
  const int64_t batches = images / batch_size;
  if (batches < 1) fail("a pass has ", images, " images, less than one batch of ", batch_size);
  LoaderOptions options;
  options.batch_size = batch_size;
  options.workers = static_cast<int>(workers);
  options.image_size = static_cast<int>(image_size);
  if (fast_decode)  // as clip_train does: the smallest crop still has the model's size
    options.decode.fast_decode_edge =
        static_cast<int64_t>(std::ceil(static_cast<double>(image_size) / std::sqrt(options.crop.scale[0])));
  Loader loader(source, make_tokenizer(vocabulary, 77), options);
  Batch batch;
  for (int i = 0; i < 2; ++i) loader.next(batch);

  double best = 0;
  for (int64_t pass = 0; pass < passes; ++pass) {
    const double start = processor_seconds();
    for (int64_t i = 0; i < batches; ++i) loader.next(batch);
    const double rate = static_cast<double>(batches * batch_size) / (processor_seconds() - start);
    best = std::max(best, rate);
    std::printf("pass %lld: %.1f images/s, %.1f MiB resident\n", static_cast<long long>(pass + 1), rate,
                resident_mib());
  }
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  std::printf("switchback: %lld images a pass, %.1f images per second of processor time, %.1f MiB at most\n",
              static_cast<long long>(batches * batch_size), best,
              static_cast<double>(usage.ru_maxrss) / 1024);
  return 0;
}

}  // namespace

int main(int argc, char** argv) { return run_program("bench_loader", run, argc, argv); }
