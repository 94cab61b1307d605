#include "data/shards.h"

#include <algorithm>
#include <charconv>
#include <deque>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>

#include "data/input_file.h"
#include "data/tar.h"
#include "data/utf8_repair.h"
#include "runtime/check.h"
#include "runtime/file.h"

namespace switchback {
namespace {

constexpr uint64_t largest_part = uint64_t{1} << 31;  // a bigger member is not a picture
constexpr uint64_t largest_gap = 1 << 16;             // worth reading over to save a read
constexpr uint64_t cached_samples = 1 << 18;          // about 25 MB of indexes

// Place of a suffix in a list of preference; -1: not in it.
int rank_in(const std::vector<std::string>& suffixes, const std::string& suffix) {
  const auto found = std::find(suffixes.begin(), suffixes.end(), suffix);
  return found == suffixes.end() ? -1 : static_cast<int>(found - suffixes.begin());
}

std::string joined(const std::vector<std::string>& suffixes) {
  std::string list;
  for (const std::string& suffix : suffixes) list += (list.empty() ? "." : " .") + suffix;
  return list;
}

// webdataset: what lies in __folder__/, or is called __name__, is about the shard and not a sample.
bool is_meta(std::string_view name) {
  const size_t slash = name.find('/');
  const std::string_view first = name.substr(0, slash);
  return first.size() >= 4 && first.starts_with("__") && first.ends_with("__");
}

class ShardSource final : public SampleSource {
 public:
  ShardSource(std::vector<std::vector<std::string>> sources, SampleNeeds needs, bool skip_bad_shards)
      : needs_(needs), skip_bad_shards_(skip_bad_shards), files_(std::make_shared<OpenFiles>()) {
    for (auto& source : sources) {
      sizes_.push_back(static_cast<int64_t>(source.size()));
      for (auto& path : source) paths_.push_back(std::move(path));
    }
    counted_.resize(paths_.size());
  }

  int64_t block_count() const override { return static_cast<int64_t>(paths_.size()); }
  std::string block_name(int64_t block) const override { return paths_[static_cast<size_t>(block)]; }
  std::optional<uint64_t> declared_count() const override { return declared_sample_count(paths_); }
  std::vector<int64_t> source_sizes() const override { return sizes_; }
  bool streamed() const override { return std::any_of(paths_.begin(), paths_.end(), is_stream); }
  void set_stopping(bool stopping) override { files_->set_stopping(stopping); }

  std::shared_ptr<const SampleBlock> block(int64_t number) override {
    const size_t i = static_cast<size_t>(number);
    bool first_time;
    {
      std::lock_guard lock(mutex_);
      for (auto& [cached_number, index] : cache_) {
        if (cached_number == i) return index;
      }
      first_time = !counted_[i];
      counted_[i] = true;
    }
    const auto index = std::make_shared<const ShardIndex>(paths_[i], needs_, files_, reasons(), first_time,
                                                          skip_bad_shards_);
    std::lock_guard lock(mutex_);
    for (const std::string& suffix : index->suffixes()) {
      if (suffixes_.size() < 32 && std::find(suffixes_.begin(), suffixes_.end(), suffix) == suffixes_.end()) {
        suffixes_.push_back(suffix);
      }
    }
    cache_.emplace_back(i, index);
    cached_ += static_cast<uint64_t>(index->size()) + 1;
    while (cache_.size() > 1 && cached_ > cached_samples) {
      cached_ -= static_cast<uint64_t>(cache_.front().second->size()) + 1;
      cache_.pop_front();
    }
    return index;
  }

  std::string why_empty() const override {
    std::string found;
    {
      std::lock_guard lock(mutex_);
      for (const std::string& suffix : suffixes_) found += (found.empty() ? "." : " .") + suffix;
    }
    const std::string dropped = reasons().summary();
    return concat("no usable sample in ", paths_.size(),
                  paths_.size() == 1 ? " shard (" : " shards (first: ", paths_[0],
                  "): a sample needs an image (", joined(needs_.image_suffixes), ")", caption_wanted(),
                  needs_.label ? ", a label (.cls)" : "", "; the members end in ",
                  found.empty() ? "nothing, there are none" : found, dropped.empty() ? "" : "; ", dropped);
  }

 private:
  std::string caption_wanted() const {
    if (!needs_.caption) return "";
    if (needs_.json_captions.empty()) return ", a caption (" + joined(needs_.caption_suffixes) + ")";
    return ", a caption (\"" + needs_.json_captions[0] + "\" in .json)";
  }

