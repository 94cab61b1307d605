// The text tower that stops behind the longest caption is the text tower: features, loss and every gradient,
// in all ways that a step can be computed.
#include "models/evaluation.h"
#include "models/text_length.h"
#include "tests/models/model_test.h"

using namespace switchback;

namespace {

constexpr int64_t samples = 6, context = 28, longest = 13, length = 16;

ClipConfig long_context() {
  ClipConfig c = tiny_config();
  c.text.context_length = context;
  return c;
}

// Captions of 2 ... 13 tokens, the longest among them. Behind the end stands padding, or whatever else: only
// the largest id of a row is special.
Batch captions(const ClipConfig& c, bool padded = true) {
  Batch b = random_batch(c, samples);
  const auto ids = b.tokens.span<int32_t>();
  const int32_t end = static_cast<int32_t>(c.text.vocab_size - 1);
  for (int64_t row = 0; row < samples; ++row) {
    const auto place = static_cast<size_t>(row == 3 ? longest - 1 : 1 + 2 * row);
    const auto line = ids.subspan(static_cast<size_t>(row * context), context);
    for (size_t t = 0; t < line.size(); ++t)
      if (t > place && padded) line[t] = 0;
      else if (line[t] == end) line[t] = 5;
    line[place] = end;
    if (!padded) line[place + 1] = end;  // a second one does not count
  }
  return b;
}

struct Run {
  double loss = 0;
  Tensor text;                    // features (B, E)
  std::vector<Tensor> gradients;  // in the arena's order
};

struct Way {
  ClipConfig config = long_context();
  DType dtype = DType::f64;
  Recompute recompute = Recompute::none;
  int64_t parts = 1;
  bool padded = true, locked = false;
};

// columns: of the tokens that the tower sees
Run run(const Way& way, int64_t columns) {
  Model m(way.config, way.dtype);
  roughen(m.arena);
  if (way.locked)
    for (size_t i = 0; i < m.arena.segments().size(); ++i)
      if (m.arena.segments()[i].name.starts_with("transformer.resblocks.0")) m.arena.freeze(i);
  const Batch batch = captions(way.config, way.padded);
  Tensor tokens({samples, columns}, DType::i32);
  copy_columns(tokens, batch.tokens);
  const PatchDropout dropout{11, Tensor::of<int64_t>({}, {4}), 0};
  Clip::Options options;
  options.recompute = way.recompute;
  if (way.config.vision.patch_dropout > 0) options.dropout = &dropout;
  Run r;
  r.loss = m.run([&] {
    const int64_t size = samples / way.parts;
    std::vector<Variable> images, texts;
    for (int64_t p = 0; p < way.parts; ++p) {
      const Tensor pixels = batch.images.slice(p * size, size), ids = tokens.slice(p * size, size);
      PatchDropout own = dropout;
      own.first_sample = p * size;
      const auto image = [&m, options, own, pixels](const Variable&) {
        Clip::Options o = options;
        if (o.dropout) o.dropout = &own;
        return m.clip.encode_image(pixels, o);
      };
      const auto text = [&m, options, ids](const Variable&) { return m.clip.encode_text(ids, options); };
      images.push_back(way.parts == 1 ? image({}) : checkpoint({}, image));
      texts.push_back(way.parts == 1 ? text({}) : checkpoint({}, text));
    }
    const Variable all = way.parts == 1 ? texts[0] : concat_rows(texts);
    r.text = all.value();
    return m.clip.loss(way.parts == 1 ? images[0] : concat_rows(images), all);
  });
  for (const auto& s : m.arena.segments()) {
    Tensor copy(s.shape, m.arena.gradient_of(s).dtype());
    kernels(cpu_device).cast(copy, m.arena.gradient_of(s));
    r.gradients.push_back(copy);
  }
  return r;
}

// The largest of the relative errors of features, loss and gradients
double difference(const Run& a, const Run& b) {
  double worst = std::max(relative_error(a.text, b.text), std::fabs(a.loss - b.loss) / std::fabs(b.loss));
  for (size_t i = 0; i < b.gradients.size(); ++i)
    worst = std::max(worst, relative_error(a.gradients[i], b.gradients[i]));
  return worst;
}

void check_equal(const Way& way) {
  const double tolerance = way.dtype == DType::f64 ? 1e-12 : way.dtype == DType::f32 ? 1e-5 : 0.01;
  const Run stops = run(way, length), whole = run(way, context);
  CHECK_LE(difference(stops, whole), tolerance);
  CHECK_EQ(text_length(captions(way.config, way.padded).tokens), length);

  // Positions behind the longest caption have no gradient, in either way; those before it do.
  Model m(way.config, way.dtype);
  for (size_t i = 0; i < m.arena.segments().size(); ++i) {
    if (m.arena.segments()[i].name != "positional_embedding") continue;
    for (const Run* r : {&stops, &whole}) {
      const std::vector<double> rows = doubles(r->gradients[i]);
      const size_t width = static_cast<size_t>(way.config.text.width);
      for (size_t e = longest * width; e < rows.size(); ++e) REQUIRE_EQ(rows[e], 0);
      CHECK_NE(rows[longest * width - 1], 0);
    }
  }
}

}  // namespace

