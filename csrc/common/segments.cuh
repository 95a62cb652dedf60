// Entries sorted by the place that each belongs to, in a stable order: what scatters, turned round, so that each place
// sums its own entries one after the other, without atomics.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <array>

#include "launch.cuh"

namespace pyops::segments {
namespace {

constexpr int kThreads = 256;

struct Segments {
  Tensor order, starts;  // int64: which entry comes where, and where those of each place begin, and of what comes last

  const int64_t* entries() const { return static_cast<const int64_t*>(order.const_data_ptr()); }
  const int64_t* begins() const { return static_cast<const int64_t*>(starts.const_data_ptr()); }
};

// The place of each entry, of all batches one after the other; one past the last where there is none.
template <class K>
__global__ void number_entries(const int64_t* places, int64_t batch, int64_t entries, int64_t most, K* keys) {
  for (int64_t i = global_thread(); i < batch * entries; i += grid_threads()) {
    const bool exists = uint64_t(places[i]) < uint64_t(most);
    keys[i] = K(exists ? i / entries * most + places[i] : batch * most);
  }
}

template <class K>
__global__ void find_starts(const K* keys, int64_t entries, int64_t places, int64_t* starts) {
  for (int64_t i = global_thread(); i <= entries; i += grid_threads()) {
    const int64_t from = i == 0 ? 0 : int64_t(keys[i - 1]) + 1, to = i < entries ? int64_t(keys[i]) : places;
    for (int64_t place = from; place <= to; ++place) starts[place] = i;
  }
}

// Which entry comes where when they are sorted, equal ones in their order; `keys` becomes the sorted ones.
inline Tensor sort_stably(Tensor& keys) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(int64_t(0)), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  keys = to<Tensor>(stack[0]);
  return to<Tensor>(stack[1]);
}

template <class K>
Segments find_by(const char* name, const Tensor& places, int64_t batch, int64_t entries, int64_t most,
                 cudaStream_t stream) {
  const int64_t all = batch * entries;
  Tensor keys = new_tensor(places, {all}, sizeof(K) == 4 ? ScalarType::Int : ScalarType::Long);
  const Tensor starts = new_tensor(places, {batch * most + 1}, ScalarType::Long);
  launch(name, number_entries<K>, blocks_for(all, kThreads, 1 << 20), kThreads, 0, stream,
         static_cast<const int64_t*>(places.const_data_ptr()), batch, entries, most,
         static_cast<K*>(keys.mutable_data_ptr()));
  const Tensor order = sort_stably(keys);
  launch(name, find_starts<K>, blocks_for(all + 1, kThreads, 1 << 20), kThreads, 0, stream,
         static_cast<const K*>(keys.const_data_ptr()), all, batch * most,
         static_cast<int64_t*>(starts.mutable_data_ptr()));
  return {order, starts};
}

// Of contiguous int64 `places`, `entries` of each batch, which are places from 0 to `most` - 1, or none.
inline Segments find(const char* name, const Tensor& places, int64_t batch, int64_t entries, int64_t most,
                     cudaStream_t stream) {
  return batch * most < INT32_MAX ? find_by<int32_t>(name, places, batch, entries, most, stream)
                                  : find_by<int64_t>(name, places, batch, entries, most, stream);
}

}  // namespace
}  // namespace pyops::segments
