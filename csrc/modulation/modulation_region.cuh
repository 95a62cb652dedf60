// What both passes of relation-aware modulation do with a region of an image: its colours and features R, and 3 x 3
// convolutions of what lies in shared memory.
//
// A block works on a region of 64 x 32 pixels; a thread owns four neighbours of a row for the whole kernel and keeps
// what concerns only them in registers. What a 3 x 3 convolution reads lies in shared memory, a plane a channel: rows
// above and below are read from there, sixteen bytes a thread, neighbours within a row come by shuffle. So every weight,
// a broadcast, serves four pixels. A region's outermost pixels lack neighbours, and each convolution makes one more
// ring of pixels worthless: results are taken from the inner ones.
#pragma once

#include "../common/quads.cuh"
#include "../lut3d/lut3d_tables.cuh"
#include "modulation_args.h"
#include "modulation_weights.cuh"

namespace pyops::modulation {
namespace {

constexpr int kColumns = 64, kRows = 32, kPlane = kColumns * kRows;
constexpr int kOwned = 4, kLanes = kColumns / kOwned, kThreads = kLanes * kRows;
constexpr unsigned kWarp = 0xffffffff;

// Colours reach one pixel further on every side. The pitch keeps rows on sixteen bytes.
constexpr int kGradedColumns = kColumns + 2, kGradedRows = kRows + 2, kGradedPitch = kColumns + 4;
constexpr int kGradedPlane = kGradedPitch * kGradedRows;

// What a call reads, for all kernels.
struct Scene {
  Images image;
  lut3d::TableSet<float> tables;
  const float* parameters;
  int64_t height, width;
};

// Where a region lies: its pixel (0, 0) is pixel (top, left) of image `batch`. Rows and columns of the image are counted
// in the region, and known as far as colours reach, so that what is done for each pixel fits 32 bits.
struct Frame {
  int64_t batch, top, left;
  int first_row, end_row, first_column, end_column;

  __device__ __forceinline__ Frame(const Scene& scene, int64_t batch, int64_t top, int64_t left)
      : batch(batch),
        top(top),
        left(left),
        first_row(top < 1 ? int(-top) : -1),
        end_row(scene.height - top < kRows + 1 ? int(scene.height - top) : kRows + 1),
        first_column(left < 1 ? int(-left) : -1),
        end_column(scene.width - left < kColumns + 1 ? int(scene.width - left) : kColumns + 1) {}

  __device__ __forceinline__ bool inside(int row, int column) const {
    return row >= first_row && row < end_row && column >= first_column && column < end_column;
  }
  __device__ __forceinline__ int64_t origin(const Pixels<void>& pixels) const {
    return batch * pixels.batch + top * pixels.row + left * pixels.column;
  }
};

// The four pixels of a thread.
struct Owned {
  int row, column, above, here, below;  // the last three: places in a plane; above and below stay within it
  unsigned inside;                      // bit j: pixel j lies in the image

  __device__ __forceinline__ explicit Owned(const Frame& frame)
      : row(int(threadIdx.x) / kLanes), column(int(threadIdx.x) % kLanes * kOwned), inside(0) {
    here = row * kColumns + column;
    above = row > 0 ? here - kColumns : here;
    below = row < kRows - 1 ? here + kColumns : here;
#pragma unroll
    for (int j = 0; j < kOwned; ++j) inside |= unsigned(frame.inside(row, column + j)) << j;
  }

  // A convolution sees zeros outside the image, of what it reads itself.
  __device__ __forceinline__ void clear_outside(float (&v)[kFeatures][kOwned]) const {
#pragma unroll
    for (int c = 0; c < kFeatures; ++c)
#pragma unroll
      for (int j = 0; j < kOwned; ++j) v[c][j] = inside >> j & 1 ? v[c][j] : 0.f;
  }
};

__device__ __forceinline__ void write(float* to, const float (&v)[kOwned]) {
  *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]);
}

// ---- colours ---------------------------------------------------------------------------------------------------------

template <class F>
__device__ __forceinline__ void with_type(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Byte: return f(uint8_t());
    case ScalarType::UInt16: return f(uint16_t());
    case ScalarType::Half: return f(Half());
    case ScalarType::BFloat16: return f(BFloat16());
    default: return f(float());
  }
}

