// camp_conv on the CPU. A task has rows of a strip of columns, one after another: three rows of it, with zeros around and
// unpacked to arithmetic once, stay in a cache, and so do the 27 weights of its pixels.
//
// 96x312, 256 channels, 4 motifs in float32: 207 million multiply-adds, 61 MB.
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

constexpr int64_t kGrain = 1 << 18;  // multiplications worth a thread
constexpr int64_t kCache = 1 << 20;  // bytes of three rows: memory is better read in long pieces than kept nearest
constexpr int64_t kLeast = 32, kMost = 512;  // columns of a strip

#define PYOPS_CAMP_ROWS(A)                                                                                          \
  PYOPS_MULTIVERSION void make_taps(const A* const(&motif)[3], int64_t stride, int64_t count, const A* kernel,      \
                                    bool shift, int64_t n, A* taps, int64_t tap_stride) {                           \
    rows::make_taps(motif, stride, count, kernel, shift, n, taps, tap_stride);                                      \
  }                                                                                                                 \
  PYOPS_MULTIVERSION void apply_taps(const A* const(&feature)[3], int64_t channel, int64_t channels, const A* taps, \
                                     int64_t tap_stride, int64_t n, A* to, int64_t to_stride) {                     \
    rows::apply_all_taps(feature, channel, channels, taps, tap_stride, n, to, to_stride);                           \
  }                                                                                                                 \
  PYOPS_MULTIVERSION void correlate(const A* feature, const A* const(&grad)[3], int64_t channel, int64_t channels,  \
                                    int64_t n, A* to, int64_t to_stride) {                                          \
    rows::correlate(feature, grad, channel, channels, n, to, to_stride);                                            \
  }                                                                                                                 \
  PYOPS_MULTIVERSION void contract_taps(const A* kernel, const A* sums, int64_t stride, A* to, int64_t n) {         \
    rows::contract_taps(kernel, sums, stride, to, n);                                                               \
  }                                                                                                                 \
  PYOPS_MULTIVERSION void contract_pixels(const A* motif, const A* sums, int64_t stride, int64_t n, double* to) {   \
    rows::contract_pixels(motif, sums, stride, n, to);                                                              \
  }
PYOPS_CAMP_ROWS(float)
PYOPS_CAMP_ROWS(double)
#undef PYOPS_CAMP_ROWS

// Strips of columns, and their rows one after another, image by image.
struct Division {
  int64_t columns, strips, height, width;

  Division(const Problem& p, int64_t item) : columns(0), strips(0), height(p.height), width(p.width) {
    const int64_t fit = kCache / (3 * item * (p.channels + 2)) / 16 * 16 - 16;
    columns = std::min(std::max(fit, kLeast), kMost);
    columns = ceil_div(ceil_div(width, ceil_div(width, columns)), int64_t(8)) * 8;  // even shares
    strips = ceil_div(width, columns);
  }

  int64_t items(const Problem& p) const { return p.batch * strips * height; }
};

struct Place {
  int64_t b, y, first, n;  // columns [first, first + n)

  Place(const Division& d, int64_t item)
      : b(item / d.height / d.strips),
        y(item % d.height),
        first(item / d.height % d.strips * d.columns),
        n(std::min(d.columns, d.width - first)) {}
};

// Rows of a strip, all channels, with a column on both sides if there are `neighbours`, and zeros beyond the image.
template <class A>
class Strip {
 public:
  Strip(const Tensor& t, const Division& d, int64_t rows, bool neighbours)
      : image_(t),
        rows_(rows),
        neighbours_(neighbours),
        stride_(rows::whole<A>(d.columns) + 2 * kMargin),
        size_((image_.channels + 2) * stride_),
        memory_(rows * size_, A(0)),
        held_(rows, -1) {}

  int64_t stride() const { return stride_; }

