#include "apps/open_clip_flags.h"

#include <CLI/CLI.hpp>

#include "runtime/check.h"

namespace switchback {
namespace {

constexpr auto ignored = OpenClipFlag::ignored;
constexpr auto refused = OpenClipFlag::refused;

constexpr const char* one_program = "the program is compiled already";
constexpr const char* no_wandb = "Weights & Biases is not written; the same numbers are in train.jsonl";
constexpr const char* no_shards = "every process holds the whole model";
constexpr const char* no_sync = "copy LOGS/NAME from outside, for example with rclone or aws s3 sync";
constexpr const char* no_distillation = "training from a teacher is not implemented";
constexpr const char* only_coca = "only CoCa models have such a loss";
constexpr const char* no_layer_decay = "layer-wise rates are not implemented; --lr holds for all layers";
constexpr const char* only_timm =
    "it belongs to optimizers of timm; use --opt adamw or stableadamw with --beta1, --beta2 and --eps";

constexpr OpenClipFlag flags[] = {
    {"--local-loss", 0, ignored, "the exact loss over local rows is always used"},
    {"--gather-with-grad", 0, ignored, "the exact gradient is always used"},
    {"--loss-dist-impl", 1, ignored, "there is one implementation, and it is exact"},
    {"--ddp-static-graph", 0, ignored, "the step is static anyway"},
    {"--no-set-device-rank", 0, ignored, "the device is chosen by local rank"},
    {"--dist-url", 1, ignored, "ranks meet at MASTER_ADDR and MASTER_PORT"},
    {"--dist-backend", 1, ignored, "GPUs talk through NCCL"},
    {"--use-bn-sync", 0, ignored, "ViT models have no batch norm"},
    {"--lock-image-freeze-bn-stats", 0, ignored, "ViT models have no batch norm"},
    {"--lock-text-freeze-layer-norm", 0, ignored, "the LayerNorms of locked groups are frozen anyway"},
    {"--torchcompile", 0, ignored, one_program},
    {"--torchcompile-strategy", 1, ignored, one_program},
    {"--torchcompile-backend", 1, ignored, one_program},
    {"--torchcompile-mode", 1, ignored, one_program},
    {"--torchscript", 0, ignored, one_program},
    {"--trace", 0, ignored, one_program},
    {"--copy-codebase", 0, ignored, "the program is one binary"},
    {"--cache-dir", 1, ignored, "nothing is downloaded"},
    {"--debug", 0, ignored, "there is one log level"},
    {"--log-local", 0, ignored, "the first process logs for all of them"},
    {"--wandb-notes", 1, ignored, no_wandb},
    {"--wandb-project-name", 1, ignored, no_wandb},
    {"--force-custom-text", 0, ignored, "weights are written under the names of a plain CLIP, both are read"},
    {"--val-retrieval-chunk-size", 1, ignored, "similarities are always computed in blocks"},
    {"--val-retrieval-precision", 1, ignored, "similarities are always computed in f32"},
    {"--imagenet-v2", 1, ignored,
     "a run evaluates one labelled set; clip_eval --zeroshot-data takes the folder"},
    {"--train-loss-ema-samples", 1, ignored,
     "the loss in brackets is the mean of the epoch, as in open_clip 3"},
    {"--coca-caption-loss-weight", 1, ignored, only_coca},
    {"--coca-contrastive-loss-weight", 1, ignored, only_coca},
    {"--fsdp", 0, ignored, no_shards},
    {"--fsdp-no-reshard-after-forward", 0, ignored, no_shards},
    {"--fsdp-offload-cpu", 0, ignored, no_shards},
    {"--fsdp-checkpoint", 1, ignored, no_shards},

    {"--pretrained-image", 0, refused, "give whole weights with --pretrained FILE"},
    {"--horovod", 0, refused, "start one process per GPU with torchrun or srun"},
    {"--opt-kwargs", -1, refused, only_timm},
    {"--opt-fallback-list", -1, refused, only_timm},
    {"--momentum", 1, refused, only_timm},
    {"--text-layer-decay", 1, refused, no_layer_decay},
    {"--image-layer-decay", 1, refused, no_layer_decay},
    {"--visual-layer-decay", 1, refused, no_layer_decay},
    {"--remote-sync", 1, refused, no_sync},
    {"--remote-sync-frequency", 1, refused, no_sync},
    {"--remote-sync-protocol", 1, refused, no_sync},
    {"--distill-model", 1, refused, no_distillation},
    {"--distill-pretrained", 1, refused, no_distillation},
    {"--use-naflex", 0, refused, "images are squares of the model's size"},
    {"--length-bucketing", 0, refused, "texts stop behind the longest caption of each batch as it comes"},
    {"--text-pad-multiple", 1, refused, "texts stop at a multiple of 8 behind a batch's longest caption"},
};

}  // namespace

std::span<const OpenClipFlag> open_clip_flags() { return flags; }

void add_open_clip_flags(CLI::App& app) {
  for (const OpenClipFlag& flag : flags) {
    if (flag.values == 0)
      app.add_flag(flag.name)->group("");
    else
      app.add_option(flag.name, "")->expected(1, flag.values < 0 ? 1000 : 1)->group("");
  }
}

void answer_open_clip_flags(const CLI::App& app, std::vector<std::string>& notices) {
  for (const OpenClipFlag& flag : flags) {
    if (app.count(flag.name) == 0) continue;
    if (flag.kind == refused) fail(flag.name, " is not supported: ", flag.why);
    notices.push_back(concat(flag.name, " has no effect: ", flag.why));
  }
}

std::string precision_of_open_clip(const std::string& name, std::vector<std::string>& notices) {
  if (name == "amp_bfloat16") return "amp_bf16";
  if (name == "amp") {
    notices.push_back("--precision amp: bf16 is used; there is no fp16 loss scaling");
    return "amp_bf16";
  }
  if (name == "bf16" || name == "pure_bf16") {
    notices.push_back("--precision " + name + ": bf16 values with f32 masters are used (amp_bf16)");
    return "amp_bf16";
  }
  if (name == "fp16" || name == "pure_fp16")
    fail("--precision ", name,
         " is not supported: use amp_bf16, which has the range of f32 and the same speed");
  return name;
}

std::string recipe_of_bitsandbytes(const std::string& name) {
  if (name == "SwitchBackLinearGlobal" || name == "SwitchBackLinear") return "switchback";
  if (name == "SwitchBackLinearGlobalMemEfficient") return "switchback-m";
  if (name == "SwitchBackLinearVectorwise") return "switchback-q";
  fail("--use-bnb-linear ", name,
       " is unknown: use SwitchBackLinearGlobal, SwitchBackLinearGlobalMemEfficient or "
       "SwitchBackLinearVectorwise, or --linear with a recipe of our own");
}

}  // namespace switchback
