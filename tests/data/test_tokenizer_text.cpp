// The steps before byte pairs: UTF-8, HTML references, repairs, lower-casing, cutting into words. No
// vocabulary needed. Expected values are those of Python 3.11 (bytes.decode, html.unescape, str.lower) and
// ftfy 6.3 (fix_text).
#include <doctest/doctest.h>

#include <string>
#include <utility>
#include <vector>

#include "data/html_entities.h"
#include "data/mojibake.h"
#include "data/text_cleaning.h"
#include "data/unicode.h"
#include "data/word_scanner.h"

using namespace switchback;

namespace {

std::string unescape(std::string_view text) { return encode_utf8(unescape_html(decode_utf8(text))); }
std::string unescape_certain(std::string_view text) {
  return encode_utf8(unescape_certain_html(decode_utf8(text)));
}
std::string repair(std::string_view text) { return encode_utf8(repair_text(decode_utf8(text))); }
std::string lower(std::string_view text) { return encode_utf8(lower_case(decode_utf8(text))); }

std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  WordScanner scanner(text);
  for (std::string_view word; !(word = scanner.next()).empty();) words.emplace_back(word);
  return words;
}
using Words = std::vector<std::string>;

}  // namespace

TEST_CASE("UTF-8 survives a round trip, and every maximal wrong part is one replacement") {
  const std::string text = "a\u00e9\u20ac\U0001f600\U0010ffff";
  CHECK(encode_utf8(decode_utf8(text)) == text);
  const std::vector<std::pair<std::string, size_t>> wrong = {
      {"\xc3", 1}, {"\xe2\x82", 1},         {"\xf0\x9f\x98", 1}, {"\xed\xa0\x80", 3},    {"\xc0\x80", 2},
      {"\xff", 1}, {"\xf4\x90\x80\x80", 4}, {"\xe0\x80\x80", 3}, {"\xf0\x80\x80\x80", 4}};
  for (const auto& [bytes, replacements] : wrong)
    CHECK(decode_utf8(bytes + "a") == std::u32string(replacements, kReplacementCharacter) + U"a");
}

TEST_CASE("HTML references by name and by number") {
  const std::vector<std::pair<std::string, std::string>> known = {
      {"&amp;", "&"},
      {"&amp", "&"},
      {"&notit;", "¬it;"},
      {"&#0;", "\ufffd"},
      {"&#128;", "€"},
      {"&#xD800;", "\ufffd"},
      {"&#1;", ""},
      {"&#38;lt;", "&lt;"},
      {"&nGt;", "≫⃒"},
      {"&x", "&x"},
      {"&ampamp;", "&amp;"},
      {"&#", "&#"},
      {"&#x;", "&#x;"},
      {"&#x41", "A"},
      {"&#X1f600;", "😀"},
      {"&#x110000;", "\ufffd"},
      {"&", "&"},
      {"&&lt;&", "&<&"},
      {"&#99999999999;", "\ufffd"},
      {"&CounterClockwiseContourIntegral;", "∳"},
      {"&NotAnEntityAtAllAndMuchTooLongForOne;", "&NotAnEntityAtAllAndMuchTooLongForOne;"}};
  for (const auto& [text, expected] : known) {
    CAPTURE(text);
    CHECK(unescape(text) == expected);
  }
}

TEST_CASE("certain HTML references need their semicolon, and capitals are understood") {
  CHECK(unescape_certain("&amp;&lt;") == "&<");
  CHECK(unescape_certain("this&not that &amp") == "this&not that &amp");
  CHECK(unescape_certain("P&EACUTE;REZ STRA&SZLIG;E") == "PÉREZ STRASSE");
  CHECK(unescape_certain("&nTILDE; &#59; &#12ab;") == "&nTILDE; &#59; &#12ab;");
  CHECK(unescape_certain("&#x1F600;&#39;") == "😀'");
}

