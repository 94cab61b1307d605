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

// This rank's part of n things: [first, second).
std::pair<int64_t, int64_t> part_of_rank(int64_t n, const Communicator& ranks) {
  return {n * ranks.rank() / ranks.world_size(), n * (ranks.rank() + 1) / ranks.world_size()};
}

// Calls f(first row, similarities (rows, N) on the host) for blocks of this rank's rows of queries x
// candidatesᵀ.
void for_similarity_blocks(const Tensor& queries, const Tensor& candidates, const Communicator& ranks,
                           const std::function<void(int64_t, const Tensor&)>& f) {
  const auto [begin, end] = part_of_rank(queries.rows(), ranks);
  for (int64_t from = begin; from < end; from += block_rows) {
    const int64_t rows = std::min(block_rows, end - from);
    Tensor block({rows, candidates.rows()}, queries.dtype(), queries.device());
    kernels(queries.device())
        .matmul({block}, queries.slice(from, rows), Transpose::no, candidates, Transpose::yes);
    f(from, to_host(block));
  }
}

// Of every rank, one after the other.
std::vector<int64_t> gathered(const std::vector<int64_t>& own, Communicator& host) {
  const Tensor from = Tensor::of<int64_t>({std::ssize(own)}, own),
               all({std::ssize(own) * host.world_size()}, DType::i64);
  host.all_gather(all, from);
  const auto values = all.span<int64_t>();
  return {values.begin(), values.end()};
}

void add_up(std::vector<int64_t>& counts, Communicator& host) {
  const Tensor sums = Tensor::of<int64_t>({std::ssize(counts)}, counts);
  host.all_reduce(sums);
  std::ranges::copy(sums.span<int64_t>(), counts.begin());
}

// The batches of all ranks, which were dealt out in turns, in their order. own: this rank's rows, batch by
// batch; sizes[b]: rows of batch b, of all ranks.
Tensor joined(const std::vector<Tensor>& own, std::span<const int64_t> sizes, int64_t embed, Device device,
              Communicator& ranks) {
  if (ranks.world_size() == 1) return join(own);
  const size_t world = static_cast<size_t>(ranks.world_size());
  std::vector<int64_t> rows(world);
  for (size_t b = 0; b < sizes.size(); ++b) rows[b % world] += sizes[b];
  const int64_t room = *std::ranges::max_element(rows);  // of each rank: an all-gather wants equal shares
  const Tensor padded({room, embed}, DType::f32, device),
      all({room * ranks.world_size(), embed}, DType::f32, device);
  kernels(device).fill(padded, 0);
  int64_t at = 0;
  for (const Tensor& part : own) {
    kernels(device).cast(padded.slice(at, part.rows()), part);
    at += part.rows();
  }
  ranks.all_gather(all, padded);
  ranks.join();
  const Tensor result({std::accumulate(rows.begin(), rows.end(), int64_t{0}), embed}, DType::f32, device);
  std::vector<int64_t> next(world);  // row of each rank
  at = 0;
  for (size_t b = 0; b < sizes.size(); ++b) {
    int64_t& from = next[b % world];
    if (sizes[b] > 0)
      kernels(device).cast(result.slice(at, sizes[b]),
                           all.slice(static_cast<int64_t>(b % world) * room + from, sizes[b]));
    from += sizes[b];
    at += sizes[b];
  }
  return result;
}

