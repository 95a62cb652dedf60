// Rows of relation-aware modulation on a CPU: every function makes one row of all channels from rows of the stage before.
//
// Sums start at zero and meet bias or base last, so that they round at their own size.
//
// Rows are planar, a channel every kStride floats. A row covers a tile of at most kSpan columns; kPad more floats on
// both sides let a 3 x 3 convolution load the neighbours of the outermost columns. Loops handle two vectors of eight
// columns at a time, so that a weight, once broadcast, serves two multiplications.
#pragma once

#include <algorithm>

#include "../common/simd.h"
#include "modulation.h"

namespace pyops::modulation {

constexpr int kSpan = 256, kPad = 8, kStride = kSpan + 2 * kPad;

namespace rows {
using namespace simd;

// gelu(x) = x / 2 + |x| (Phi(|x|) - 1/2), with Phi - 1/2 as s = |x| times a rational function of s^2, fitted on s <= 5.5:
// error below 1e-8, and about 1e-7 with float32 rounding. Beyond, Phi is 1 in float32.
PYOPS_HD f32x8 gelu(f32x8 x) {
  const f32x8 size = abs(x), s = least_size(size, 5.5f), v = s * s;
  f32x8 p = splat(2.2749214068085166e-08f), q = splat(1.1975009783782298e-06f);
  p = p * v + 6.352138370857574e-06f, q = q * v + 7.364837802015245e-05f;
  p = p * v + 0.0001688283955445513f, q = q * v + 0.0018844603328034282f;
  p = p * v + 0.004677277524024248f, q = q * v + 0.02864602394402027f;
  p = p * v + 0.03385290876030922f, q = q * v + 0.25152257084846497f;
  p = p * v + 0.398942232131958f, q = q * v + 1.f;
  return size * (s * p / q) + x * 0.5f;
}

// Weights [out][in][taps] in the order in which `convolve` reads them: [out / group][in][taps][group].
template <int kGroup>
inline void reorder(const float* from, int outs, int ins, int taps, float* to) {
  for (int block = 0; block < outs; block += kGroup)
    for (int i = 0; i < ins; ++i)
      for (int t = 0; t < taps; ++t)
        for (int g = 0; g < kGroup; ++g) *to++ = from[((block + g) * ins + i) * taps + t];
}

// to[o] = bias[o] + sum of from[i][dy] * weights, a 3 x 3 convolution; from[dy] is the row at y + dy - 1, its channels
// `stride` apart.
template <int kIn, int kOut, int kGroup>
PYOPS_HD void convolve(const float* const (&from)[3], int64_t stride, const float* weights, const float* bias,
                       float* to, int n) {
  for (int o = 0; o < kOut; o += kGroup, weights += kIn * 9 * kGroup)
    for (int x = 0; x < n; x += 16) {
      f32x8 sum[kGroup][2];
      for (int g = 0; g < kGroup; ++g) sum[g][0] = sum[g][1] = splat(0.f);
      const float* w = weights;
      for (int i = 0; i < kIn; ++i)
        for (int dy = 0; dy < 3; ++dy) {
          const float* row = from[dy] + i * stride + x - 1;
          for (int dx = 0; dx < 3; ++dx, w += kGroup) {
            const f32x8 a = load<f32x8>(row + dx), b = load<f32x8>(row + dx + 8);
            for (int g = 0; g < kGroup; ++g) {
              const f32x8 weight = splat(w[g]);
              sum[g][0] += a * weight, sum[g][1] += b * weight;
            }
          }
        }
      for (int g = 0; g < kGroup; ++g)
        for (int half = 0; half < 2; ++half)
          store(to + (o + g) * kStride + x + 8 * half, sum[g][half] + splat(bias[o + g]));
    }
}

// to[o] = base[o] (nothing if null) + sum of from[i] * weights: a 1 x 1 convolution.
template <int kIn, int kOut>
PYOPS_HD void mix(const float* from, const float* weights, const float* base, float* to, int n) {
  constexpr int kGroup = 4;
  for (int o = 0; o < kOut; o += kGroup, weights += kIn * kGroup)
    for (int x = 0; x < n; x += 16) {
      f32x8 sum[kGroup][2];
      for (int g = 0; g < kGroup; ++g) sum[g][0] = sum[g][1] = splat(0.f);
      for (int i = 0; i < kIn; ++i) {
        const f32x8 a = load<f32x8>(from + i * kStride + x), b = load<f32x8>(from + i * kStride + x + 8);
        for (int g = 0; g < kGroup; ++g) {
          const f32x8 weight = splat(weights[i * kGroup + g]);
          sum[g][0] += a * weight, sum[g][1] += b * weight;
        }
      }
      for (int g = 0; g < kGroup; ++g)
        for (int half = 0; half < 2; ++half) {
          const int64_t at = (o + g) * kStride + x + 8 * half;
          store(to + at, base ? sum[g][half] + load<f32x8>(base + at) : sum[g][half]);
        }
    }
}

// One channel of a depthwise 3 x 3 convolution.
PYOPS_HD void depthwise(const float* above, const float* here, const float* below, const float* weights, float* to,
                        int n) {
  f32x8 w[9];
  for (int t = 0; t < 9; ++t) w[t] = splat(weights[t]);
  for (int x = 0; x < n; x += 8) {
    f32x8 sum = load<f32x8>(above + x - 1) * w[0];
    sum += load<f32x8>(above + x) * w[1];
    sum += load<f32x8>(above + x + 1) * w[2];
    sum += load<f32x8>(here + x - 1) * w[3];
    sum += load<f32x8>(here + x) * w[4];
    sum += load<f32x8>(here + x + 1) * w[5];
    sum += load<f32x8>(below + x - 1) * w[6];
    sum += load<f32x8>(below + x) * w[7];
    sum += load<f32x8>(below + x + 1) * w[8];
    store(to + x, sum);
  }
}

// LayerNorm over the channels of each column; norm = [8] scale, [8] bias. Of gelu(v) if asked.
template <bool kGelu>
PYOPS_HD void normalise(f32x8 (&v)[kFeatures], const float* norm) {
  f32x8 mean = splat(0.f), variance = splat(0.f);
  for (auto& feature : v) {
    if constexpr (kGelu) feature = gelu(feature);
    mean += feature;
  }
  mean *= 1.f / kFeatures;
  for (auto& feature : v) {
    feature -= mean;
    variance += feature * feature;
  }
  variance = variance * (1.f / kFeatures) + kNormEpsilon;
  alignas(32) float deviation[8];
  store(deviation, variance);
  for (float& d : deviation) d = __builtin_sqrtf(d);
  const f32x8 scale = 1.f / load<f32x8>(deviation);
  for (int c = 0; c < kFeatures; ++c) v[c] = v[c] * scale * splat(norm[c]) + splat(norm[kFeatures + c]);
}

template <bool kGelu>
PYOPS_HD void normalise_row(const float* from, const float* norm, float* to, int n) {
  for (int x = 0; x < n; x += 8) {
    f32x8 v[kFeatures];
    for (int c = 0; c < kFeatures; ++c) v[c] = load<f32x8>(from + c * kStride + x);
    normalise<kGelu>(v, norm);
    for (int c = 0; c < kFeatures; ++c) store(to + c * kStride + x, v[c]);
  }
}

// to = gelu(gate) * value
PYOPS_HD void gate(const float* gates, const float* values, float* to, int n) {
  for (int x = 0; x < n; x += 8) store(to + x, gelu(load<f32x8>(gates + x)) * load<f32x8>(values + x));
}

// Columns outside [begin, end) count as zero for the next stage.
inline void clear_outside(float* row, int channels, int begin, int end, int n) {
  for (int c = 0; c < channels; ++c, row += kStride) {
    std::fill(row - kPad, row + begin, 0.f);
    if (end < n) std::fill(row + std::max(end, 0), row + n, 0.f);
    std::fill(row + n, row + n + kPad, 0.f);
  }
}

}  // namespace rows
}  // namespace pyops::modulation