TEST_CASE("damaged text is repaired as ftfy repairs it") {
  const std::vector<std::pair<std::string, std::string>> known = {
      {"cafÃ©", "café"},
      {"âœ” No problems", "✔ No problems"},
      {"Ã la mode", "à la mode"},
      {"PÃ£o Ã\u00a0 mesa", "Pão à mesa"},
      {"â€œquotesâ€\u009d", "\"quotes\""},
      {"вЂњcurlyвЂќ", "\"curly\""},
      {"σÎ±", "σα"},
      {"The Mona Lisa doesnÃƒÂ¢Ã¢â€šÂ¬Ã¢â€žÂ¢t have eyebrows.", "The Mona Lisa doesn't have eyebrows."},
      {"ã\u0083\u0084", "ツ"},
      {"Ã©À\n", "é"},
      {"Clube dos bacanas é", "Clube dos bacanas é"},
      {"ï»¿mark", "mark"},
      {"ａＢ\uff8a\uff9f\u3000x", "aBパ x"},
      {"ﬂuﬃest ŉ Ĳ", "fluffiest 'n IJ"},
      {"“a” ‘b’", "\"a\" 'b'"},
      {"a\r\nb\rc\u2028d\u0085e", "a\nb\nc\nd…e"},
      {"\x1b[36;44mblue\x1b[0m \x1b[", "blue ["},
      {std::string("a\0\x07\x7f"
                   "b\ufeff\ufffc",
                   11),
       "ab"},
      {"cafe\u0301 \u212b", "café Å"},
      {"&EACUTE;\n<br> &EACUTE;\n&EACUTE;", "É\n<br> &EACUTE;\n&EACUTE;"},
  };
  for (const auto& [text, expected] : known) {
    CAPTURE(text);
    CHECK(repair(text) == expected);
  }
  CHECK(looks_wrongly_decoded(U"Ã©"));
  CHECK_FALSE(looks_wrongly_decoded(U"café in Ångström, 20 £"));
}

TEST_CASE("lower case is Python's: dotted I, final sigma, no folding") {
  CHECK(lower("ÀÉÎ ĐẶC ЁЖ ẞ Ǆ") == "àéî đặc ёж ß ǆ");
  CHECK(lower("İI") == "i\u0307i");
  CHECK(lower("ΟΔΥΣΣΕΥΣ Σ ΑΣ. ΑΣ'Α ΑΣ'") == "οδυσσευς σ ας. ασ'α ας'");
  CHECK(lower("ſ ß") == "ſ ß");
}

TEST_CASE("the whole cleaning") {
  CHECK(clean_caption("  A &amp;amp; B\t\n\u00a0C\u2003 ") == "a & b c");
  CHECK(clean_caption("") == "");
  CHECK(clean_caption(" \n\u3000") == "");
  CHECK(clean_caption("<b>&amp;lt;</b>") == "<b><</b>");
}

TEST_CASE("plain ASCII is what the cleaning leaves alone but for spaces and capitals") {
  for (int c = 0; c < 256; ++c) {
    const std::string text = std::string("x") + static_cast<char>(c) + "Y";
    if (!is_plain_ascii(text)) continue;
    CAPTURE(c);
    CHECK(c < 0x80);
    CHECK(words_of(clean_caption(text)) == words_of(lower(text)));
  }
  CHECK(is_plain_ascii("A photo; of <this>\r\n"));
  for (const char* text : {"a&b", "caf\xc3\xa9", "\x1b[m", "\x0b", "\x7f"}) CHECK_FALSE(is_plain_ascii(text));
}

TEST_CASE("words: contractions, runs, single digits, marks") {
  CHECK(words_of("it's we're y'all'd") == Words{"it", "'s", "we", "'re", "y", "'", "all", "'d"});
  CHECK(words_of("!'s 's's") == Words{"!'", "s", "'s", "'s"});
  CHECK(words_of("a1b22 ½٣") == Words{"a", "1", "b", "2", "2", "½", "٣"});
  CHECK(words_of("...!? -- $5") == Words{"...!?", "--", "$", "5"});
  CHECK(words_of("<end_of_text><start_of_text>x") == Words{"<end_of_text>", "<start_of_text>", "x"});
  CHECK(words_of("!<end_of_text>") == Words{"!<", "end", "_", "of", "_", "text", ">"});
  CHECK(words_of("'ſ <ſtart_of_text>") == Words{"'ſ", "<ſtart_of_text>"});  // the long s counts as s
  CHECK(words_of("cafe\u0302 日本語😀👍") == Words{"cafe", "\u0302", "日本語", "😀👍"});
  CHECK(words_of("a\u0345b !\u0345!") ==
        Words{"a", "b", "!", "!"});  // passed over, as by the reference's pattern
  CHECK(words_of("a\u00a0b\u3000c") == Words{"a", "b", "c"});
  CHECK(words_of("") == Words{});
  CHECK(words_of(" \n") == Words{});
}
