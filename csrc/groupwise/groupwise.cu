// Group-wise correlation on CUDA, forward: a block makes all disparities, or up to 64 of them, of 128 columns of a group.
//
// Left and right go to shared memory, up to 16 channels at a time; a warp makes kCount disparities, each thread those of
// four columns in registers. For a channel it reads one word of left and kCount / 4 + 1 of right for 4 kCount
// multiplications. A warp then writes each disparity as one run of 512 bytes.
#include "groupwise.cuh"

namespace pyops::groupwise {
namespace {

constexpr int kChannels = 16, kMostDisparities = 64;  // of a block, at a time
constexpr int kWindow = kColumns + kMostDisparities;

// How rows are divided among blocks.
struct Division {
  int64_t across, deep, items;  // tiles of columns, of disparities; all
  int span;                     // disparities of a tile
  bool words;                   // of the result
};

// With 16 disparities a thread: 64 sums, and registers for four full blocks of a multiprocessor.
template <class T, int kCount>
__global__ void __launch_bounds__(kMostDisparities / kCount * kWarpThreads, kCount == 16 ? 4 : 1)
    correlate(const View<T> left, const View<T> right, const Sizes s, const Division division, float scale, T* out) {
  __shared__ __align__(16) float lefts[kChannels * kColumns];
  __shared__ __align__(16) float rights[kChannels * kWindow];
  const int column = int(threadIdx.x) % kWarpThreads * kOwned, warp = int(threadIdx.x) / kWarpThreads;
  const int window = column - kCount * warp + division.span - kCount;
  for (int64_t item = blockIdx.x; item < division.items; item += gridDim.x) {
    const int64_t row = item / division.across / division.deep;
    const Row at(s, row);
    const int64_t x = item % division.across * kColumns, d = item / division.across % division.deep * division.span;
    float sum[kCount][kOwned];
#pragma unroll
    for (int k = 0; k < kCount; ++k)
#pragma unroll
      for (int j = 0; j < kOwned; ++j) sum[k][j] = 0;
    for (int64_t c = 0; c < s.channels; c += kChannels) {
      const int count = s.channels - c < kChannels ? int(s.channels - c) : kChannels;
      stage<kColumns>(left, s, at, row, c, count, x, kColumns, lefts);
      stage<kWindow>(right, s, at, row, c, count, x - d - division.span, kColumns + division.span, rights);
      __syncthreads();
      for (int i = 0; i < count; ++i) {
        float l[kOwned], r[kCount + kOwned];
        load_word(lefts + i * kColumns + column, l);
#pragma unroll
        for (int k = 0; k < kCount + kOwned; k += 4) load_word(rights + i * kWindow + window + k, r + k);
#pragma unroll
        for (int k = 0; k < kCount; ++k)
#pragma unroll
          for (int j = 0; j < kOwned; ++j) sum[k][j] += l[j] * r[kCount + j - k];
      }
      __syncthreads();
    }
    const int64_t first = x + column, plane = s.height * s.width;
    const int64_t from = d + kCount * warp;
    T* to = out + ((at.b * s.groups + at.g) * s.disparities + from) * plane + at.y * s.width + first;
#pragma unroll
    for (int k = 0; k < kCount; ++k, to += plane) {
      if (from + k >= s.disparities || first >= s.width) break;
      T value[kOwned];
#pragma unroll
      for (int j = 0; j < kOwned; ++j)
        value[j] = encode<T, float>(first + j < from + k ? 0.f : sum[k][j] * scale);  // no partner
      if (division.words) {
        store4(to, value);
      } else {
#pragma unroll
        for (int j = 0; j < kOwned; ++j)
          if (first + j < s.width) to[j] = value[j];
      }
    }
  }
}

template <class T, int kCount>
void run(const Problem& p, const Tensor& left, const Tensor& right, const Tensor& out, cudaStream_t stream) {
  const Views<T> views(p, left, right, stream);
  T* const to = static_cast<T*>(out.mutable_data_ptr());
  Division division;
  division.across = ceil_div<int64_t>(p.width, kColumns);
  division.deep = ceil_div<int64_t>(p.disparities, kMostDisparities);
  const int warps = int(ceil_div<int64_t>(ceil_div(p.disparities, division.deep), kCount));  // even shares
  division.span = warps * kCount;
  division.deep = ceil_div<int64_t>(p.disparities, division.span);
  division.items = p.rows() * division.across * division.deep;
  division.words = has_words(to, p.width, 1, {});
  launch("groupwise_correlation", correlate<T, kCount>, blocks_for(division.items, 1), warps * kWarpThreads, 0, stream,
         views.left, views.right, Sizes(p), division, float(p.scale()), to);
}

Tensor forward(const Tensor& left, const Tensor& right, int64_t max_disparity, int64_t groups, bool normalize) {
  const Problem p = check(left, right, max_disparity, groups, normalize);
  const Tensor out = new_tensor(left, p.volume(), left.scalar_type());
  if (out.numel() == 0) return out;
  const DeviceScope scope(left);
  dispatch_float(left.scalar_type(), "left", [&](auto zero) {
    using T = decltype(zero);
    if (p.disparities <= 8) run<T, 4>(p, left, right, out, scope.stream());
    else run<T, 16>(p, left, right, out, scope.stream());
  });
  return out;
}

}  // namespace
}  // namespace pyops::groupwise

PYOPS_CUDA_KERNELS(m) { m.impl("groupwise_correlation", TORCH_BOX(&pyops::groupwise::forward)); }