__device__ __forceinline__ void look_up(const lut3d::Packed<float>& table, int size, float (&rgb)[kColours]) {
  const lut3d::Axis<float> axis{size, nullptr, nullptr};
  const lut3d::Axis<float> axes[kColours] = {axis, axis, axis};
  const lut3d::Spot<float> spot(rgb, axes);
  const lut3d::Stencil<float, false> stencil(spot.f, size);
  float sum[kColours] = {0, 0, 0};
#pragma unroll
  for (int k = 0; k < stencil.kCorners; ++k) {
    float corner[kColours];
    table.point(spot.origin + stencil.offset[k], corner);
#pragma unroll
    for (int c = 0; c < kColours; ++c) sum[c] += stencil.weight[k] * corner[c];
  }
#pragma unroll
  for (int c = 0; c < kColours; ++c) rgb[c] = sum[c];
}

// Graded colours of the region and the ring around it, zero outside the image. All loads from the image are under way
// before the first is needed; where there is no pixel, they read the first of all.
__device__ __forceinline__ void grade(const Scene& scene, const Frame& frame, float* graded) {
  constexpr int kCount = kGradedColumns * kGradedRows, kTurns = ceil_div(kCount, kThreads);
  const Pixels<void>& pixels = scene.image.pixels;
  const lut3d::Packed<float> table(scene.tables, frame.batch, nullptr);
  const int64_t origin = frame.origin(pixels);
  float rgb[kTurns][kColours];
  bool inside[kTurns];
  with_type(scene.image.type, [&](auto zero) {
    using T = decltype(zero);
    T raw[kTurns][kColours];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int i = turn * kThreads + int(threadIdx.x), row = i / kGradedColumns - 1, column = i % kGradedColumns - 1;
      inside[turn] = frame.inside(row, column) && i < kCount;
      const T* from =
          static_cast<const T*>(pixels.data) + (inside[turn] ? origin + row * pixels.row + column * pixels.column : 0);
#pragma unroll
      for (int c = 0; c < kColours; ++c) raw[turn][c] = from[c * pixels.channel];
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn)
#pragma unroll
      for (int c = 0; c < kColours; ++c) rgb[turn][c] = decode<T, float>(raw[turn][c]);
  });
#pragma unroll
  for (int turn = 0; turn < kTurns; ++turn) {
    const int i = turn * kThreads + int(threadIdx.x);
    if (i >= kCount) break;
    if (inside[turn]) look_up(table, scene.tables.size, rgb[turn]);
#pragma unroll
    for (int c = 0; c < kColours; ++c)
      graded[c * kGradedPlane + i / kGradedColumns * kGradedPitch + i % kGradedColumns] =
          inside[turn] ? rgb[turn][c] : 0.f;
  }
}

// ---- features --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float exp2_of(float x) {
#if defined(__CUDA_ARCH__)
  float result;  // one instruction; exp2f is four, for results so small that they do not matter here
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return exp2f(x);
#endif
}

// gelu(x) = max(x, 0) - |x| Q(|x|), with the tail Q of the normal distribution as two to a polynomial: its error moves
// the result by 1e-8 at most, float32 rounding by 5e-8. A third of the instructions of erff, and this runs 24 times a
// pixel. The polynomial falls without bound, so large |x| need no case of their own.
__device__ __forceinline__ float tail_gelu(float x) {
  const float t = fabsf(x);
  float p = -1.9966500985901803e-06f;
  p = fmaf(p, t, 2.9342942070798017e-05f);
  p = fmaf(p, t, -0.0001385256473440677f);
  p = fmaf(p, t, -0.0002519889094401151f);
  p = fmaf(p, t, 0.00721359346061945f);
  p = fmaf(p, t, -0.052599843591451645f);
  p = fmaf(p, t, -0.45917433500289917f);
  p = fmaf(p, t, -1.151108980178833f);
  p = fmaf(p, t, -1.f);
  return fmaf(-t, exp2_of(p), fmaxf(x, 0.f));
}