  // Column `first` of channel 0 of row `y`, which is kept until `rows` others have come.
  const A* row(const Place& at, int64_t y) {
    const int64_t name = ((at.b * image_.width + at.first) * (image_.height + 2)) + y + 1, slot = (y + rows_) % rows_;
    A* const start = memory_.data() + slot * size_ + stride_ + kMargin;
    if (held_[slot] == name) return start;
    held_[slot] = name;
    const int64_t begin = std::max<int64_t>(0, at.first - neighbours_);
    const int64_t end = std::min(image_.width, at.first + at.n + neighbours_);
    for (int64_t c = 0; c < image_.channels; ++c) {
      A* const to = start + c * stride_;
      std::fill(to - kMargin, to - kMargin + stride_, A(0));
      if (y < 0 || y >= image_.height) continue;
      const char* from = image_.at(at.b, c, y) + image_.item * begin * image_.column;
      load_row(image_.dtype, from, image_.column, end - begin, to + begin - at.first);
    }
    return start;
  }

 private:
  static constexpr int64_t kMargin = rows::kLanes<A>;

  const Image image_;
  const int64_t rows_;
  const bool neighbours_;
  const int64_t stride_, size_;
  std::vector<A> memory_;
  std::vector<int64_t> held_;
};

// Where results of a part of a row are made: in place if they can be.
template <class A>
class Results {
 public:
  Results(const Tensor& t, const Division& d)
      : image_(t),
        direct_(image_.dtype == kDtype<A> && (image_.column == 1 || image_.width == 1)),
        stride_(direct_ ? image_.channel : d.columns),
        buffer_(direct_ ? 0 : image_.channels * d.columns) {}

  int64_t stride() const { return stride_; }
  A* begin(const Place& at) { return direct_ ? reinterpret_cast<A*>(address(at, 0)) : buffer_.data(); }
  void finish(const Place& at) const {
    for (int64_t c = 0; c < image_.channels && !direct_; ++c)
      store_row(image_.dtype, buffer_.data() + c * stride_, at.n, address(at, c), image_.column);
  }

 private:
  char* address(const Place& at, int64_t c) const {
    return image_.at(at.b, c, at.y) + image_.item * at.first * image_.column;
  }

  const Image image_;
  const bool direct_;
  const int64_t stride_;
  std::vector<A> buffer_;
};

template <class A, class F>
void for_items(const Problem& p, const Division& d, const F& f) {
  const int64_t work = kTaps * p.channels * d.columns;
  parallel_for(0, d.items(p), std::max<int64_t>(4, kGrain / work), f);
}

template <class A>
void convolve(const Problem& p, const Tensor& motif, const Tensor& features, const Tensor& kernel,
              const Tensor& result) {
  const Division d(p, sizeof(A));
  const A* const weights = kernel.template const_data_ptr<A>();
  for_items<A>(p, d, [&](int64_t item, int64_t end) {
    Strip<A> m(motif, d, 3, true), f(features, d, 3, true);
    Results<A> to(result, d);
    const int64_t stride = rows::whole<A>(d.columns);
    std::vector<A> taps(kTaps * stride);
    for (; item < end; ++item) {
      const Place at(d, item);
      const A* const motifs[3] = {m.row(at, at.y - 1), m.row(at, at.y), m.row(at, at.y + 1)};
      const A* const rows[3] = {f.row(at, at.y - 1), f.row(at, at.y), f.row(at, at.y + 1)};
      make_taps(motifs, m.stride(), p.motifs, weights, true, at.n, taps.data(), stride);
      apply_taps(rows, f.stride(), p.channels, taps.data(), stride, at.n, to.begin(at), to.stride());
      to.finish(at);
    }
  });
}

