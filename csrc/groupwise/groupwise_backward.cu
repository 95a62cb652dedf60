// Group-wise correlation on CUDA, backward: every gradient is gathered, so nothing is added by several threads.
//
// A block makes 128 columns of the gradient to one view, up to 32 channels of a group. Gradients of the volume and the
// features of the other view go to shared memory, 16 disparities at a time; a thread keeps four columns of four
// channels, and for four disparities reads four words of gradients and two of each channel for 64 multiplications.
// Blocks of both views that read the same gradients follow each other, so that the second finds them in the cache.
#include "groupwise.cuh"

namespace pyops::groupwise {
namespace {

constexpr int kDisparities = 16, kCount = 4, kMostWarps = 8, kMostChannels = kCount * kMostWarps;
constexpr int kWindow = kColumns + kDisparities;

struct Shared {
  float grad[kDisparities * kColumns], other[kMostChannels * kWindow];
};

struct Division {
  int64_t across, deep, items;  // tiles of columns, of channels; all, of both views
  int channels;                 // of a tile
  int sides, first;             // how many views want a gradient, and which is the first: 0 is left
};

// Where the gradient to a view goes.
template <class O>
struct Target {
  Pixels<O> pixels;
  bool words;
};

// Gradients of `count` disparities from `d` on: for the left view in the columns of their pixels, for the right view in
// those of their partners.
template <bool kRight, class T>
__device__ __forceinline__ void stage_gradients(const Volume<T>& grad, const Sizes& s, const Row& at, int64_t x,
                                                int64_t d, float* to) {
  const T* from = grad.data + at.b * grad.batch + at.g * grad.group + at.y * grad.row;
  for (int i = int(threadIdx.x); i < kDisparities * kColumns; i += int(blockDim.x)) {
    const int64_t disparity = d + i / kColumns, column = x + i % kColumns + (kRight ? disparity : 0);
    const bool exists = disparity < s.disparities && column < s.width && column >= disparity;
    to[i] = exists ? decode<T, float>(from[disparity * grad.disparity + column * grad.column]) : 0.f;
  }
}

template <bool kRight, class T, class O>
__device__ __forceinline__ void gather(const Volume<T>& grad, const View<T>& other, const Sizes& s,
                                       const Division& division, const Target<O>& target, float scale, int64_t item,
                                       Shared& shared) {
  const int64_t row = item / division.across / division.deep;
  const Row at(s, row);
  const int64_t x = item % division.across * kColumns;
  const int64_t channel = item / division.across % division.deep * division.channels;
  const int channels = s.channels - channel < division.channels ? int(s.channels - channel) : division.channels;
  const int column = int(threadIdx.x) % kWarpThreads * kOwned, own = int(threadIdx.x) / kWarpThreads * kCount;
  float sum[kCount][kOwned];
#pragma unroll
  for (int c = 0; c < kCount; ++c)
#pragma unroll
    for (int j = 0; j < kOwned; ++j) sum[c][j] = 0;
  for (int64_t d = 0; d < s.disparities; d += kDisparities) {
    stage_gradients<kRight>(grad, s, at, x, d, shared.grad);
    stage<kWindow>(other, s, at, row, channel, channels, kRight ? x + d : x - d - kDisparities, kWindow, shared.other);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kDisparities; k += 4) {
      float g[4][kOwned];
#pragma unroll
      for (int i = 0; i < 4; ++i) load_word(shared.grad + (k + i) * kColumns + column, g[i]);
      const int window = column + (kRight ? k : kDisparities - 4 - k);
#pragma unroll
      for (int c = 0; c < kCount; ++c) {
        if (own + c >= channels) break;
        float v[8];
        load_word(shared.other + (own + c) * kWindow + window, v);
        load_word(shared.other + (own + c) * kWindow + window + 4, v + 4);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int j = 0; j < kOwned; ++j) sum[c][j] += g[i][j] * v[kRight ? j + i : 4 + j - i];
      }
    }
    __syncthreads();
  }
  const Pixels<O>& t = target.pixels;
  const int64_t first = x + column;
  if (first >= s.width) return;
  O* to = start_of(t, s, at) + (channel + own) * t.channel + first * t.column;
#pragma unroll
  for (int c = 0; c < kCount; ++c, to += t.channel) {
    if (own + c >= channels) break;
    O value[kOwned];
#pragma unroll
    for (int j = 0; j < kOwned; ++j) value[j] = encode<O, float>(sum[c][j] * scale);
    if (target.words) {
      store4(to, value);
    } else {
#pragma unroll
      for (int j = 0; j < kOwned; ++j)
        if (first + j < s.width) to[j * t.column] = value[j];
    }
  }
}

template <class T, class O>
__global__ void gather_both(const Volume<T> grad, const View<T> left, const View<T> right, const Sizes s,
                            const Division division, const Target<O> to_left, const Target<O> to_right, float scale) {
  __shared__ __align__(16) Shared shared;
  for (int64_t i = blockIdx.x; i < division.items; i += gridDim.x) {
    const int64_t item = i / division.sides;
    if (division.first + i % division.sides == 0) gather<false>(grad, right, s, division, to_left, scale, item, shared);
    else gather<true>(grad, left, s, division, to_right, scale, item, shared);
  }
}

