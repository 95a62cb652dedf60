// constant_highpass on the CPU: a few rows one after another. Sums over the channels go before by a row, so that what was
// added up is still in a cache when the ninth of it is subtracted, and every feature is read from memory once.
#include <torch/csrc/stable/ops.h>

#include "../sampling/sampling_rows.h"
#include "motif_args.h"
#include "motif_rows.h"

namespace pyops::motif {
namespace {

using sampling::Image;
using sampling::kDtype;
using sampling::load_row;
using sampling::store_row;
using torch::stable::parallel_for;

constexpr int64_t kGrain = 1 << 16;  // features worth a thread
constexpr int64_t kSpan = 2048;      // pixels of a channel that are read in one go, where a row has fewer

#define PYOPS_HIGHPASS_ROWS(A)                                                                                    \
  PYOPS_MULTIVERSION void add_rows(A* sum, const A* const* rows, int count, bool fresh, int64_t n) {              \
    rows::add_rows(sum, rows, count, fresh, n);                                                                   \
  }                                                                                                               \
  PYOPS_MULTIVERSION void add_pixels(A* sum, const A* pixels, int64_t channels, int64_t width) {                  \
    rows::add_pixels(sum, pixels, channels, width);                                                               \
  }                                                                                                               \
  PYOPS_MULTIVERSION void box(const A* above, const A* at, const A* below, A* line, A* to, int64_t n) {           \
    rows::box(above, at, below, line, to, n);                                                                     \
  }                                                                                                               \
  PYOPS_MULTIVERSION void subtract(const A* from, const A* line, A* to, int64_t n) {                              \
    rows::subtract(from, line, to, n);                                                                            \
  }                                                                                                               \
  PYOPS_MULTIVERSION void subtract_pixels(const A* from, const A* line, A* to, int64_t channels, int64_t width) { \
    rows::subtract_pixels(from, line, to, channels, width);                                                       \
  }
PYOPS_HIGHPASS_ROWS(float)
PYOPS_HIGHPASS_ROWS(double)
#undef PYOPS_HIGHPASS_ROWS

template <class A>
bool in_place(const Image& image, int64_t stride) {
  return image.dtype == kDtype<A> && stride == 1;
}

// `n` numbers, in place if they can be, else in `buffer`.
template <class A>
const A* get(const Image& image, const char* from, int64_t stride, int64_t n, A* buffer) {
  if (in_place<A>(image, stride)) return reinterpret_cast<const A*>(from);
  load_row(image.dtype, from, stride, n, buffer);
  return buffer;
}

template <class A>
class Highpass {
 public:
  Highpass(const Tensor& features, const Tensor& result)
      : from_(features),
        to_(result),
        pixels_(from_.interleaved() && to_.interleaved()),
        rows_(std::min(from_.height, ceil_div(kSpan, from_.width))),
        sums_((rows_ + 2) * from_.width),
        line_(from_.width),
        low_(rows_ * from_.width),
        buffer_(pixels_ ? from_.channels * from_.width : rows::kBundle * rows_ * from_.width) {}

  // Rows [first, last) of image b.
  void run(int64_t b, int64_t first, int64_t last) {
    const int64_t width = from_.width;
    A* const sums = sums_.data();  // from the row before on
    add(b, first - 1, 1, sums), add(b, first, 1, sums + width);
    for (int64_t row = first; row < last; row += rows_) {
      const int64_t count = std::min(rows_, last - row);
      add(b, row + 1, count, sums + 2 * width);
      for (int64_t i = 0; i < count; ++i) {
        const A* const above = sums + i * width;
        box(above, above + width, above + 2 * width, line_.data(), low_.data() + i * width, width);
      }
      pixels_ ? subtract_all_at_once(b, row, count) : subtract_by_channel(b, row, count);
      std::copy_n(sums + count * width, 2 * width, sums);
    }
  }

