// The mathematics of relation-aware modulation, for host and device, without torch.
//
//     graded   = lut(image)                                          3 colours
//     R        = norm1(gelu(conv(graded)))                           8 features
//     key      = pool(depthwise(key_mix R)),   value = depthwise(value_mix R)
//     A        = softmax(cosine(query, key) * temperature)           2 heads of 4 x 4, over channels
//     R1       = R + project (A value)
//     R2       = R1 + contract(gelu(gate) * up),  (gate, up) = depthwise(expand norm2(R1))
//     result   = out(R2)
//
// Every 3 x 3 convolution sees zeros outside the image. Project and A are one 8 x 8 matrix for an image, `mixing`. What
// follows R on the way to the keys is linear, so R is pooled first: the sum over a window of depthwise(mix R) needs only
// the sums of R over the window shifted by -1, 0 and 1 along each axis, because a depthwise convolution is a sum of
// shifted copies.
#pragma once

#include <cmath>

#include "../common/portable.h"

namespace pyops::modulation {

constexpr int kColours = 3, kFeatures = 8, kHeads = 2, kHeadFeatures = kFeatures / kHeads, kHidden = 16;
constexpr float kNormEpsilon = 1e-5f, kCosineEpsilon = 1e-12f;

// Where each weight starts in the packed parameters; the order is that of ModulationWeights.
namespace at {
constexpr int conv = 0;                                                     // [8][3][3][3]
constexpr int conv_bias = conv + kFeatures * kColours * 9;                  // [8]
constexpr int norm1 = conv_bias + kFeatures;                                // [8], bias [8]
constexpr int key_value = norm1 + 2 * kFeatures;                            // [16][8]
constexpr int key_value_depthwise = key_value + 2 * kFeatures * kFeatures;  // [16][3][3]
constexpr int temperature = key_value_depthwise + 2 * kFeatures * 9;        // [2]
constexpr int project = temperature + kHeads;                               // [8][8]
constexpr int norm2 = project + kFeatures * kFeatures;                      // [8], bias [8]
constexpr int expand = norm2 + 2 * kFeatures;                               // [32][8]
constexpr int expand_depthwise = expand + 2 * kHidden * kFeatures;          // [32][3][3]
constexpr int contract = expand_depthwise + 2 * kHidden * 9;                // [8][16]
constexpr int out = contract + kFeatures * kHidden;                         // [3][8][3][3]
constexpr int out_bias = out + kColours * kFeatures * 9;                    // [3]
}  // namespace at
constexpr int kParameters = at::out_bias + kColours;

PYOPS_HD float gelu(float x) { return 0.5f * x * (1.f + erff(x * 0.70710678118654752f)); }

// Adaptive average pooling: output i of `count` covers [begin, end) of `size`; windows overlap where they must.
struct Window {
  int64_t begin, end;
};
PYOPS_HD Window window(int64_t i, int64_t size, int64_t count) {
  return {i * size / count, ((i + 1) * size + count - 1) / count};
}
// The windows that cover `position`: from first to last inclusive.
PYOPS_HD int64_t first_window(int64_t position, int64_t size, int64_t count) { return position * count / size; }
PYOPS_HD int64_t last_window(int64_t position, int64_t size, int64_t count) {
  return ((position + 1) * count + size - 1) / size - 1;
}

// Sums over the positions of query and key.
constexpr int kMoments = kHeadFeatures * kFeatures + 2 * kFeatures;
namespace moment {
constexpr int product = 0;                        // [4][8]: query feature i of the head of key feature j
constexpr int query = kHeadFeatures * kFeatures;  // [8]: squares
constexpr int key = query + kFeatures;            // [8]: squares
}  // namespace moment

// Row `o` of project * A: what output feature o takes of each value.
PYOPS_HD void mixing_row(const double* moments, const float* parameters, int o, float* row) {
  for (int head = 0; head < kHeads; ++head) {
    const int base = head * kHeadFeatures;
    float sum[kHeadFeatures] = {0, 0, 0, 0};
    for (int i = 0; i < kHeadFeatures; ++i) {
      float logit[kHeadFeatures], largest = -INFINITY, total = 0;
      const double q = sqrt(moments[moment::query + base + i]);
      for (int j = 0; j < kHeadFeatures; ++j) {
        const double k = sqrt(moments[moment::key + base + j]);
        const double norms = (q > kCosineEpsilon ? q : kCosineEpsilon) * (k > kCosineEpsilon ? k : kCosineEpsilon);
        const double cosine = moments[moment::product + i * kFeatures + base + j] / norms;
        logit[j] = float(cosine) * parameters[at::temperature + head];
        largest = logit[j] > largest ? logit[j] : largest;
      }
      for (int j = 0; j < kHeadFeatures; ++j) total += logit[j] = expf(logit[j] - largest);
      for (int j = 0; j < kHeadFeatures; ++j)
        sum[j] += parameters[at::project + o * kFeatures + base + i] * (logit[j] / total);
    }
    for (int j = 0; j < kHeadFeatures; ++j) row[base + j] = sum[j];
  }
}

}  // namespace pyops::modulation
