// Command lines: those that open_clip's README, DataComp, MobileCLIP and a benchmark publish must parse as
// they are; what cannot be had is answered clearly.
#include <sstream>

#include "apps/locking.h"
#include "apps/open_clip_flags.h"
#include "apps/training_options.h"
#include "models/clip.h"
#include "runtime/check.h"

#undef CHECK
#include <doctest/doctest.h>

namespace switchback {
namespace {

using Words = std::vector<std::string>;

struct Parsed {
  TrainingOptions options;
  Words notices;
  bool noticed(const std::string& part) const {
    for (const std::string& notice : notices)
      if (notice.find(part) != std::string::npos) return true;
    return false;
  }
};

Parsed parse(Words words) {
  words.insert(words.begin(), "clip_train");
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  Parsed parsed;
  parsed.options = parse_training_options(static_cast<int>(pointers.size()), pointers.data(), parsed.notices);
  return parsed;
}

// A line as one types it, without quotes.
Parsed parse_line(const std::string& line) {
  std::istringstream in(line);
  Words words;
  for (std::string word; in >> word;) words.push_back(word);
  return parse(words);
}

std::string error_of(const std::string& line) {
  try {
    configured_model(parse_line(line).options);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE(
    "open_clip's README, several GPUs: the default model is a ResNet, and the answer says what to add") {
  const std::string line =
      "--train-data /data/cc12m/cc12m-train-{0000..2175}.tar --train-num-samples 10968539 --dataset-type "
      "webdataset "
      "--batch-size 320 --precision amp --workers 4 --imagenet-val /data/imagenet/validation/";
  const std::string error = error_of(line);
  CHECK(has(error, "RN50"));
  CHECK(has(error, "--model ViT-B-32"));
  const Parsed p = parse_line(line + " --model ViT-B-32");
  CHECK_EQ(p.options.train_num_samples.value(), 10968539);
  CHECK_EQ(p.options.batch_size, 320);
  CHECK_EQ(p.options.precision, "amp_bf16");
  CHECK(p.noticed("--precision amp"));
  CHECK_EQ(p.options.imagenet_val, "/data/imagenet/validation/");
}

TEST_CASE("open_clip's README, SLURM") {
  const Parsed p = parse_line(
      "--save-frequency 1 --report-to tensorboard --train-data=/data/LAION-400M/{00000..41455}.tar --warmup "
      "2000 "
      "--batch-size=256 --epochs=32 --workers=8 --model ViT-B-32 --name ViT-B-32-Vanilla --seed 0 "
      "--local-loss "
      "--gather-with-grad");
  CHECK_EQ(p.options.name, "ViT-B-32-Vanilla");
  CHECK_EQ(p.options.warmup, 2000);
  CHECK_FALSE(p.options.train_num_samples.has_value());
  CHECK_EQ(p.notices.size(), 2);
  CHECK(p.noticed("--local-loss has no effect"));
}

TEST_CASE("open_clip's README, CSV: RN50 is refused by name") {
  const std::string line =
      "--save-frequency 1 --zeroshot-frequency 1 --report-to tensorboard --train-data=/d/train.csv "
      "--val-data=/d/val.csv "
      "--csv-img-key filepath --csv-caption-key title --imagenet-val=/d/imagenet --warmup 10000 "
      "--batch-size=128 "
      "--lr=1e-3 --wd=0.1 --epochs=30 --workers=8 --model ";
  const std::string error = error_of(line + "RN50");
  CHECK(has(error, "RN50 is not supported"));
  CHECK(has(error, "ViT-B-32"));
  const Parsed p = parse_line(line + "ViT-B-16");
  CHECK_EQ(p.options.lr, 1e-3);
  CHECK_EQ(p.options.wd, 0.1);
  CHECK_EQ(p.options.csv_img_key, "filepath");
}

TEST_CASE("DataComp's train.py") {
  const Parsed p = parse_line(
      "--save-frequency 0 --ddp-static-graph --local-loss --gather-with-grad --grad-checkpointing "
      "--train-data "
      "s3/{00000000..00001287}.tar::more/{0..9}.tar --train-num-samples 1600000 --warmup 500 --dataset-type "
      "webdataset "
      "--precision amp --workers 4 --model ViT-B-32 --batch-size 512 --epochs 8 --lr 5e-4 --logs /tmp/L "
      "--name X "
      "--seed 0 --accum-freq 1 --log-every-n-steps 100 --save-most-recent --resume latest "
      "--dataset-resampled "
      "--imagenet-val /data/imagenet --beta2 0.95 --train-data-upsampling-factors 1::2 --grad-clip-norm 1 "
      "--report-to wandb");
  CHECK(p.options.save_most_recent);
  CHECK_EQ(p.options.save_frequency, 0);
  CHECK_EQ(p.options.resume, "latest");
  CHECK_EQ(p.options.beta2, 0.95);
  CHECK(p.options.dataset_resampled);
  CHECK_EQ(p.options.upsampling_factors, std::vector<double>{1, 2});
  CHECK(p.noticed("--report-to wandb"));
}

TEST_CASE("MobileCLIP's recipe: 1.e-3 is a number") {
  const Parsed p = parse_line(
      "--save-frequency 1 --local-loss --gather-with-grad --grad-checkpointing --train-data "
      "D/{00000..01023}.tar "
      "--train-num-samples 12288000 --warmup 1000 --dataset-type webdataset --precision amp --workers 4 "
      "--model ViT-B-16 "
      "--batch-size 1024 --epochs 20 --lr 1.e-3 --beta2 0.95 --wd 0.2 --grad-clip-norm 1.0 "
      "--zeroshot-frequency 1 "
      "--log-every-n-steps 20 --seed 0 --accum-freq 1 --save-most-recent --resume latest --name M "
      "--dataset-resampled");
  CHECK_EQ(p.options.lr, 1e-3);
  CHECK_EQ(p.options.grad_clip_norm.value(), 1.0);
}

TEST_CASE("a benchmark's synthetic run") {
  const Parsed p = parse_line(
      "--dataset-type synthetic --train-num-samples 3200000 --epochs 1 --batch-size=512 --model ViT-L-14 "
      "--dist-url=env:// --name test --logs logs --local-loss --gather-with-grad --grad-checkpointing "
      "--log-every-n-steps 1");
  CHECK_EQ(p.options.train_num_samples.value(), 3200000);
  CHECK(p.noticed("--dist-url has no effect"));
  CHECK_EQ(configured_model(p.options).vision.layers, 24);
  CHECK(configured_model(p.options).whole_text);  // it measures speed, on captions of two words
}

TEST_CASE("flags: prefixes, what has no effect, what is refused, what contradicts") {
  const std::string start = "--train-data a.tar --model ViT-B-32 ";
  CHECK_EQ(parse_line(start + "--train-num 100 --batch 7").options.train_num_samples.value(), 100);
  const ClipConfig plain = configured_model(parse_line(start).options),
                   whole = configured_model(parse_line(start + "--whole-text --whole-last-block").options);
  CHECK_FALSE(plain.whole_text);
  CHECK_FALSE(plain.whole_last_block);
  CHECK(whole.whole_text);
  CHECK(whole.whole_last_block);
  CHECK(has(error_of(start + "--train-n 5 --lock-i"), "ambiguous"));
  CHECK(has(error_of(start + "--horovod"), "--horovod is not supported: start one process per GPU"));
  CHECK(has(error_of(start + "--distill-model ViT-L-14"), "teacher"));
  CHECK(has(error_of(start + "--precision fp16"), "amp_bf16"));
  CHECK_EQ(parse_line(start + "--precision pure_bf16").options.precision, "amp_bf16");
  CHECK_EQ(parse_line(start + "--image-interpolation random").options.image_interpolation, "bicubic");
  CHECK(has(error_of(start + "--opt timm/lamb"), "adamw, stableadamw"));
  CHECK(has(error_of(start + "--train-data-upsampling-factors 1::2"), "--dataset-resampled"));
  CHECK(has(error_of(start + "--dataset-resampled --train-data-upsampling-factors 1::two"), "1::two"));
  CHECK(has(error_of(start + "--dataset-resampled --train-data-upsampling-factors 1::2"), "1 source"));
  CHECK(parse_line(start + "--torchcompile-mode max-autotune --coca-caption-loss-weight 2").notices.size() ==
        2);
  CHECK_EQ(parse_line(start + "--use-bnb-linear SwitchBackLinearGlobal").options.linear, "switchback");
  CHECK(has(error_of(start + "--use-bnb-linear Linear8bitLt"), "SwitchBackLinearGlobal"));
  CHECK(has(error_of(start + "--use-bnb-linear SwitchBackLinearGlobal --linear llm-int8"),
            "--linear switchback"));
  for (const OpenClipFlag& flag : open_clip_flags()) {  // every one is answered
    const std::string given = start + flag.name +
                              (flag.values == 0   ? ""
                               : flag.values == 1 ? " 1"
                                                  : " a=1 b=2");
    INFO(given);
    if (flag.kind == OpenClipFlag::refused)
      CHECK(has(error_of(given), flag.why));
    else
      CHECK(parse_line(given).noticed(flag.name));
  }
}

TEST_CASE("locked towers: open_clip's groups from the bottom to the top") {
  const ClipConfig config = find_model("tiny");  // two blocks each
  auto learning = [&](Tower tower, int64_t unlocked) {
    ParameterArena arena(DType::f32, cpu_device, 0);
    const Clip clip(arena, config);
    arena.allocate();
    lock_tower(arena, config, tower, unlocked);
    Words names;
    for (const auto& s : arena.segments()) {
      const bool image = s.name.starts_with("visual.");
      if (s.name == "logit_scale" || image != (tower == Tower::image))
        CHECK(s.parameter.needs_grad());
      else if (s.parameter.needs_grad())
        names.push_back(s.name);
    }
    return names;
  };
  CHECK(learning(Tower::image, 0).empty());
  CHECK_EQ(learning(Tower::image, 1), Words{"visual.proj"});
  CHECK_EQ(learning(Tower::text, 1), Words{"text_projection"});
  CHECK_EQ(learning(Tower::image, 2).size(), 1 + 12 + 2);
  CHECK_EQ(learning(Tower::text, 3).size(), 1 + 12 + 2 + 12);
  CHECK_EQ(learning(Tower::text, 4).size(), 1 + 12 + 2 + 12 + 2);
  CHECK_THROWS_WITH_AS(learning(Tower::text, 5), doctest::Contains("only 4 groups"), Error);
}

}  // namespace switchback