 private:
  // Sums of `count` rows, some of which may not exist.
  void add(int64_t b, int64_t row, int64_t count, A* sum) {
    const int64_t width = from_.width, begin = std::max<int64_t>(row, 0), end = std::min(row + count, from_.height);
    if (begin > row || end < row + count) std::fill(sum, sum + count * width, A(0));
    if (begin >= end) return;
    sum += (begin - row) * width;
    if (pixels_) {
      for (int64_t y = begin; y < end; ++y, sum += width)
        add_pixels(sum, get(from_, from_.at(b, 0, y), 1, from_.channels * width, buffer_.data()), from_.channels,
                   width);
      return;
    }
    for (int64_t c = 0; c < from_.channels; c += rows::kBundle) {
      const int bundled = int(std::min<int64_t>(rows::kBundle, from_.channels - c));
      const A* bundle[rows::kBundle];
      for (int i = 0; i < bundled; ++i)
        bundle[i] = span(b, c + i, begin, end - begin, buffer_.data() + i * rows_ * width);
      add_rows(sum, bundle, bundled, c == 0, (end - begin) * width);
    }
  }

  // Whether rows follow each other in memory as numbers of type A.
  static bool is_span(const Image& image) {
    return in_place<A>(image, column(image)) && (image.height == 1 || image.row == image.width);
  }

  const A* span(int64_t b, int64_t c, int64_t row, int64_t count, A* buffer) const {
    if (is_span(from_)) return reinterpret_cast<const A*>(from_.at(b, c, row));
    for (int64_t i = 0; i < count; ++i)
      load_row(from_.dtype, from_.at(b, c, row + i), column(from_), from_.width, buffer + i * from_.width);
    return buffer;
  }

  void subtract_all_at_once(int64_t b, int64_t row, int64_t count) {
    const int64_t n = from_.width * from_.channels;
    for (int64_t i = 0; i < count; ++i) {
      const A* values = get(from_, from_.at(b, 0, row + i), 1, n, buffer_.data());
      char* const to = to_.at(b, 0, row + i);
      const bool direct = in_place<A>(to_, 1);
      A* const result = direct ? reinterpret_cast<A*>(to) : buffer_.data();
      subtract_pixels(values, low_.data() + i * from_.width, result, from_.channels, from_.width);
      if (!direct) store_row(to_.dtype, result, n, to, 1);
    }
  }

  void subtract_by_channel(int64_t b, int64_t row, int64_t count) {
    const int64_t width = from_.width;
    const bool direct = is_span(to_);
    for (int64_t c = 0; c < from_.channels; ++c) {
      const A* values = span(b, c, row, count, buffer_.data());
      A* const result = direct ? reinterpret_cast<A*>(to_.at(b, c, row)) : buffer_.data();
      subtract(values, low_.data(), result, count * width);
      for (int64_t i = 0; i < count && !direct; ++i)
        store_row(to_.dtype, result + i * width, width, to_.at(b, c, row + i), to_.column);
    }
  }

  static int64_t column(const Image& image) { return image.width == 1 ? 1 : image.column; }

  const Image from_, to_;
  const bool pixels_;  // whether all channels of a row are one line of memory
  const int64_t rows_;
  std::vector<A> sums_, line_, low_, buffer_;
};

template <class A>
void run(const Tensor& features, const Tensor& result) {
  const int64_t height = features.size(2), numbers = features.size(1) * features.size(3);
  parallel_for(0, features.size(0) * height, std::max<int64_t>(4, kGrain / numbers), [&](int64_t item, int64_t end) {
    Highpass<A> highpass(features, result);
    while (item < end) {
      const int64_t b = item / height, first = item % height, last = std::min(height, first + end - item);
      highpass.run(b, first, last);
      item += last - first;
    }
  });
}

Tensor constant_highpass(const Tensor& features) {
  check_features(features);
  const Tensor result = new_like(features);
  if (result.numel() == 0) return result;
  features.scalar_type() == ScalarType::Double ? run<double>(features, result) : run<float>(features, result);
  return result;
}

}  // namespace
}  // namespace pyops::motif

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) { m.def("constant_highpass(Tensor features) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) { m.impl("constant_highpass", TORCH_BOX(&pyops::motif::constant_highpass)); }
