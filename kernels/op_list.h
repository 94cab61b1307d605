// op_list.h: the table of contents of the engine. Every kernel stands here once, with its formula; the
// abstract class `Kernels`, the CPU definitions (kernels/cpu) and the CUDA versions (kernels/cuda) are made
// from this list.
//
// Rules for all of them
//   Destination first. Shapes are in parentheses, textbook letters: B samples, T tokens, C channels, H heads,
//   M rows, K inner size, N columns, E embedding size, S tensors of the arena.
//   T is the type of the tensors (f64, f32, bf16; the same for all arguments unless said otherwise), R the
//   type of statistics: f64 when T is f64, else f32. Sums are held in R.
//   A Sink may be empty (nobody wants that gradient), may ask to overwrite or to add, and may be wider than T
//   (an f32 parameter gradient of bf16 values).
//   An optional view is empty when absent.
//
// No include guard: this file is included several times with different meanings of KERNEL.

// ---- elementwise ------------------------------------------------------------------------------------------
// to = value
KERNEL(fill, (View to, double value))
// to = from, converted (any float type to any float type)
KERNEL(cast, (View to, CView from))
// to = from or to += from, converted
KERNEL(accumulate, (Sink to, CView from))
// x = min(max(x, low), high)
KERNEL(clamp, (View x, double low, double high))

// ---- matrix products --------------------------------------------------------------------------------------
// c = op(a) op(b), op(a) (M, K), op(b) (K, N), c (M, N); a and b are seen as matrices (rows, cols)
KERNEL(matmul, (Sink c, CView a, Transpose transpose_a, CView b, Transpose transpose_b))
// y = x wᵀ + bias.   x (M, K), w (N, K), bias (N) optional, y (M, N)
KERNEL(linear_forward, (View y, CView x, CView w, CView bias))
// dx = dy w.   dy (M, N), w (N, K), dx (M, K)
KERNEL(linear_backward_input, (Sink dx, CView dy, CView w))
// dw = dyᵀ x, dbias = Σ_rows dy.   dw (N, K), dbias (N), dy (M, N), x (M, K)
KERNEL(linear_backward_weight, (Sink dw, Sink dbias, CView dy, CView x))

// ---- low precision (formats.h; to the bit: quantize.h) ----------------------------------------------------
// max |x| of everything (1), of each row (M) or of each column (C) of x (M, C), f32; NaN where there is one
KERNEL(absolute_maximum, (View largest, CView x, Granularity by))
// codes (M, C) = nearest(x/scale), transposed (C, M') the same the other way round, M' >= M padded with
// zeros; either may be empty. scale: (M) or (C), or for `tensor` any number of copies of the one. `largest`:
// the absolute maximum where it is known, else empty. sums (C), optional: Σ_rows x, in the same sweep where
// there is one: the bias gradient, where x is the gradient of a linear layer's output.
KERNEL(quantize, (View codes, View transposed, View scale, CView x, CView largest, Format format, Granularity by,
                  Sink sums = {}))
// dw = dyᵀ x, and meanwhile what quantize makes of dy by row: codes (M, N), scale (M), sums (N), optional
KERNEL(linear_backward_weight_and_codes,
       (Sink dw, View codes, View scale, Sink sums, CView dy, CView x, Format format))
// Many weights at once, one scale a weight: what quantize by `tensor` does for each
KERNEL(quantize_weights, (std::span<const WeightCodes> weights, Format format))
// transposed (K, N) of each weight = its codes (N, K), 8 bits each, the other way round; the rest is not read
KERNEL(transpose_codes, (std::span<const WeightCodes> weights))
// x (M, C) = value(codes) scale;  scale (1) or (M)
KERNEL(dequantize, (View x, CView codes, CView scale, Format format, Granularity by))
// y = the nearest values to x on the format's grid (quantised and dequantised at once)
// x, y (M, C), may differ in type
KERNEL(round_to_grid, (View y, CView x, CView largest, Format format, Granularity by))
// y (M, N) = Σ_k value(a[m,k]) value(b[n,k]) · (scale_a[m] scale_b[n]) + bias[n], rounded to T
// a (M, K), b (N, K)
KERNEL(product_of_codes, (View y, const CodeView& a, const CodeView& b, CView bias))
// The same for an `a` whose codes (M, K) and scale (M) are still to be made: what quantize makes of x (M, K)
// by row
KERNEL(product_and_codes,
       (View y, View codes, View scale, CView x, const CodeView& b, CView bias, Format format))

