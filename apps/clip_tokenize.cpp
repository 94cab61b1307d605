// clip_tokenize: prints the ids that the model would see, one line of ids per line of text. For people who
// debug a data set.
//
//   clip_tokenize --vocabulary bpe_simple_vocab_16e6.txt.gz captions.txt
//   echo "a photo of a cat" | clip_tokenize --vocabulary bytes
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "apps/flags.h"
#include "data/tokenizer.h"
#include "runtime/check.h"

using namespace switchback;

namespace {

// A line ends at a line feed; a carriage return before it is part of the text, which the cleaning drops.
void print_ids(const Tokenizer& tokenizer, std::istream& input) {
  std::vector<int32_t> ids(static_cast<size_t>(tokenizer.context_length()));
  std::string text, line;
  while (std::getline(input, text)) {
    tokenizer.encode(text, ids);
    line.clear();
    for (int32_t id : ids) line.append(line.empty() ? "" : " ").append(std::to_string(id));
    line.push_back('\n');
    std::fwrite(line.data(), 1, line.size(), stdout);
  }
}

}  // namespace

int main(int argument_count, char** arguments) {
  std::string vocabulary;
  int32_t context_length = 77;
  std::vector<std::string> files;
  CLI::App app{"Prints the token ids of every line of text, space separated and padded with 0."};
  app.add_option("--vocabulary,--tokenizer", vocabulary,
                 "bpe_simple_vocab_16e6.txt.gz, a merges.txt(.gz), or 'bytes'; by default the file that\n"
                 "scripts/fetch_vocabulary.sh has put in its place");
  app.add_option("--context-length", context_length, "ids per line")->capture_default_str();
  app.add_option("files", files, "text files, '-' for the standard input (the default)");
  try {
    if (!parse_flags(app, argument_count, arguments)) return 0;
    const auto tokenizer = make_tokenizer(vocabulary, context_length);
    if (files.empty()) files.emplace_back("-");
    for (const std::string& name : files) {
      if (name == "-") {
        print_ids(*tokenizer, std::cin);
        continue;
      }
      std::ifstream file(name, std::ios::binary);
      if (!file) fail("cannot open ", name, ": is it the name of a text file?");
      print_ids(*tokenizer, file);
    }
    if (std::fflush(stdout) != 0) fail("cannot write the ids to the standard output: is the disk full?");
  } catch (const Error& error) {
    std::fprintf(stderr, "clip_tokenize: %s\n", error.what());
    return 1;
  }
}
