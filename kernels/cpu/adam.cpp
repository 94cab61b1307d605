// adam.cpp: AdamW and StableAdamW over the whole arena (paper section 6.1), in three passes.
//
//   gradient_statistics   sum_squares[s] = Σ g²
//   adam_moments          g' = g · gradient_scale · clip;  first = β̂1 first + (1-β̂1) g';
//                         second = β̂2 second + (1-β̂2) g'²;  rms[s] = sqrt(mean(g'²/max(second, ε²)))
//   adam_update           rate = lr rate_scale[s] / max(1, rms[s]/clip_threshold)   (AdamW: lr rate_scale[s])
//                         master = master (1 - decay_rate weight_decay[s]) - rate first/(sqrt(second) + ε)
//
// clip = min(1, max_gradient_norm/(norm + 1e-6)), norm = gradient_scale sqrt(Σ_s sum_squares[s]) over the
// tensors that are neither frozen (rate_scale 0) nor skipped; the 1e-6 is PyTorch's clip_grad_norm_.
// A skipped tensor has rms -1; a frozen one is left alone and has rms 0. decay_rate is lr rate_scale[s], or
// the clipped rate when decay_clipped_rate is set.
//
// Tensors are cut into pieces of at most `piece_elements`; a tensor's sum adds its pieces' sums in order, so
// that it has the same bits for any number of threads. Sums over more than `block_elements` are held in f64:
// in f32, 40,000 squares lost 5 bits.
#include <cmath>
#include <vector>

#include "kernels/cpu/access.h"
#include "kernels/quantize.h"

namespace switchback {
namespace {

constexpr int64_t piece_elements = 1 << 15;

constexpr int64_t block_elements = 1024;

// Σ f(i) for i from `from` to `to`: in R within a block, in f64 over blocks.
template <class R, class F>
double sum_blocks(int64_t from, int64_t to, F&& f) {
  double total = 0;
  for (int64_t begin = from; begin < to; begin += block_elements) {
    const int64_t end = std::min(to, begin + block_elements);
    R sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = begin; i < end; ++i) sum += f(i);
    total += static_cast<double>(sum);
  }
  return total;
}

struct Piece {
  int64_t segment, from, to;  // elements of the flat buffers
};

std::vector<Piece> pieces_of(const char* op, const Segments& segments, int64_t elements) {
  check_matrix(op, "segments.ranges", segments.ranges, segments.count(), 2, DType::i64);
  check_vector(op, "segments.weight_decay", segments.weight_decay, segments.count(), DType::f64);
  check_vector(op, "segments.rate_scale", segments.rate_scale, segments.count(), DType::f64);
  const int64_t* ranges = segments.ranges.as<int64_t>();
  std::vector<Piece> pieces;
  for (int64_t s = 0; s < segments.count(); ++s) {
    const int64_t begin = ranges[2 * s], end = begin + ranges[2 * s + 1];
    CHECK(begin >= 0 && end >= begin && end <= elements, op, ": segment ", s, " covers ", begin, " to ", end,
          " of ", elements, " elements");
    for (int64_t from = begin; from < end; from += piece_elements)
      pieces.push_back({s, from, std::min(end, from + piece_elements)});
  }
  return pieces;
}

// sums[s] = Σ over the pieces of s of f(piece), which runs on all threads.
template <class F>
std::vector<double> sum_by_segment(const std::vector<Piece>& pieces, int64_t segments, F&& f) {
  std::vector<double> of_piece(pieces.size());
  parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t from, int64_t to) {
    for (int64_t p = from; p < to; ++p) of_piece[p] = f(pieces[p]);
  });
  std::vector<double> sums(segments, 0.0);
  for (size_t p = 0; p < pieces.size(); ++p) sums[pieces[p].segment] += of_piece[p];
  return sums;
}

// (step_scalar_count) f64
const double* step_scalars(const char* op, const CView& scalars) {
  check_vector(op, "scalars", scalars, step_scalar_count, DType::f64);
  return scalars.as<double>();
}

}  // namespace

void CpuKernels::gradient_statistics(View sum_squares, CView gradients, const Segments& segments) {
  const char* op = "gradient_statistics";
  const std::vector<Piece> pieces = pieces_of(op, segments, gradients.size());
  check_place(op, "gradients", gradients, gradients.dtype);
  check_vector(op, "sum_squares", sum_squares, segments.count(), statistics_dtype(gradients.dtype));
  visit_float(gradients.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T* g = gradients.as<T>();
    const std::vector<double> sums = sum_by_segment(pieces, segments.count(), [=](const Piece& piece) {
      return sum_blocks<R>(piece.from, piece.to,
                           [=](int64_t i) { return static_cast<R>(g[i]) * static_cast<R>(g[i]); });
    });
    for (int64_t s = 0; s < segments.count(); ++s) sum_squares.as<R>()[s] = static_cast<R>(sums[s]);
  });
}