// ---- normalisation ----------------------------------------------------------------------------------------
// y = gain (x - mean) rstd + bias, rstd = 1/sqrt(var + epsilon), over the last size
// x, y (M, C), mean, rstd (M) in R
KERNEL(layernorm_forward, (View y, View mean, View rstd, CView x, CView gain, CView bias, double epsilon))
// x̂ = (x - mean) rstd, g = dy gain:  dx = rstd (g - mean_C(g) - x̂ mean_C(g x̂)), dgain = Σ dy x̂, dbias = Σ dy
KERNEL(layernorm_backward,
       (Sink dx, Sink dgain, Sink dbias, CView dy, CView x, CView mean, CView rstd, CView gain))
// y = x / max(|x|₂, 1e-12) by rows.  x (B, E) of T, y (B, E) in R, inverse_norm (B) in R
KERNEL(l2_normalize_forward, (View y, View inverse_norm, CView x))
// dx = inverse_norm (dy - y (y·dy)).  dy, y, inverse_norm in R, dx of T
KERNEL(l2_normalize_backward, (Sink dx, CView dy, CView y, CView inverse_norm))

// ---- transformer ------------------------------------------------------------------------------------------
// exact: y = x Φ(x), Φ(x) = (1 + erf(x/√2))/2;   quick: y = x σ(1.702 x)
KERNEL(gelu_forward, (View y, CView x, Gelu kind))
// dx = dy y'(x)
KERNEL(gelu_backward, (Sink dx, CView dy, CView x, Gelu kind))
// The MLP's first half: u = x wᵀ + bias, rounded to T; y = gelu(u).  x (M, K), w (N, K), bias (N) optional,
// y, preactivation (M, N); preactivation = u, or empty when nobody wants it
KERNEL(linear_gelu_forward, (View y, View preactivation, CView x, CView w, CView bias, Gelu kind))
// dpreactivation = (dy w) gelu'(preactivation), rounded once (fused kernels; composed ones may round dy w to
// T
// first);  y = gelu(preactivation) once more, or empty: who recomputes it gets it on the way.
// dy (M, N), w (N, K): the linear behind the GELU; preactivation, dpreactivation, y (M, K)
KERNEL(linear_gelu_backward_input,
       (Sink dpreactivation, View y, CView dy, CView w, CView preactivation, Gelu kind))
// The same, and the codes of the result's rows (formats.h): what quantize would make of it, in the same
// sweep.
// y is optional here.  x, y (M, C), codes (M, C), scale (M)
KERNEL(gelu_forward_quantized, (View y, View codes, View scale, CView x, Format format, Gelu kind))
// dx, its codes, y = gelu(x) once more (optional) and sums = Σ_rows dx (optional): the bias gradient of who
// made x
KERNEL(gelu_backward_quantized,
       (View dx, View codes, View scale, View y, CView dy, CView x, Format format, Gelu kind, Sink sums = {}))
// Per sample and head: out = softmax(q kᵀ/√D + mask) v, lse = log Σ exp of the scores.
// qkv (B, T, 3C): q, k, v one after the other, each H heads of D = C/H; out (B, T, C); lse (B, H, T) in R
KERNEL(attention_forward, (View out, View lse, CView qkv, int64_t heads, bool causal))
// dqkv (B, T, 3C) from dout (B, T, C) and what the forward pass saved
KERNEL(attention_backward,
       (Sink dqkv, CView dout, CView qkv, CView out, CView lse, int64_t heads, bool causal))