// ranks: of every query that is this process's to rank; 0 of the others.
RetrievalMetrics metrics_of(std::vector<int64_t> ranks, Communicator& host) {
  add_up(ranks, host);
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
                                       std::span<const int64_t> owners, Communicator& host) {
  const int64_t n = images.rows(), m = texts.rows();
  CHECK(n > 0 && std::ssize(owners) == m && std::is_sorted(owners.begin(), owners.end()), n, " images, ", m,
        " texts, ", owners.size(), " owners");
  std::vector<int64_t> ranks(static_cast<size_t>(n));
  for_similarity_blocks(images, texts, host, [&](int64_t from, const Tensor& block) {
    for (int64_t i = 0; i < block.rows(); ++i) {
      const auto row = block.span<float>().subspan(static_cast<size_t>(i * m), static_cast<size_t>(m));
      const auto [first, last] = std::equal_range(owners.begin(), owners.end(), from + i);
      CHECK(first != last, "image ", from + i, " has no text");
      int64_t best = m;  // none of its own texts stands before the best one of them
      for (auto own = first; own != last; ++own) best = std::min(best, rank_of(row, own - owners.begin()));
      ranks[static_cast<size_t>(from + i)] = best;
    }
  });
  return metrics_of(std::move(ranks), host);
}

RetrievalMetrics text_to_image_metrics(const Tensor& texts, const Tensor& images,
                                       std::span<const int64_t> owners, Communicator& host) {
  const int64_t n = images.rows();
  CHECK(texts.rows() > 0 && std::ssize(owners) == texts.rows(), texts.rows(), " texts with ", owners.size(),
        " owners");
  std::vector<int64_t> ranks(static_cast<size_t>(texts.rows()));
  for_similarity_blocks(texts, images, host, [&](int64_t from, const Tensor& block) {
    for (int64_t i = 0; i < block.rows(); ++i)
      ranks[static_cast<size_t>(from + i)] =
          rank_of(block.span<float>().subspan(static_cast<size_t>(i * n), static_cast<size_t>(n)),
                  owners[static_cast<size_t>(from + i)]);
  });
  return metrics_of(std::move(ranks), host);
}

