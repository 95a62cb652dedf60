// Gathering from point clouds on CUDA. A group of threads serves a row, neighbouring threads neighbouring channels.
//
// What scatters is turned round: entries are sorted by the point they come from, in a stable order, so that each point
// sums its own one after the other. There are no atomics.
#include "../common/launch.cuh"
#include "../common/pixel.h"
#include "../common/segments.cuh"
#include "gather_args.h"

namespace pyops::gather {
namespace {

constexpr int kThreads = 256, kWarpThreads = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
struct View {
  const T* data;
  int64_t batch, row, channel;  // strides in elements

  explicit View(const Tensor& t)
      : data(static_cast<const T*>(t.const_data_ptr())), batch(t.stride(0)), row(t.stride(1)), channel(t.stride(2)) {}

  __device__ __forceinline__ const T* at(int64_t b, int64_t i) const { return data + b * batch + i * row; }
};

// Threads of a row: as many as it has channels, to a power of two, at most a warp.
int lanes_for(int64_t channels) {
  int lanes = 1;
  while (lanes < kWarpThreads && lanes < channels) lanes *= 2;
  return lanes;
}

// Calls f(row, lane) for every row, with whole warps: rows past the end are given as -1.
template <class F>
__device__ __forceinline__ void for_rows(int64_t rows, int lanes, const F& f) {
  const int64_t step = grid_threads() / lanes, first = global_thread() / lanes;
  const int64_t in_warp = kWarpThreads / lanes, turns = ceil_div(ceil_div(rows, in_warp) * in_warp, step);
  for (int64_t turn = 0; turn < turns; ++turn) {
    const int64_t row = first + turn * step;
    f(row < rows ? row : -1, int(threadIdx.x) % lanes);
  }
}

template <class T>
__global__ void gather_rows(const View<T> values, const int64_t* places, const Problem p, int lanes, T* out) {
  for_rows(p.rows(), lanes, [&](int64_t row, int lane) {
    if (row < 0) return;
    const int64_t place = places[row];
    const bool some = exists(place, p.points);
    const T* const from = values.at(row / p.queries, some ? place : 0);
    for (int64_t c = lane; c < p.channels; c += lanes)
      out[row * p.channels + c] = some ? from[c * values.channel] : T(0.f);
  });
}

template <class T>
__global__ void blend_rows(const View<T> values, const int64_t* places, const float* weights, const Problem p,
                           int lanes, T* out) {
  for_rows(p.rows(), lanes, [&](int64_t row, int lane) {
    if (row < 0) return;
    const int64_t b = row / p.queries;
    for (int64_t c = lane; c < p.channels; c += lanes) {
      float sum = 0.f;
      for (int64_t k = row * p.each; k < (row + 1) * p.each; ++k)
        if (exists(places[k], p.points))
          sum += weights[k] * decode<T, float>(values.at(b, places[k])[c * values.channel]);
      out[row * p.channels + c] = encode<T, float>(sum);
    }
  });
}

// `weights` are null where rows were gathered as they are.
template <class T>
__global__ void sum_entries(const View<T> grad, const float* weights, const int64_t* order, const int64_t* starts,
                            const Problem p, int lanes, T* out) {
  for_rows(p.batch * p.points, lanes, [&](int64_t row, int lane) {
    if (row < 0) return;
    const int64_t b = row / p.points;
    const T* const from = grad.at(b, 0) - b * p.queries * grad.row;
    for (int64_t c = lane; c < p.channels; c += lanes) {
      float sum = 0.f;
      for (int64_t i = starts[row]; i < starts[row + 1]; ++i) {
        const int64_t entry = order[i];
        const int64_t query = p.each == 1 ? entry : entry / p.each;
        sum += (weights ? weights[entry] : 1.f) * decode<T, float>(from[query * grad.row + c * grad.channel]);
      }
      out[row * p.channels + c] = encode<T, float>(sum);
    }
  });
}

template <class T>
__global__ void weigh_entries(const View<T> grad, const View<T> values, const int64_t* places, const Problem p,
                              int lanes, float* out) {
  for_rows(p.rows() * p.each, lanes, [&](int64_t entry, int lane) {
    const int64_t row = entry < 0 ? 0 : entry / p.each, b = row / p.queries;
    const bool some = entry >= 0 && exists(places[entry], p.points);
    const T* const upstream = grad.at(b, row % p.queries);
    const T* const from = values.at(b, some ? places[entry] : 0);
    float sum = 0.f;
    for (int64_t c = lane; some && c < p.channels; c += lanes)
      sum += decode<T, float>(upstream[c * grad.channel]) * decode<T, float>(from[c * values.channel]);
    for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
    if (entry >= 0 && lane == 0) out[entry] = sum;
  });
}

template <class T>
void scatter(const Problem& p, const Tensor& grad, const Tensor& places, const float* weights, const Tensor& out,
             cudaStream_t stream) {
  const char* const name = "gather_points_backward";
  const auto segments = segments::find(name, places, p.batch, p.entries(), p.points, stream);
  const int lanes = lanes_for(p.channels);
  launch(name, sum_entries<T>, blocks_for(p.batch * p.points * lanes, kThreads, 1 << 20), kThreads, 0, stream,
         View<T>(grad), weights, segments.entries(), segments.begins(), p, lanes,
         static_cast<T*>(out.mutable_data_ptr()));
}

const int64_t* places_of(const Tensor& indices) { return static_cast<const int64_t*>(indices.const_data_ptr()); }

Tensor gather_points(const Tensor& values, const Tensor& indices) {
  const Problem p = check(values, indices);
  const Tensor out = new_tensor(values, {p.batch, p.queries, p.channels}, values.scalar_type());
  if (out.numel() == 0) return out;
  const DeviceScope scope(values);
  const Tensor places = in_order(indices);
  const int lanes = lanes_for(p.channels);
  dispatch_float(values.scalar_type(), "values", [&](auto zero) {
    using T = decltype(zero);
    launch("gather_points", gather_rows<T>, blocks_for(p.rows() * lanes, kThreads, 1 << 20), kThreads, 0,
           scope.stream(), View<T>(values), places_of(places), p, lanes, static_cast<T*>(out.mutable_data_ptr()));
  });
  return out;
}

Tensor gather_points_backward(const Tensor& grad, const Tensor& indices, int64_t points) {
  const Problem p = check_gradient(grad, indices, points);
  const Tensor out = new_tensor(grad, {p.batch, p.points, p.channels}, grad.scalar_type());
  if (out.numel() == 0) return out;
  const DeviceScope scope(grad);
  const Tensor places = in_order(indices);
  dispatch_float(grad.scalar_type(), "grad",
                 [&](auto zero) { scatter<decltype(zero)>(p, grad, places, nullptr, out, scope.stream()); });
  return out;
}

Tensor blend_points(const Tensor& values, const Tensor& indices, const Tensor& weights) {
  const Problem p = check_blend(values, indices, weights);
  const Tensor out = new_tensor(values, {p.batch, p.queries, p.channels}, values.scalar_type());
  if (out.numel() == 0) return out;
  const DeviceScope scope(values);
  const Tensor places = in_order(indices), factors = contiguous_as(weights, ScalarType::Float);
  const int lanes = lanes_for(p.channels);
  dispatch_float(values.scalar_type(), "values", [&](auto zero) {
    using T = decltype(zero);
    launch("blend_points", blend_rows<T>, blocks_for(p.rows() * lanes, kThreads, 1 << 20), kThreads, 0, scope.stream(),
           View<T>(values), places_of(places), static_cast<const float*>(factors.const_data_ptr()), p, lanes,
           static_cast<T*>(out.mutable_data_ptr()));
  });
  return out;
}

std::tuple<Tensor, Tensor> blend_points_backward(const Tensor& grad, const Tensor& values, const Tensor& indices,
                                                 const Tensor& weights, bool need_values, bool need_weights) {
  const Problem p = check_blend_gradient(grad, values, indices, weights);
  const Tensor grad_values = new_gradient(values, need_values);
  const Tensor grad_weights =
      new_tensor(weights, need_weights ? sizes_of(weights) : std::vector<int64_t>{0}, ScalarType::Float);
  const DeviceScope scope(values);
  const Tensor places = in_order(indices), factors = contiguous_as(weights, ScalarType::Float);
  const int lanes = lanes_for(p.channels);
  dispatch_float(values.scalar_type(), "values", [&](auto zero) {
    using T = decltype(zero);
    if (grad_values.numel() > 0)
      scatter<T>(p, grad, places, static_cast<const float*>(factors.const_data_ptr()), grad_values, scope.stream());
    if (grad_weights.numel() > 0)
      launch("blend_points_backward", weigh_entries<T>, blocks_for(grad_weights.numel() * lanes, kThreads, 1 << 20),
             kThreads, 0, scope.stream(), View<T>(grad), View<T>(values), places_of(places), p, lanes,
             static_cast<float*>(grad_weights.mutable_data_ptr()));
  });
  return {grad_values, contiguous_as(grad_weights, weights.scalar_type())};
}

}  // namespace
}  // namespace pyops::gather

PYOPS_CUDA_KERNELS(m) {
  m.impl("gather_points", TORCH_BOX(&pyops::gather::gather_points));
  m.impl("gather_points_backward", TORCH_BOX(&pyops::gather::gather_points_backward));
  m.impl("blend_points", TORCH_BOX(&pyops::gather::blend_points));
  m.impl("blend_points_backward", TORCH_BOX(&pyops::gather::blend_points_backward));
}
