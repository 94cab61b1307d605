// evaluation.h: what a CLIP can do: find the right text for an image and the right image for a text
// (retrieval), and name what an image shows among given classes (zero-shot classification). Similarities are
// computed in blocks of rows; the N x N matrix never exists.
//
// Over several ranks each computes the features of its own batches (the loader deals them out: rank r has
// batches r, r + world, ...) and ranks its part of the queries among all candidates; every rank has the
// result, the one that a single rank would have.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "distributed/communicator.h"
#include "models/clip.h"

namespace switchback {

// The ranks that evaluate together: all of them call the same functions. By default one.
struct EvaluationRanks {
  Communicator& device = single_rank();  // for the features
  Communicator& host = single_rank();    // the same ranks, for counts
};

// Of one direction. The rank of a query is the number of candidates that score higher than its own partner; a
// tie counts against it when the other one comes first.
struct RetrievalMetrics {
  double mean_rank = 0, median_rank = 0;  // counted from 1, as open_clip prints them
  double r1 = 0, r5 = 0, r10 = 0;         // share of queries with rank < 1, 5, 10
};
// queries (N, E), candidates (M, E) f32, normalised: row i belongs to row i (N = M). host: all of whose ranks
// have all rows; each takes a part of the queries.
RetrievalMetrics retrieval_metrics(const Tensor& queries, const Tensor& candidates);
// Several texts per image: owners (M) names the image of each text, in ascending order. An image's rank is
// that of its best own text, as CLIP_benchmark counts.
RetrievalMetrics image_to_text_metrics(const Tensor& images, const Tensor& texts,
                                       std::span<const int64_t> owners, Communicator& host = single_rank());
RetrievalMetrics text_to_image_metrics(const Tensor& texts, const Tensor& images,
                                       std::span<const int64_t> owners, Communicator& host = single_rank());

struct Retrieval {
  int64_t samples = 0, texts = 0;  // images; texts, of which an image may have several
  double loss = 0;  // mean loss of the batches (images with their first texts), weighted by their size
  RetrievalMetrics image_to_text, text_to_image;
};

struct ZeroShot {
  int64_t samples = 0;
  double top1 = 0, top5 = 0;
  double mean_per_class_recall = 0;  // over classes that occur
};

// One batch of evaluation data, in host memory.
struct EvaluationBatch {
  Tensor images;                     // (B, S, S, 3) u8
  Tensor tokens;                     // (B, T) i32, retrieval only: the first text of each image
  Tensor more_tokens;                // (K, T) i32: further texts of images of this batch; undefined: none
  std::vector<int64_t> more_owners;  // (K) their images, rows of this batch, in ascending order
  std::span<const int64_t> labels;   // (B), zero-shot only; below 0: unlabelled, left out
};
// Fills the batch, of this rank; false when there are no more.
using NextBatch = std::function<bool(EvaluationBatch&)>;

Retrieval evaluate_retrieval(const Clip& clip, const Clip::Options& options, Device device,
                             const NextBatch& next, EvaluationRanks ranks = {});

// "a photo of a {c}." with the class's name; {} is a placeholder too.
std::string fill_template(std::string text, const std::string& class_name);

// One row per class (K, E) f32 on `device`: the mean of the normalised features of all templates filled with
// the class's name, normalised again. tokenize: text -> T ids. Each rank computes a part of the classes.
using Tokenize = std::function<void(const std::string& text, std::span<int32_t> ids)>;
Tensor zero_shot_classifier(const Clip& clip, const Clip::Options& options, Device device,
                            const Tokenize& tokenize, const std::vector<std::string>& classes,
                            const std::vector<std::string>& templates, Communicator& host = single_rank());

// Errors: a label that is no class.
ZeroShot evaluate_zero_shot(const Clip& clip, const Clip::Options& options, Device device,
                            const Tensor& classifier, const NextBatch& next,
                            Communicator& host = single_rank());

}  // namespace switchback
