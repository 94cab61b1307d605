#include "models/evaluation.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "kernels/transfer.h"

namespace switchback {
namespace {

constexpr int64_t block_rows = 256;  // similarities held at a time: 256 x candidates

// Rows of a growing matrix (N, E) f32 on the device, kept as the batches they came in.
Tensor join(const std::vector<Tensor>& parts) {
  std::vector<Variable> variables;
  for (const Tensor& part : parts) variables.emplace_back(part);
  return concat_rows(variables).value();
}

// The number of entries that beat row[own]; of equal ones the earlier wins. A NaN is beaten by everything: a
// broken model must not come out as a perfect one.
int64_t rank_of(std::span<const float> row, int64_t own) {
  const float score = row[own];
  int64_t worse = 0;
  for (int64_t j = 0; j < std::ssize(row); ++j) worse += row[j] < score || (row[j] == score && j > own);
  return std::ssize(row) - 1 - worse;
}

// Calls f(first row, similarities (rows, N) on the host) for blocks of rows of queries x candidatesᵀ.
void for_similarity_blocks(const Tensor& queries, const Tensor& candidates,
                           const std::function<void(int64_t, const Tensor&)>& f) {
  for (int64_t from = 0; from < queries.rows(); from += block_rows) {
    const int64_t rows = std::min(block_rows, queries.rows() - from);
    Tensor block({rows, candidates.rows()}, queries.dtype(), queries.device());
    kernels(queries.device())
        .matmul({block}, queries.slice(from, rows), Transpose::no, candidates, Transpose::yes);
    f(from, to_host(block));
  }
}

}  // namespace

namespace {

RetrievalMetrics metrics_of(std::vector<int64_t> ranks) {
  RetrievalMetrics m;
  const size_t n = ranks.size();
  const double count = static_cast<double>(n);
  for (int64_t rank : ranks) {
    m.mean_rank += static_cast<double>(rank + 1) / count;
    m.r1 += (rank < 1) / count;
    m.r5 += (rank < 5) / count;
    m.r10 += (rank < 10) / count;
  }
  std::sort(ranks.begin(), ranks.end());
  const double median = (static_cast<double>(ranks[(n - 1) / 2]) + static_cast<double>(ranks[n / 2])) / 2;
  m.median_rank = std::floor(median) + 1;
  return m;
}

}  // namespace

RetrievalMetrics retrieval_metrics(const Tensor& queries, const Tensor& candidates) {
  std::vector<int64_t> owners(static_cast<size_t>(candidates.rows()));
  std::iota(owners.begin(), owners.end(), int64_t{0});
  CHECK(queries.rows() > 0 && candidates.rows() == queries.rows(), "retrieval of ", queries.rows(),
        " queries among ", candidates.rows(), " candidates");
  return text_to_image_metrics(queries, candidates, owners);
}

RetrievalMetrics image_to_text_metrics(const Tensor& images, const Tensor& texts,
                                       std::span<const int64_t> owners) {
  const int64_t n = images.rows(), m = texts.rows();
  CHECK(n > 0 && std::ssize(owners) == m && std::is_sorted(owners.begin(), owners.end()), n, " images, ", m,
        " texts, ", owners.size(), " owners");
  std::vector<int64_t> ranks(static_cast<size_t>(n));
  for_similarity_blocks(images, texts, [&](int64_t from, const Tensor& block) {
    for (int64_t i = 0; i < block.rows(); ++i) {
      const auto row = block.span<float>().subspan(static_cast<size_t>(i * m), static_cast<size_t>(m));
      const auto [first, last] = std::equal_range(owners.begin(), owners.end(), from + i);
      CHECK(first != last, "image ", from + i, " has no text");
      int64_t best = m;  // none of its own texts stands before the best one of them
      for (auto own = first; own != last; ++own) best = std::min(best, rank_of(row, own - owners.begin()));
      ranks[static_cast<size_t>(from + i)] = best;
    }
  });
  return metrics_of(std::move(ranks));
}

RetrievalMetrics text_to_image_metrics(const Tensor& texts, const Tensor& images,
                                       std::span<const int64_t> owners) {
  const int64_t n = images.rows();
  CHECK(texts.rows() > 0 && std::ssize(owners) == texts.rows(), texts.rows(), " texts with ", owners.size(),
        " owners");
  std::vector<int64_t> ranks(static_cast<size_t>(texts.rows()));
  for_similarity_blocks(texts, images, [&](int64_t from, const Tensor& block) {
    for (int64_t i = 0; i < block.rows(); ++i)
      ranks[static_cast<size_t>(from + i)] =
          rank_of(block.span<float>().subspan(static_cast<size_t>(i * n), static_cast<size_t>(n)),
                  owners[static_cast<size_t>(from + i)]);
  });
  return metrics_of(std::move(ranks));
}

Retrieval evaluate_retrieval(const Clip& clip, const Clip::Options& options, Device device,
                             const NextBatch& next) {
  Tape::Pause pause;
  Retrieval result;
  std::vector<Tensor> images, texts;  // (B, E) each; further texts come behind the first ones of their batch
  std::vector<std::pair<int64_t, int64_t>> owned;  // image and row of each text
  EvaluationBatch batch;
  while (next(batch)) {
    const int64_t size = batch.images.shape()[0];
    Variable image = clip.encode_image(to_device(batch.images, device), options);
    Variable text = clip.encode_text(to_device(clip.needed_columns(batch.tokens), device), options);
    result.loss += number(clip.loss(image, text).value()) * static_cast<double>(size);
    images.push_back(image.value());
    texts.push_back(text.value());
    for (int64_t i = 0; i < size; ++i) owned.emplace_back(result.samples + i, std::ssize(owned));
    if (batch.more_tokens.defined()) {
      texts.push_back(
          clip.encode_text(to_device(clip.needed_columns(batch.more_tokens), device), options).value());
      for (const int64_t owner : batch.more_owners)
        owned.emplace_back(result.samples + owner, std::ssize(owned));
    }
    result.samples += size;
  }
  if (result.samples == 0) fail("retrieval: the evaluation data have no usable image-caption pair");
  result.loss /= static_cast<double>(result.samples);
  const Tensor all_images = join(images);  // (N, E)
  Tensor all_texts = join(texts);          // (M, E)
  result.texts = all_texts.rows();
  // Texts in the order of their images.
  const bool sorted = std::is_sorted(owned.begin(), owned.end());
  std::stable_sort(owned.begin(), owned.end());
  if (!sorted) {
    const Tensor from = to_host(all_texts), to(from.shape(), from.dtype());
    const size_t embed = static_cast<size_t>(from.cols());
    for (size_t row = 0; row < owned.size(); ++row)
      std::copy_n(from.span<float>().begin() + owned[row].second * static_cast<int64_t>(embed), embed,
                  to.span<float>().begin() + static_cast<int64_t>(row * embed));
    all_texts = to_device(to, device);
  }
  std::vector<int64_t> owners;
  for (const auto& [image, row] : owned) owners.push_back(image);
  result.image_to_text = image_to_text_metrics(all_images, all_texts, owners);
  result.text_to_image = text_to_image_metrics(all_texts, all_images, owners);
  return result;
}

std::string fill_template(std::string text, const std::string& class_name) {
  for (const char* placeholder : {"{c}", "{}"}) {
    const size_t length = std::string_view(placeholder).size();
    for (size_t at = 0; (at = text.find(placeholder, at)) != std::string::npos; at += class_name.size())
      text.replace(at, length, class_name);
  }
  return text;
}

Tensor zero_shot_classifier(const Clip& clip, const Clip::Options& options, Device device,
                            const Tokenize& tokenize, const std::vector<std::string>& classes,
                            const std::vector<std::string>& templates) {
  if (classes.empty()) fail("zero-shot: there are no class names");
  if (templates.empty()) fail("zero-shot: there are no templates");
  Tape::Pause pause;
  const int64_t length = clip.config().text.context_length, embed = clip.config().embed_dim;
  const int64_t count = static_cast<int64_t>(templates.size());
  Tensor classifier({static_cast<int64_t>(classes.size()), embed}, DType::f32);
  for (size_t c = 0; c < classes.size(); ++c) {
    Tensor tokens({count, length}, DType::i32);
    for (int64_t t = 0; t < count; ++t) {
      tokenize(fill_template(templates[t], classes[c]), tokens.span<int32_t>().subspan(t * length, length));
    }
    const Tensor features = to_host(  // (templates, E)
        clip.encode_text(to_device(clip.needed_columns(tokens), device), options).value());
    std::span<float> row = classifier.span<float>().subspan(c * embed, embed);
    double norm = 0;
    for (int64_t e = 0; e < embed; ++e) {
      double sum = 0;
      for (int64_t t = 0; t < count; ++t) sum += features.span<float>()[t * embed + e];
      row[e] = static_cast<float>(sum / static_cast<double>(count));
      norm += static_cast<double>(row[e]) * row[e];
    }
    for (float& v : row) v = static_cast<float>(v / std::max(std::sqrt(norm), 1e-12));
  }
  return to_device(classifier, device);
}

ZeroShot evaluate_zero_shot(const Clip& clip, const Clip::Options& options, Device device,
                            const Tensor& classifier, const NextBatch& next) {
  Tape::Pause pause;
  const int64_t classes = classifier.rows();
  ZeroShot result;
  std::vector<int64_t> seen(static_cast<size_t>(classes)), right(static_cast<size_t>(classes));
  int64_t top5 = 0;
  EvaluationBatch batch;
  while (next(batch)) {
    const Tensor features = clip.encode_image(to_device(batch.images, device), options).value();  // (B, E)
    for_similarity_blocks(features, classifier, [&](int64_t from, const Tensor& block) {
      for (int64_t i = 0; i < block.rows(); ++i) {
        const int64_t label = batch.labels[from + i];
        if (label < 0) continue;
        if (label >= classes)
          fail("zero-shot: label ", label, ", but there are only ", classes, " class names");
        const int64_t rank = rank_of(block.span<float>().subspan(i * classes, classes), label);
        ++seen[label];
        right[label] += rank == 0;
        top5 += rank < 5;
        ++result.samples;
      }
    });
  }
  if (result.samples == 0) fail("zero-shot: the evaluation data have no labelled image");
  int64_t occurring = 0;
  for (int64_t c = 0; c < classes; ++c) {
    result.top1 += static_cast<double>(right[c]) / static_cast<double>(result.samples);
    if (seen[c] == 0) continue;
    ++occurring;
    result.mean_per_class_recall += static_cast<double>(right[c]) / static_cast<double>(seen[c]);
  }
  result.mean_per_class_recall /= static_cast<double>(occurring);
  result.top5 = static_cast<double>(top5) / static_cast<double>(result.samples);
  return result;
}

}  // namespace switchback
