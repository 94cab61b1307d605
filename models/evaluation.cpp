#include "models/evaluation.h"

#include <algorithm>
#include <cmath>

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

RetrievalMetrics retrieval_metrics(const Tensor& queries, const Tensor& candidates) {
  const int64_t n = queries.rows();
  CHECK(n > 0 && candidates.rows() == n, "retrieval of ", n, " queries among ", candidates.rows(),
        " candidates");
  std::vector<int64_t> ranks(static_cast<size_t>(n));
  for_similarity_blocks(queries, candidates, [&](int64_t from, const Tensor& block) {
    for (int64_t i = 0; i < block.rows(); ++i) {
      ranks[from + i] = rank_of(block.span<float>().subspan(i * n, n), from + i);
    }
  });
  RetrievalMetrics m;
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

Retrieval evaluate_retrieval(const Clip& clip, const Clip::Options& options, Device device,
                             const NextBatch& next) {
  Tape::Pause pause;
  Retrieval result;
  std::vector<Tensor> images, texts;  // (B, E) each
  EvaluationBatch batch;
  while (next(batch)) {
    const int64_t size = batch.images.shape()[0];
    Variable image = clip.encode_image(to_device(batch.images, device), options);
    Variable text = clip.encode_text(to_device(batch.tokens, device), options);
    result.loss += number(clip.loss(image, text).value()) * static_cast<double>(size);
    images.push_back(image.value());
    texts.push_back(text.value());
    result.samples += size;
  }
  if (result.samples == 0) fail("retrieval: the evaluation data have no usable image-caption pair");
  result.loss /= static_cast<double>(result.samples);
  const Tensor all_images = join(images), all_texts = join(texts);  // (N, E)
  result.image_to_text = retrieval_metrics(all_images, all_texts);
  result.text_to_image = retrieval_metrics(all_texts, all_images);
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
    const Tensor features =
        to_host(clip.encode_text(to_device(tokens, device), options).value());  // (templates, E)
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