// LayerNorm over the channels of each owned pixel; norm = [8] scale, [8] bias.
__device__ __forceinline__ void normalise(float (&v)[kFeatures][kOwned], const float* norm) {
  float scale[kFeatures], bias[kFeatures];
  read(scale, norm), read(bias, norm + kFeatures);
#pragma unroll
  for (int j = 0; j < kOwned; ++j) {
    float mean = 0, variance = 0;
#pragma unroll
    for (int c = 0; c < kFeatures; ++c) mean += v[c][j];
    mean *= 1.f / kFeatures;
#pragma unroll
    for (int c = 0; c < kFeatures; ++c) v[c][j] -= mean, variance += v[c][j] * v[c][j];
    const float inverse = rsqrtf(variance * (1.f / kFeatures) + kNormEpsilon);
#pragma unroll
    for (int c = 0; c < kFeatures; ++c) v[c][j] = v[c][j] * inverse * scale[c] + bias[c];
  }
}

// R of the owned pixels, zero outside the image.
__device__ __forceinline__ void features(const float* graded, const FeatureWeights& w, const Owned& own,
                                         float (&r)[kFeatures][kOwned]) {
#pragma unroll
  for (int c = 0; c < kFeatures; ++c)
#pragma unroll
    for (int j = 0; j < kOwned; ++j) r[c][j] = 0;
#pragma unroll 1  // a third of the code, which must come from the instruction cache
  for (int i = 0; i < kColours; ++i)
#pragma unroll
    for (int dy = 0; dy < 3; ++dy) {
      const float* from = graded + i * kGradedPlane + (own.row + dy) * kGradedPitch + own.column;
      const float4 left = *reinterpret_cast<const float4*>(from);
      const float2 right = *reinterpret_cast<const float2*>(from + 4);
      const float v[6] = {left.x, left.y, left.z, left.w, right.x, right.y};
#pragma unroll
      for (int dx = 0; dx < 3; ++dx) {
        float weight[kFeatures];
        read(weight, w.conv[i * 9 + dy * 3 + dx]);
#pragma unroll
        for (int c = 0; c < kFeatures; ++c)
#pragma unroll
          for (int j = 0; j < kOwned; ++j) r[c][j] += weight[c] * v[j + dx];
      }
    }
#pragma unroll
  for (int c = 0; c < kFeatures; ++c)
#pragma unroll
    for (int j = 0; j < kOwned; ++j) r[c][j] = tail_gelu(r[c][j] + w.bias[c]);
  normalise(r, w.norm);
  own.clear_outside(r);
}

// ---- 3 x 3 convolutions of planes ------------------------------------------------------------------------------------

// Four owned values between their neighbours. At the ends of a region's row the missing neighbour is any value.
__device__ __forceinline__ void widen(const float (&v)[kOwned], float (&wide)[kOwned + 2]) {
  wide[0] = __shfl_up_sync(kWarp, v[kOwned - 1], 1, kLanes);
  wide[kOwned + 1] = __shfl_down_sync(kWarp, v[0], 1, kLanes);
#pragma unroll
  for (int j = 0; j < kOwned; ++j) wide[j + 1] = v[j];
}

// What a 3 x 3 kernel at the owned pixels sees of a plane. All lanes of a warp must come.
struct Neighbourhood {
  float row[3][kOwned + 2];

  __device__ __forceinline__ Neighbourhood(const float* plane, const Owned& own, const float (&here)[kOwned]) {
    float v[kOwned];
    read(v, plane + own.above), widen(v, row[0]);
    widen(here, row[1]);
    read(v, plane + own.below), widen(v, row[2]);
  }
  // Adds a kernel's result at pixel j.
  __device__ __forceinline__ void add(const float* kernel, int j, float& sum) const {
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) sum += kernel[tap] * row[tap / 3][j + tap % 3];
  }
};

// One channel of a depthwise convolution at the owned pixels; `kernel` has room for kTaps floats.
__device__ __forceinline__ void depthwise(const float* plane, const Owned& own, const float (&here)[kOwned],
                                          const float* kernel, float (&sum)[kOwned]) {
  const Neighbourhood around(plane, own, here);
  float weight[kTaps];
  read(weight, kernel);
#pragma unroll
  for (int j = 0; j < kOwned; ++j) sum[j] = 0, around.add(weight, j, sum[j]);
}

}  // namespace
}  // namespace pyops::modulation