// From the gradient of directions, [B][C][H][W], to that of the vectors.
template <class T>
__global__ void project(const View<T> view, const float* directions, const Sizes s, int64_t pixels,
                        const Pixels<T> to) {
  for (int64_t i = global_thread(); i < pixels; i += grid_threads()) {
    const Row at(s, i / s.width);
    const int64_t x = i % s.width, plane = s.height * s.width;
    const T* from = start_of(view.features, s, at) + x * view.features.column;
    const float* grad = directions + (at.b * s.groups + at.g) * s.channels * plane + at.y * s.width + x;
    const float inverse = view.inverse[i];
    float along = 0;
    for (int64_t c = 0; c < s.channels; ++c)
      along += decode<T, float>(from[c * view.features.channel]) * inverse * grad[c * plane];
    T* target = start_of(to, s, at) + x * to.column;
    for (int64_t c = 0; c < s.channels; ++c) {
      const float unit = decode<T, float>(from[c * view.features.channel]) * inverse;
      target[c * to.channel] = encode<T, float>((grad[c * plane] - unit * along) * inverse);
    }
  }
}

template <class O>
Target<O> target_of(const Tensor& t, bool need) {
  if (!need) return {};
  const Pixels<O> pixels = pixels_of<O>(t);
  return {pixels, has_words(pixels.data, t.size(3), pixels.column, {pixels.batch, pixels.channel, pixels.row})};
}

template <class T, class O>
void run_gather(const Problem& p, const Tensor& grad, const Views<T>& views, const Tensor& to_left,
                const Tensor& to_right, bool need_left, bool need_right, cudaStream_t stream) {
  Division division;
  division.across = ceil_div<int64_t>(p.width, kColumns);
  division.deep = ceil_div<int64_t>(p.each(), kMostChannels);
  const int warps = int(ceil_div<int64_t>(ceil_div(p.each(), division.deep), kCount));  // even shares
  division.channels = warps * kCount;
  division.deep = ceil_div<int64_t>(p.each(), division.channels);
  division.sides = int(need_left) + int(need_right), division.first = need_left ? 0 : 1;
  division.items = p.rows() * division.across * division.deep * division.sides;
  launch("groupwise_correlation_backward", gather_both<T, O>, blocks_for(division.items, 1), warps * kWarpThreads, 0,
         stream, volume_of<T>(grad), views.left, views.right, Sizes(p), division, target_of<O>(to_left, need_left),
         target_of<O>(to_right, need_right), float(p.scale()));
}

template <class T>
void run(const Problem& p, const Tensor& grad, const Tensor& left, const Tensor& right, const Tensor& grad_left,
         const Tensor& grad_right, bool need_left, bool need_right, cudaStream_t stream) {
  const Views<T> views(p, left, right, stream);
  if (!p.normalize) return run_gather<T, T>(p, grad, views, grad_left, grad_right, need_left, need_right, stream);
  // Along the vectors themselves gradients cancel, so what is not projected yet stays in float32.
  const auto scratch = [&](bool need) {
    return new_tensor(left, need ? sizes_of(left) : std::vector<int64_t>{0}, ScalarType::Float);
  };
  const Tensor to_left = scratch(need_left), to_right = scratch(need_right);
  run_gather<T, float>(p, grad, views, to_left, to_right, need_left, need_right, stream);
  const int64_t pixels = p.rows() * p.width;
  const auto finish = [&](const View<T>& view, const Tensor& directions, const Tensor& to) {
    launch("groupwise_correlation_backward (lengths)", project<T>, blocks_for(pixels, kRowThreads, 1 << 20),
           kRowThreads, 0, stream, view, directions.const_data_ptr<float>(), Sizes(p), pixels, pixels_of<T>(to));
  };
  if (need_left) finish(views.left, to_left, grad_left);
  if (need_right) finish(views.right, to_right, grad_right);
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& left, const Tensor& right, bool normalize,
                                    bool need_left, bool need_right) {
  const Problem p = check_gradient(grad, left, right, normalize);
  const Tensor grad_left = new_gradient(left, need_left), grad_right = new_gradient(right, need_right);
  if (grad.numel() == 0 || !(need_left || need_right)) return {grad_left, grad_right};
  const DeviceScope scope(left);
  dispatch_float(left.scalar_type(), "left", [&](auto zero) {
    run<decltype(zero)>(p, grad, left, right, grad_left, grad_right, need_left, need_right, scope.stream());
  });
  return {grad_left, grad_right};
}

}  // namespace
}  // namespace pyops::groupwise

PYOPS_CUDA_KERNELS(m) { m.impl("groupwise_correlation_backward", TORCH_BOX(&pyops::groupwise::backward)); }
