// Schemas of the stem, and disparity_warp on the CPU. A row of the image and all of its channels belong to one thread.
#include "disparity_args.h"
#include "disparity_rows.h"

namespace pyops::disparity {
namespace {

using sampling::Image;
using sampling::kDtype;
using sampling::load_row;
using sampling::store_row;
using torch::stable::parallel_for;

constexpr int64_t kGrain = 16384;  // numbers worth a thread

int64_t rows_worth_a_thread(const Warping& p) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, p.channels * p.width));
}

// Calls f(b, row, taps) for every row of a range of them.
template <class A, class F>
void for_rows(const Warping& p, const Image& disparity, int64_t item, int64_t end, const F& f) {
  Taps<A> taps(p.width);
  std::vector<A> line(p.width);
  for (; item < end; ++item) {
    const int64_t b = item / p.height, row = item % p.height;
    load_row(disparity.dtype, disparity.at(b, 0, row), disparity.column, p.width, line.data());
    place_taps(line.data(), p.width, taps);
    f(b, row, taps);
  }
}

template <class A>
void warp(const Warping& p, const Tensor& image_tensor, const Tensor& disparity_tensor, const Tensor& out_tensor) {
  const Image image(image_tensor), disparity(disparity_tensor), out(out_tensor);
  const bool direct = out.dtype == kDtype<A> && out.column == 1;
  parallel_for(0, p.batch * p.height, rows_worth_a_thread(p), [&](int64_t item, int64_t end) {
    std::vector<A> line(p.width + 1, A(0)), samples(direct ? 0 : p.width);  // beyond the row there are zeros
    for_rows<A>(p, disparity, item, end, [&](int64_t b, int64_t row, const Taps<A>& taps) {
      for (int64_t c = 0; c < p.channels; ++c) {
        load_row(image.dtype, image.at(b, c, row), image.column, p.width, line.data());
        A* const to = direct ? reinterpret_cast<A*>(out.at(b, c, row)) : samples.data();
        blend_taps(taps, line.data(), p.width, to);
        if (!direct) store_row(out.dtype, to, p.width, out.at(b, c, row), out.column);
      }
    });
  });
}

template <class A>
void warp_backward(const Warping& p, const Tensor& grad_tensor, const Tensor& image_tensor,
                   const Tensor& disparity_tensor, const Tensor* grad_image, const Tensor* grad_disparity) {
  const Image grad(grad_tensor), image(image_tensor), disparity(disparity_tensor);
  const Image to_image(grad_image ? *grad_image : image_tensor);
  const Image to_disparity(grad_disparity ? *grad_disparity : disparity_tensor);
  parallel_for(0, p.batch * p.height, rows_worth_a_thread(p), [&](int64_t item, int64_t end) {
    std::vector<A> line(p.width + 1, A(0)), upstream(p.width), slopes(p.width);
    std::vector<double> sums(2 * int64_t(p.width));
    for_rows<A>(p, disparity, item, end, [&](int64_t b, int64_t row, const Taps<A>& taps) {
      std::fill(slopes.begin(), slopes.end(), A(0));
      for (int64_t c = 0; c < p.channels; ++c) {
        load_row(grad.dtype, grad.at(b, c, row), grad.column, p.width, upstream.data());
        if (grad_disparity) {
          load_row(image.dtype, image.at(b, c, row), image.column, p.width, line.data());
          add_slopes(taps, line.data(), upstream.data(), p.width, slopes.data());
        }
        if (grad_image) {
          std::fill(sums.begin(), sums.end(), 0.0);
          spread_taps(taps, upstream.data(), p.width, sums.data());
          join_sums(sums.data(), p.width, upstream.data());
          store_row(to_image.dtype, upstream.data(), p.width, to_image.at(b, c, row), to_image.column);
        }
      }
      if (!grad_disparity) return;
      for (int x = 0; x < p.width; ++x) slopes[x] = taps.inside[x] != A(0) ? slopes[x] : A(0);
      store_row(to_disparity.dtype, slopes.data(), p.width, to_disparity.at(b, 0, row), to_disparity.column);
    });
  });
}

Tensor disparity_warp(const Tensor& image, const Tensor& disparity) {
  const Warping p = check_warp(image, disparity);
  const Tensor out = new_warped(image);
  if (out.numel() == 0) return out;
  p.as_double ? warp<double>(p, image, disparity, out) : warp<float>(p, image, disparity, out);
  return out;
}

std::tuple<Tensor, Tensor> disparity_warp_backward(const Tensor& grad, const Tensor& image, const Tensor& disparity,
                                                   bool need_image, bool need_disparity) {
  const Warping p = check_warp(image, disparity);
  check_gradient(grad, image, need_image);
  const Tensor to_image = new_gradient(image, need_image), to_disparity = new_gradient(disparity, need_disparity);
  if (grad.numel() != 0) {
    const auto run = p.as_double ? warp_backward<double> : warp_backward<float>;
    run(p, grad, image, disparity, need_image ? &to_image : nullptr, need_disparity ? &to_disparity : nullptr);
  }
  return {to_image, to_disparity};
}

}  // namespace
}  // namespace pyops::disparity

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("context_upsample(Tensor disparity, Tensor weights) -> Tensor");
  m.def(
      "context_upsample_backward(Tensor grad, Tensor disparity, Tensor weights, bool need_disparity, "
      "bool need_weights) -> (Tensor, Tensor)");
  m.def("disparity_warp(Tensor image, Tensor disparity) -> Tensor");
  m.def(
      "disparity_warp_backward(Tensor grad, Tensor image, Tensor disparity, bool need_image, bool need_disparity) -> "
      "(Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("disparity_warp", TORCH_BOX(&pyops::disparity::disparity_warp));
  m.impl("disparity_warp_backward", TORCH_BOX(&pyops::disparity::disparity_warp_backward));
}
