// Retrieval and zero-shot classification against their plain definitions: whole matrices, sorted rows.
#include <algorithm>
#include <limits>
#include <numeric>

#include "distributed/thread_communicator.h"
#include "models/evaluation.h"
#include "tests/models/model_test.h"

namespace switchback {
namespace {

// (rows, cols) f32 of small whole numbers: products are exact, and many are equal.
Tensor whole_numbers(int64_t rows, int64_t cols, uint64_t seed) {
  PhiloxStream random(seed, RandomPurpose::test, 0);
  Tensor t({rows, cols}, DType::f32);
  for (float& v : t.span<float>()) v = static_cast<float>(random.below(5)) - 2;
  return t;
}

double dot(const Tensor& a, int64_t i, const Tensor& b, int64_t j) {
  double sum = 0;
  for (int64_t e = 0; e < a.cols(); ++e)
    sum += double(a.span<float>()[i * a.cols() + e]) * b.span<float>()[j * b.cols() + e];
  return sum;
}

// The place of candidate `own` among all, the best first, equal ones in their order.
int64_t naive_rank(const Tensor& queries, int64_t query, const Tensor& candidates, int64_t own) {
  std::vector<double> scores;
  for (int64_t j = 0; j < candidates.rows(); ++j) scores.push_back(dot(queries, query, candidates, j));
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  return std::find(order.begin(), order.end(), own) - order.begin();
}

RetrievalMetrics naive_metrics(const Tensor& queries, const Tensor& candidates) {
  RetrievalMetrics m;
  std::vector<int64_t> ranks;
  for (int64_t i = 0; i < queries.rows(); ++i) ranks.push_back(naive_rank(queries, i, candidates, i));
  const double n = static_cast<double>(ranks.size());
  for (int64_t r : ranks)
    m.mean_rank += static_cast<double>(r) / n, m.r1 += (r < 1) / n, m.r5 += (r < 5) / n,
        m.r10 += (r < 10) / n;
  m.mean_rank += 1;
  std::sort(ranks.begin(), ranks.end());
  const size_t half = ranks.size() / 2;
  m.median_rank =
      std::floor(ranks.size() % 2 ? double(ranks[half]) : double(ranks[half - 1] + ranks[half]) / 2) + 1;
  return m;
}

void check_equal(const RetrievalMetrics& a, const RetrievalMetrics& b) {
  CHECK_EQ(a.mean_rank, doctest::Approx(b.mean_rank).epsilon(1e-9));
  CHECK_EQ(a.median_rank, b.median_rank);
  CHECK_EQ(a.r1, doctest::Approx(b.r1).epsilon(1e-9));
  CHECK_EQ(a.r5, doctest::Approx(b.r5).epsilon(1e-9));
  CHECK_EQ(a.r10, doctest::Approx(b.r10).epsilon(1e-9));
}

TEST_CASE("retrieval metrics agree with sorting the whole matrix, ties too") {
  for (int64_t n : {1, 2, 7, 256, 257, 601}) {
    CAPTURE(n);
    const Tensor queries = whole_numbers(n, 6, 1);
    Tensor candidates = whole_numbers(n, 6, 2);
    for (int64_t i = 0; i < candidates.size(); i += 2)
      candidates.span<float>()[i] = queries.span<float>()[i];  // related
    check_equal(retrieval_metrics(queries, candidates), naive_metrics(queries, candidates));
  }
  const Tensor same = Tensor::of<float>({4, 1}, {1, 1, 1, 1});  // all tied: ranks 0, 1, 2, 3
  CHECK_EQ(retrieval_metrics(same, same).mean_rank, 2.5);
  CHECK_EQ(retrieval_metrics(same, same).r1, 0.25);
}

TEST_CASE("several texts per image: the best own text counts, against sorting the whole matrix") {
  for (int64_t n : {1, 5, 40}) {
    CAPTURE(n);
    std::vector<int64_t> owners;
    for (int64_t i = 0; i < n; ++i) owners.insert(owners.end(), static_cast<size_t>(1 + i % 4), i);
    const int64_t texts_count = std::ssize(owners);
    const Tensor images = whole_numbers(n, 5, 1), texts = whole_numbers(texts_count, 5, 2);
    double r5_images = 0, r1_texts = 0, mean_images = 0;
    for (int64_t i = 0; i < n; ++i) {
      int64_t best = texts_count;
      for (int64_t t = 0; t < texts_count; ++t)
        if (owners[static_cast<size_t>(t)] == i) best = std::min(best, naive_rank(images, i, texts, t));
      r5_images += best < 5, mean_images += static_cast<double>(best + 1);
    }
    for (int64_t t = 0; t < texts_count; ++t)
      r1_texts += naive_rank(texts, t, images, owners[static_cast<size_t>(t)]) < 1;
    const RetrievalMetrics of_images = image_to_text_metrics(images, texts, owners);
    CHECK(of_images.r5 == doctest::Approx(r5_images / static_cast<double>(n)));
    CHECK(of_images.mean_rank == doctest::Approx(mean_images / static_cast<double>(n)));
    CHECK(text_to_image_metrics(texts, images, owners).r1 ==
          doctest::Approx(r1_texts / static_cast<double>(texts_count)));
  }
}

TEST_CASE("a model that gives NaN retrieves nothing") {
  Tensor nan({20, 3}, DType::f32);
  std::fill(nan.span<float>().begin(), nan.span<float>().end(), std::numeric_limits<float>::quiet_NaN());
  const RetrievalMetrics m = retrieval_metrics(nan, whole_numbers(20, 3, 1));
  CHECK_EQ(m.r10, 0);
  CHECK_EQ(m.mean_rank, 20);
}

// Hands out rows [0, sizes[0]), [sizes[0], ...) of a batch.
NextBatch in_pieces(const Batch& all, std::vector<int64_t> sizes, std::vector<int64_t>* labels = nullptr) {
  return [all, sizes, labels, piece = size_t{0}, from = int64_t{0}](EvaluationBatch& batch) mutable {
    if (piece == sizes.size()) return false;
    const int64_t size = sizes[piece++];
    batch.images = all.images.slice(from, size);
    batch.tokens = all.tokens.slice(from, size);
    if (labels) batch.labels = std::span<const int64_t>(*labels).subspan(from, size);
    from += size;
    return true;
  };
}

TEST_CASE("further texts find their images, whatever batch they come in") {
  const Model m(tiny_config(), DType::f32);
  const Batch all = random_batch(m.clip.config(), 6, 1);
  Tape::Pause pause;
  // Images 1 and 4 have a second text: the first text of image 0 and of image 5.
  const auto run = [&](std::vector<int64_t> sizes) {
    int64_t from = 0;
    size_t piece = 0;
    return evaluate_retrieval(m.clip, {}, cpu_device, [&](EvaluationBatch& batch) {
      if (piece == sizes.size()) return false;
      const int64_t size = sizes[piece++];
      batch.images = all.images.slice(from, size);
      batch.tokens = all.tokens.slice(from, size);
      batch.more_tokens = Tensor();
      batch.more_owners.clear();
      std::vector<int32_t> ids;
      for (const auto& [image, other] : {std::pair<int64_t, int64_t>{1, 0}, {4, 5}}) {
        if (image < from || image >= from + size) continue;
        const Tensor row = all.tokens.slice(other, 1);
        ids.insert(ids.end(), row.span<int32_t>().begin(), row.span<int32_t>().end());
        batch.more_owners.push_back(image - from);
      }
      if (!ids.empty())
        batch.more_tokens = Tensor::of<int32_t>({std::ssize(batch.more_owners), all.tokens.cols()}, ids);
      from += size;
      return true;
    });
  };
  const Retrieval whole = run({6}), parts = run({2, 3, 1});
  CHECK_EQ(whole.texts, 8);
  check_equal(whole.image_to_text, parts.image_to_text);
  check_equal(whole.text_to_image, parts.text_to_image);
}

TEST_CASE("retrieval of batches of any size is retrieval of all features at once") {
  const Model m(tiny_config(), DType::f32);
  const Batch all = random_batch(m.clip.config(), 11);
  const Retrieval r = evaluate_retrieval(m.clip, {}, cpu_device, in_pieces(all, {4, 4, 3}));
  Tape::Pause pause;
  const Tensor images = m.clip.encode_image(all.images, {}).value(),
               texts = m.clip.encode_text(all.tokens, {}).value();
  CHECK_EQ(r.samples, 11);
  check_equal(r.image_to_text, naive_metrics(images, texts));
  check_equal(r.text_to_image, naive_metrics(texts, images));
  double loss = 0;
  for (const auto& [from, size] : {std::pair{0, 4}, {4, 4}, {8, 3}})
    loss +=
        size / 11.0 *
        number(m.clip.loss(Variable(images.slice(from, size)), Variable(texts.slice(from, size))).value());
  CHECK_EQ(r.loss, doctest::Approx(loss).epsilon(1e-5));
  CHECK_EQ(tape().size(), 0);
  CHECK_NE(error_of([&] { evaluate_retrieval(m.clip, {}, cpu_device, in_pieces(all, {})); }), "");
}

// What a rank gets: batches rank, rank + world, ...
NextBatch dealt(NextBatch next, const Communicator& ranks) {
  return [next, &ranks, at = int64_t{0}](EvaluationBatch& batch) mutable {
    while (next(batch))
      if (at++ % ranks.world_size() == ranks.rank()) return true;
    return false;
  };
}

TEST_CASE("ranks together find what one rank finds: retrieval with further texts, zero-shot") {
  const Model m(tiny_config(), DType::f32);
  const Batch all = random_batch(m.clip.config(), 23);
  const std::vector<int64_t> sizes{4, 4, 1, 4, 4, 4, 2};
  // The first image of every batch of 4 has a second text, that of the batch's last image.
  const auto pairs = [&] {
    return [next = in_pieces(all, sizes)](EvaluationBatch& batch) mutable {
      if (!next(batch)) return false;
      const int64_t size = batch.images.shape()[0];
      batch.more_tokens = size == 4 ? batch.tokens.slice(3, 1) : Tensor();
      batch.more_owners.assign(size == 4 ? 1 : 0, 0);
      return true;
    };
  };
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < 23; ++i) labels.push_back(i % 7 == 6 ? -1 : i % 5);
  const std::vector<std::string> classes{"a", "b", "c", "d", "e"}, templates{"{c}", "one {c}"};
  const auto tokenize = [&](const std::string& text, std::span<int32_t> ids) {
    for (size_t i = 0; i < ids.size(); ++i)
      ids[i] = static_cast<int32_t>((text.size() + i) * text.back() % 50);
  };
  const auto retrieve = [&](Communicator& c) {
    return evaluate_retrieval(m.clip, {}, cpu_device, dealt(pairs(), c), {c, c});
  };
  const auto classify = [&](Communicator& c) {
    const Tensor classifier = zero_shot_classifier(m.clip, {}, cpu_device, tokenize, classes, templates, c);
    return evaluate_zero_shot(m.clip, {}, cpu_device, classifier, dealt(in_pieces(all, sizes, &labels), c),
                              c);
  };
  const Retrieval one = retrieve(single_rank());
  const ZeroShot one_shot = classify(single_rank());
  CHECK_EQ(one.texts, 28);
  CHECK_EQ(one_shot.samples, 20);
  for (int world : {2, 3, 8}) {  // of 8 ranks one has no batch at all
    std::vector<Retrieval> found(static_cast<size_t>(world));
    std::vector<ZeroShot> shots(static_cast<size_t>(world));
    ThreadGroup(world).run([&](Communicator& c) {
      found[static_cast<size_t>(c.rank())] = retrieve(c);
      shots[static_cast<size_t>(c.rank())] = classify(c);
    });
    for (const Retrieval& r : found) {
      CHECK_EQ(r.samples, 23);
      CHECK_EQ(r.texts, 28);
      CHECK_EQ(r.loss, doctest::Approx(one.loss).epsilon(1e-12));
      check_equal(r.image_to_text, one.image_to_text);
      check_equal(r.text_to_image, one.text_to_image);
    }
    for (const ZeroShot& z : shots) {
      CHECK_EQ(z.samples, 20);
      CHECK_EQ(z.top1, one_shot.top1);
      CHECK_EQ(z.top5, one_shot.top5);
      CHECK_EQ(z.mean_per_class_recall, one_shot.mean_per_class_recall);
    }
  }
}

TEST_CASE("templates are filled wherever their placeholder stands") {
  CHECK_EQ(fill_template("a photo of a {c}.", "cat"), "a photo of a cat.");
  CHECK_EQ(fill_template("{} and {c}", "x"), "x and x");
  CHECK_EQ(fill_template("no place", "x"), "no place");
  CHECK_EQ(fill_template("a {c}", "{c}"), "a {c}");
  CHECK_EQ(fill_template("", "x"), "");
}

// Bytes as ids, closed by the end-of-text id.
void tokenize_bytes(const std::string& text, std::span<int32_t> ids) {
  std::fill(ids.begin(), ids.end(), 0);
  const size_t length = std::min(text.size(), ids.size() - 1);
  for (size_t i = 0; i < length; ++i) ids[i] = static_cast<unsigned char>(text[i]);
  ids[length] = 258;
}

TEST_CASE("a class is the mean of its texts; images go to the nearest class") {
  const Model m(tiny_config(), DType::f32);
  const std::vector<std::string> classes{"cat", "dog", "owl", "emu", "bee", "ant", "cow"},
      templates{"a {c}", "the {}!", "{c}"};
  const Tensor classifier = zero_shot_classifier(m.clip, {}, cpu_device, tokenize_bytes, classes, templates);
  CHECK_EQ(classifier.shape(), Shape{7, 16});

  Tape::Pause pause;
  std::vector<double> naive;
  for (const std::string& name : classes) {
    std::vector<double> mean(16);
    for (const std::string& text : {"a " + name, "the " + name + "!", name}) {
      Tensor tokens({1, 12}, DType::i32);
      tokenize_bytes(text, tokens.span<int32_t>());
      const std::vector<double> feature = doubles(m.clip.encode_text(tokens, {}).value());
      for (size_t e = 0; e < 16; ++e) mean[e] += feature[e] / 3;
    }
    double norm = 0;
    for (double v : mean) norm += v * v;
    for (double v : mean) naive.push_back(v / std::sqrt(norm));
  }
  const std::vector<double> ours = doubles(classifier);
  for (size_t i = 0; i < naive.size(); ++i) CHECK_EQ(ours[i], doctest::Approx(naive[i]).epsilon(1e-4));

  const Batch images = random_batch(m.clip.config(), 40);
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < 40; ++i)
    labels.push_back(i % 9 == 8 ? -1 : i % 5);  // some unlabelled; classes 5, 6 never occur
  const ZeroShot z =
      evaluate_zero_shot(m.clip, {}, cpu_device, classifier, in_pieces(images, {16, 16, 8}, &labels));
  const Tensor features = m.clip.encode_image(images.images, {}).value();
  double samples = 0, top1 = 0, top5 = 0, right[7] = {}, seen[7] = {}, recall = 0;
  for (int64_t i = 0; i < 40; ++i) {
    if (labels[i] < 0) continue;
    const int64_t rank = naive_rank(features, i, classifier, labels[i]);
    ++samples, ++seen[labels[i]];
    top1 += rank == 0, top5 += rank < 5, right[labels[i]] += rank == 0;
  }
  for (int c = 0; c < 5; ++c) recall += right[c] / seen[c] / 5;
  CHECK_EQ(z.samples, samples);
  CHECK_EQ(z.top1, doctest::Approx(top1 / samples));
  CHECK_EQ(z.top5, doctest::Approx(top5 / samples));
  CHECK_EQ(z.mean_per_class_recall, doctest::Approx(recall));
  CHECK_GT(z.top5, z.top1);  // or this tests nothing
}

TEST_CASE("zero-shot evaluation refuses what it cannot use") {
  const Model m(tiny_config(), DType::f32);
  CHECK_NE(error_of([&] { zero_shot_classifier(m.clip, {}, cpu_device, tokenize_bytes, {}, {"{c}"}); }), "");
  CHECK_NE(error_of([&] { zero_shot_classifier(m.clip, {}, cpu_device, tokenize_bytes, {"a"}, {}); }), "");
  const Tensor classifier = zero_shot_classifier(m.clip, {}, cpu_device, tokenize_bytes, {"a", "b"}, {"{c}"});
  const Batch images = random_batch(m.clip.config(), 2);
  std::vector<int64_t> labels{0, 2}, none{-1, -1};
  const std::string message = error_of(
      [&] { evaluate_zero_shot(m.clip, {}, cpu_device, classifier, in_pieces(images, {2}, &labels)); });
  CHECK(message.find("label 2") != std::string::npos);
  CHECK_NE(error_of([&] {
             evaluate_zero_shot(m.clip, {}, cpu_device, classifier, in_pieces(images, {2}, &none));
           }),
           "");
}

}  // namespace
}  // namespace switchback