// Gradients where there are targets; that to the kernel as sums of every item, `partial`, if there is room for them.
template <class A>
void backpropagate(const Problem& p, const Division& d, const Tensor& grad, const Tensor& motif, const Tensor& features,
                   const Tensor& kernel, const Tensor* to_motif, const Tensor* to_features, double* partial) {
  const A* const weights = kernel.template const_data_ptr<A>();
  std::vector<A> opposite(p.motifs * kTaps);
  for (int64_t s = 0; s < p.motifs; ++s)
    for (int j = 0; j < kTaps; ++j) opposite[s * kTaps + j] = weights[s * kTaps + kTaps - 1 - j];
  for_items<A>(p, d, [&](int64_t item, int64_t end) {
    Strip<A> m(motif, d, 1, false), f(features, d, 1, false), g(grad, d, 3, true);
    Results<A> features_grad(to_features ? *to_features : features, d), motif_grad(to_motif ? *to_motif : motif, d);
    const int64_t stride = rows::whole<A>(d.columns);
    std::vector<A> taps(kTaps * stride), line(stride);
    for (; item < end; ++item) {
      const Place at(d, item);
      const A* const upstream[3] = {g.row(at, at.y - 1), g.row(at, at.y), g.row(at, at.y + 1)};
      const A* const motifs[3] = {m.row(at, at.y), m.row(at, at.y), m.row(at, at.y)};
      if (to_features) {
        make_taps(motifs, m.stride(), p.motifs, opposite.data(), false, at.n, taps.data(), stride);
        apply_taps(upstream, g.stride(), p.channels, taps.data(), stride, at.n, features_grad.begin(at),
                   features_grad.stride());
        features_grad.finish(at);
      }
      if (!to_motif && !partial) continue;
      correlate(f.row(at, at.y), upstream, g.stride(), p.channels, at.n, taps.data(), stride);
      if (to_motif) {
        A* const to = motif_grad.begin(at);
        for (int64_t s = 0; s < p.motifs; ++s) {
          contract_taps(weights + s * kTaps, taps.data(), stride, line.data(), at.n);
          std::copy_n(line.data(), at.n, to + s * motif_grad.stride());
        }
        motif_grad.finish(at);
      }
      for (int64_t s = 0; s < p.motifs && partial; ++s)
        contract_pixels(motifs[0] + s * m.stride(), taps.data(), stride, at.n, partial + (item * p.motifs + s) * kTaps);
    }
  });
}

// ---- operators -------------------------------------------------------------------------------------------------------

template <class F>
void with_arithmetic(const Tensor& t, const F& f) {
  t.scalar_type() == ScalarType::Double ? f(double()) : f(float());
}

Tensor camp_conv(const Tensor& motif, const Tensor& features, const Tensor& kernel) {
  const Problem p = check(motif, features, kernel);
  const Tensor result = new_like(features);
  if (result.numel() == 0) return result;
  with_arithmetic(features, [&](auto zero) {
    using A = decltype(zero);
    convolve<A>(p, motif, features, contiguous_as(kernel, kDtype<A>), result);
  });
  return result;
}

std::tuple<Tensor, Tensor, Tensor> camp_conv_backward(const Tensor& grad, const Tensor& motif, const Tensor& features,
                                                      const Tensor& kernel, bool need_motif, bool need_features,
                                                      bool need_kernel) {
  const Problem p = check(motif, features, kernel);
  check_gradient(grad, features);
  const Tensor to_motif = new_gradient(motif, need_motif), to_features = new_gradient(features, need_features),
               to_kernel = new_gradient(kernel, need_kernel);
  with_arithmetic(features, [&](auto zero) {
    using A = decltype(zero);
    const Division d(p, sizeof(A));
    const int64_t taps = p.motifs * kTaps, items = d.items(p);
    std::vector<double> partial(need_kernel ? items * taps : 0), sums(taps, 0.0);
    if (grad.numel() != 0)
      backpropagate<A>(p, d, grad, motif, features, contiguous_as(kernel, kDtype<A>), need_motif ? &to_motif : nullptr,
                       need_features ? &to_features : nullptr, need_kernel ? partial.data() : nullptr);
    if (!need_kernel) return;
    for (int64_t item = 0; item < items; ++item)
      for (int64_t j = 0; j < taps; ++j) sums[j] += partial[item * taps + j];
    const Image to(to_kernel);
    for (int64_t s = 0; s < p.motifs; ++s)
      for (int64_t i = 0; i < 9; ++i)
        store_row(to.dtype, sums.data() + s * kTaps + 3 * i, 3, to.at(s, i / 3, i % 3), to.column);
  });
  return {to_motif, to_features, to_kernel};
}

}  // namespace
}  // namespace pyops::motif

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("camp_conv(Tensor motif, Tensor features, Tensor kernel) -> Tensor");
  m.def(
      "camp_conv_backward(Tensor grad, Tensor motif, Tensor features, Tensor kernel, bool need_motif, "
      "bool need_features, bool need_kernel) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("camp_conv", TORCH_BOX(&pyops::motif::camp_conv));
  m.impl("camp_conv_backward", TORCH_BOX(&pyops::motif::camp_conv_backward));
}
