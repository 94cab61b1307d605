#include "apps/flags.h"

#include <CLI/CLI.hpp>
#include <algorithm>

#include "runtime/check.h"
#include "runtime/suggest.h"

namespace switchback {

std::vector<std::string> complete_flags(int argc, const char* const* argv,
                                        const std::vector<std::string>& flags) {
  std::vector<std::string> result;
  for (int i = 1; i < argc; ++i) {
    std::string word = argv[i];
    if (word.starts_with("--") && word.size() > 2) {
      const size_t equals = word.find('=');
      std::string name = word.substr(0, equals);
      const std::string rest = equals == std::string::npos ? "" : word.substr(equals);
      if (std::find(flags.begin(), flags.end(), name) == flags.end()) {
        std::vector<std::string> matches;
        for (const std::string& flag : flags)
          if (flag.starts_with(name)) matches.push_back(flag);
        if (matches.empty())
          fail("unknown flag ", name, "; did you mean ", nearest(name, flags), "? (--help lists all)");
        if (matches.size() > 1) {
          std::string list;
          for (const std::string& m : matches) list += (list.empty() ? "" : ", ") + m;
          fail("flag ", name, " is ambiguous: it could be ", list);
        }
        name = matches[0];
      }
      word = name + rest;
    }
    result.push_back(std::move(word));
  }
  return result;
}

namespace {

CLI::Validator number_check(const char* name, const char* allowed, bool (*allows)(double)) {
  return CLI::Validator(
      [=](std::string& text) {
        double value = 0;
        const bool good = CLI::detail::lexical_cast(text, value) && allows(value);
        return good ? std::string() : concat(text, " is not a number ", allowed);
      },
      name);
}

}  // namespace

const CLI::Validator& positive() {
  static const CLI::Validator check = number_check("POSITIVE", "above 0", [](double v) { return v > 0; });
  return check;
}

const CLI::Validator& not_negative() {
  static const CLI::Validator check = number_check("NONNEGATIVE", "of 0 or more", [](double v) { return v >= 0; });
  return check;
}

bool parse_flags(CLI::App& app, int argc, const char* const* argv) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  std::vector<std::string> words = complete_flags(argc, argv, names);
  std::reverse(words.begin(), words.end());  // CLI11 takes them last first
  try {
    app.parse(words);
  } catch (const CLI::CallForHelp& help) {
    app.exit(help);
    return false;
  } catch (const CLI::ExtrasError&) {
    fail("'", app.remaining().at(0), "' belongs to no flag (--help lists all); a value with braces, stars or spaces wants ",
         "quotes: 'shards/{000..099}.tar'");
  } catch (const CLI::ParseError& error) {
    fail(error.what(), " (--help lists all flags)");
  }
  return true;
}

}  // namespace switchback
