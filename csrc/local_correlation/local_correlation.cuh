// What the kernels of local correlation share: parts of images, tiles, features on their way to shared memory.
//
// With dilation D an image falls into D * D parts, each with every D-th pixel of every D-th row: a part meets only itself,
// with dilation 1. A warp covers a tile of 4 rows of 32 columns, four neighbouring columns to a thread, so that it reads
// shared memory in words of four, and of a shifted row a few words whatever the shifts.
#pragma once

#include "../common/launch.cuh"
#include "../common/pixel.h"
#include "../common/quads.cuh"
#include "local_correlation_args.h"

namespace pyops::local_correlation {
namespace {

constexpr int kColumns = 32, kRows = 4, kOwned = 4, kWarpThreads = 32;
constexpr int kMostSteps = 9;  // displacements to a side that are served at a time: a radius of 4

// Displacements of columns that a thread serves, and what it reads for them.
template <int kCount>
constexpr int kWords = (kCount + kOwned - 1 + 3) / 4;
template <int kCount>
constexpr int kPitch = kColumns - kOwned + 4 * kWords<kCount>;
template <int kCount>
constexpr int kPlane = (kRows + kMostSteps - 1) * kPitch<kCount>;

struct Sizes {
  int64_t channels, height, width;
  int64_t radius, dilation;
  int64_t parts_down, parts_across, down, across;  // parts of an image, tiles of a part
  int64_t tiles;                                   // of all images

  explicit Sizes(const Problem& p)
      : channels(p.channels),
        height(p.height),
        width(p.width),
        radius(p.radius),
        dilation(p.dilation),
        parts_down(p.parts(p.height)),
        parts_across(p.parts(p.width)),
        down(ceil_div(ceil_div(p.height, parts_down), int64_t(kRows))),
        across(ceil_div(ceil_div(p.width, parts_across), int64_t(kColumns))),
        tiles(p.batch * parts_down * parts_across * down * across) {}
};

// One tile: its part, and where it begins there.
struct Tile {
  int64_t b, y, x;    // image, first pixel of the part
  int height, width;  // of the part
  int row, column;    // of the tile

  __device__ __forceinline__ Tile(const Sizes& s, int64_t i) {
    column = int(i % s.across) * kColumns, i /= s.across;
    row = int(i % s.down) * kRows, i /= s.down;
    x = i % s.parts_across, i /= s.parts_across;
    y = i % s.parts_down, b = i / s.parts_down;
    height = int((s.height - y + s.dilation - 1) / s.dilation);
    width = int((s.width - x + s.dilation - 1) / s.dilation);
  }
  __device__ __forceinline__ bool has(int i, int j) const { return i >= 0 && i < height && j >= 0 && j < width; }
  template <class T>
  __device__ __forceinline__ T* start_of(const Pixels<T>& t) const {
    return t.data + b * t.batch + y * t.row + x * t.column;
  }
  template <class T>
  __device__ __forceinline__ static int64_t offset(const Pixels<T>& t, const Sizes& s, int i, int j) {
    return i * s.dilation * t.row + j * s.dilation * t.column;
  }
};

// `rows` rows from `row` on, as many columns as a row of kRowPitch has from `column` on, zero outside of the part; of
// `count` channels from `channel` on, kChannelPitch apart.
template <int kRowPitch, int kChannelPitch, int kChannels, class T>
__device__ __forceinline__ void stage(const Pixels<T>& t, const Sizes& s, const Tile& tile, int64_t channel, int count,
                                      int row, int rows, int column, float* to) {
  const T* from = tile.start_of(t) + channel * t.channel;
  if (t.channel == 1 && t.column != 1) {  // neighbours in memory go to neighbouring threads
    for (int i = int(threadIdx.x); i < rows * kRowPitch * kChannels; i += int(blockDim.x)) {
      const int c = i % kChannels, place = i / kChannels;
      const int y = row + place / kRowPitch, x = column + place % kRowPitch;
      if (c < count)
        to[c * kChannelPitch + place] = tile.has(y, x) ? decode<T, float>(from[c + Tile::offset(t, s, y, x)]) : 0.f;
    }
    return;
  }
  for (int i = int(threadIdx.x); i < rows * kRowPitch; i += int(blockDim.x)) {
    const int y = row + i / kRowPitch, x = column + i % kRowPitch;
    const bool inside = tile.has(y, x);
    const T* at = from + (inside ? Tile::offset(t, s, y, x) : 0);
#pragma unroll 4
    for (int c = 0; c < count; ++c, at += t.channel) to[c * kChannelPitch + i] = inside ? decode<T, float>(*at) : 0.f;
  }
}

__device__ __forceinline__ void load_word(const float* from, float* to) {
  const float4 word = *reinterpret_cast<const float4*>(from);
  to[0] = word.x, to[1] = word.y, to[2] = word.z, to[3] = word.w;
}

// Whether four neighbouring columns of every row of a part are an aligned word.
template <class T>
bool has_words(const Problem& p, const Pixels<T>& t) {
  return p.dilation == 1 && reinterpret_cast<uintptr_t>(t.data) % (4 * sizeof(T)) == 0 && p.width % 4 == 0 &&
         t.column == 1 && t.batch % 4 == 0 && t.channel % 4 == 0 && t.row % 4 == 0;
}

// Four columns of a row of a part, from `column` on, which lies at `to`.
template <class T>
__device__ __forceinline__ void store_columns(const Pixels<T>& t, const Sizes& s, const Tile& tile, int column,
                                              bool words, T* to, const T (&value)[kOwned]) {
  if (words) {
    store4(to, value);
  } else {
#pragma unroll
    for (int j = 0; j < kOwned; ++j)
      if (column + j < tile.width) to[j * s.dilation * t.column] = value[j];
  }
}

// Calls f with the number of displacements that serves the radius best, as a type.
template <class F>
void dispatch_count(const Problem& p, const F& f) {
  if (p.radius <= 1) f(std::integral_constant<int, 3>());
  else if (p.radius == 2) f(std::integral_constant<int, 5>());
  else f(std::integral_constant<int, kMostSteps>());
}

}  // namespace
}  // namespace pyops::local_correlation
