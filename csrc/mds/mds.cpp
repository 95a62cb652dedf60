// Products with a squared, doubly centred matrix on the CPU. A thread takes rows of the matrix, kSpan entries of kRows
// rows at a time, and multiplies them with all columns while they are in the cache. Sums over a span are made in vectors
// of arithmetic, sums of spans in float64; their order does not depend on how rows are divided among threads.
#include "../common/elements.h"
#include "mds_args.h"

namespace pyops::mds {
namespace {

using simd::kLanes;
using simd::Vector;
using torch::stable::parallel_for;

constexpr int64_t kSpan = 1024;
constexpr int kRows = 4, kColumns = 2;  // of sums in registers
constexpr int64_t kGrain = 1 << 17;     // multiplications worth a thread

// to[r][c] += sum over n of d[r][j] ** 2 v[c][j], n a multiple of a vector.
template <int kCount, int kWide, class A>
PYOPS_HD void multiply_part(const A* d, int64_t pitch, const A* v, int64_t stride, int64_t n, double* to,
                            int64_t columns) {
  using V = Vector<A>;
  V sum[kCount][kWide];
#pragma GCC unroll 8
  for (int i = 0; i < kCount * kWide; ++i) sum[i / kWide][i % kWide] = simd::splat(A(0));
  for (int64_t j = 0; j < n; j += kLanes<A>) {
    V right[kWide];
#pragma GCC unroll 8
    for (int c = 0; c < kWide; ++c) right[c] = simd::load<V>(v + c * stride + j);
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) {
      const V left = simd::load<V>(d + r * pitch + j), square = left * left;
#pragma GCC unroll 8
      for (int c = 0; c < kWide; ++c) sum[r][c] += square * right[c];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kCount * kWide; ++i) {
    A element[kLanes<A>];
    double total = 0;
    simd::store(element, sum[i / kWide][i % kWide]);
    for (const A x : element) total += double(x);
    to[i / kWide * columns + i % kWide] += total;
  }
}

template <int kCount, class A>
PYOPS_HD void multiply_rows(const A* d, int64_t pitch, const A* v, int64_t stride, int64_t n, int64_t columns,
                            double* to) {
  int64_t c = 0;
  for (; c + kColumns <= columns; c += kColumns)
    multiply_part<kCount, kColumns>(d, pitch, v + c * stride, stride, n, to + c, columns);
  for (; c < columns; ++c) multiply_part<kCount, 1>(d, pitch, v + c * stride, stride, n, to + c, columns);
}

#define PYOPS_PRODUCTS(A)                                                                                    \
  PYOPS_MULTIVERSION void multiply_span(const A* d, int64_t pitch, int64_t rows, const A* v, int64_t stride, \
                                        int64_t n, int64_t columns, double* to) {                            \
    if (rows == kRows) return multiply_rows<kRows>(d, pitch, v, stride, n, columns, to);                     \
    for (int64_t r = 0; r < rows; ++r)                                                                       \
      multiply_rows<1>(d + r * pitch, pitch, v, stride, n, columns, to + r * columns);                       \
  }
PYOPS_PRODUCTS(float)
PYOPS_PRODUCTS(double)
#undef PYOPS_PRODUCTS

#define PYOPS_ROW_IO(T, A)                                                          \
  PYOPS_MULTIVERSION void load_row(const T* from, int64_t step, int64_t n, A* to) { \
    if (step == 1)                                                                  \
      for (int64_t i = 0; i < n; ++i) to[i] = decode<T, A>(from[i]);                \
    else                                                                            \
      for (int64_t i = 0; i < n; ++i) to[i] = decode<T, A>(from[i * step]);         \
  }
PYOPS_ROW_IO(float, float)
PYOPS_ROW_IO(Half, float)
PYOPS_ROW_IO(BFloat16, float)
PYOPS_ROW_IO(double, double)
#undef PYOPS_ROW_IO

// Columns minus their means, as rows of whole spans, what pads them 0.
template <class T, class A>
std::vector<A> center(const Problem& p, const Matrices<T>& vectors, int64_t b, int64_t stride) {
  std::vector<A> centered(p.columns * stride);
  for (int64_t c = 0; c < p.columns; ++c) {
    const T* const from = vectors.data + b * vectors.batch + c * vectors.column;
    double sum = 0;
    for (int64_t i = 0; i < p.points; ++i) sum += double(decode<T, A>(from[i * vectors.row]));
    const double mean = sum / double(p.points);
    for (int64_t i = 0; i < p.points; ++i)
      centered[c * stride + i] = A(double(decode<T, A>(from[i * vectors.row])) - mean);
  }
  return centered;
}

template <class T>
void multiply(const Problem& p, const Tensor& distances_tensor, const Tensor& vectors_tensor, const Tensor& out) {
  using A = Arithmetic<T>;
  const auto distances = matrices_of<T>(distances_tensor), vectors = matrices_of<T>(vectors_tensor);
  const int64_t n = p.points, k = p.columns, lanes = kLanes<A>, stride = ceil_div(n, lanes) * lanes;
  const bool direct = std::is_same_v<T, A> && distances.column == 1;
  T* const to = static_cast<T*>(out.mutable_data_ptr());
  std::vector<double> sums(n * k), means(k);
  for (int64_t b = 0; b < p.batch; ++b) {
    const std::vector<A> centered = center<T, A>(p, vectors, b, stride);
    std::fill(sums.begin(), sums.end(), 0.);
    const T* const matrix = distances.data + b * distances.batch;
    const int64_t grain = std::max<int64_t>(1, kGrain / (kRows * n * k));
    parallel_for(0, ceil_div<int64_t>(n, kRows), grain, [&](int64_t first, int64_t last) {
      std::vector<A> part(kRows * kSpan);
      const int64_t begin = first * kRows, end = std::min(n, last * kRows);
      for (int64_t j = 0; j < n; j += kSpan) {
        const int64_t some = std::min(kSpan, n - j), whole = ceil_div(some, lanes) * lanes;
        for (int64_t i = begin; i < end; i += kRows) {
          const int64_t rows = std::min<int64_t>(kRows, end - i);
          const A* d = part.data();
          int64_t pitch = kSpan;
          if constexpr (std::is_same_v<T, A>)
            if (direct && whole == some) d = matrix + i * distances.row + j, pitch = distances.row;
          if (d == part.data())
            for (int64_t r = 0; r < rows; ++r) {
              A* const row = part.data() + r * kSpan;
              load_row(matrix + (i + r) * distances.row + j * distances.column, distances.column, some, row);
              std::fill(row + some, row + whole, A(0));
            }
          multiply_span(d, pitch, rows, centered.data() + j, stride, whole, k, sums.data() + i * k);
        }
      }
    });
    std::fill(means.begin(), means.end(), 0.);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = 0; c < k; ++c) means[c] += sums[i * k + c];
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = 0; c < k; ++c)
        to[(b * n + i) * k + c] = encode<T, A>(A(-0.5 * (sums[i * k + c] - means[c] / double(n))));
  }
}

Tensor forward(const Tensor& distances, const Tensor& vectors) {
  const Problem p = check(distances, vectors);
  const Tensor out = new_tensor(vectors, sizes_of(vectors), vectors.scalar_type());
  if (out.numel() == 0) return out;
  dispatch_floating(distances.scalar_type(), "distances",
                    [&](auto zero) { multiply<decltype(zero)>(p, distances, vectors, out); });
  return out;
}

}  // namespace
}  // namespace pyops::mds

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) { m.def("double_centered_matmul(Tensor distances, Tensor vectors) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) { m.impl("double_centered_matmul", TORCH_BOX(&pyops::mds::forward)); }
