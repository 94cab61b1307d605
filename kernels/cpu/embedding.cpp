// embedding.cpp: what enters the two towers.
//   vision: x[b,0] = class_embedding + positions[0];  x[b,1+k] = patches[b,k] + positions[1 + keep[b,k]]
//   text:   x[b,t] = table[tokens[b,t]] + positions[t]
// In the backward pass every row of a parameter's gradient is summed by one thread, over samples in ascending
// order: no atomics, the same bits for any number of threads.
#include <vector>

#include "kernels/cpu/access.h"

namespace switchback {
namespace {

void check_tokens(const char* op, const CView& tokens, int64_t vocabulary) {
  const int32_t* ids = tokens.as<int32_t>();
  for (int64_t i = 0; i < tokens.size(); ++i)
    CHECK(ids[i] >= 0 && ids[i] < vocabulary, op, ": token ", ids[i], " at ", i, " of tokens ", tokens.shape,
          ", the table has ", vocabulary, " rows");
}

}  // namespace

void CpuKernels::vision_embed_forward(View x, CView patches, CView class_embedding, CView positions,
                                      CView keep) {
  const char* op = "vision_embed_forward";
  const VisionSizes s = Require::vision_embed_forward(op, x, patches, class_embedding, positions, keep);
  visit_float(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T *patch = patches.as<T>(), *first = class_embedding.as<T>(), *position = positions.as<T>();
    const int32_t* chosen = keep.as<int32_t>();
    T* out = x.as<T>();
    for_rows(s.samples * (s.kept + 1), s.width, [&](int64_t row) {
      const int64_t b = row / (s.kept + 1), k = row % (s.kept + 1) - 1;
      const T* content = k < 0 ? first : patch + (b * s.kept + k) * s.width;
      const int64_t place = k < 0 ? 0 : 1 + (chosen ? chosen[b * s.kept + k] : k);
      CHECK(place >= 0 && place < s.places, op, ": patch ", place - 1, ", positions are ", positions.shape);
      const T* at = position + place * s.width;
      T* to = out + row * s.width;
#pragma omp simd
      for (int64_t c = 0; c < s.width; ++c)
        to[c] = static_cast<T>(static_cast<R>(content[c]) + static_cast<R>(at[c]));
    });
  });
}

void CpuKernels::vision_embed_backward(Sink dpatches, Sink dclass_embedding, Sink dpositions, CView dx,
                                       CView keep) {
  const char* op = "vision_embed_backward";
  const VisionSizes s = Require::vision_embed_backward(op, dpatches, dclass_embedding, dpositions, dx, keep);
  const int64_t places = s.places;
  visit_float(dx.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T* gradient = dx.as<T>();
    const int64_t width = s.width, length = s.kept + 1;
    write_to<T>(dpatches, op, [&](auto out) {
      for_rows(s.samples * s.kept, width, [=](int64_t row) {
        const T* from = gradient + (row / s.kept * length + 1 + row % s.kept) * width;
        const auto to = out + row * width;
#pragma omp simd
        for (int64_t c = 0; c < width; ++c) to.put(c, static_cast<R>(from[c]));
      });
    });
    if (!dclass_embedding && !dpositions) return;

    // row_of[b, place]: which row of sample b carries this position, or -1.
    std::vector<int32_t> row_of(s.samples * places, -1);
    const int32_t* chosen = keep.as<int32_t>();
    for (int64_t b = 0; b < s.samples; ++b) {
      row_of[b * places] = 0;
      for (int64_t k = 0; dpositions && k < s.kept; ++k) {
        const int64_t place = 1 + (chosen ? chosen[b * s.kept + k] : k);
        CHECK(place >= 1 && place < places, op, ": patch ", place - 1, ", dpositions are ",
              dpositions.to.shape);
        row_of[b * places + place] = static_cast<int32_t>(1 + k);
      }
    }
    Tensor sums({places, width}, dtype_of<R>);
    R* sum = static_cast<R*>(sums.data());
    parallel_for(places, 1, [&](int64_t from, int64_t to) {
      for (int64_t place = from; place < to; ++place) {
        R* row = sum + place * width;
        std::fill_n(row, width, R(0));
        for (int64_t b = 0; b < s.samples; ++b) {
          const int32_t at = row_of[b * places + place];
          if (at < 0) continue;
          const T* added = gradient + (b * length + at) * width;
#pragma omp simd
          for (int64_t c = 0; c < width; ++c) row[c] += static_cast<R>(added[c]);
        }
      }
    });
    write_all<T>(dclass_embedding, op, sum);  // the class token always stands at position 0
    write_all<T>(dpositions, op, sum);
  });
}