// y = x + gamma branch (gamma (C) optional: layer-scale; without it y = x + branch)
KERNEL(residual_forward, (View y, CView x, CView branch, CView gamma))
// dbranch = gamma dy, dgamma = Σ_rows dy branch   (dx is dy itself: autograd moves it)
KERNEL(residual_backward, (Sink dbranch, Sink dgamma, CView dy, CView branch, CView gamma))
// A residual connection and the layernorm behind it: sum = x + gamma branch, rounded to T;
// normed = gain (sum - mean) rstd + bias, and codes of its rows (optional).
// x, branch, sum, normed (M, C), gamma (C) optional, mean, rstd (M) in R
KERNEL(residual_layernorm_forward, (View sum, View normed, View mean, View rstd, CView x, CView branch,
                                    CView gamma, CView gain, CView bias, double epsilon, RowCodes codes = {}))
// dx = dsum + (layernorm_backward's dx of dnormed), the whole gradient of sum; dsum, optional, is what came
// over the residual stream, and dx may lie where it does. dgain, dbias as in layernorm_backward. With
// layer-scale dbranch = gamma dx, dgamma = Σ_rows dx branch, from the rounded dx; without, dx is branch's
// gradient, too. codes (optional): those of the rows of branch's gradient, whichever it is. dbranch_sum: its
// sum over rows (of what is added to it here), which is the bias gradient of the product that made branch.
KERNEL(residual_layernorm_backward,
       (View dx, Sink dbranch, Sink dbranch_sum, Sink dgamma, Sink dgain, Sink dbias, CView dsum, CView dnormed,
        CView sum, CView mean, CView rstd, CView gain, CView branch, CView gamma, RowCodes codes = {}))

// ---- images in --------------------------------------------------------------------------------------------
// keep (B, K) i32: for each sample K of `patches` patch numbers in ascending order, drawn without
// replacement:
// those with the largest Philox keys.  step: i64 scalar on the device, so a replayed graph draws anew.
KERNEL(choose_patches, (View keep, int64_t patches, uint64_t seed, CView step, int64_t first_sample))
// pixels (B, H, W, 3) u8 -> patches (B K, 3 p p) of T, ordered (channel, row, column) like conv1's weight:
// value = (pixel/255 - mean_c)/std_c.  keep (B, K) i32 optional: without it all patches, row by row
KERNEL(extract_patches,
       (View patches, CView pixels, CView keep, int64_t patch_size, const PixelNormalization& normalization))
// x (B, K+1, C): x[b,0] = class_embedding + positions[0]; x[b,1+k] = patches[b,k] + positions[1 + keep[b,k]]
// patches (B K, C), class_embedding (C), positions (N+1, C)
KERNEL(vision_embed_forward, (View x, CView patches, CView class_embedding, CView positions, CView keep))
KERNEL(vision_embed_backward, (Sink dpatches, Sink dclass_embedding, Sink dpositions, CView dx, CView keep))

// ---- text in ----------------------------------------------------------------------------------------------
// x (B, T, C): x[b,t] = table[tokens[b,t]] + positions[t]
// tokens (B, T) i32, table (V, C), positions (≥ T, C)
KERNEL(text_embed_forward, (View x, CView table, CView positions, CView tokens))
// dtable[v] = Σ over the places of token v (in ascending order of place), dpositions[t] = Σ_b dx[b,t]
KERNEL(text_embed_backward, (Sink dtable, Sink dpositions, CView dx, CView tokens))
// place (B) i32: the first place of the largest token id of each row of tokens (B, T): the end-of-text token
KERNEL(find_largest_token, (View place, CView tokens))

// ---- pooling ----------------------------------------------------------------------------------------------
// y[b] = x[b, place[b]].  x (B, T, C), y (B, C), place (B) i32 optional: without it row 0 (the class token)
KERNEL(pool_forward, (View y, CView x, CView place))
// dx[b, place[b]] = dy[b]; the other rows are 0 (or kept, when dx accumulates)
KERNEL(pool_backward, (Sink dx, CView dy, CView place))

