// What README and --help promise of each flag of training, seen from outside: those that change training do,
// each in its own way; those that only cost time or memory change no bit; numbers that cannot be are refused
// by name.
#include <map>

#include "tests/apps/workshop.h"

using namespace switchback;

namespace {

std::string joined(const Words& words) {
  std::string line;
  for (const std::string& word : words) line += (line.empty() ? "" : " ") + word;
  return line;
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// The weights after some steps; every run has a folder of its own.
std::string trained(Workshop& w, const Words& flags, int steps = 6) {
  const std::string name = "run" + std::to_string(w.runs);
  Words all{"--max-steps", std::to_string(steps)};
  all.insert(all.end(), flags.begin(), flags.end());
  const Outcome outcome = w.train(name, all);
  INFO(joined(flags), "\n", outcome.output);
  REQUIRE_EQ(outcome.status, 0);
  return w.weights(name, steps);
}

// A shard whose pairs have two pictures and captions of several kinds.
void write_rich_shard(const std::string& path) {
  TarWriter tar(path);
  for (int i = 0; i < 24; ++i) {
    const std::string key = std::to_string(i), number = std::to_string(i);
    tar.add(key + ".png", noise_png(static_cast<uint64_t>(i), 20 + i, 20));  // 400 to 860 pixels
    tar.add(key + ".other.png", noise_png(static_cast<uint64_t>(100 + i), 20, 20));
    tar.add(key + ".txt", "number " + number);
    tar.add(key + ".words", "words " + number);
    tar.add(key + ".json", "{\"title\":\"title " + number + "\",\"alt\":\"alternative " + number +
                               "\",\"group\":" + std::to_string(i % 3) + "}");
  }
  tar.finish();
}

}  // namespace

TEST_CASE("each of these flags changes what is trained, in a way of its own") {
  Workshop w;
  const Words cooldown{"--lr-scheduler", "const-cooldown", "--epochs", "1", "--epochs-cooldown", "1"};
  const Words slow{"--lr", "1e-5", "--warmup", "0"};  // gradients do not shrink: updates are clipped
  const auto with = [](Words words, const Words& more) {
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  const std::vector<Words> all = {
      {},
      {"--beta1", "0.5"},
      {"--beta2", "0.5"},
      {"--beta2-lambda", "0.8"},
      {"--eps", "1e-2"},
      {"--wd", "0"},
      {"--wd-groups", "v3"},
      {"--wd-exclude", "visual.conv1.weight"},
      {"--grad-clip-norm", "0.01"},
      {"--lr", "2e-3"},
      {"--warmup", "4"},
      {"--lr-scheduler", "const"},
      {"--skip-scheduler"},
      slow,
      with(slow, {"--opt", "stableadamw"}),
      with(slow, {"--opt", "stableadamw", "--decay-clipped-rate"}),
      cooldown,
      with(cooldown, {"--lr-cooldown-end", "5e-4"}),
      with(cooldown, {"--lr-cooldown-power", "2"}),
      {"--force-quick-gelu"},
      {"--force-image-size", "24"},
      {"--force-context-length", "9"},
      {"--force-patch-dropout", "0"},
      {"--layer-scale", "0.1"},
      {"--siglip"},
      {"--linear", "switchback"},
      {"--linear-image", "switchback"},
      {"--linear-text", "switchback"},
      {"--linear", "switchback-q"},
      {"--linear", "llm-int8"},
      {"--linear", "fp8-sim"},
      {"--precision", "amp_bf16"},
      {"--image-mean", "0.1", "0.2", "0.3"},
      {"--image-std", "0.1", "0.2", "0.3"},
      {"--aug-cfg", "scale=(0.2,0.3)"},
      {"--aug-cfg", "ratio=(0.5,0.6)"},
      {"--aug-cfg", "gray_scale_prob=1"},
      {"--aug-cfg", "color_jitter=(0.4,0.4,0.4,0.1)"},
      {"--aug-cfg", "color_jitter=(0.4,0.4,0.4,0.1)", "color_jitter_prob=0.2"},
      {"--shuffle-window", "3"},
      {"--seed", "1"},
      {"--lock-image"},
      {"--lock-image", "--lock-image-unlocked-groups", "1"},
      {"--lock-text"},
      {"--lock-text", "--lock-text-unlocked-layers", "2"},
  };
  std::map<std::string, std::string> flags_of;  // by weights
  for (const Words& flags : all) {
    const auto [same, is_new] = flags_of.emplace(trained(w, flags), joined(flags));
    CHECK_MESSAGE(is_new, joined(flags), ": the weights of '", same->second, "'");
  }
}

TEST_CASE("flags that cost time or memory change no bit") {
  Workshop w;
  for (const Words& start : {Words{}, Words{"--layer-scale", "0.1", "--precision", "amp_bf16"}}) {
    const std::string expected = trained(w, start);
    for (const Words& flags : {Words{"--recompute", "gelu"},
                               {"--recompute", "gelu:1"},
                               {"--recompute", "cheap"},
                               {"--recompute", "blocks"},
                               {"--grad-checkpointing"},
                               {"--eager"},
                               {"--workers", "5"},
                               {"--threads", "3"},
                               {"--save-every-n-steps", "1", "--keep-last-k", "2"},
                               {"--log-every-n-steps", "5"}}) {
      Words both = start;
      both.insert(both.end(), flags.begin(), flags.end());
      CHECK_MESSAGE(trained(w, both) == expected, joined(both));
    }
  }
}

TEST_CASE("which pictures and captions of a shard are used") {
  Workshop w;
  write_rich_shard(w.file("rich.tar"));
  const auto train = [&](const Words& flags) {
    Words all{"--train-data", w.file("rich.tar")};
    all.insert(all.end(), flags.begin(), flags.end());
    return trained(w, all, 3);
  };
  const std::string usual = train({});
  CHECK(train({"--image-key", "png;other.png"}) == usual);
  CHECK(train({"--text-key", "missing;txt"}) == usual);
  const std::vector<std::string> others = {
      usual,
      train({"--image-key", "other.png;png"}),
      train({"--text-key", "words"}),
      train({"--json-text-key", "title"}),
      train({"--json-text-key", "alt"}),
      train({"--json-text-key", "title", "alt"}),
  };
  for (size_t i = 0; i < others.size(); ++i)
    for (size_t j = 0; j < i; ++j) CHECK_MESSAGE(others[i] != others[j], i, " and ", j);
  CHECK(train({"--json-text-key", "title", "alt", "--json-text-key-probs", "1", "0"}) == others[3]);
  CHECK(train({"--json-text-key", "title", "alt", "--json-text-key-probs", "0", "7"}) == others[4]);
}

TEST_CASE("pictures larger than --max-image-pixels are left out, and counted") {
  Workshop w;
  write_rich_shard(w.file("rich.tar"));
  const Words data{"--train-data", w.file("rich.tar"), "--max-steps", "3", "--max-image-pixels"};
  const auto with = [&](const char* pixels) {
    Words words = data;
    words.push_back(pixels);
    return words;
  };
  const Outcome some = w.train("some", with("620"));  // 20 wide: the first twelve fit
  INFO(some.output);
  CHECK_EQ(some.status, 0);
  CHECK(has(some.output, "pixels"));
  CHECK_FALSE(has(w.train("all", with("860")).output, "left out"));
  check_fails(w.train("none", with("100")), {"none of the 24 samples"});
}

TEST_CASE("evaluation: how many samples, labels from .json, other resizes") {
  Workshop w;
  write_rich_shard(w.file("rich.tar"));
  const auto train = [&](const std::string& name, const Words& flags) {
    Words all{"--max-steps", "1", "--val-data", w.file("rich.tar")};
    all.insert(all.end(), flags.begin(), flags.end());
    const Outcome outcome = w.train(name, all);
    INFO(outcome.output);
    CHECK_EQ(outcome.status, 0);
    const size_t start = outcome.output.find("Eval Epoch");
    REQUIRE(start != std::string::npos);
    const size_t end = outcome.output.find("\t|", start);  // a time follows
    return outcome.output.substr(start, end - start);
  };
  const std::string whole = train("whole", {});
  CHECK(train("more", {"--val-num-samples", "24"}) == whole);
  const std::string four = train("four", {"--val-num-samples", "4"});
  CHECK(has(four, "R@5: 1.0000"));  // of four, the right one is always among five
  CHECK_FALSE(has(whole, "R@5: 1.0000"));
  // Most pictures are higher than wide: cut, squeezed or with borders they are different pictures.
  const std::string loss = "clip_val_loss: ";
  const auto loss_of = [&](const std::string& line) { return line.substr(line.find(loss) + loss.size(), 6); };
  const std::vector<std::string> losses = {loss_of(whole),
                                           loss_of(train("s", {"--image-resize-mode", "squash"})),
                                           loss_of(train("l", {"--image-resize-mode", "longest"})),
                                           loss_of(train("b", {"--image-interpolation", "bilinear"}))};
  for (size_t i = 0; i < losses.size(); ++i)
    for (size_t j = 0; j < i; ++j) CHECK_MESSAGE(losses[i] != losses[j], i, " and ", j);
  CHECK(loss_of(train("d", {"--image-resize-mode", "shortest", "--image-interpolation", "bicubic"})) ==
        losses[0]);

  write_file(w.file("classes.txt"), "red\ngreen\nblue\n");
  write_file(w.file("templates.txt"), "a {c} thing\n");
  const std::string labelled =
      train("zero", {"--zeroshot-data", w.file("rich.tar"), "--zeroshot-label-key", "group",
                     "--zeroshot-classes", w.file("classes.txt"), "--zeroshot-templates",
                     w.file("templates.txt"), "--zeroshot-frequency", "1"});
  CHECK(has(labelled, "top1"));
}

TEST_CASE("--delete-previous-checkpoint keeps the last one only") {
  Workshop w;
  REQUIRE_EQ(w.train("kept", {"--save-every-n-steps", "2"}).status, 0);
  REQUIRE_EQ(w.train("deleted", {"--save-every-n-steps", "2", "--delete-previous-checkpoint"}).status, 0);
  const auto count = [&](const std::string& name) {
    int folders = 0;
    for (const auto& entry : fs::directory_iterator(w.path + "/logs/" + name + "/checkpoints"))
      folders += entry.path().filename().string().starts_with("step_");
    return folders;
  };
  CHECK_EQ(count("kept"), 3);
  CHECK_EQ(count("deleted"), 1);
  CHECK(w.weights("deleted", 6) == w.weights("kept", 6));
}

TEST_CASE("numbers that cannot be are refused in one line that names the flag") {
  Workshop w;
  const std::vector<Words> all = {
      {"--accum-freq", "0"},
      {"--epochs", "0"},
      {"--max-steps", "0"},
      {"--workers", "-1"},
      {"--workers", "1000000"},
      {"--shuffle-window", "0"},
      {"--train-num-samples", "0"},
      {"--val-num-samples", "0"},
      {"--warmup", "-1"},
      {"--lr", "-1"},
      {"--lr", "nan"},
      {"--lr", "inf"},
      {"--wd", "-0.1"},
      {"--wd", "inf"},
      {"--eps", "0"},
      {"--eps", "nan"},
      {"--beta1", "1"},
      {"--beta1", "nan"},
      {"--beta2", "-0.1"},
      {"--beta2-lambda", "-1"},
      {"--beta2-lambda", "nan"},
      {"--grad-clip-norm", "-1"},
      {"--grad-clip-norm", "nan"},
      {"--log-every-n-steps", "0"},
      {"--save-frequency", "-1"},
      {"--save-every-n-steps", "0"},
      {"--eval-every-n-steps", "0"},
      {"--keep-last-k", "0"},
      {"--val-frequency", "-1"},
      {"--zeroshot-frequency", "-1"},
      {"--threads", "-1"},
      {"--threads", "100000"},
      {"--nproc", "0"},
      {"--zero", "2"},
      {"--reduce", "fp16"},
      {"--overlap-reduce", "maybe"},
      {"--optimizer-in-backward", "maybe"},
      {"--optimizer-in-backward", "on", "--accum-freq", "2"},
      {"--optimizer-in-backward", "on", "--grad-clip-norm", "1"},
      {"--max-image-pixels", "0"},
      {"--image-mean", "nan", "0", "0"},
      {"--image-mean", "1", "2"},
      {"--image-std", "0", "1", "1"},
      {"--image-std", "inf", "1", "1"},
      {"--layer-scale", "nan"},
      {"--layer-scale", "inf"},
      {"--profile-steps", "7"},
      {"--profile-steps", "9-3"},
      {"--image-key", ";"},
      {"--text-key", ""},
      {"--image-interpolation", "cubic"},
      {"--image-resize-mode", "crop"},
      {"--device", "tpu"},
      {"--precision", "fp8"},
      {"--recompute", "everything"},
      {"--recompute", "gelu:some"},
      {"--lr-scheduler", "step"},
      {"--wd-groups", "v4"},
      {"--linear", "int4"},
      {"--dataset-type", "tfrecord"},
      {"--json-text-key-probs", "1"},
      {"--wd-exclude", "nothing.like.that"},
      {"--resume", "nowhere"},
      {"--pretrained", "nowhere"},
      {"--lock-text", "--lock-text-unlocked-layers", "9"},
      {"--lock-image-unlocked-groups", "-1"},
  };
  for (const Words& flags : all) {
    const Outcome outcome = w.train("x" + std::to_string(w.runs), flags);
    INFO(joined(flags));
    // The last flag but its values; some messages are about the model or a path instead.
    std::string flag;
    for (const std::string& word : flags)
      if (word.starts_with("--")) flag = word;
    if (flag == "--image-interpolation" || flag == "--image-resize-mode" || flag == "--threads")
      flag = flags.back();
    if (flag == "--pretrained") flag = "nowhere";
    check_fails(outcome, {flag});
  }
  // A flag that has no effect in this company is said.
  CHECK(has(w.train("u", {"--lock-text-unlocked-layers", "1"}).output, "--lock-text"));
  CHECK(has(w.train("v", {"--lock-image-unlocked-groups", "1"}).output, "--lock-image"));
  CHECK(has(w.train("w", {"--decay-clipped-rate"}).output, "--decay-clipped-rate"));
}