TEST_CASE("the text's length: behind the last end-of-text, rounded up, few of them") {
  const auto length_of = [](std::vector<std::vector<int32_t>> rows) {
    std::vector<int32_t> ids;
    for (const auto& row : rows) ids.insert(ids.end(), row.begin(), row.end());
    return text_length(Tensor::of<int32_t>({std::ssize(rows), std::ssize(rows[0])}, ids));
  };
  CHECK_EQ(length_of({{1, 9, 0}}), 3);  // never more than there are
  CHECK_EQ(length_of({{9, 0, 0, 0, 0, 0, 0, 0, 0, 0}}), 8);
  CHECK_EQ(length_of({{0, 1, 2, 3, 4, 5, 6, 9, 0, 0}}), 8);
  CHECK_EQ(length_of({{0, 1, 2, 3, 4, 5, 6, 7, 9, 0}}), 10);
  CHECK_EQ(length_of({{9, 9, 9, 9, 9, 9, 9, 9, 9, 9}}), 8);   // the first of equals
  CHECK_EQ(length_of({{0, 0, 0, 0, 0, 0, 0, 0, 0, -1}}), 8);  // whatever the ids are
  CHECK_EQ(length_of({{9, 0, 0, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0, 0, 9}}), 10);
  for (const int64_t columns : {5, 8, 32, 77, 80, 81, 248, 1024}) {
    std::vector<int64_t> seen;
    for (int64_t end = 0; end < columns; ++end) {
      Tensor tokens({2, columns}, DType::i32);
      std::fill_n(tokens.span<int32_t>().begin(), 2 * columns, 0);
      tokens.span<int32_t>()[static_cast<size_t>(columns + end)] = 3;
      const int64_t found = text_length(tokens);
      CHECK_GT(found, end);
      CHECK_LE(found, columns);
      CHECK((found % 8 == 0 || found == columns));
      if (seen.empty() || seen.back() != found) seen.push_back(found);
    }
    CHECK(std::is_sorted(seen.begin(), seen.end()));
    CHECK_LE(seen.size(), 10);
    if (columns == 77) CHECK_EQ(seen.size(), 10);
  }
}

TEST_CASE("features, loss and every gradient are those of the whole text, to rounding") {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    CAPTURE(dtype);
    check_equal({.dtype = dtype});
  }
  for (const Recompute recompute : {Recompute::gelu, Recompute::cheap, Recompute::blocks}) {
    CAPTURE(static_cast<int>(recompute));
    check_equal({.recompute = recompute});
    check_equal({.recompute = recompute, .parts = 2});
  }
  for (const int64_t parts : {2, 3, 6}) check_equal({.parts = parts});
  check_equal({.padded = false});
  check_equal({.locked = true});

  Way way;
  way.config.whole_last_block = true;
  check_equal(way);
  way = {};
  way.config.vision.image_size = 24;  // 9 patches
  way.config.vision.patch_dropout = 0.3;
  way.config.vision.layer_scale = way.config.text.layer_scale = 0.5;
  way.config.quick_gelu = true;
  for (const bool siglip : {false, true}) {
    if (siglip) way.config.init_logit_scale = std::log(10.0), way.config.init_logit_bias = -2;
    for (const int64_t parts : {1, 3}) {
      CAPTURE(siglip);
      CAPTURE(parts);
      way.parts = parts;
      way.dtype = DType::f64;
      check_equal(way);
      way.dtype = DType::f32;
      check_equal(way);
    }
  }
}

