// workshop.h: small shards, and clip_train run on them as a user would.
#pragma once

#include <algorithm>
#include <cstring>

#include "tests/apps/program.h"
#include "tests/data/temporary_folder.h"

namespace switchback {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

// A folder with shards of 48 pairs, and a way to train on them.
struct Workshop {
  TemporaryFolder folder;
  std::string path = folder / "";
  int runs = 0;

  Workshop() {
    write_noise_shard(path + "/a.tar", 20);
    write_noise_shard(path + "/b.tar", 28, 20);
  }
  std::string file(const std::string& name) const { return path + "/" + name; }
  Words arguments(const std::string& name, const Words& more) const {
    Words words{"--train-data",
                path + "/{a,b}.tar",
                "--model",
                "tiny",
                "--batch-size",
                "8",
                "--warmup",
                "2",
                "--lr",
                "1e-3",
                "--log-every-n-steps",
                "1",
                "--workers",
                "2",
                "--max-steps",
                "6",
                "--logs",
                path + "/logs",
                "--name",
                name,
                "--force-patch-dropout",
                "0.5"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  Outcome train(const std::string& name, const Words& more = {}, uint64_t largest_file = 0) {
    return Program("clip_train", arguments(name, more), file("output" + std::to_string(runs++)), largest_file)
        .wait();
  }
  std::string checkpoint(const std::string& name, int step) const {
    char folder_name[32];
    std::snprintf(folder_name, sizeof folder_name, "/step_%08d", step);
    return path + "/logs/" + name + "/checkpoints" + folder_name;
  }
  std::string weights(const std::string& name, int step) const {
    return read_file(checkpoint(name, step) + "/open_clip_model.safetensors");
  }
  std::string moments(const std::string& name,
                      int step) const {  // without the header, which holds the options
    const std::string bytes = read_file(checkpoint(name, step) + "/training_state.safetensors");
    uint64_t header;
    std::memcpy(&header, bytes.data(), 8);
    return bytes.substr(8 + header);
  }
};

// The run's last line is one line for the user.
inline void check_fails(const Outcome& outcome, const Words& fragments) {
  INFO(outcome.output);
  CHECK_EQ(outcome.status, 1);
  const size_t start = outcome.output.rfind("clip_train: ");
  REQUIRE(start != std::string::npos);
  const std::string line = outcome.output.substr(start);
  CHECK_EQ(std::count(line.begin(), line.end(), '\n'), 1);
  for (const std::string& fragment : fragments) {
    INFO("expected: ", fragment);
    CHECK(line.find(fragment) != std::string::npos);
  }
}

}  // namespace switchback
