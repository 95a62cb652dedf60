// context_upsample on the CPU. A row of the coarse image, replicated along x alone, serves all fine rows in it and, as
// the row above or below, in its neighbours: three such lines stay in the first-level cache. The neighbour dx of a fine
// pixel is then the element dx * scale away.
//
// 96x312 to 384x1248 in float32: 8.6 MFLOP, and the weights once, 17.3 MB of 19.3: memory sets the pace.
#include <cstring>

#include "disparity_args.h"
#include "disparity_rows.h"

namespace pyops::disparity {
namespace {

using sampling::Image;
using sampling::kDtype;
using sampling::load_row;
using sampling::store_row;
using torch::stable::parallel_for;

constexpr int64_t kChunk = 512;    // columns of weights that stay in the first-level cache once they are floats
constexpr int64_t kGrain = 16384;  // numbers worth a thread

int64_t rows_worth_a_thread(int64_t numbers_each) { return std::max<int64_t>(1, kGrain / numbers_each); }

// The replicated lines around one coarse row after another.
template <class A>
class Lines {
 public:
  Lines(const Upsampling& p, const Image& disparity)
      : p_(p),
        disparity_(disparity),
        coarse_(p.width + 2, A(0)),
        memory_(3 * (p.columns() + 2 * p.scale + kOverhang)) {}

  // From fine pixel `first` on, of fine row `row` of image b.
  Near<A> at(int64_t b, int64_t row, int64_t first) {
    Near<A> near{{}, p_.scale};
    for (int64_t dy = 0; dy < 3; ++dy) near.line[dy] = line(b, row / p_.scale + dy - 1) + p_.scale + first;
    return near;
  }

 private:
  const A* line(int64_t b, int64_t row) {
    const int64_t slot = (row + 3) % 3, name = b * (int64_t(p_.height) + 2) + row + 1;
    A* const to = memory_.data() + slot * (p_.columns() + 2 * p_.scale + kOverhang);
    if (held_[slot] == name) return to;
    held_[slot] = name;
    if (row < 0 || row >= p_.height) {
      std::fill(to, to + p_.columns() + 2 * p_.scale, A(0));
    } else {
      load_row(disparity_.dtype, disparity_.at(b, 0, row), disparity_.column, p_.width, coarse_.data() + 1);
      replicate(coarse_.data(), p_.width + 2, p_.scale, to);
    }
    return to;
  }

  const Upsampling& p_;
  const Image& disparity_;
  std::vector<A> coarse_, memory_;
  int64_t held_[3] = {-1, -1, -1};
};

// Rows of weights, or of gradients to them, as numbers of type A: in place if they can be, else in a buffer.
template <class A>
class WeightRows {
 public:
  explicit WeightRows(const Image& image)
      : image_(image),
        in_place_(image.dtype == kDtype<A> && (image.column == 1 || image.width == 1)),
        buffer_(in_place_ ? 0 : kNeighbours * kChunk) {}

  int64_t chunk() const { return in_place_ ? image_.width : kChunk; }

  // Room for weights `k` and those after it.
  Planes<A> room(int64_t b, int64_t k, int64_t row, int64_t first) {
    if (!in_place_) return {buffer_.data(), kChunk};
    return {reinterpret_cast<A*>(image_.at(b, k, row)) + first, image_.channel};
  }

  Planes<const A> get(int64_t b, int64_t k, int count, int64_t row, int64_t first, int64_t n) {
    const Planes<A> to = room(b, k, row, first);
    for (int i = 0; i < count && !in_place_; ++i)
      load_row(image_.dtype, address(b, k + i, row, first), image_.column, n, to.data + i * kChunk);
    return {to.data, to.plane};
  }

  void put(const Planes<A>& from, int64_t b, int64_t row, int64_t first, int64_t n) const {
    for (int k = 0; k < kNeighbours && !in_place_; ++k)
      store_row(image_.dtype, from.data + k * kChunk, n, address(b, k, row, first), image_.column);
  }

 private:
  void* address(int64_t b, int64_t k, int64_t row, int64_t first) const {
    return image_.at(b, k, row) + image_.item * first * image_.column;
  }