// ---- contrastive losses -----------------------------------------------------------------------------------
// Everything here is in R. `images`, `texts` (B, E) are this rank's rows, L2-normalised; all_images,
// all_texts (N, E) those of all ranks in order (on one rank: the same views); this rank's rows start at
// first_row. The loss is this rank's share: a sum over its own rows divided by N, so that ranks add up, in
// loss and in gradients.
//
// Softmax (CLIP): l_ij = exp(logit_scale) I_i·T_j.
// loss = 1/(2N) Σ_i [ lse_j(l_ij) - l_ii + lse_j(l_ji) - l_ii ]
// image_lse[i] = lse_j(l_ij), text_lse[i] = lse_j(l_ji)  (B)
KERNEL(contrastive_forward, (View loss, View image_lse, View text_lse, CView images, CView texts,
                             CView all_images, CView all_texts, CView logit_scale, int64_t first_row))
// With the lse of all ranks (N), exact and complete for this rank's features:
//   g_ij = (exp(l_ij - image_lse_i) + exp(l_ij - text_lse_j) - 2 δ_ij)/(2N) · dloss
//   dimages_i = exp(s) Σ_j g_ij T_j,  dtexts_i = exp(s) Σ_j g_ji I_j
// dlogit_scale = this rank's share: Σ_i Σ_j [ softmax_ij - δ_ij ] l_ij + [ softmax_ji - δ_ij ] l_ji, over 2N,
// times dloss
KERNEL(contrastive_backward, (Sink dimages, Sink dtexts, Sink dlogit_scale, CView dloss, CView images,
                              CView texts, CView all_images, CView all_texts, CView all_image_lse,
                              CView all_text_lse, CView logit_scale, int64_t first_row))
// SigLIP, a tile of the batch's N x N pairs.  images (B, E), texts (C, E), N = batch
//   l_ij = exp(logit_scale) I_i·T_j + logit_bias,  z_ij = +1 where j = i + match, else -1
//   loss = 1/N Σ_i Σ_j softplus(-z_ij l_ij)
KERNEL(siglip_forward, (Sink loss, CView images, CView texts, CView logit_scale, CView logit_bias,
                        int64_t match, int64_t batch))
// g_ij = -z_ij σ(-z_ij l_ij)/N · dloss:  dimages_i = exp(s) Σ_j g_ij T_j, dtexts_j = exp(s) Σ_i g_ij I_i,
// dlogit_scale = Σ_i Σ_j g_ij (l_ij - logit_bias), dlogit_bias = Σ_i Σ_j g_ij
KERNEL(siglip_backward,
       (Sink dimages, Sink dtexts, Sink dlogit_scale, Sink dlogit_bias, CView dloss, CView images, CView texts,
        CView logit_scale, CView logit_bias, int64_t match, int64_t batch))

// ---- optimizer (over the whole arena at once) -------------------------------------------------------------
// sum_squares (S) in R: Σ g² of each tensor, not finite when the tensor holds an Inf or a NaN
KERNEL(gradient_statistics, (View sum_squares, CView gradients, const Segments& segments))
// Paper section 6.1, steps 1-4. g is scaled by gradient_scale and clipped to the global norm first.
// A tensor whose sum of squares is not finite is skipped whole: rms[s] = -1, moments kept.
//   first = β̂1 first + (1-β̂1) g;  second = β̂2 second + (1-β̂2) g²;  rms[s] = sqrt(mean(g²/max(second, ε²)))
KERNEL(adam_moments, (View first, View second, View rms, CView gradients, CView sum_squares,
                      const Segments& segments, CView scalars, const AdamOptions& options))
// Steps 5-6. rate = lr rate_scale[s] / max(1, rms[s]/clip_threshold) (AdamW: lr rate_scale[s])
//   master = master (1 - decay_rate weight_decay[s]) - rate first/(sqrt(second) + ε)
//   values = master, rounded to T
// values is empty where values and masters are the same memory. largest (S) f32, optional: max |master| of
// each tensor that is updated, for its codes (absolute_maximum of it); a tensor left alone keeps its own.
KERNEL(adam_update, (View masters, View values, CView first, CView second, CView rms,
                     const Segments& segments, CView scalars, const AdamOptions& options, View largest = {}))
// adam_moments and adam_update in one pass over the arena, for options without update clipping: the same
// bits.
KERNEL(adam_step,
       (View masters, View values, View first, View second, View rms, CView gradients, CView sum_squares,
        const Segments& segments, CView scalars, const AdamOptions& options, View largest = {}))
