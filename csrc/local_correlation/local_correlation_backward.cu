// Local correlation on CUDA, backward: every gradient is gathered, so nothing is added by several threads.
//
// A block makes a tile of the gradient to one image, 16 channels of it, a warp four of them. What the tile meets of the
// other image goes to shared memory, up to 9 x 9 displacements at a time; gradients of the result do for one dy at a
// time. A thread keeps four columns of four channels, and for 144 multiplications reads 9 words of gradients, 12 of
// features.
#include "local_correlation.cuh"

namespace pyops::local_correlation {
namespace {

constexpr int kEach = 4, kWarps = 4, kChannels = kEach * kWarps, kThreads = kWarps * kWarpThreads;

template <int kCount>
struct Shared {
  float grad[kCount * kRows * kColumns], other[kChannels * kPlane<kCount>];
};

struct Division {
  int64_t deep, items;       // tiles of channels; all, of both images
  int64_t reach_y, reach_x;  // displacements that may stay inside
  int sides, first;          // how many images want a gradient, and which is the first: 0 is the first image
};

template <class T>
struct Target {
  Pixels<T> pixels;
  bool words;
};

// Gradients of kCount displacements from (dy, dx) on: for the first image where they are, for the second image, which
// looks the other way, those of the partner.
template <bool kSecond, int kCount, class T>
__device__ __forceinline__ void stage_gradients(const Pixels<T>& grad, const Sizes& s, const Division& division,
                                                const Tile& tile, int dy, int dx, float* to) {
  const int64_t sign = kSecond ? -1 : 1, side = 2 * s.radius + 1;
  const T* from = tile.start_of(grad) + ((sign * dy + s.radius) * side + sign * dx + s.radius) * grad.channel;
  for (int i = int(threadIdx.x); i < kRows * kColumns; i += int(blockDim.x)) {
    const int y = tile.row + i / kColumns, x = tile.column + i % kColumns;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const bool exists = dx + k <= division.reach_x && tile.has(y, x) && tile.has(y + dy, x + dx + k);
      const int64_t offset = kSecond ? Tile::offset(grad, s, y + dy, x + dx + k) : Tile::offset(grad, s, y, x);
      to[k * kRows * kColumns + i] = exists ? decode<T, float>(from[sign * k * grad.channel + offset]) : 0.f;
    }
  }
}

template <bool kSecond, int kCount, class T>
__device__ __forceinline__ void gather(const Pixels<T>& grad, const Pixels<T>& other, const Sizes& s,
                                       const Division& division, const Target<T>& target, int64_t item,
                                       Shared<kCount>& shared) {
  const Tile tile(s, item / division.deep);
  const int64_t channel = item % division.deep * kChannels;
  const int channels = s.channels - channel < kChannels ? int(s.channels - channel) : kChannels;
  const int lane = int(threadIdx.x) % kWarpThreads, own = int(threadIdx.x) / kWarpThreads * kEach;
  const int column = lane % (kColumns / kOwned) * kOwned, row = lane / (kColumns / kOwned);
  const int reach_y = int(division.reach_y), reach_x = int(division.reach_x);
  float sum[kEach][kOwned];
#pragma unroll
  for (int c = 0; c < kEach; ++c)
#pragma unroll
    for (int j = 0; j < kOwned; ++j) sum[c][j] = 0;
  for (int first = -reach_y; first <= reach_y; first += kMostSteps)
    for (int dx = -reach_x; dx <= reach_x; dx += kCount) {
      const int end = first + kMostSteps <= reach_y ? first + kMostSteps : reach_y + 1;
      stage<kPitch<kCount>, kPlane<kCount>, kChannels>(other, s, tile, channel, channels, tile.row + first,
                                                       kRows + end - first - 1, tile.column + dx, shared.other);
      for (int dy = first; dy < end; ++dy) {
        stage_gradients<kSecond, kCount>(grad, s, division, tile, dy, dx, shared.grad);
        __syncthreads();
        float g[kCount][kOwned];
#pragma unroll
        for (int k = 0; k < kCount; ++k) load_word(shared.grad + (k * kRows + row) * kColumns + column, g[k]);
#pragma unroll
        for (int c = 0; c < kEach; ++c) {
          if (own + c >= channels) break;
          float partner[4 * kWords<kCount>];
          const float* from = shared.other + (own + c) * kPlane<kCount> + (row + dy - first) * kPitch<kCount> + column;
#pragma unroll
          for (int k = 0; k < kWords<kCount>; ++k) load_word(from + 4 * k, partner + 4 * k);
#pragma unroll
          for (int k = 0; k < kCount; ++k)
#pragma unroll
            for (int j = 0; j < kOwned; ++j) sum[c][j] += g[k][j] * partner[k + j];
        }
        __syncthreads();
      }
    }
  const Pixels<T>& t = target.pixels;
  const int y = tile.row + row, x = tile.column + column;
  if (!tile.has(y, x)) return;
  T* to = tile.start_of(t) + Tile::offset(t, s, y, x) + (channel + own) * t.channel;
#pragma unroll
  for (int c = 0; c < kEach; ++c, to += t.channel) {
    if (own + c >= channels) break;
    T value[kOwned];
#pragma unroll
    for (int j = 0; j < kOwned; ++j) value[j] = encode<T, float>(sum[c][j]);
    store_columns(t, s, tile, x, target.words, to, value);
  }
}

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    gather_both(const Pixels<T> grad, const Pixels<T> first, const Pixels<T> second, const Sizes s,
                const Division division, const Target<T> to_first, const Target<T> to_second) {
  __shared__ __align__(16) Shared<kCount> shared;
  for (int64_t i = blockIdx.x; i < division.items; i += gridDim.x) {
    const int64_t item = i / division.sides;
    if (division.first + i % division.sides == 0)
      gather<false, kCount>(grad, second, s, division, to_first, item, shared);
    else gather<true, kCount>(grad, first, s, division, to_second, item, shared);
  }
}

template <class T>
Target<T> target_of(const Problem& p, const Tensor& t, bool need) {
  if (!need) return {};
  const Pixels<T> pixels = pixels_of<T>(t);
  return {pixels, has_words(p, pixels)};
}

template <class T, int kCount>
void run(const Problem& p, const Tensor& grad, const Tensor& first, const Tensor& second, const Tensor& grad_first,
         const Tensor& grad_second, bool need_first, bool need_second, cudaStream_t stream) {
  const Sizes s(p);
  Division division;
  division.deep = ceil_div<int64_t>(p.channels, kChannels);
  division.reach_y = p.reach(p.height), division.reach_x = p.reach(p.width);
  division.sides = int(need_first) + int(need_second), division.first = need_first ? 0 : 1;
  division.items = s.tiles * division.deep * division.sides;
  launch("local_correlation_backward", gather_both<T, kCount>, blocks_for(division.items, 1), kThreads, 0, stream,
         pixels_of<T>(grad), pixels_of<T>(first), pixels_of<T>(second), s, division,
         target_of<T>(p, grad_first, need_first), target_of<T>(p, grad_second, need_second));
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& first, const Tensor& second, int64_t radius,
                                    int64_t dilation, bool need_first, bool need_second) {
  const Problem p = check_gradient(grad, first, second, radius, dilation);
  const Tensor grad_first = new_gradient(first, need_first), grad_second = new_gradient(second, need_second);
  if (grad.numel() == 0 || !(need_first || need_second)) return {grad_first, grad_second};
  const DeviceScope scope(first);
  dispatch_float(first.scalar_type(), "first", [&](auto zero) {
    dispatch_count(p, [&](auto count) {
      run<decltype(zero), count.value>(p, grad, first, second, grad_first, grad_second, need_first, need_second,
                                       scope.stream());
    });
  });
  return {grad_first, grad_second};
}

}  // namespace
}  // namespace pyops::local_correlation

PYOPS_CUDA_KERNELS(m) { m.impl("local_correlation_backward", TORCH_BOX(&pyops::local_correlation::backward)); }
