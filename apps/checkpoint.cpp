#include "apps/checkpoint.h"

#include <fcntl.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "kernels/transfer.h"
#include "models/interchange.h"
#include "runtime/safetensors.h"

namespace switchback {
namespace {

namespace fs = std::filesystem;

constexpr const char* weights_file = "open_clip_model.safetensors";
constexpr const char* config_file = "open_clip_config.json";
constexpr const char* state_file = "training_state.safetensors";
constexpr const char* format_version = "1";

// Complete checkpoints, oldest first. Folders under a temporary name are not among them.
std::vector<fs::path> all_checkpoints(const std::string& folder) {
  std::vector<fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error))
    if (entry.path().filename().string().starts_with("step_") && fs::exists(entry.path() / state_file))
      found.push_back(entry.path());
  std::sort(found.begin(), found.end());  // numbers are padded to equal length
  return found;
}

// What a killed process left behind.
void remove_unfinished(const std::string& folder) {
  std::error_code error;
  std::vector<fs::path> rubbish;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("unfinished-") || name.starts_with("removed-")) rubbish.push_back(entry.path());
  }
  for (const fs::path& path : rubbish) fs::remove_all(path, error);
}

// A copy in host memory, which nothing changes while it is written.
Tensor copy_to_host(const Tensor& tensor) {
  if (tensor.device() != cpu_device) return to_host(tensor);
  Tensor copy(tensor.shape(), tensor.dtype());
  kernels(cpu_device).upload(copy, tensor);
  return copy;
}

// What one checkpoint holds, apart from the run that goes on.
struct Contents {
  std::string name, config_text;
  std::vector<std::pair<std::string, Tensor>> weights, state;  // host memory
  std::vector<std::pair<std::string, std::string>> metadata;   // of the state
};

Contents contents_of(const ClipConfig& config, const PixelNormalization& normalization,
                     const ParameterArena& arena, const AdamW& optimizer, const TrainingProgress& p) {
  Contents c;
  c.name = checkpoint_name(p.step);
  c.config_text = open_clip_config_text(config, normalization);
  for (const auto& segment : arena.segments())
    c.weights.emplace_back(segment.name, copy_to_host(arena.master_of(segment)));
  for (const auto& [name, tensor] : optimizer.state())
    c.state.emplace_back(name, optimizer.state_is_copied() ? tensor : copy_to_host(tensor));
  c.metadata = {{"switchback_format", format_version},
                {"step", std::to_string(p.step)},
                {"epoch", std::to_string(p.epoch)},
                {"samples_seen", std::to_string(p.samples_seen)},
                {"seed", std::to_string(p.seed)},
                {"loader", p.loader},
                {"options", p.options_json}};
  return c;
}

void write_tensors(const fs::path& path, const std::vector<std::pair<std::string, Tensor>>& tensors,
                   const std::vector<std::pair<std::string, std::string>>& metadata) {
  SafetensorsWriter writer;
  for (const auto& [key, value] : metadata) writer.set_metadata(key, value);
  for (const auto& [name, tensor] : tensors) writer.add(name, tensor);
  writer.write(path.string());
}

// Every tensor of the arena from the file, in host memory. Nothing is changed before all of them are there.
std::vector<Tensor> read_weights(const SafetensorsFile& file, const ParameterArena& arena) {
  for (const auto& segment : arena.segments())
    if (!file.contains(segment.name))
      fail(file.path(), " has no tensor ", segment.name, ": it belongs to another model (see --model)");
  for (const std::string& name : file.names())
    if (!arena.find(name) && !name.ends_with("attn_mask"))
      fail(file.path(), " has a tensor ", name,
           " that this model does not have: it belongs to another model");
  std::vector<Tensor> hosts;
  for (const auto& segment : arena.segments()) {
    hosts.emplace_back(segment.shape, arena.masters().dtype());
    file.load_into(segment.name, hosts.back());
  }
  return hosts;
}

void fill_arena(const std::vector<Tensor>& hosts, ParameterArena& arena) {
  size_t i = 0;
  for (const auto& segment : arena.segments())
    kernels(arena.device()).upload(arena.master_of(segment), hosts[i++]);
  arena.publish_masters();
}

int64_t number_in(const SafetensorsFile& file, const char* key) {
  const auto it = file.metadata().find(key);
  try {
    if (it != file.metadata().end()) return std::stoll(it->second);
  } catch (const std::exception&) {
  }
  fail(file.path(), " is not a training state of switchback: its metadata have no number \"", key, "\"");
}

