// constant_highpass on the CPU: rows one after another. Sums over the channels go before by a row, so that what was added
// up is still in a cache when the ninth of it is subtracted, and every feature is read from memory once.
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
        sums_(4 * from_.width, A(0)),
        line_(from_.width),
        low_(from_.width),
        buffer_((pixels_ ? from_.channels : rows::kBundle) * from_.width) {}

  // Rows [first, last) of image b.
  void run(int64_t b, int64_t first, int64_t last) {
    add(b, first - 1), add(b, first);
    for (int64_t row = first; row < last; ++row) {
      add(b, row + 1);
      box(sums(row - 1), sums(row), sums(row + 1), line_.data(), low_.data(), from_.width);
      pixels_ ? subtract_all_at_once(b, row) : subtract_by_channel(b, row);
    }
  }

 private:
  A* sums(int64_t row) { return sums_.data() + (row + 4) % 4 * from_.width; }

  void add(int64_t b, int64_t row) {
    const int64_t width = from_.width, channels = from_.channels;
    A* const sum = sums(row);
    if (row < 0 || row >= from_.height) return std::fill(sum, sum + width, A(0));
    if (pixels_) {
      const A* values = get(from_, from_.at(b, 0, row), 1, channels * width, buffer_.data());
      return add_pixels(sum, values, channels, width);
    }
    for (int64_t c = 0; c < channels; c += rows::kBundle) {
      const int count = int(std::min<int64_t>(rows::kBundle, channels - c));
      const A* bundle[rows::kBundle];
      for (int i = 0; i < count; ++i)
        bundle[i] = get(from_, from_.at(b, c + i, row), column(from_), width, buffer_.data() + i * width);
      add_rows(sum, bundle, count, c == 0, width);
    }
  }

  void subtract_all_at_once(int64_t b, int64_t row) {
    const int64_t n = from_.width * from_.channels;
    const A* values = get(from_, from_.at(b, 0, row), 1, n, buffer_.data());
    char* const to = to_.at(b, 0, row);
    const bool direct = in_place<A>(to_, 1);
    A* const result = direct ? reinterpret_cast<A*>(to) : buffer_.data();
    subtract_pixels(values, low_.data(), result, from_.channels, from_.width);
    if (!direct) store_row(to_.dtype, result, n, to, 1);
  }

  void subtract_by_channel(int64_t b, int64_t row) {
    const bool direct = in_place<A>(to_, column(to_));
    for (int64_t c = 0; c < from_.channels; ++c) {
      const A* values = get(from_, from_.at(b, c, row), column(from_), from_.width, buffer_.data());
      char* const to = to_.at(b, c, row);
      A* const result = direct ? reinterpret_cast<A*>(to) : buffer_.data();
      subtract(values, low_.data(), result, from_.width);
      if (!direct) store_row(to_.dtype, result, from_.width, to, to_.column);
    }
  }

  static int64_t column(const Image& image) { return image.width == 1 ? 1 : image.column; }

  const Image from_, to_;
  const bool pixels_;  // whether all channels of a row are one line of memory
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