  std::vector<std::string> paths_;
  std::vector<int64_t> sizes_;  // shards of each source
  SampleNeeds needs_;
  bool skip_bad_shards_;
  std::shared_ptr<OpenFiles> files_;
  mutable std::mutex mutex_;
  std::vector<bool> counted_;                                               // whose drops are in reasons()
  std::deque<std::pair<size_t, std::shared_ptr<const ShardIndex>>> cache_;  // oldest first
  uint64_t cached_ = 0;
  std::vector<std::string> suffixes_;
};

}  // namespace

MemberName split_member_name(std::string_view name) {
  const size_t slash = name.rfind('/');
  const size_t dot = name.find('.', slash == std::string_view::npos ? 0 : slash + 1);
  MemberName split;
  // A name that begins with its dot (".hidden") has no key; the pattern wants at least one character.
  if (dot == std::string_view::npos || dot == (slash == std::string_view::npos ? 0 : slash + 1)) return split;
  split.key = name.substr(0, dot);
  split.suffix = std::string(name.substr(dot + 1));
  for (char& c : split.suffix) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return split;
}

std::optional<uint64_t> declared_sample_count(const std::vector<std::string>& shards) {
  namespace fs = std::filesystem;
  std::map<std::string, std::optional<nlohmann::json>> tables;  // per folder
  std::map<std::string, uint64_t> totals;                       // folders with __len__ only
  uint64_t samples = 0;
  for (const std::string& shard : shards) {
    if (is_stream(shard)) return std::nullopt;
    const fs::path folder = fs::path(shard).parent_path();
    auto [table, fresh] = tables.try_emplace(folder.string());
    if (fresh && fs::exists(folder / "sizes.json")) {
      table->second = nlohmann::json::parse(read_file((folder / "sizes.json").string()), nullptr,
                                            /*allow_exceptions=*/false);
      if (!table->second->is_object())
        fail((folder / "sizes.json").string(), " is not a JSON object of shard names and counts");
    }
    if (fresh && !table->second && fs::exists(folder / "__len__")) {
      const std::string text = read_file((folder / "__len__").string());
      uint64_t total = 0;
      if (std::from_chars(text.data(), text.data() + text.size(), total).ec != std::errc()) {
        fail((folder / "__len__").string(), " does not hold a number");
      }
      totals[folder.string()] = total;
    }
    if (table->second) {
      const auto entry = table->second->find(fs::path(shard).filename().string());
      if (entry == table->second->end() || !entry->is_number_unsigned()) return std::nullopt;
      samples += entry->get<uint64_t>();
    } else if (!totals.contains(folder.string())) {
      return std::nullopt;
    }
  }
  for (const auto& [folder, total] : totals) samples += total;
  return samples;
}

struct ShardIndex::Open {
  std::string key;
  Sample sample;
  int image_rank = -1, caption_rank = -1;
  std::vector<std::string> seen;  // suffixes
};

ShardIndex::ShardIndex(std::string path, SampleNeeds needs, std::shared_ptr<OpenFiles> files,
                       Reasons& reasons, bool count_drops, bool keep_what_precedes_damage)
    : path_(std::move(path)), needs_(needs), files_(std::move(files)), reasons_(reasons) {
  const auto file = files_->get(path_);
  file->will_need_all();
  Open open;
  uint64_t members = 0;
  try {
    TarReader reader(*file);
    TarMember member;
    while (reader.next(member)) {
      if (is_meta(member.name)) continue;
      ++members;
      MemberName name = split_member_name(member.name);
      if (name.suffix.empty()) continue;
      if (suffixes_.size() < 32 &&
          std::find(suffixes_.begin(), suffixes_.end(), name.suffix) == suffixes_.end()) {
        suffixes_.push_back(name.suffix);
      }
      const bool repeated = std::find(open.seen.begin(), open.seen.end(), name.suffix) != open.seen.end();
      if (name.key != open.key || repeated) {
        close(open, count_drops);
        open = Open{.key = std::string(name.key)};
      }
      if (member.size < largest_part) {
        const Part part{member.offset, static_cast<uint32_t>(member.size), true};
        const int rank = rank_in(needs_.image_suffixes, name.suffix);
        if (rank >= 0 && (open.image_rank < 0 || rank < open.image_rank)) {
          open.sample.image = part;
          open.image_rank = rank;
        }
        const int text_rank = rank_in(needs_.caption_suffixes, name.suffix);
        if (text_rank >= 0 && (open.caption_rank < 0 || text_rank < open.caption_rank)) {
          open.sample.caption = part;
          open.caption_rank = text_rank;
        }
        if (name.suffix == "cls") open.sample.label = part;
        if (name.suffix == "json") open.sample.json = part;
      }
      open.seen.push_back(std::move(name.suffix));
    }
  } catch (const Error& error) {
    if (!keep_what_precedes_damage)
      fail(error.what(), "; clip_train --skip-bad-shards uses the samples before the damage");
    if (count_drops) reasons.count("damaged shard", error.what());
  }
  close(open, count_drops);
  if (samples_.empty() && count_drops) {
    reasons.count("shard without a usable sample",
                  concat(path_, " (", members, members == 1 ? " member)" : " members)"));
  }
  samples_.shrink_to_fit();
  keys_.shrink_to_fit();
}

void ShardIndex::close(Open& open, bool count_drops) {
  if (open.seen.empty()) return;
  Sample& sample = open.sample;
  const bool by_json = needs_.caption && !needs_.json_captions.empty();
  const Part& caption = by_json ? sample.json : sample.caption;
  const char* reason = nullptr;
  if (!sample.image.present)
    reason = "sample without an image";
  else if (sample.image.size == 0)
    reason = "image of 0 bytes";
  else if (needs_.caption && !caption.present)
    reason = by_json ? "sample without .json" : "sample without a caption";
  else if (needs_.caption && caption.size == 0)
    reason = "caption is empty";
  else if (needs_.label && !sample.label.present)
    reason = "sample without a label";
  if (reason) {
    if (count_drops) reasons_.count(reason, path_ + ": " + open.key);
    return;
  }
  sample.key = static_cast<uint32_t>(keys_.size());
  sample.key_size = static_cast<uint32_t>(open.key.size());
  CHECK(keys_.size() + open.key.size() < (uint64_t{1} << 32), path_, ": more than 4 GiB of sample names");
  keys_ += open.key;
  samples_.push_back(sample);
}

std::string ShardIndex::key(int64_t sample) const {
  const Sample& s = samples_[static_cast<size_t>(sample)];
  return keys_.substr(s.key, s.key_size);
}

void ShardIndex::read(int64_t sample, RawSample& to) const {
  CHECK(sample >= 0 && sample < size(), path_, " has ", size(), " samples, asked for ", sample);
  const Sample& s = samples_[static_cast<size_t>(sample)];
  const auto file = files_->get(path_);
  to.clear();
  const bool by_json = needs_.caption && !needs_.json_captions.empty();

  // The members of a sample are neighbours: one read usually fetches them all.
  struct Wanted {
    Part part;
    std::string* text;
  };
  std::string label;
  Wanted wanted[] = {{s.image, nullptr},
                     {needs_.caption && !by_json ? s.caption : Part{}, &to.caption},
                     {s.label, &label},
                     {needs_.read_json || by_json ? s.json : Part{}, &to.json}};
  uint64_t from = s.image.offset, end = s.image.end(), needed = 0;
  for (const Wanted& w : wanted) {
    if (!w.part.present) continue;
    from = std::min(from, w.part.offset);
    end = std::max(end, w.part.end());
    needed += w.part.size;
  }
  const bool together = end - from <= needed + largest_gap;
  if (!together) from = s.image.offset, end = s.image.end();
  to.bytes.resize(end - from);
  file->read(from, to.bytes);
  to.image = std::span<const uint8_t>(to.bytes).subspan(s.image.offset - from, s.image.size);
  for (const Wanted& w : wanted) {
    if (!w.text || !w.part.present) continue;
    w.text->resize(w.part.size);
    if (together) {
      std::copy_n(to.bytes.begin() + static_cast<std::ptrdiff_t>(w.part.offset - from), w.part.size,
                  w.text->begin());
    } else {
      file->read(w.part.offset, {reinterpret_cast<uint8_t*>(w.text->data()), w.text->size()});
    }
  }

  if (by_json) choose_caption(to);
  if (needs_.caption && to.problem.empty()) {
    if (repair_utf8(to.caption))
      reasons_.count("caption of invalid UTF-8 (repaired)", path_ + ": " + key(sample));
    if (to.caption.find_first_not_of(" \t\r\n\v\f") == std::string::npos) to.problem = "caption is empty";
  }
  if (s.label.present) {
    const size_t first = std::min(label.find_first_not_of(" \t\r\n"), label.size());
    const auto parsed = std::from_chars(label.data() + first, label.data() + label.size(), to.label);
    if (parsed.ec != std::errc() || to.label < 0) {
      to.label = -1;
      if (needs_.label) to.problem = "label is not an integer", to.detail = label.substr(0, 40);
    }
  }
}

// One of the fields of .json that hold a text, drawn by weight.
void ShardIndex::choose_caption(RawSample& to) const {
  const auto json = nlohmann::json::parse(to.json, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    to.problem = ".json is no JSON object";
    return;
  }
  std::vector<std::pair<const std::string*, double>> present;
  double sum = 0;
  for (size_t i = 0; i < needs_.json_captions.size(); ++i) {
    const auto field = json.find(needs_.json_captions[i]);
    if (field == json.end() || !field->is_string()) continue;
    const double weight = needs_.json_caption_weights.empty() ? 1 : needs_.json_caption_weights[i];
    if (weight > 0) present.emplace_back(field->get_ptr<const std::string*>(), sum += weight);
  }
  if (present.empty()) {
    to.problem = "no caption in .json";
    to.detail = "no text under \"" + needs_.json_captions[0] + "\"";
    return;
  }
  // `draw` is a random number already: its upper 53 bits as a number from [0, 1).
  const double drawn = static_cast<double>(to.draw >> 11) * 0x1p-53 * sum;
  const auto chosen = std::find_if(present.begin(), present.end() - 1,
                                   [&](const auto& field) { return drawn < field.second; });
  to.caption = *chosen->first;
}

std::shared_ptr<SampleSource> open_shards(std::vector<std::vector<std::string>> sources, SampleNeeds needs,
                                          bool skip_bad_shards) {
  size_t shards = 0;
  for (const auto& source : sources) shards += source.size();
  CHECK(shards > 0, "no shards given");
  return std::make_shared<ShardSource>(std::move(sources), needs, skip_bad_shards);
}

}  // namespace switchback
