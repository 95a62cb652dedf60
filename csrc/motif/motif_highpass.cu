// constant_highpass on CUDA: sums over the channels, then what remains.
//
// 96x312, 512 channels in float32: the features twice and the result once, 184 MB: 46 us at 4 TB/s, less what the second
// level of cache still holds. Eight warps share the channels of 32 pixels, so that a small picture fills the device.
#include "../common/launch.cuh"
#include "../common/pixel.h"
#include "motif_args.h"

namespace pyops::motif {
namespace {

constexpr int kThreads = 256, kColumns = 32, kSlices = kThreads / kColumns;
constexpr int kChannels = 16;  // of a pixel, from which a thread subtracts

struct Sizes {
  int64_t channels, height, width, pixels;  // pixels of all images

  explicit Sizes(const Tensor& t)
      : channels(t.size(1)), height(t.size(2)), width(t.size(3)), pixels(t.size(0) * t.size(2) * t.size(3)) {}
};

template <class T>
__device__ __forceinline__ T* address(const Pixels<T>& t, const Sizes& s, int64_t pixel) {
  const int64_t row = pixel / s.width;
  return t.data + row / s.height * t.batch + row % s.height * t.row + pixel % s.width * t.column;
}

template <class T>
__global__ void __launch_bounds__(kThreads) channel_sums(const Pixels<T> features, const Sizes s, float* sums) {
  __shared__ float parts[kSlices][kColumns];
  const int lane = int(threadIdx.x) % kColumns, slice = int(threadIdx.x) / kColumns;
  for (int64_t first = int64_t(blockIdx.x) * kColumns; first < s.pixels; first += int64_t(gridDim.x) * kColumns) {
    const int64_t pixel = first + lane;
    float sum = 0.f;
    if (pixel < s.pixels) {
      const T* const from = address(features, s, pixel);
#pragma unroll 4
      for (int64_t c = slice; c < s.channels; c += kSlices) sum += decode<T, float>(from[c * features.channel]);
    }
    parts[slice][lane] = sum;
    __syncthreads();
    if (slice == 0 && pixel < s.pixels) {
#pragma unroll
      for (int i = 1; i < kSlices; ++i) sum += parts[i][lane];
      sums[pixel] = sum;
    }
    __syncthreads();
  }
}

// A ninth of the sum around a pixel.
__device__ __forceinline__ float low_pass(const float* sums, const Sizes& s, int64_t pixel) {
  const int64_t x = pixel % s.width, y = pixel / s.width % s.height;
  float sum = 0.f;
#pragma unroll
  for (int k = 0; k < kPlane; ++k) {
    const int dy = k / 3 - 1, dx = k % 3 - 1;
    if (y + dy >= 0 && y + dy < s.height && x + dx >= 0 && x + dx < s.width) sum += sums[pixel + dy * s.width + dx];
  }
  return sum * (1.f / 9.f);
}

// A thread has a pixel and kChannels of its channels, or where these are neighbours in memory one of them.
template <class T>
__global__ void __launch_bounds__(kThreads)
    subtract(const Pixels<T> features, const float* sums, const Sizes s, const Pixels<T> to, bool channels_inside) {
  const int64_t each = channels_inside ? 1 : kChannels, groups = ceil_div(s.channels, each);
  for (int64_t i = global_thread(); i < s.pixels * groups; i += grid_threads()) {
    const int64_t pixel = channels_inside ? i / groups : i % s.pixels;
    const int64_t first = (channels_inside ? i % groups : i / s.pixels) * each;
    const int64_t end = first + each < s.channels ? first + each : s.channels;
    const T* const from = address(features, s, pixel);
    T* const target = address(to, s, pixel);
    const float low = low_pass(sums, s, pixel);
#pragma unroll 4
    for (int64_t c = first; c < end; ++c)
      target[c * to.channel] = encode<T, float>(decode<T, float>(from[c * features.channel]) - low);
  }
}

template <class T>
void run(const Tensor& features, const Tensor& result, cudaStream_t stream) {
  const Sizes s(features);
  const auto from = pixels_of<T>(features), to = pixels_of<T>(result);
  const Tensor sums = new_tensor(features, {s.pixels}, ScalarType::Float);
  launch("constant_highpass (sums)", channel_sums<T>, blocks_for(s.pixels, kColumns), kThreads, 0, stream, from, s,
         sums.mutable_data_ptr<float>());
  const bool channels_inside = to.channel == 1 && s.channels > 1;
  const int64_t items = s.pixels * (channels_inside ? s.channels : ceil_div<int64_t>(s.channels, kChannels));
  launch("constant_highpass", subtract<T>, blocks_for(items, kThreads), kThreads, 0, stream, from,
         sums.const_data_ptr<float>(), s, to, channels_inside);
}

Tensor constant_highpass(const Tensor& features) {
  check_features(features);
  const Tensor result = new_like(features);
  if (result.numel() == 0) return result;
  const DeviceScope scope(features);
  dispatch_float(features.scalar_type(), "features",
                 [&](auto zero) { run<decltype(zero)>(features, result, scope.stream()); });
  return result;
}

}  // namespace
}  // namespace pyops::motif

PYOPS_CUDA_KERNELS(m) { m.impl("constant_highpass", TORCH_BOX(&pyops::motif::constant_highpass)); }