void CpuKernels::adam_moments(View first, View second, View rms, CView gradients, CView sum_squares,
                              const Segments& segments, CView scalars, const AdamOptions& options) {
  const char* op = "adam_moments";
  const int64_t elements = gradients.size(), count = segments.count();
  const std::vector<Piece> pieces = pieces_of(op, segments, elements);
  const DType statistics = statistics_dtype(gradients.dtype);
  check_place(op, "gradients", gradients, gradients.dtype);
  check_vector(op, "first", first, elements, statistics);
  check_vector(op, "second", second, elements, statistics);
  check_vector(op, "rms", rms, count, statistics);
  check_vector(op, "sum_squares", sum_squares, count, statistics);
  const double* step = step_scalars(op, scalars);
  visit_float(gradients.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T* gradient = gradients.as<T>();
    const R* squares = sum_squares.as<R>();
    const double* rate_scale = segments.rate_scale.as<double>();
    const auto skipped = [=](int64_t s) { return !std::isfinite(squares[s]); };
    R *v = first.as<R>(), *u = second.as<R>(), *result = rms.as<R>();

    double scale = step[scalar_gradient_scale];
    if (options.max_gradient_norm > 0) {
      double total = 0;
      for (int64_t s = 0; s < count; ++s)
        if (rate_scale[s] != 0 && !skipped(s)) total += static_cast<double>(squares[s]);
      scale *= std::min(1.0, options.max_gradient_norm / (std::fabs(scale) * std::sqrt(total) + 1e-6));
    }
    const R factor = static_cast<R>(scale);
    const R keep1 = static_cast<R>(step[scalar_beta1]), add1 = static_cast<R>(1 - step[scalar_beta1]);
    const R keep2 = static_cast<R>(step[scalar_beta2]), add2 = static_cast<R>(1 - step[scalar_beta2]);
    const R least = static_cast<R>(options.epsilon * options.epsilon);
    const std::vector<double> sums = sum_by_segment(pieces, count, [=](const Piece& piece) {
      if (rate_scale[piece.segment] == 0 || skipped(piece.segment)) return 0.0;
      return sum_blocks<R>(piece.from, piece.to, [=](int64_t i) {
        const R g = static_cast<R>(gradient[i]) * factor;
        v[i] = keep1 * v[i] + add1 * g;
        const R moment = keep2 * u[i] + add2 * (g * g);
        u[i] = moment;
        return g * g / (moment > least ? moment : least);
      });
    });
    const int64_t* ranges = segments.ranges.as<int64_t>();
    for (int64_t s = 0; s < count; ++s) {
      const double mean = ranges[2 * s + 1] > 0 ? sums[s] / static_cast<double>(ranges[2 * s + 1]) : 0.0;
      result[s] = rate_scale[s] != 0 && skipped(s) ? R(-1) : static_cast<R>(std::sqrt(mean));
    }
  });
}

void CpuKernels::adam_update(View masters, View values, CView first, CView second, CView rms,
                             const Segments& segments, CView scalars, const AdamOptions& options,
                             View largest) {
  const char* op = "adam_update";
  const int64_t elements = masters.size(), count = segments.count();
  const std::vector<Piece> pieces = pieces_of(op, segments, elements);
  check_place(op, "masters", masters, statistics_dtype(masters.dtype));
  check_vector(op, "first", first, elements, masters.dtype);
  check_vector(op, "second", second, elements, masters.dtype);
  check_vector(op, "rms", rms, count, masters.dtype);
  if (values) check_vector(op, "values", values, elements, values.dtype);
  if (largest) check_vector(op, "largest", largest, count, DType::f32);
  std::vector<uint32_t> most(largest ? pieces.size() : 0);  // magnitude_bits of each piece
  const double learning_rate = step_scalars(op, scalars)[scalar_learning_rate];
  const auto update = [&]<class R, class T>(R* master, T* value) {
    const R *v = first.as<R>(), *u = second.as<R>(), *measured = rms.as<R>();
    const double *rate_scale = segments.rate_scale.as<double>(),
                 *weight_decay = segments.weight_decay.as<double>();
    const R epsilon = static_cast<R>(options.epsilon);
    parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t from, int64_t to) {
      for (int64_t p = from; p < to; ++p) {
        const auto [s, begin, end] = pieces[p];
        if (measured[s] < 0 || rate_scale[s] == 0) continue;
        const double full_rate = learning_rate * rate_scale[s];
        const double clipped =
            full_rate / std::max(1.0, static_cast<double>(measured[s]) / options.clip_threshold);
        const double step_rate = options.clip_update ? clipped : full_rate;
        const double decay_rate = options.decay_clipped_rate ? step_rate : full_rate;
        const R rate = static_cast<R>(step_rate), shrink = static_cast<R>(1 - decay_rate * weight_decay[s]);
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) {
          const R updated = master[i] * shrink - rate * v[i] / (std::sqrt(u[i]) + epsilon);
          master[i] = updated;
          if (value) value[i] = static_cast<T>(updated);
        }
        if (largest)
          for (int64_t i = begin; i < end; ++i)
            most[p] = std::max(most[p], magnitude_bits(static_cast<float>(master[i])));
      }
    });
    if (!largest) return;
    std::vector<uint32_t> of_tensor(static_cast<size_t>(count));
    for (size_t p = 0; p < pieces.size(); ++p)
      of_tensor[pieces[p].segment] = std::max(of_tensor[pieces[p].segment], most[p]);
    for (int64_t s = 0; s < count; ++s)
      if (!(measured[s] < 0 || rate_scale[s] == 0))
        largest.as<float>()[s] = rounded::from_bits(of_tensor[static_cast<size_t>(s)]);
  };
  visit_float(masters.dtype, op, [&](auto tag) {
    using R = Statistics<decltype(tag)>;
    if (!values) return update(masters.as<R>(), static_cast<R*>(nullptr));
    visit_float(values.dtype, op,
                [&](auto value_tag) { update(masters.as<R>(), values.as<decltype(value_tag)>()); });
  });
}

void CpuKernels::adam_step(View masters, View values, View first, View second, View rms, CView gradients,
                           CView sum_squares, const Segments& segments, CView scalars,
                           const AdamOptions& options, View largest) {
  CHECK(!options.clip_update,
        "adam_step: update clipping needs the RMS of the whole tensor before its update");
  adam_moments(first, second, rms, gradients, sum_squares, segments, scalars, options);
  adam_update(masters, values, first, second, rms, segments, scalars, options, largest);
}

}  // namespace switchback