// Writes the folder and returns its path.
std::string write_checkpoint(const std::string& checkpoints, const Contents& contents, int64_t keep_last) {
  remove_unfinished(checkpoints);
  const fs::path complete = fs::path(checkpoints) / contents.name;
  const fs::path unfinished = fs::path(checkpoints) / ("unfinished-" + contents.name);
  std::error_code error;
  fs::create_directories(unfinished, error);
  if (error) fail("cannot make ", unfinished.string(), ": ", error.message());
  try {
    write_tensors(unfinished / weights_file, contents.weights, {{"format", "pt"}});
    write_file((unfinished / config_file).string(), contents.config_text);
    write_tensors(unfinished / state_file, contents.state, contents.metadata);
  } catch (...) {
    fs::remove_all(unfinished, error);
    throw;
  }
  // A run that went back comes by this step again: old and new change places in one move, so that a kill at
  // any moment leaves one of them. File systems that cannot do that (NFS) have the old one step aside first.
  const bool again = fs::exists(complete);
  if (!again || renameat2(AT_FDCWD, unfinished.c_str(), AT_FDCWD, complete.c_str(), RENAME_EXCHANGE) != 0) {
    if (again) fs::rename(complete, fs::path(checkpoints) / ("removed-" + contents.name), error);
    fs::rename(unfinished, complete, error);
    if (error) fail("cannot rename ", unfinished.string(), " to ", complete.string(), ": ", error.message());
  }
  sync_folder(checkpoints);

  std::vector<fs::path> all = all_checkpoints(checkpoints);
  std::erase_if(all,
                [&](const fs::path& path) { return path > complete; });  // a run that went back: not older
  for (size_t i = 0; keep_last > 0 && i + static_cast<size_t>(keep_last) < all.size(); ++i) {
    // Renamed first: a folder that is half removed must not look like a checkpoint.
    const fs::path removed = fs::path(checkpoints) / ("removed-" + all[i].filename().string());
    fs::rename(all[i], removed, error);
  }
  remove_unfinished(checkpoints);
  return complete.string();
}

}  // namespace

std::string checkpoint_name(int64_t step) {
  char name[32];
  std::snprintf(name, sizeof name, "step_%08lld", static_cast<long long>(step));
  return name;
}

CheckpointWriter::~CheckpointWriter() {
  if (writing_.valid()) writing_.wait();
}

void CheckpointWriter::save(const ClipConfig& config, const PixelNormalization& normalization,
                            const ParameterArena& arena, const AdamW& optimizer,
                            const TrainingProgress& progress) {
  CHECK(!writing_.valid(),
        "a checkpoint begins before the one before was asked for: its error would be lost");
  writing_ = std::async(
      std::launch::async,
      [contents = contents_of(config, normalization, arena, optimizer, progress), folder = checkpoints_,
       keep = keep_last_] { return write_checkpoint(folder, contents, keep); });
}

std::string CheckpointWriter::completed(bool wait) {
  if (!writing_.valid()) return "";
  if (!wait && writing_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return "";
  return writing_.get();
}

std::string latest_checkpoint(const std::string& checkpoints, const std::string& before) {
  std::vector<fs::path> all = all_checkpoints(checkpoints);
  if (!before.empty()) std::erase_if(all, [&](const fs::path& path) { return path >= fs::path(before); });
  return all.empty() ? "" : all.back().string();
}

TrainingProgress load_checkpoint(const std::string& folder, ParameterArena& arena, AdamW& optimizer) {
  if (!fs::is_directory(folder)) fail("--resume ", folder, ": there is no such checkpoint folder");
  const SafetensorsFile weights((fs::path(folder) / weights_file).string());
  const SafetensorsFile state((fs::path(folder) / state_file).string());
  TrainingProgress p;
  p.step = number_in(state, "step");
  p.epoch = number_in(state, "epoch");
  p.samples_seen = number_in(state, "samples_seen");
  p.seed = number_in(state, "seed");
  auto text = [&](const char* key) {
    const auto it = state.metadata().find(key);
    return it == state.metadata().end() ? std::string() : it->second;
  };
  p.loader = text("loader");
  if (p.step < 0 || p.samples_seen < 0 || p.loader.empty() ||
      p.loader.compare(0, p.loader.find(' '), std::to_string(p.samples_seen)) != 0)
    fail(state.path(), " is damaged: step ", p.step, ", ", p.samples_seen,
         " samples seen and loader position \"", p.loader, "\" do not fit together");
  p.options_json = text("options");

  const std::vector<Tensor> weight_hosts = read_weights(weights, arena);
  const AdamW::State moments = optimizer.state_to_fill();
  for (const auto& [name, tensor] : moments) state.load_into(name, tensor);
  fill_arena(weight_hosts, arena);
  optimizer.restore(moments);
  return p;
}

ClipConfig checkpoint_config(const std::string& folder) {
  const auto refuse = [&](const char* why) {
    fail(folder, " is not a checkpoint: it has no ", why, " (a checkpoint is a folder like ",
         "logs/RUN/checkpoints/step_00000300)");
  };
  if (!fs::exists(fs::path(folder) / config_file) && !fs::exists(fs::path(folder) / "config.json"))
    refuse(config_file);
  ClipConfig c = StoredModel::find(folder).config.value();
  c.name = fs::path(folder).filename().string();
  return c;
}

PixelNormalization checkpoint_normalization(const std::string& folder) {
  return StoredModel::find(folder).normalization;
}

}  // namespace switchback