  const Image& image_;
  bool in_place_;
  std::vector<A> buffer_;
};

template <class A>
void upsample(const Upsampling& p, const Tensor& disparity_tensor, const Tensor& weights_tensor,
              const Tensor& out_tensor) {
  const Image disparity(disparity_tensor), weights(weights_tensor), out(out_tensor);
  const bool direct = out.dtype == kDtype<A>;
  parallel_for(0, p.batch * p.rows(), rows_worth_a_thread(kNeighbours * p.columns()), [&](int64_t item, int64_t end) {
    Lines<A> lines(p, disparity);
    WeightRows<A> rows(weights);
    std::vector<A> line(direct ? 0 : p.columns());
    for (; item < end; ++item) {
      const int64_t b = item / p.rows(), row = item % p.rows();
      A* const to = direct ? reinterpret_cast<A*>(out.at(b, 0, row)) : line.data();
      for (int64_t first = 0; first < p.columns(); first += rows.chunk()) {
        const int64_t n = std::min(rows.chunk(), p.columns() - first);
        combine(lines.at(b, row, first), rows.get(b, 0, kNeighbours, row, first, n), n, to + first);
      }
      if (!direct) store_row(out.dtype, to, p.columns(), out.at(b, 0, row), 1);
    }
  });
}

template <class A>
void weight_gradients(const Upsampling& p, const Tensor& grad, const Tensor& disparity_tensor, const Tensor& result) {
  const Image disparity(disparity_tensor), to(result);
  const A* const upstream = grad.template const_data_ptr<A>();
  parallel_for(0, p.batch * p.rows(), rows_worth_a_thread(kNeighbours * p.columns()), [&](int64_t item, int64_t end) {
    Lines<A> lines(p, disparity);
    WeightRows<A> rows(to);
    for (; item < end; ++item) {
      const int64_t b = item / p.rows(), row = item % p.rows();
      for (int64_t first = 0; first < p.columns(); first += rows.chunk()) {
        const int64_t n = std::min(rows.chunk(), p.columns() - first);
        const Planes<A> room = rows.room(b, 0, row, first);
        multiply(lines.at(b, row, first), upstream + item * p.columns() + first, n, room);
        rows.put(room, b, row, first, n);
      }
    }
  });
}

// Every coarse row gathers what the fine rows in it and in its neighbours owe it: each weight is read once.
template <class A>
void disparity_gradient(const Upsampling& p, const Tensor& grad, const Tensor& weights_tensor, const Tensor& result) {
  const Image weights(weights_tensor), to(result);
  const A* const upstream = grad.template const_data_ptr<A>();
  const int64_t columns = p.columns(), numbers_each = kNeighbours * columns * p.scale;
  parallel_for(0, p.batch * p.height, rows_worth_a_thread(numbers_each), [&](int64_t item, int64_t end) {
    WeightRows<A> rows(weights);
    std::vector<A> sums(3 * columns), line(columns), coarse(p.width);
    for (; item < end; ++item) {
      const int64_t b = item / p.height, row = item % p.height;
      std::fill(sums.begin(), sums.end(), A(0));
      for (int64_t dy = -1; dy <= 1; ++dy) {
        if (row - dy < 0 || row - dy >= p.height) continue;
        for (int64_t fine = (row - dy) * p.scale; fine < (row - dy + 1) * p.scale; ++fine)
          for (int64_t first = 0; first < columns; first += rows.chunk()) {
            const int64_t n = std::min(rows.chunk(), columns - first);
            add_products(upstream + (b * p.rows() + fine) * columns + first,
                         rows.get(b, 3 * (dy + 1), 3, fine, first, n), n, Planes<A>{sums.data() + first, columns});
          }
      }
      fold(Planes<A>{sums.data(), columns}, p.width, p.scale, line.data(), coarse.data());
      store_row(to.dtype, coarse.data(), p.width, to.at(b, 0, row), to.column);
    }
  });
}

Tensor context_upsample(const Tensor& disparity, const Tensor& weights) {
  const Upsampling p = check_upsample(disparity, weights);
  const Tensor out = new_upsampled(p, disparity);
  if (out.numel() == 0) return out;
  p.as_double ? upsample<double>(p, disparity, weights, out) : upsample<float>(p, disparity, weights, out);
  return out;
}

std::tuple<Tensor, Tensor> context_upsample_backward(const Tensor& grad, const Tensor& disparity, const Tensor& weights,
                                                     bool need_disparity, bool need_weights) {
  const Upsampling p = check_upsample(disparity, weights);
  check_gradient(p, grad, disparity);
  const Tensor to_disparity = new_gradient(disparity, need_disparity), to_weights = new_gradient(weights, need_weights);
  const auto run = [&](auto arithmetic) {
    using A = decltype(arithmetic);
    const Tensor upstream = contiguous_as(grad, kDtype<A>);
    if (need_weights) weight_gradients<A>(p, upstream, disparity, to_weights);
    if (need_disparity) disparity_gradient<A>(p, upstream, weights, to_disparity);
  };
  if (grad.numel() != 0) p.as_double ? run(double()) : run(float());
  return {to_disparity, to_weights};
}

}  // namespace
}  // namespace pyops::disparity

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("context_upsample", TORCH_BOX(&pyops::disparity::context_upsample));
  m.impl("context_upsample_backward", TORCH_BOX(&pyops::disparity::context_upsample_backward));
}