TEST_CASE("one column less than the longest caption would be seen") {
  const Run whole = run({}, context);
  CHECK_LE(difference(run({}, longest), whole), 1e-11);
  CHECK_GT(difference(run({}, longest - 1), whole), 1e-3);
}

TEST_CASE("low precision: equal where every token has its own scale, left alone where tokens share one") {
  for (const LinearRecipe& recipe : linear_recipes()) {
    CAPTURE(recipe.name);
    Way way{.dtype = DType::f32};
    way.config.vision.linear = way.config.text.linear = recipe.name;
    const bool own_scales = recipe.name != "fp8-sim" && recipe.name != "llm-int8" && recipe.name != "fp8";
    CHECK_EQ(text_may_stop(way.config), own_scales);
    const double off = difference(run(way, length), run(way, context));
    if (own_scales) CHECK_LE(off, 1e-5);
    if (recipe.name == "llm-int8" || recipe.name == "fp8") CHECK_GT(off, 1e-3);  // of fp8-sim it depends
    const Tensor tokens = captions(way.config).tokens;
    CHECK_EQ(Model(way.config, DType::f32).clip.needed_columns(tokens).cols(), own_scales ? length : context);
  }
}

TEST_CASE("evaluations stop early, too, and find the same; whole_text computes everything") {
  ClipConfig config = long_context();
  const Model stops(config, DType::f32);
  config.whole_text = true;
  const Model whole(config, DType::f32);
  const Batch batch = captions(config);
  CHECK_EQ(stops.clip.needed_columns(batch.tokens).shape(), Shape{samples, length});
  CHECK_EQ(whole.clip.needed_columns(batch.tokens).data(), batch.tokens.data());

  const auto retrieve = [&](const Model& m) {
    bool given = false;
    return evaluate_retrieval(m.clip, {}, cpu_device, [&](EvaluationBatch& to) {
      to.images = batch.images;
      to.tokens = batch.tokens;
      to.more_tokens = batch.tokens.slice(2, 1);
      to.more_owners = {4};
      return !std::exchange(given, true);
    });
  };
  const Retrieval a = retrieve(stops), b = retrieve(whole);
  CHECK_LE(std::fabs(a.loss - b.loss), 1e-5);
  CHECK_EQ(a.image_to_text.mean_rank, b.image_to_text.mean_rank);
  CHECK_EQ(a.text_to_image.mean_rank, b.text_to_image.mean_rank);

  const auto tokenize = [](const std::string& text, std::span<int32_t> ids) {
    std::fill(ids.begin(), ids.end(), 0);
    for (size_t i = 0; i < text.size(); ++i) ids[i] = static_cast<unsigned char>(text[i]);
    ids[text.size()] = 258;
  };
  const std::vector<std::string> classes{"cat", "dog"}, templates{"a {c}", "the {}!"};
  const Tensor c = zero_shot_classifier(stops.clip, {}, cpu_device, tokenize, classes, templates),
               d = zero_shot_classifier(whole.clip, {}, cpu_device, tokenize, classes, templates);
  CHECK_LE(relative_error(c, d), 1e-5);
}

TEST_CASE("a model whose text is not causal, or is read elsewhere, does not exist here") {
  const auto error = [](const std::string& key) {
    const std::string json = model_config_json(tiny_config());
    const size_t at = json.find("\"context_length\"");
    return error_of([&] { parse_model_config(json.substr(0, at) + key + ", " + json.substr(at), "other"); });
  };
  CHECK_EQ(error("\"vocab_size\": 259"), "");
  for (const char* key : {"\"no_causal_mask\": true", "\"pool_type\": \"last\"", "\"pool_type\": \"first\"",
                          "\"pool_type\": \"none\"", "\"embed_cls\": true"}) {
    CAPTURE(key);
    CHECK(error(key).find("supported") != std::string::npos);
  }
}
