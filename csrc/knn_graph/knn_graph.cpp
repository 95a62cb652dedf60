// The symmetric union of nearest neighbours on the CPU.
//
// Row i holds whom i has among its neighbours, and who has i. Each thread owns a range of rows, reads all lists and keeps
// what leads into its range, so that the reverse edges of a row come in the order of where they begin: sorted, however
// many threads there are. A merge with the sorted list of the row itself gives the union.
#include "knn_graph.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace pyops::knn_graph {
namespace {

using torch::stable::parallel_for;

constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
constexpr int64_t kGrain = 1 << 14;  // neighbours worth a thread

// The others among the neighbours of point i, ascending, then kNone. A point that has `width` others before it in the
// order of its neighbours is not among them: then the last is one too many.
void take_others(const int64_t* neighbours, int64_t step, int64_t width, int64_t i, int64_t points, uint32_t* others) {
  bool self = false;
  int64_t count = 0;
  for (int64_t k = 0; k < width; ++k) {
    const int64_t j = neighbours[k * step];
    self |= j == i;
    if (j != i && (self || k + 1 < width)) others[count++] = j >= 0 && j < points ? uint32_t(j) : kNone;
  }
  std::fill(others + count, others + width - 1, kNone);
  std::sort(others, others + width - 1);
}

// Calls f with every element of the union of two ascending lists.
template <class F>
void merge(const uint32_t* a, const uint32_t* a_end, const uint32_t* b, const uint32_t* b_end, const F& f) {
  while (a != a_end && *a != kNone && b != b_end) {
    const uint32_t x = *a, y = *b;
    f(std::min(x, y));
    a += x <= y, b += y <= x;
  }
  for (; a != a_end && *a != kNone; ++a) f(*a);
  for (; b != b_end; ++b) f(*b);
}

std::tuple<Tensor, Tensor> forward(const Tensor& neighbours) {
  PYOPS_CHECK(neighbours.scalar_type() == ScalarType::Long && neighbours.dim() == 2 && neighbours.size(1) > 0,
              "neighbours must be int64 [N, k + 1]");
  const int64_t points = neighbours.size(0), width = neighbours.size(1), k = width - 1;
  PYOPS_CHECK(points < kMostPoints, "points must be fewer than 2^31 - 1024");
  const int64_t *const from = neighbours.const_data_ptr<int64_t>(), row = neighbours.stride(0);
  const int64_t step = neighbours.stride(1), grain = std::max<int64_t>(1, kGrain / width);

  // Tensors, because their memory is cheap to write at random.
  const Tensor lists = new_tensor(neighbours, {2, points * k}, ScalarType::Int);
  const Tensor places = new_tensor(neighbours, {points + 1}, ScalarType::Long);
  uint32_t* const others = static_cast<uint32_t*>(lists.mutable_data_ptr());
  uint32_t* const reverse = others + points * k;
  parallel_for(0, points, grain, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) take_others(from + i * row, step, width, i, points, others + i * k);
  });

  const int64_t parts = std::max<int64_t>(1, torch::stable::get_num_threads());
  const auto into_range = [&](const auto& f) {  // f(from, to) in the order of `from`
    parallel_for(0, parts, 1, [&](int64_t part, int64_t last) {
      for (; part < last; ++part) {
        const uint32_t low = uint32_t(points * part / parts), size = uint32_t(points * (part + 1) / parts) - low;
        for (int64_t i = 0; i < points; ++i)
          for (const uint32_t *j = others + i * k, *const stop = j + k; j != stop; ++j)
            if (*j - low < size) f(uint32_t(i), *j);
      }
    });
  };
  int64_t* const end = places.mutable_data_ptr<int64_t>();  // of the reverse edges of the row before
  std::fill(end, end + points + 1, 0);
  into_range([&](uint32_t, uint32_t j) { ++end[j + 1]; });
  for (int64_t i = 0, begin = 0; i <= points; ++i) begin += std::exchange(end[i], begin);
  // end[j + 1] is now where row j begins, and ends where it ends.
  into_range([&](uint32_t i, uint32_t j) { reverse[end[j + 1]++] = i; });

  const auto merged = [&](int64_t i, const auto& f) {
    merge(others + i * k, others + (i + 1) * k, reverse + end[i], reverse + end[i + 1], f);
  };
  const Tensor indptr = new_tensor(neighbours, {points + 1}, ScalarType::Long);
  int64_t* const begins = indptr.mutable_data_ptr<int64_t>();
  begins[0] = 0;
  parallel_for(0, points, grain, [&](int64_t i, int64_t last) {
    for (; i < last; ++i) {
      int64_t count = 0;
      merged(i, [&](uint32_t) { ++count; });
      begins[i + 1] = count;
    }
  });
  for (int64_t i = 0; i < points; ++i) begins[i + 1] += begins[i];
  const Tensor indices = new_tensor(neighbours, {begins[points]}, ScalarType::Long);
  int64_t* const to = indices.mutable_data_ptr<int64_t>();
  parallel_for(0, points, grain, [&](int64_t i, int64_t last) {
    for (; i < last; ++i) {
      int64_t* next = to + begins[i];
      merged(i, [&](uint32_t j) { *next++ = j; });
    }
  });
  return {indptr, indices};
}

}  // namespace
}  // namespace pyops::knn_graph

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("knn_graph(Tensor neighbours) -> (Tensor, Tensor)");
  m.def("edge_lengths(Tensor x, Tensor indptr, Tensor indices) -> Tensor");
  m.def("edge_lengths_backward(Tensor grad, Tensor x, Tensor indptr, Tensor indices) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) { m.impl("knn_graph", TORCH_BOX(&pyops::knn_graph::forward)); }