Retrieval evaluate_retrieval(const Clip& clip, const Clip::Options& options, Device device,
                             const NextBatch& next, EvaluationRanks ranks) {
  Tape::Pause pause;
  Retrieval result;
  std::vector<Tensor> images, texts;  // (B, E) each; further texts come behind the first ones of their batch
  std::vector<int64_t> image_counts, text_counts;  // of all ranks' batches, in their order
  std::vector<std::pair<int64_t, int64_t>> owned;  // image and row of each text
  double loss = 0;                                 // of this rank's batches
  EvaluationBatch batch;
  while (true) {
    // A round: a batch of every rank. What is known of each of its texts: the row of the batch that it
    // belongs to.
    const bool has_one = next(batch);
    const int64_t size = has_one ? batch.images.shape()[0] : 0;
    const bool has_more = has_one && batch.more_tokens.defined();
    const std::vector<int64_t> further = has_more ? batch.more_owners : std::vector<int64_t>();
    const std::vector<int64_t> counts = gathered({size, std::ssize(further)}, ranks.host);  // of each rank
    if (std::ranges::none_of(counts, [](int64_t n) { return n > 0; })) break;
    if (has_one) {
      Variable image = clip.encode_image(to_device(batch.images, device), options);
      Variable text = clip.encode_text(to_device(clip.needed_columns(batch.tokens), device), options);
      loss += number(clip.loss(image, text).value()) * static_cast<double>(size);
      images.push_back(image.value());
      texts.push_back(text.value());
      if (has_more)
        texts.push_back(
            clip.encode_text(to_device(clip.needed_columns(batch.more_tokens), device), options).value());
    }
    int64_t most = 0;
    for (size_t r = 0; r < counts.size(); r += 2) most = std::max(most, counts[r + 1]);
    std::vector<int64_t> padded = further;
    padded.resize(static_cast<size_t>(most));
    const std::vector<int64_t> owners = most > 0 ? gathered(padded, ranks.host) : padded;
    for (size_t r = 0; r < counts.size() / 2; ++r) {
      const int64_t of_rank = counts[2 * r], further_of_rank = counts[2 * r + 1];
      for (int64_t i = 0; i < of_rank; ++i) owned.emplace_back(result.samples + i, std::ssize(owned));
      for (int64_t i = 0; i < further_of_rank; ++i)
        owned.emplace_back(result.samples + owners[r * static_cast<size_t>(most) + static_cast<size_t>(i)],
                           std::ssize(owned));
      image_counts.push_back(of_rank);
      text_counts.push_back(of_rank + further_of_rank);
      result.samples += of_rank;
    }
  }
  if (result.samples == 0) fail("retrieval: the evaluation data have no usable image-caption pair");
  const Tensor total = Tensor::of<double>({1}, {loss});
  ranks.host.all_reduce(total);
  result.loss = total.span<double>()[0] / static_cast<double>(result.samples);
  const int64_t embed = clip.config().embed_dim;
  const Tensor all_images = joined(images, image_counts, embed, device, ranks.device);  // (N, E)
  Tensor all_texts = joined(texts, text_counts, embed, device, ranks.device);           // (M, E)
  result.texts = all_texts.rows();
  // Texts in the order of their images.
  const bool sorted = std::is_sorted(owned.begin(), owned.end());
  std::stable_sort(owned.begin(), owned.end());
  if (!sorted) {
    const Tensor from = to_host(all_texts), to(from.shape(), from.dtype());
    const size_t width = static_cast<size_t>(from.cols());
    for (size_t row = 0; row < owned.size(); ++row)
      std::copy_n(from.span<float>().begin() + owned[row].second * static_cast<int64_t>(width), width,
                  to.span<float>().begin() + static_cast<int64_t>(row * width));
    all_texts = to_device(to, device);
  }
  std::vector<int64_t> owners;
  for (const auto& [image, row] : owned) owners.push_back(image);
  result.image_to_text = image_to_text_metrics(all_images, all_texts, owners, ranks.host);
  result.text_to_image = text_to_image_metrics(all_texts, all_images, owners, ranks.host);
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
                            const std::vector<std::string>& templates, Communicator& host) {
  if (classes.empty()) fail("zero-shot: there are no class names");
  if (templates.empty()) fail("zero-shot: there are no templates");
  Tape::Pause pause;
  const int64_t length = clip.config().text.context_length, embed = clip.config().embed_dim;
  const int64_t count = static_cast<int64_t>(templates.size());
  Tensor classifier({static_cast<int64_t>(classes.size()), embed}, DType::f32);
  std::ranges::fill(classifier.span<float>(), 0.0f);  // the other ranks' classes: rows are added up
  const auto [begin, end] = part_of_rank(std::ssize(classes), host);
  for (size_t c = static_cast<size_t>(begin); c < static_cast<size_t>(end); ++c) {
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
  host.all_reduce(classifier);
  return to_device(classifier, device);
}

ZeroShot evaluate_zero_shot(const Clip& clip, const Clip::Options& options, Device device,
                            const Tensor& classifier, const NextBatch& next, Communicator& host) {
  Tape::Pause pause;
  const int64_t classes = classifier.rows();
  ZeroShot result;
  const size_t k = static_cast<size_t>(classes);
  std::vector<int64_t> counts(2 * k + 1);  // images of each class; those that are recognised; those among 5
  const std::span<int64_t> seen(counts.data(), k), right(counts.data() + k, k);
  int64_t& top5 = counts.back();
  EvaluationBatch batch;
  while (next(batch)) {
    const Tensor features = clip.encode_image(to_device(batch.images, device), options).value();  // (B, E)
    for_similarity_blocks(features, classifier, single_rank(), [&](int64_t from, const Tensor& block) {
      for (int64_t i = 0; i < block.rows(); ++i) {
        const int64_t label = batch.labels[from + i];
        if (label < 0) continue;
        if (label >= classes)
          fail("zero-shot: label ", label, ", but there are only ", classes, " class names");
        const int64_t rank = rank_of(block.span<float>().subspan(i * classes, classes), label);
        ++seen[label];
        right[label] += rank == 0;
        top5 += rank < 5;
      }
    });
  }
  add_up(counts, host);
  result.samples = std::accumulate(seen.begin(), seen.end(), int64_t{0});
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
