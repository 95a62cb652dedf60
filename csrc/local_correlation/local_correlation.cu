// Local correlation on CUDA, forward: a block makes up to 9 x 9 displacements of a tile, a warp those of one dy.
//
// Both images go to shared memory, 8 channels at a time. A thread keeps the displacements of a row of them for four
// columns: for 36 multiplications of a channel it reads one word of the first image and three of the second.
#include "local_correlation.cuh"

namespace pyops::local_correlation {
namespace {

constexpr int kChannels = 8;     // at a time in shared memory
constexpr int64_t kSummed = 64;  // channels that are summed by themselves, so that rounding stays small
constexpr int kBlocks = 2;       // of a multiprocessor that registers must suffice for

struct Division {
  int64_t deep_y, deep_x, items;  // shares of displacements; all
  int rows;                       // displacements of rows to a share
  bool words;                     // of the result
};

template <class T, int kCount>
__global__ void __launch_bounds__(kMostSteps* kWarpThreads, kBlocks)
    correlate(const Pixels<T> first, const Pixels<T> second, const Sizes s, const Division division,
              const Pixels<T> out) {
  __shared__ __align__(16) float firsts[kChannels * kRows * kColumns];
  __shared__ __align__(16) float seconds[kChannels * kPlane<kCount>];
  const int warp = int(threadIdx.x) / kWarpThreads, lane = int(threadIdx.x) % kWarpThreads;
  const int column = lane % (kColumns / kOwned) * kOwned, row = lane / (kColumns / kOwned);
  for (int64_t item = blockIdx.x; item < division.items; item += gridDim.x) {
    const Tile tile(s, item % s.tiles);
    const int64_t share = item / s.tiles;
    const int dy = int(share / division.deep_x * division.rows - s.radius);  // the least of the share
    const int dx = int(share % division.deep_x * kCount - s.radius);
    const int rows = kRows + division.rows - 1;
    const bool outside = tile.row + dy >= tile.height || tile.row + dy + rows <= 0 || tile.column + dx >= tile.width ||
                         tile.column + dx + kPitch<kCount> <= 0;
    float total[kCount][kOwned], sum[kCount][kOwned];
#pragma unroll
    for (int k = 0; k < kCount; ++k)
#pragma unroll
      for (int j = 0; j < kOwned; ++j) total[k][j] = sum[k][j] = 0;
    for (int64_t c = 0; c < (outside ? 0 : s.channels); c += kChannels) {
      const int count = s.channels - c < kChannels ? int(s.channels - c) : kChannels;
      stage<kColumns, kRows * kColumns, kChannels>(first, s, tile, c, count, tile.row, kRows, tile.column, firsts);
      stage<kPitch<kCount>, kPlane<kCount>, kChannels>(second, s, tile, c, count, tile.row + dy, rows, tile.column + dx,
                                                       seconds);
      __syncthreads();
      for (int i = 0; i < count; ++i) {
        float own[kOwned], partner[4 * kWords<kCount>];
        load_word(firsts + (i * kRows + row) * kColumns + column, own);
#pragma unroll
        for (int k = 0; k < kWords<kCount>; ++k)
          load_word(seconds + i * kPlane<kCount> + (row + warp) * kPitch<kCount> + column + 4 * k, partner + 4 * k);
#pragma unroll
        for (int k = 0; k < kCount; ++k)
#pragma unroll
          for (int j = 0; j < kOwned; ++j) sum[k][j] += own[j] * partner[k + j];
      }
      __syncthreads();
      if ((c + kChannels) % kSummed != 0 && c + kChannels < s.channels) continue;
#pragma unroll
      for (int k = 0; k < kCount; ++k)
#pragma unroll
        for (int j = 0; j < kOwned; ++j) total[k][j] += sum[k][j], sum[k][j] = 0;
    }
    const int y = tile.row + row, x = tile.column + column;
    if (dy + warp > s.radius || !tile.has(y, x)) continue;
    T* to = tile.start_of(out) + Tile::offset(out, s, y, x) +
            ((dy + warp + s.radius) * (2 * s.radius + 1) + dx + s.radius) * out.channel;
#pragma unroll
    for (int k = 0; k < kCount; ++k, to += out.channel) {
      if (dx + k > s.radius) break;
      T value[kOwned];
#pragma unroll
      for (int j = 0; j < kOwned; ++j)
        value[j] = encode<T, float>(tile.has(y + dy + warp, x + j + dx + k) ? total[k][j] : 0.f);
      store_columns(out, s, tile, x, division.words, to, value);
    }
  }
}

template <class T, int kCount>
void run(const Problem& p, const Tensor& first, const Tensor& second, const Tensor& out, cudaStream_t stream) {
  const Sizes s(p);
  const Pixels<T> to = pixels_of<T>(out);
  Division division;
  division.deep_y = ceil_div<int64_t>(p.side(), kMostSteps);
  division.rows = int(ceil_div(p.side(), division.deep_y));  // even shares
  division.deep_y = ceil_div<int64_t>(p.side(), division.rows);
  division.deep_x = ceil_div<int64_t>(p.side(), kCount);
  division.items = s.tiles * division.deep_y * division.deep_x;
  division.words = has_words(p, to);
  launch("local_correlation", correlate<T, kCount>, blocks_for(division.items, 1), division.rows * kWarpThreads, 0,
         stream, pixels_of<T>(first), pixels_of<T>(second), s, division, to);
}

Tensor forward(const Tensor& first, const Tensor& second, int64_t radius, int64_t dilation) {
  const Problem p = check(first, second, radius, dilation);
  const Tensor out = new_tensor(first, p.volume(), first.scalar_type());
  if (out.numel() == 0) return out;
  const DeviceScope scope(first);
  dispatch_float(first.scalar_type(), "first", [&](auto zero) {
    dispatch_count(p, [&](auto count) { run<decltype(zero), count.value>(p, first, second, out, scope.stream()); });
  });
  return out;
}

}  // namespace
}  // namespace pyops::local_correlation

PYOPS_CUDA_KERNELS(m) { m.impl("local_correlation", TORCH_BOX(&pyops::local_correlation::forward)); }
