// Weights of relation-aware modulation on CUDA, in the order in which the kernels read them: four at a time, which a
// warp's lanes get as one broadcast.
#pragma once

#include "../common/launch.cuh"
#include "modulation.h"

namespace pyops::modulation {
namespace {

constexpr int kTaps = 12;                   // of a depthwise kernel: nine, and three that are never used
constexpr int kOutTaps = 9 * kColours + 1;  // from one feature to all colours; the last is never used

struct alignas(16) FeatureWeights {
  float conv[kColours * 9][kFeatures], bias[kFeatures], norm[2 * kFeatures];
};

struct alignas(16) KeyWeights {
  FeatureWeights features;
  float mix[kFeatures][kFeatures], depthwise[kFeatures][kTaps];
};

// For one image: `mixing` is its project * A, by value.
struct alignas(16) ResultWeights {
  FeatureWeights features;
  float value[kFeatures][kFeatures], value_depthwise[kFeatures][kTaps], mixing[kFeatures][kFeatures];
  float norm[2 * kFeatures], expand[2 * kHidden][kFeatures], expand_depthwise[2 * kHidden][kTaps];
  float contract[kHidden][kFeatures], out[kFeatures][kOutTaps], out_bias[4];
};

// to[i] = source(i), by all threads of a block
template <class F>
__device__ __forceinline__ void stage(float* to, int count, const F& source) {
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) to[i] = source(i);
}

__device__ __forceinline__ void stage_copy(float* to, const float* from, int count) {
  stage(to, count, [=](int i) { return from[i]; });
}

// to [inner][outer] from [outer][inner]
__device__ __forceinline__ void stage_transposed(float* to, const float* from, int outer, int inner) {
  stage(to, outer * inner, [=](int i) { return from[i % outer * inner + i / outer]; });
}

__device__ __forceinline__ void stage_depthwise(float* to, const float* from, int channels) {
  stage(to, channels * kTaps, [=](int i) { return i % kTaps < 9 ? from[i / kTaps * 9 + i % kTaps] : 0.f; });
}

__device__ __forceinline__ void stage_weights(FeatureWeights& to, const float* parameters) {
  stage_transposed(to.conv[0], parameters + at::conv, kFeatures, kColours * 9);
  stage_copy(to.bias, parameters + at::conv_bias, kFeatures);
  stage_copy(to.norm, parameters + at::norm1, 2 * kFeatures);
}

__device__ __forceinline__ void stage_weights(KeyWeights& to, const float* parameters) {
  stage_weights(to.features, parameters);
  stage_copy(to.mix[0], parameters + at::key_value, kFeatures * kFeatures);
  stage_depthwise(to.depthwise[0], parameters + at::key_value_depthwise, kFeatures);
}

// All but `mixing`.
__device__ __forceinline__ void stage_weights(ResultWeights& to, const float* parameters) {
  stage_weights(to.features, parameters);
  stage_copy(to.value[0], parameters + at::key_value + kFeatures * kFeatures, kFeatures * kFeatures);
  stage_depthwise(to.value_depthwise[0], parameters + at::key_value_depthwise + 9 * kFeatures, kFeatures);
  stage_copy(to.norm, parameters + at::norm2, 2 * kFeatures);
  stage_copy(to.expand[0], parameters + at::expand, 2 * kHidden * kFeatures);
  stage_depthwise(to.expand_depthwise[0], parameters + at::expand_depthwise, 2 * kHidden);
  stage_transposed(to.contract[0], parameters + at::contract, kFeatures, kHidden);
  stage(to.out[0], kFeatures * kOutTaps, [=](int i) {
    const int feature = i / kOutTaps, tap = i % kOutTaps;  // tap = [colour][3][3]
    return tap < 9 * kColours ? parameters[at::out + (tap / 9 * kFeatures + feature) * 9 + tap % 9] : 0.f;
  });
  stage(to.out_bias, 4, [=](int i) { return i < kColours ? parameters[at::out_bias + i] : 0.f; });
}

template <int n>
__device__ __forceinline__ void read(float (&to)[n], const float* from) {
  static_assert(n % 4 == 0);
#pragma unroll
  for (int i = 0; i < n; i += 4) {
    const float4 v = *reinterpret_cast<const float4*>(from + i);
    to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
  }
}

}  // namespace
}  // namespace pyops::modulation
