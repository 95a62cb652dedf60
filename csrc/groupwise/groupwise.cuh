// What the kernels of group-wise correlation share: scenes, tiles of 128 columns, features on their way to shared memory.
//
// A thread owns four neighbouring columns, so that a warp covers a tile: it reads shared memory and writes results in
// words of four elements. Of a shifted row it then needs a few aligned words, whatever the shifts.
#pragma once

#include "../common/launch.cuh"
#include "../common/pixel.h"
#include "../common/quads.cuh"
#include "groupwise_args.h"

namespace pyops::groupwise {
namespace {

constexpr int kColumns = 128, kOwned = 4, kWarpThreads = 32;
constexpr int kRowThreads = 256;  // of kernels with a thread for each column of a group

// One view: features, and by what to multiply them: null, or [B][groups][H][W].
template <class T>
struct View {
  Pixels<T> features;
  const float* inverse;
};

struct Sizes {
  int64_t batch, height, width, channels;  // of a group
  int64_t groups, disparities;

  explicit Sizes(const Problem& p)
      : batch(p.batch),
        height(p.height),
        width(p.width),
        channels(p.each()),
        groups(p.groups),
        disparities(p.disparities) {}
};

// One row of a group.
struct Row {
  int64_t b, g, y;

  __device__ __forceinline__ Row(const Sizes& s, int64_t i)
      : b(i / s.height / s.groups), g(i / s.height % s.groups), y(i % s.height) {}
};

template <class T>
__device__ __forceinline__ T* start_of(const Pixels<T>& t, const Sizes& s, const Row& at) {
  return t.data + at.b * t.batch + at.g * s.channels * t.channel + at.y * t.row;
}

// Columns [first, first + width) of `count` channels from `channel` on, zero outside of the row, as rows of kPitch.
template <int kPitch, class T>
__device__ __forceinline__ void stage(const View<T>& view, const Sizes& s, const Row& at, int64_t row, int64_t channel,
                                      int count, int64_t first, int width, float* to) {
  const Pixels<T>& t = view.features;
  const T* from = start_of(t, s, at) + channel * t.channel;
  const float* inverse = view.inverse ? view.inverse + row * s.width : nullptr;
  const auto put = [&](int c, int x) {
    const int64_t column = first + x;
    float value = 0;
    if (column >= 0 && column < s.width) {
      value = decode<T, float>(from[c * t.channel + column * t.column]);
      if (inverse) value *= inverse[column];
    }
    to[c * kPitch + x] = value;
  };
  if (t.channel == 1 && t.column != 1) {  // neighbours in memory go to neighbouring threads
    for (int i = int(threadIdx.x); i < count * width; i += int(blockDim.x)) put(i % count, i / count);
  } else {
    for (int c = int(threadIdx.x) / kWarpThreads; c < count; c += int(blockDim.x) / kWarpThreads)
      for (int x = int(threadIdx.x) % kWarpThreads; x < width; x += kWarpThreads) put(c, x);
  }
}

__device__ __forceinline__ void load_word(const float* from, float* to) {
  const float4 word = *reinterpret_cast<const float4*>(from);
  to[0] = word.x, to[1] = word.y, to[2] = word.z, to[3] = word.w;
}

// Whether four neighbouring columns of every row are an aligned word.
template <class T>
bool has_words(const T* data, int64_t width, int64_t column, std::initializer_list<int64_t> strides) {
  bool aligned = reinterpret_cast<uintptr_t>(data) % (4 * sizeof(T)) == 0 && width % 4 == 0 && column == 1;
  for (const int64_t stride : strides) aligned = aligned && stride % 4 == 0;
  return aligned;
}

// 1 / length of the vectors of both views, one after the other.
template <class T>
__global__ void inverse_lengths(const Pixels<T> left, const Pixels<T> right, const Sizes s, int64_t pixels, float* to) {
  for (int64_t i = global_thread(); i < 2 * pixels; i += grid_threads()) {
    const Pixels<T>& t = i < pixels ? left : right;
    const int64_t pixel = i < pixels ? i : i - pixels;
    const T* from = start_of(t, s, Row(s, pixel / s.width)) + pixel % s.width * t.column;
    float square = 0;
    for (int64_t c = 0; c < s.channels; ++c) {
      const float value = decode<T, float>(from[c * t.channel]);
      square += value * value;
    }
    to[i] = inverse_length(square);
  }
}

// Both views, with lengths where they are wanted; `lengths` keeps them alive.
template <class T>
struct Views {
  View<T> left, right;
  std::optional<Tensor> lengths;

  Views(const Problem& p, const Tensor& left_tensor, const Tensor& right_tensor, cudaStream_t stream)
      : left{pixels_of<T>(left_tensor), nullptr}, right{pixels_of<T>(right_tensor), nullptr} {
    if (!p.normalize) return;
    const int64_t pixels = p.rows() * p.width;
    lengths = new_tensor(left_tensor, {2, pixels}, ScalarType::Float);
    float* const to = lengths->mutable_data_ptr<float>();
    launch("groupwise_correlation (lengths)", inverse_lengths<T>, blocks_for(2 * pixels, kRowThreads, 1 << 20),
           kRowThreads, 0, stream, left.features, right.features, Sizes(p), pixels, to);
    left.inverse = to, right.inverse = to + pixels;
  }
};

}  // namespace
}  // namespace pyops::groupwise
