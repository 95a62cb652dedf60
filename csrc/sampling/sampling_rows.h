// What the CPU kernels of sampling do with one row, whatever its element type: load, store, gather, add.
//
// A, the type of arithmetic, is float or double. What works on floats is compiled once for each instruction set.
#pragma once

#include "../common/tensor.h"
#include "sampling_plan.h"

namespace pyops::sampling {

template <class A>
constexpr ScalarType kDtype = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;

// ---- element types: strides count elements ---------------------------------------------------------------------------

template <class A>
void load_row(ScalarType dtype, const void* from, int64_t stride, int64_t n, A* to);
template <class A>
void store_row(ScalarType dtype, const A* from, int64_t n, void* to, int64_t stride);

// to[side][k] = row[stride * pixel[side][k]], or 0 where that pixel is negative.
template <class A>
void gather_row(ScalarType dtype, const void* row, int64_t stride, const int* const (&pixel)[2], int n,
                A* const (&to)[2]);

// An image [B, C, H, W] of any strides.
struct Image {
  char* data;
  ScalarType dtype;
  int64_t item;  // bytes an element
  int64_t batch, channel, row, column;
  int64_t channels, height, width;

  explicit Image(const Tensor& t)
      : data(static_cast<char*>(const_cast<void*>(t.const_data_ptr()))),
        dtype(t.scalar_type()),
        item(int64_t(t.element_size())),
        batch(t.stride(0)),
        channel(t.stride(1)),
        row(t.stride(2)),
        column(t.stride(3)),
        channels(t.size(1)),
        height(t.size(2)),
        width(t.size(3)) {}

  char* at(int64_t b, int64_t c, int64_t r) const { return data + item * (b * batch + c * channel + r * row); }
  // Whether the channels of a pixel lie side by side and the pixels of a row too.
  bool interleaved() const { return channels > 1 && channel == 1 && column == channels; }
};

// The lines of an image: rows of one channel, or of all of them where the image is interleaved.
template <class A>
struct Lines {
  Image image;
  int64_t inner, groups, length;  // channels a line, lines a row of the image, numbers a line

  explicit Lines(const Tensor& t)
      : image(t),
        inner(image.interleaved() ? image.channels : 1),
        groups(image.channels / inner),
        length(image.width * inner) {}

  bool in_place() const { return image.dtype == kDtype<A> && (inner > 1 || image.column == 1 || image.width == 1); }
  A* address(int64_t b, int64_t group, int64_t r) const { return reinterpret_cast<A*>(image.at(b, group, r)); }

  // `n` numbers from `begin` on: in place if they can be, else in `buffer`.
  const A* get(int64_t b, int64_t group, int64_t r, int64_t begin, int64_t n, A* buffer) const {
    if (in_place()) return address(b, group, r) + begin;
    const int64_t stride = inner > 1 ? 1 : image.column;
    load_row(image.dtype, image.at(b, group, r) + image.item * begin * stride, stride, n, buffer);
    return buffer;
  }
};

// ---- sums of rows ----------------------------------------------------------------------------------------------------

// sum = (fresh ? 0 : sum) + weight[0] * rows[0] + ... for one to four rows.
template <class A>
void add_rows(A* sum, const A* const* rows, const A* weight, int count, bool fresh, int64_t n);

// wide = (fresh ? 0 : wide) + narrow, and back.
template <class A>
void widen_row(double* wide, const A* narrow, bool fresh, int64_t n);
template <class A>
void narrow_row(A* narrow, const double* wide, int64_t n);

// Sums of many rows: float for the rows of a block, double for the blocks.
constexpr int64_t kBlockRows = 16;
template <class A>
constexpr bool is_long(int64_t rows) {
  return rows > 2 * kBlockRows && sizeof(A) < sizeof(double);
}

// sum = sum_k weight[k] * row(k, k % 4), k < count. `wide` has room for n.
template <class A, class Row>
void weighted_sum(int64_t count, const A* weight, const Row& row, A* sum, double* wide, int64_t n) {
  if (count == 0) std::fill(sum, sum + n, A(0));
  for (int64_t first = 0; first < count; first += kBlockRows) {
    const int64_t last = std::min(first + kBlockRows, count);
    for (int64_t k = first; k < last; k += 4) {
      const int some = int(std::min<int64_t>(4, last - k));
      const A* rows[4];
      for (int i = 0; i < some; ++i) rows[i] = row(k + i, i);
      add_rows(sum, rows, weight + k, some, k == (is_long<A>(count) ? first : 0), n);
    }
    if (is_long<A>(count)) widen_row(wide, sum, first == 0, n);
  }
  if (is_long<A>(count)) narrow_row(sum, wide, n);
}

// ---- along a row -----------------------------------------------------------------------------------------------------

// out[k] = what sample k takes of `row`; NaN where anything it looks at is not finite.
template <class A>
void sum_spans(const AxisPlan<A>& plan, const A* row, A* out, A* scratch);

// The transpose: row[stride * i] += sum_k weight_k[i] * value[k].
template <class A, class Sum>
void spread_spans(const AxisPlan<A>& plan, const A* value, Sum* row, int64_t stride, A* scratch);

// Adds to begin[k] and end[k] value[k] * d sample k / d bound. step[j + 1] is the step from pixel j to pixel j + 1.
template <class A>
void add_cell_slopes(const AxisPlan<A>& plan, const A* step, const A* value, double* begin, double* end, A* scratch);

// sum = (fresh ? 0 : sum) + weight * row; returns sum_i (row[i] - before[i]) * other[i].
template <class A>
double add_row_and_step(A* sum, A weight, const A* row, const A* before, const A* other, bool fresh, int64_t n);

template <class A>
double dot_row(const A* a, const A* b, int64_t n);

// The pixels around the point samples of one row: upper and lower, [0] left and [1] right.
template <class A>
struct Corners {
  const A *upper[2], *lower[2];
};

// `weight` is that of the upper and of the lower pixels.
template <class A>
void blend_points(const AxisPlan<A>& plan, const Corners<A>& corners, const A (&weight)[2], A* out);

// sums[k] += grad[k] * d sample k / d column; returns sum_k grad[k] * d sample k / d row.
template <class A>
double add_point_slopes(const AxisPlan<A>& plan, const Corners<A>& corners, const A (&weight)[2], const A* grad,
                        double* sums);

}  // namespace pyops::sampling
