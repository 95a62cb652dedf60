// The levels of a correlation pyramid on the CPU: a plane is read once for all levels, and once written for all gradients.
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../common/pixel.h"
#include "../common/simd.h"
#include "corr2d_args.h"

namespace pyops::corr2d {
namespace {

constexpr int64_t kGrain = 1 << 15;  // entries worth a thread

#define PYOPS_SQUARES(T, A)                                         \
  PYOPS_MULTIVERSION void unpack(const T* from, int64_t n, A* to) { \
    for (int64_t i = 0; i < n; ++i) to[i] = decode<T, A>(from[i]);  \
  }                                                                 \
  PYOPS_MULTIVERSION void pack(const A* from, int64_t n, T* to) {   \
    for (int64_t i = 0; i < n; ++i) to[i] = encode<T, A>(from[i]);  \
  }
PYOPS_SQUARES(float, float)
PYOPS_SQUARES(Half, float)
PYOPS_SQUARES(BFloat16, float)
PYOPS_SQUARES(double, double)
#undef PYOPS_SQUARES

#define PYOPS_SQUARES(A)                                                                            \
  /* Means of squares of `from`; `to` may be `from`. */                                             \
  PYOPS_MULTIVERSION void average(const A* from, int64_t rows, int64_t columns, A* to) {            \
    const int64_t n = columns / 2;                                                                  \
    for (int64_t j = 0; j < rows / 2; ++j) {                                                        \
      const A *const upper = from + 2 * j * columns, *const lower = upper + columns;                \
      A* const row = to + j * n;                                                                    \
      for (int64_t i = 0; i < n; ++i)                                                               \
        row[i] = ((upper[2 * i] + upper[2 * i + 1]) + (lower[2 * i] + lower[2 * i + 1])) * A(0.25); \
    }                                                                                               \
  }                                                                                                 \
  /* Adds a quarter of each entry of `from` to four of `to`, which has `rows` x `columns`. */       \
  PYOPS_MULTIVERSION void repeat(const A* from, int64_t rows, int64_t columns, A* to) {             \
    const int64_t n = columns / 2;                                                                  \
    for (int64_t j = 0; j < rows / 2 * 2; ++j)                                                      \
      for (int64_t i = 0; i < 2 * n; ++i) to[j * columns + i] += from[j / 2 * n + i / 2] * A(0.25); \
  }
PYOPS_SQUARES(float)
PYOPS_SQUARES(double)
#undef PYOPS_SQUARES

template <class F>
void for_planes(const Planes& p, const F& f) {
  torch::stable::parallel_for(0, p.planes, std::max<int64_t>(1, kGrain / p.entries(0)), f);
}

std::vector<Tensor> pool(const Tensor& volume, int64_t levels) {
  const Planes p = check_planes(volume, levels);
  const Tensor source = in_order(volume);
  const std::vector<Tensor> pooled = new_pooled(volume, levels, volume.scalar_type());
  if (levels == 1) return pooled;
  dispatch_floating(volume.scalar_type(), "the volume", [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    for_planes(p, [&](int64_t i, int64_t end) {
      constexpr bool direct = std::is_same_v<T, A>;
      std::vector<A> whole(direct ? 0 : p.entries(0)), kept(direct ? 0 : p.entries(1));
      for (; i < end; ++i) {
        const T* const from = data_of<T>(source) + i * p.entries(0);
        const auto to = [&](int64_t l) { return data_of<T>(pooled[l - 1]) + i * p.entries(l); };
        if constexpr (direct) {
          for (int64_t l = 1; l < levels; ++l)
            average(l == 1 ? from : to(l - 1), p.rows >> (l - 1), p.columns >> (l - 1), to(l));
        } else {
          unpack(from, p.entries(0), whole.data());
          for (int64_t l = 1; l < levels; ++l) {
            average(l == 1 ? whole.data() : kept.data(), p.rows >> (l - 1), p.columns >> (l - 1), kept.data());
            pack(kept.data(), p.entries(l), to(l));
          }
        }
      }
    });
  });
  return pooled;
}

Tensor spread(std::vector<Tensor> grads) {
  const Planes p = check_levels(grads);
  for (Tensor& grad : grads) grad = in_order(grad);
  const Tensor out = new_tensor(grads[0], sizes_of(grads[0]), grads[0].scalar_type());
  dispatch_floating(out.scalar_type(), "the volume", [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    for_planes(p, [&](int64_t i, int64_t end) {
      std::vector<A> plane(p.entries(0)), sum(p.entries(0));
      for (; i < end; ++i) {
        for (int64_t l = p.levels - 1; l >= 0; --l) {
          unpack(data_of<T>(grads[l]) + i * p.entries(l), p.entries(l), plane.data());
          if (l < p.levels - 1) repeat(sum.data(), p.rows >> l, p.columns >> l, plane.data());
          plane.swap(sum);
        }
        pack(sum.data(), p.entries(0), data_of<T>(out) + i * p.entries(0));
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace pyops::corr2d

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("pool_squares(Tensor volume, SymInt levels) -> Tensor[]");
  m.def("spread_squares(Tensor[] grads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("pool_squares", TORCH_BOX(&pyops::corr2d::pool));
  m.impl("spread_squares", TORCH_BOX(&pyops::corr2d::spread));
}
