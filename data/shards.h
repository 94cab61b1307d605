// shards.h: WebDataset shards: tar archives in which neighbouring members with one key form a sample.
//
//   "a/{0000..0003}.tar::b/{x,y}.tar"   two sources, four and two shards
//   000/cat.jpg  000/cat.txt  000/cat.json    key 000/cat; suffixes jpg, txt, json
//
// The rule (webdataset's): the key ends at the first dot of the member's last name, the rest is the suffix,
// in lower case; adjacent members of one key are one sample, and a suffix that comes again starts a new one.
// Image: jpg, jpeg, png, webp. Caption: txt, or a field of json. Label: cls. Others are not read (SampleNeeds
// has other names). Where a shard may come from, beside files: input_file.h.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/sample_source.h"

namespace switchback {

class OpenFiles;

// Brace expansion of one pattern: {a,b}, {0000..0137} (zero padding kept, steps {0..9..3}), nested.
std::vector<std::string> expand_braces(std::string_view pattern);

// Shards per source. ${NAME} is replaced by the environment's WDS_NAME where there is one. Files must exist:
// errors name the first that does not and count them. Streams (input_file.h) are not looked at.
std::vector<std::vector<std::string>> expand_shards(std::string_view patterns);

// sizes.json (shard's file name -> samples) or __len__ beside the shards; nothing when a shard has no entry.
std::optional<uint64_t> declared_sample_count(const std::vector<std::string>& shards);

struct MemberName {
  std::string_view key;
  std::string suffix;  // lower case; empty: the name has no dot
};
MemberName split_member_name(std::string_view name);

// Where the parts of every usable sample of one shard are. 72 bytes and the key per sample.
class ShardIndex final : public SampleBlock {
 public:
  // Hops through the headers. What is dropped is counted in `reasons`, unless it was counted in an earlier
  // pass. Errors (unless keep_what_precedes_damage): truncated or damaged archives, by name and offset.
  ShardIndex(std::string path, SampleNeeds needs, std::shared_ptr<OpenFiles> files, Reasons& reasons,
             bool count_drops = true, bool keep_what_precedes_damage = false);

  int64_t size() const override { return static_cast<int64_t>(samples_.size()); }
  const std::string& name() const override { return path_; }
  std::string key(int64_t sample) const override;
  void read(int64_t sample, RawSample& to) const override;

  const std::vector<std::string>& suffixes() const { return suffixes_; }  // met, for messages; at most 32

 private:
  struct Part {
    uint64_t offset = 0;
    uint32_t size = 0;
    bool present = false;
    uint64_t end() const { return offset + size; }
  };
  struct Sample {
    Part image, caption, label, json;
    uint32_t key = 0, key_size = 0;  // in keys_
  };
  struct Open;  // the sample being collected
  void close(Open& open, bool count_drops);
  void choose_caption(RawSample& to) const;

  std::string path_;
  SampleNeeds needs_;
  std::shared_ptr<OpenFiles> files_;
  Reasons& reasons_;
  std::vector<Sample> samples_;
  std::string keys_;
  std::vector<std::string> suffixes_;
};

// All shards of all sources, one block each. Indexes of about 260,000 samples are kept for the next pass.
std::shared_ptr<SampleSource> open_shards(std::vector<std::vector<std::string>> sources, SampleNeeds needs,
                                          bool skip_bad_shards = false);

}  // namespace switchback
