// clip_eval: what a trained CLIP can do: zero-shot classification from class names and templates, and
// retrieval between images and captions (R@1, 5, 10 both ways).
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "apps/checkpoint.h"
#include "apps/evaluation_data.h"
#include "apps/flags.h"
#include "data/tokenizer.h"
#include "kernels/kernels.h"
#include "models/clip.h"
#include "models/interchange.h"
#include "runtime/file.h"
#include "runtime/parallel.h"
#include "runtime/program.h"

namespace switchback {
namespace {

int run(int argc, char** argv) {
  std::string checkpoint, model, tokenizer_path, output, device_name = "auto", precision = "auto";
  std::string sheet, queries_path;
  int64_t threads = 0, matches = 8;
  EvaluationOptions options;

  CLI::App app("clip_eval: zero-shot classification and retrieval with a trained CLIP.");
  app.get_formatter()->column_width(34);
  app.add_option("--checkpoint", checkpoint,
                 "checkpoint folder (logs/RUN/checkpoints/step_...) or safetensors file")
      ->required();
  app.add_option("--model", model, "preset or model JSON; needed for a bare safetensors file");
  app.add_option("--tokenizer", tokenizer_path, "vocabulary file or 'bytes' (default: by the model)");
  app.add_option("--retrieval-data,--val-data", options.retrieval_data,
                 "shards or CSV of image-caption pairs");
  app.add_option("--zeroshot-data", options.zero_shot_data,
                 "labelled images: shards with .cls, a CLIP_benchmark folder, a folder per class, or a list");
  app.add_option("--classes", options.class_names,
                 "class names, one per line (default: classnames.txt beside the data)");
  app.add_option(
      "--templates", options.templates,
      "templates with {c}, one per line (default: zeroshot_classification_templates.txt beside the data)");
  app.add_option("--label-key", options.label_key, "labels from this field of .json instead of .cls");
  app.add_option("--samples", options.samples, "pairs of --retrieval-data to use (default: all)")
      ->check(positive());
  app.add_option("--batch-size", options.batch_size, "samples at a time")->check(positive());
  app.add_option("--workers", options.workers, "threads that read and decode")->check(positive());
  app.add_option("--csv-separator", options.csv_separator, "CSV column separator (default: tab)");
  app.add_option("--csv-img-key", options.csv_image_key, "CSV column with the image's path");
  app.add_option("--csv-caption-key", options.csv_caption_key, "CSV column with the caption");
  app.add_option("--device", device_name, "cpu, cuda or auto (a GPU where this program finds one)")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option("--precision", precision, "fp32, amp_bf16 or auto (fp32 on a CPU, amp_bf16 on a GPU)")
      ->check(CLI::IsMember({"auto", "fp32", "amp_bf16"}));
  app.add_option("--contact-sheet", sheet, "also write an SVG picture of the best images per query");
  app.add_option(
      "--queries", queries_path,
      "queries of the contact sheet, one per line (default: captions of the first pairs, or the classes)");
  app.add_option("--matches", matches, "images per query in the contact sheet")->check(CLI::Range(1, 100));
  app.add_option("--output", output, "also write the figures to this JSON file");
  app.add_option("--threads", threads, "CPU threads of the kernels; 0: all cores")
      ->check(not_negative());
  if (!parse_flags(app, argc, argv)) return 0;
  if (threads > 0) set_cpu_threads(static_cast<int>(threads));
  if (options.retrieval_data.empty() && options.zero_shot_data.empty())
    fail("nothing to evaluate: give --retrieval-data, --zeroshot-data or both");

  const bool folder = std::filesystem::is_directory(checkpoint);
  if (!folder && model.empty() && std::filesystem::exists(checkpoint))
    fail("--checkpoint ", checkpoint, " is a bare file: say which --model it is");
  const ClipConfig config = model.empty() ? checkpoint_config(checkpoint) : find_model(model);
  if (tokenizer_path.empty() && config.text.vocab_size == 259) tokenizer_path = "bytes";
  std::shared_ptr<const Tokenizer> tokenizer =
      make_tokenizer(tokenizer_path, static_cast<int32_t>(config.text.context_length));
  if (tokenizer->vocabulary_size() > config.text.vocab_size)
    fail("the tokenizer has ", tokenizer->vocabulary_size(), " ids, the model only ", config.text.vocab_size,
         ": choose another --tokenizer");
  const EvaluationData data(options, config, tokenizer, {});

  const bool on_gpu = device_name == "cuda" || (device_name == "auto" && cuda_available());
  const Device device = on_gpu ? Device{Device::cuda, 0} : cpu_device;
  const bool wide = precision == "fp32" || (precision == "auto" && !on_gpu);
  ParameterArena arena(wide ? DType::f32 : DType::bf16, device, 0);
  Clip clip(arena, config);
  arena.allocate();
  load_clip_weights(checkpoint, arena,
                    [](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); });
  Clip::Options clip_options;
  if (folder) clip_options.normalization = checkpoint_normalization(checkpoint);

  nlohmann::ordered_json results;
  if (const auto r = data.retrieval(clip, clip_options, device)) {
    if (r->texts == r->samples)
      std::printf("retrieval, %lld pairs, loss %.4f\n", static_cast<long long>(r->samples), r->loss);
    else
      std::printf("retrieval, %lld images with %lld captions, loss %.4f\n",
                  static_cast<long long>(r->samples), static_cast<long long>(r->texts), r->loss);
    auto print = [&](const char* direction, const RetrievalMetrics& m) {
      std::printf("%s  R@1 %.4f  R@5 %.4f  R@10 %.4f  median rank %.0f  mean rank %.1f\n", direction, m.r1,
                  m.r5, m.r10, m.median_rank, m.mean_rank);
      results[direction] = {{"R@1", m.r1},
                            {"R@5", m.r5},
                            {"R@10", m.r10},
                            {"median_rank", m.median_rank},
                            {"mean_rank", m.mean_rank}};
    };
    print("image_to_text", r->image_to_text);
    print("text_to_image", r->text_to_image);
  }
  if (const auto z = data.zero_shot(clip, clip_options, device)) {
    std::printf("zero-shot, %lld images\ntop-5 %.4f  mean per class %.4f\nzero-shot top-1: %.3f\n",
                static_cast<long long>(z->samples), z->top5, z->mean_per_class_recall, z->top1);
    results["zero_shot"] = {{"top1", z->top1},
                            {"top5", z->top5},
                            {"mean_per_class", z->mean_per_class_recall},
                            {"samples", z->samples}};
  }
  if (!sheet.empty()) {
    const std::vector<std::string> queries =
        queries_path.empty() ? std::vector<std::string>() : read_lines(queries_path);
    write_file(sheet, contact_sheet("Best images per query, " + checkpoint,
                                    data.best_matches(clip, clip_options, device, queries, matches)));
    std::printf("contact sheet: %s\n", sheet.c_str());
  }
  if (!output.empty()) write_file(output, results.dump(2) + "\n");
  return 0;
}

}  // namespace
}  // namespace switchback

int main(int argc, char** argv) {
  return switchback::run_program("clip_eval", switchback::run, argc, argv);
}
