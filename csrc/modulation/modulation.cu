// Relation-aware modulation on CUDA, see modulation.h: pooled keys (modulation_keys.cuh), their attention with the query,
// and here the second pass, which computes R anew from the image and goes on to the result. Nothing of full size is
// stored: colours, features and the hidden channels of a region live in shared memory and registers.
//
// Work of pass 2, in multiply-adds a pixel of a region: table 24, conv 216, value 64 + 72, mixing 64, expand 256 + 288,
// contract 128, out 216 = 1330, and 24 gelu of 11 instructions; with addresses, norms, loads and shuffles 2300
// instructions. Pass 1: table 24, conv 216, 8 gelu and sums, 750 instructions. The inner 58 x 26 of 64 x 32 pixels are
// results, 1.36 times the work. An image of 3840 x 2160 thus takes 3.4e10 instructions of a lane, of which an H200 issues
// 3.0e13 a second: 1.15 ms at full rate, 1.7 ms at two thirds of it. Shared memory is busy for three quarters of that
// time, what is read and written (9 elements a pixel, 150 MB in float16) takes 0.04 ms. 1024 x 1024: 0.17 and 0.25 ms.
#include "modulation_keys.cuh"

namespace pyops::modulation {
namespace {

// The rings of a region that are no results: R lacks none, A value one, hidden channels another, out the third.
constexpr int kMargin = 3, kTileColumns = kColumns - 2 * kMargin, kTileRows = kRows - 2 * kMargin;
constexpr int kPairs = 2;  // gates, and as many values, in shared memory at a time

constexpr int64_t kResultShared =
    int64_t(sizeof(ResultWeights)) + sizeof(float) * (kFeatures * kPlane + kColours * kGradedPlane);
static_assert(2 * kPairs * 2 <= kFeatures, "two buffers of hidden channels take the place of the values");

// What one feature of R adds to four outputs, for all of them: to[o] += weights[o] * v
__device__ __forceinline__ void spread(const float* weights, const float (&v)[kOwned], float (&to)[kFeatures][kOwned]) {
  float weight[kFeatures];
  read(weight, weights);
#pragma unroll
  for (int c = 0; c < kFeatures; ++c)
#pragma unroll
    for (int j = 0; j < kOwned; ++j) to[c][j] += weight[c] * v[j];
}

// One output of a 1 x 1 convolution.
__device__ __forceinline__ void gather(const float* weights, const float (&from)[kFeatures][kOwned],
                                       float (&sum)[kOwned]) {
  float weight[kFeatures];
  read(weight, weights);
#pragma unroll
  for (int j = 0; j < kOwned; ++j) {
    sum[j] = 0;
#pragma unroll
    for (int c = 0; c < kFeatures; ++c) sum[j] += weight[c] * from[c][j];
  }
}

// R1 = R + mixing depthwise(value R)
__device__ __forceinline__ void attend(const ResultWeights& w, const Owned& own, float* planes,
                                       float (&r)[kFeatures][kOwned]) {
#pragma unroll
  for (int c = 0; c < kFeatures; ++c) {
    float v[kOwned];
    gather(w.value[c], r, v);
    write(planes + c * kPlane + own.here, v);
  }
  __syncthreads();
#pragma unroll 2
  for (int c = 0; c < kFeatures; ++c) {
    const float* plane = planes + c * kPlane;
    float here[kOwned], v[kOwned];
    read(here, plane + own.here);
    depthwise(plane, own, here, w.value_depthwise[c], v);
    spread(w.mixing[c], v, r);
  }
}

// R2 = R1 + contract(gelu(gate) * up), a few hidden channels after the other. Two buffers, so that one barrier is
// enough: channels are written while slower warps still read those before.
__device__ __forceinline__ void feed_forward(const ResultWeights& w, const Owned& own, bool needed, float* planes,
                                             float (&r)[kFeatures][kOwned]) {
  float z[kFeatures][kOwned];
#pragma unroll
  for (int c = 0; c < kFeatures; ++c)
#pragma unroll
    for (int j = 0; j < kOwned; ++j) z[c][j] = r[c][j];
  normalise(z, w.norm);
  own.clear_outside(z);
#pragma unroll 1
  for (int first = 0; first < kHidden; first += kPairs) {
    float* const buffer = planes + (first / kPairs & 1) * 2 * kPairs * kPlane;
    float hidden[2 * kPairs][kOwned];  // gates, then values
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) {
      gather(w.expand[i / kPairs * kHidden + first + i % kPairs], z, hidden[i]);
      write(buffer + i * kPlane + own.here, hidden[i]);
    }
    __syncthreads();
    if (!needed) continue;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      float gate[kOwned], up[kOwned];
      depthwise(buffer + i * kPlane, own, hidden[i], w.expand_depthwise[first + i], gate);
      depthwise(buffer + (kPairs + i) * kPlane, own, hidden[kPairs + i], w.expand_depthwise[kHidden + first + i], up);
#pragma unroll
      for (int j = 0; j < kOwned; ++j) up[j] *= tail_gelu(gate[j]);
      spread(w.contract[first + i], up, r);
    }
  }
}

