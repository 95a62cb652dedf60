// The levels of a correlation pyramid on the CPU: a line is read once for all levels, and once written for all gradients.
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../common/pixel.h"
#include "../common/simd.h"
#include "corr1d_args.h"

namespace pyops::corr1d {
namespace {

constexpr int64_t kGrain = 1 << 15;  // entries worth a thread

// Means of pairs of `from`, written to `to` and kept for the next level in `kept`, which may be `from`.
#define PYOPS_PAIRS(T, A)                                                               \
  PYOPS_MULTIVERSION void unpack(const T* from, int64_t n, A* to) {                     \
    for (int64_t i = 0; i < n; ++i) to[i] = decode<T, A>(from[i]);                      \
  }                                                                                     \
  PYOPS_MULTIVERSION void pack(const A* from, int64_t n, T* to) {                       \
    for (int64_t i = 0; i < n; ++i) to[i] = encode<T, A>(from[i]);                      \
  }                                                                                     \
  PYOPS_MULTIVERSION void average(const A* from, int64_t n, A* kept, T* to) {           \
    for (int64_t j = 0; j < n; ++j) kept[j] = (from[2 * j] + from[2 * j + 1]) * A(0.5); \
    for (int64_t j = 0; j < n; ++j) to[j] = encode<T, A>(kept[j]);                      \
  }
PYOPS_PAIRS(float, float)
PYOPS_PAIRS(Half, float)
PYOPS_PAIRS(BFloat16, float)
PYOPS_PAIRS(double, double)
#undef PYOPS_PAIRS

// Adds half of each of n entries to two of `to`.
#define PYOPS_REPEAT(A)                                                \
  PYOPS_MULTIVERSION void repeat(const A* from, int64_t n, A* to) {    \
    for (int64_t i = 0; i < 2 * n; ++i) to[i] += from[i / 2] * A(0.5); \
  }
PYOPS_REPEAT(float)
PYOPS_REPEAT(double)
#undef PYOPS_REPEAT

template <class T>
T* data_of(const Tensor& t) {
  return static_cast<T*>(const_cast<void*>(t.const_data_ptr()));
}

std::vector<Tensor> pool(const Tensor& volume, int64_t levels) {
  const Pairs p = check_pairs(volume, levels);
  const Tensor source = in_order(volume);
  std::vector<Tensor> pooled;
  for (int64_t l = 1; l < levels; ++l)
    pooled.push_back(new_tensor(volume, level_sizes(volume, l), volume.scalar_type()));
  dispatch_floating(volume.scalar_type(), "the volume", [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    torch::stable::parallel_for(0, p.lines, std::max<int64_t>(1, kGrain / p.columns), [&](int64_t i, int64_t end) {
      std::vector<A> line(p.columns), half(p.columns / 2 + 1);
      for (; i < end; ++i) {
        const T* const from = data_of<T>(source) + i * p.columns;
        if constexpr (!std::is_same_v<T, A>) unpack(from, p.columns, line.data());
        const A* last = line.data();
        if constexpr (std::is_same_v<T, A>) last = from;
        for (int64_t l = 1; l < levels; ++l) {
          A* const kept = l % 2 ? half.data() : line.data();
          const int64_t n = p.columns >> l;
          average(last, n, kept, data_of<T>(pooled[l - 1]) + i * n);
          last = kept;
        }
      }
    });
  });
  return pooled;
}

Tensor spread(std::vector<Tensor> grads) {
  const Pairs p = check_levels(grads);
  for (Tensor& grad : grads) grad = in_order(grad);
  const Tensor out = new_tensor(grads[0], sizes_of(grads[0]), grads[0].scalar_type());
  dispatch_floating(out.scalar_type(), "the volume", [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    torch::stable::parallel_for(0, p.lines, std::max<int64_t>(1, kGrain / p.columns), [&](int64_t i, int64_t end) {
      std::vector<A> line(p.columns), sum(p.columns);
      for (; i < end; ++i) {
        const auto start = [&](int64_t l) { return i * (p.columns >> l); };
        unpack(data_of<T>(grads[p.levels - 1]) + start(p.levels - 1), p.columns >> (p.levels - 1), sum.data());
        for (int64_t l = p.levels - 2; l >= 0; --l) {
          unpack(data_of<T>(grads[l]) + start(l), p.columns >> l, line.data());
          repeat(sum.data(), p.columns >> (l + 1), line.data());
          line.swap(sum);
        }
        pack(sum.data(), p.columns, data_of<T>(out) + start(0));
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace pyops::corr1d

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("pool_pairs(Tensor volume, SymInt levels) -> Tensor[]");
  m.def("spread_pairs(Tensor[] grads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("pool_pairs", TORCH_BOX(&pyops::corr1d::pool));
  m.impl("spread_pairs", TORCH_BOX(&pyops::corr1d::spread));
}