void CpuKernels::text_embed_forward(View x, CView table, CView positions, CView tokens) {
  const char* op = "text_embed_forward";
  const auto [samples, length, width, vocabulary, places] =
      Require::text_embed_forward(op, x, table, positions, tokens);
  check_tokens(op, tokens, vocabulary);
  visit_float(x.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T *rows = table.as<T>(), *position = positions.as<T>();
    const int32_t* ids = tokens.as<int32_t>();
    T* out = x.as<T>();
    for_rows(samples * length, width, [=](int64_t place) {
      const T *from = rows + ids[place] * width, *at = position + place % length * width;
      T* to = out + place * width;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c)
        to[c] = static_cast<T>(static_cast<R>(from[c]) + static_cast<R>(at[c]));
    });
  });
}

void CpuKernels::text_embed_backward(Sink dtable, Sink dpositions, CView dx, CView tokens) {
  const char* op = "text_embed_backward";
  const TextSizes s = Require::text_embed_backward(op, dtable, dpositions, dx, tokens);
  const int64_t samples = s.samples, length = s.length, width = s.width, vocabulary = s.vocabulary;
  check_tokens(op, tokens, dtable ? vocabulary : INT32_MAX);
  visit_float(dx.dtype, op, [&](auto tag) {
    using T = decltype(tag);
    using R = Statistics<T>;
    const T* gradient = dx.as<T>();
    const int32_t* ids = tokens.as<int32_t>();

    write_to<T>(dpositions, op, [&](auto out) {
      parallel_for(s.places, 1, [&](int64_t from, int64_t to) {
        std::vector<R> sum(width);
        for (int64_t t = from; t < to; ++t) {
          std::fill(sum.begin(), sum.end(), R(0));
          for (int64_t b = 0; b < samples && t < length; ++b) {
            const T* added = gradient + (b * length + t) * width;
            for (int64_t c = 0; c < width; ++c) sum[c] += static_cast<R>(added[c]);
          }
          for (int64_t c = 0; c < width; ++c) out.put(t * width + c, sum[c]);
        }
      });
    });

    if (!dtable) return;
    // Places sorted by token, ascending within a token: places of token v are order[start[v]] ..
    // order[start[v+1]-1].
    std::vector<int64_t> start(vocabulary + 1, 0), order(samples * length);
    for (int64_t i = 0; i < samples * length; ++i) ++start[ids[i] + 1];
    for (int64_t v = 0; v < vocabulary; ++v) start[v + 1] += start[v];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t i = 0; i < samples * length; ++i) order[next[ids[i]]++] = i;
    // Threads share the columns, not the tokens: the padding token alone may have half of all places.
    write_to<T>(dtable, op, [&](auto out) {
      parallel_for(width, 64, [&](int64_t from, int64_t to) {
        const int64_t columns = to - from;
        std::vector<R> sum(columns);
        for (int64_t v = 0; v < vocabulary; ++v) {
          if (start[v] == start[v + 1] && dtable.accumulate) continue;
          std::fill(sum.begin(), sum.end(), R(0));
          for (int64_t i = start[v]; i < start[v + 1]; ++i) {
            const T* added = gradient + order[i] * width + from;
            for (int64_t c = 0; c < columns; ++c) sum[c] += static_cast<R>(added[c]);
          }
          const auto row = out + (v * width + from);
          for (int64_t c = 0; c < columns; ++c) row.put(c, sum[c]);
        }
      });
    });
  });
}

void CpuKernels::find_largest_token(View place, CView tokens) {
  const char* op = "find_largest_token";
  const auto [rows, length] = Require::find_largest_token(op, place, tokens);
  const int32_t* ids = tokens.as<int32_t>();
  int32_t* out = place.as<int32_t>();
  for_rows(rows, length, [=](int64_t b) {
    const int32_t* row = ids + b * length;
    out[b] = static_cast<int32_t>(std::max_element(row, row + length) - row);
  });
}

}  // namespace switchback