// Colours of the owned pixels from R2 in shared memory. The bias comes last: it is larger than what it is added to.
__device__ __forceinline__ void colours(const ResultWeights& w, const Owned& own, const float* planes,
                                        float (&rgb)[kColours][kOwned]) {
#pragma unroll
  for (int c = 0; c < kColours; ++c)
#pragma unroll
    for (int j = 0; j < kOwned; ++j) rgb[c][j] = 0;
#pragma unroll 1
  for (int i = 0; i < kFeatures; ++i) {
    const float* plane = planes + i * kPlane;
    float here[kOwned], weight[kOutTaps];
    read(here, plane + own.here);
    const Neighbourhood around(plane, own, here);
    read(weight, w.out[i]);
#pragma unroll
    for (int c = 0; c < kColours; ++c)
#pragma unroll
      for (int j = 0; j < kOwned; ++j) around.add(weight + 9 * c, j, rgb[c][j]);
  }
#pragma unroll
  for (int c = 0; c < kColours; ++c)
#pragma unroll
    for (int j = 0; j < kOwned; ++j) rgb[c][j] += w.out_bias[c];
}

__global__ void __launch_bounds__(kThreads)
    result_kernel(const Scene scene, const ResultWeights* weights, const Images out, unsigned down, unsigned across) {
  PYOPS_DYNAMIC_SHARED(float, shared);
  auto& w = *reinterpret_cast<ResultWeights*>(shared);
  float* const planes = shared + sizeof(ResultWeights) / sizeof(float);
  float* const graded = planes + kFeatures * kPlane;
  const unsigned row = blockIdx.x / across;  // of tiles, through all images
  const int64_t b = row / down;
  const Frame frame(scene, b, int64_t(row % down) * kTileRows - kMargin,
                    int64_t(blockIdx.x % across) * kTileColumns - kMargin);
  const Owned own(frame);

  const auto* from = reinterpret_cast<const float4*>(weights + b);
  for (unsigned i = threadIdx.x; i < sizeof(ResultWeights) / sizeof(float4); i += kThreads)
    reinterpret_cast<float4*>(shared)[i] = from[i];
  grade(scene, frame, graded);
  __syncthreads();
  float r[kFeatures][kOwned];
  features(graded, w.features, own, r);
  attend(w, own, planes, r);
  __syncthreads();
  // Warps whose pixels no result depends on save their work, and their share of the multiprocessor.
  const bool needed = __any_sync(kWarp, own.inside != 0 && own.row >= kMargin - 1 && own.row <= kRows - kMargin);
  feed_forward(w, own, needed, planes, r);
  own.clear_outside(r);
  __syncthreads();
#pragma unroll
  for (int c = 0; c < kFeatures; ++c) write(planes + c * kPlane + own.here, r[c]);
  __syncthreads();
  if (!needed) return;
  float rgb[kColours][kOwned];
  colours(w, own, planes, rgb);
  if (own.row < kMargin || own.row >= kRows - kMargin) return;
  const int64_t origin = frame.origin(out.pixels) + own.row * out.pixels.row;
  with_type(out.type, [&](auto zero) {
    using T = decltype(zero);
#pragma unroll
    for (int j = 0; j < kOwned; ++j) {
      const int column = own.column + j;
      if (column < kMargin || column >= kColumns - kMargin || !(own.inside >> j & 1)) continue;
      T* to = static_cast<T*>(out.pixels.data) + origin + column * out.pixels.column;
#pragma unroll
      for (int c = 0; c < kColours; ++c) to[c * out.pixels.channel] = encode<T, float>(rgb[c][j]);
    }
  });
}

Tensor forward(const Tensor& image, const Tensor& lut, const Tensor& query, const Tensor& parameters) {
  const Problem p = check(image, lut, query, parameters);
  const Tensor out = new_tensor(image, sizes_of(image), image.scalar_type(), is_channels_last(image));
  if (out.numel() == 0) return out;
  const DeviceScope scope(image);
  const cudaStream_t stream = scope.stream();
  const lut3d::DeviceTables<float> tables(p.lut, lut, std::nullopt, lut3d::kPacked, stream);
  const Scene scene{images_of(image), tables.set, parameters.const_data_ptr<float>(), p.height, p.width};
  const Tensor weights = result_weights(p, scene, query, stream);
  const int64_t down = ceil_div<int64_t>(p.height, kTileRows), across = ceil_div<int64_t>(p.width, kTileColumns);
  launch("relation_aware_modulation (result)", result_kernel, blocks_for(p.batch * down * across, 1), kThreads,
         kResultShared, stream, scene, static_cast<const ResultWeights*>(weights.const_data_ptr()), images_of(out),
         unsigned(down), unsigned(across));
  return out;
}

}  // namespace
}  // namespace pyops::modulation

PYOPS_CUDA_KERNELS(m) { m.impl("relation_aware_modulation", TORCH_BOX(&pyops::modulation::forward)); }
