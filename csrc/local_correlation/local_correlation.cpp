// Local correlation on the CPU: a task takes a tile of columns of a few rows that share their partners.
//
// The tile of its own image is unpacked to arithmetic once, each row of the other image that it meets once for all of
// its rows, and every result is written once.
#include "local_correlation_tiles.h"

namespace pyops::local_correlation {
namespace {

// ---- forward -------------------------------------------------------------------------------------------------------------

// The result of one image: planes of rows.
template <class T>
struct Volume {
  T* data;
  int64_t radius, height, width;

  T* row(int64_t dy, int64_t dx, int64_t y) const {
    return data + (((dy + radius) * (2 * radius + 1) + dx + radius) * height + y) * width;
  }
};

// Displacements of which no pixel of the tile has a partner.
template <class T>
void clear(const Problem& p, const Tile& tile, const Volume<T>& out) {
  const int64_t reach = p.reach(p.width);
  for (int64_t i = tile.first; i < tile.first + tile.rows; ++i)
    for (int64_t dy = -p.radius; dy <= p.radius; ++dy)
      for (int64_t dx = -p.radius; dx <= p.radius; ++dx) {
        if (i + dy >= 0 && i + dy < tile.count && dx >= -reach && dx <= reach) continue;
        T* const row = out.row(dy, dx, tile.row(p, i));
        std::fill(row + tile.columns.begin, row + tile.columns.end, T(0));
      }
}

template <class T, class A>
void store(const Problem& p, const Tile& tile, int64_t i, int64_t dy, int64_t reach, const A* from, int64_t pitch,
           const Volume<T>& out) {
  for (int64_t dx = -reach; dx <= reach; ++dx, from += pitch) {
    const Span inside = with_partner(tile.columns, p.width, dx * p.dilation);
    T* const to = out.row(dy, dx, tile.row(p, i));
    std::fill(to + tile.columns.begin, to + inside.begin, T(0));
    store_row(from + inside.begin - tile.columns.begin, 1, inside.end - inside.begin, to + inside.begin);
    std::fill(to + inside.end, to + tile.columns.end, T(0));
  }
}

template <class T>
void run(const Problem& p, const Tensor& first_tensor, const Tensor& second_tensor, const Tensor& out_tensor) {
  using A = Arithmetic<T>;
  const Pixels<T> first = pixels_of<T>(first_tensor), second = pixels_of<T>(second_tensor);
  const Division d(p, sizeof(A));
  for_tiles(p, d, d.items, [&](int64_t item, int64_t last) {
    Buffers<A> buffers(p, d);
    const auto volume = buffers.volume_rows();
    for (; item < last; ++item) {
      const Tile tile(p, d, item);
      const Volume<T> out{static_cast<T*>(out_tensor.mutable_data_ptr()) + tile.b * out_tensor.stride(0), p.radius,
                          p.height, p.width};
      clear(p, tile, out);
      buffers.load_own(p, first, tile);
      tile.for_meetings(
          p, [&](int64_t other) { buffers.load_shared(p, second, tile, other); },
          [&](int64_t other, int64_t i, int64_t n) {
            const auto own = buffers.own_rows(p, i);
            correlate(n, {own.data, own.row_stride, own.pitch}, buffers.shared_row(p), p.channels, tile.width(),
                      volume);
            for (int64_t k = 0; k < n; ++k) {
              const int64_t row = tile.first + i + k;
              store(p, tile, row, other - row, buffers.reach, volume.at(k, 0, 0), volume.pitch, out);
            }
          });
    }
  });
}

// ---- backward ------------------------------------------------------------------------------------------------------------

// One image whose gradient is wanted: it gathers from the other.
template <class T>
struct Side {
  bool second;
  Pixels<T> other, to;
};

// Gradients of the result for row i of the tile and row `other`, in the columns of the tile.
template <class T, class A>
void load_gradients(const Problem& p, const Tile& tile, const Side<T>& side, const Pixels<T>& grad, int64_t i,
                    int64_t other, int64_t reach, A* to, int64_t pitch) {
  const int64_t sign = side.second ? -1 : 1, dy = sign * (other - i);
  const int64_t y = tile.row(p, side.second ? other : i);
  const T* const row = grad.data + tile.b * grad.batch + y * grad.row;
  for (int64_t k = -reach; k <= reach; ++k, to += pitch) {
    const int64_t shift = k * p.dilation, dx = sign * k;
    const Span inside = with_partner(tile.columns, p.width, shift);
    const int64_t begin = inside.begin - tile.columns.begin, end = inside.end - tile.columns.begin;
    const T* const plane = row + ((dy + p.radius) * p.side() + dx + p.radius) * grad.channel;
    std::fill(to, to + begin, A(0));
    load_row(plane + (inside.begin + (side.second ? shift : 0)) * grad.column, grad.column, end - begin, to + begin);
    std::fill(to + end, to + tile.width(), A(0));
  }
}

template <class T>
void run_backward(const Problem& p, const Tensor& grad_tensor, const std::vector<Side<T>>& sides) {
  using A = Arithmetic<T>;
  const Pixels<T> grad = pixels_of<T>(grad_tensor);
  const Division d(p, sizeof(A));
  for_tiles(p, d, d.items * int64_t(sides.size()), [&](int64_t item, int64_t last) {
    Buffers<A> buffers(p, d);
    const auto gradients = buffers.volume_rows();
    for (; item < last; ++item) {
      const Tile tile(p, d, item % d.items);
      const Side<T>& side = sides[item / d.items];
      std::fill(buffers.own.begin(), buffers.own.end(), A(0));
      tile.for_meetings(
          p, [&](int64_t other) { buffers.load_shared(p, side.other, tile, other); },
          [&](int64_t other, int64_t i, int64_t n) {
            for (int64_t k = 0; k < n; ++k)
              load_gradients(p, tile, side, grad, tile.first + i + k, other, buffers.reach, gradients.at(k, 0, 0),
                             gradients.pitch);
            gather(n, {gradients.data, gradients.row_stride, gradients.pitch}, buffers.shared_row(p), p.channels,
                   tile.width(), buffers.own_rows(p, i));
          });
      for (int64_t i = 0; i < tile.rows; ++i) {
        const auto own = buffers.own_rows(p, i);
        T* to = side.to.data + tile.b * side.to.batch + tile.row(p, tile.first + i) * side.to.row +
                tile.columns.begin * side.to.column;
        for (int64_t c = 0; c < p.channels; ++c, to += side.to.channel)
          store_row(own.at(0, c, 0), side.to.column, tile.width(), to);
      }
    }
  });
}

// ---- operators -----------------------------------------------------------------------------------------------------------

Tensor forward(const Tensor& first, const Tensor& second, int64_t radius, int64_t dilation) {
  const Problem p = check(first, second, radius, dilation);
  const Tensor out = new_tensor(first, p.volume(), first.scalar_type());
  if (out.numel() == 0) return out;
  dispatch_floating(first.scalar_type(), "first", [&](auto zero) { run<decltype(zero)>(p, first, second, out); });
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& first, const Tensor& second, int64_t radius,
                                    int64_t dilation, bool need_first, bool need_second) {
  const Problem p = check_gradient(grad, first, second, radius, dilation);
  const Tensor grad_first = new_gradient(first, need_first), grad_second = new_gradient(second, need_second);
  if (grad.numel() == 0) return {grad_first, grad_second};
  dispatch_floating(first.scalar_type(), "first", [&](auto zero) {
    using T = decltype(zero);
    std::vector<Side<T>> sides;
    if (need_first) sides.push_back({false, pixels_of<T>(second), pixels_of<T>(grad_first)});
    if (need_second) sides.push_back({true, pixels_of<T>(first), pixels_of<T>(grad_second)});
    run_backward<T>(p, grad, sides);
  });
  return {grad_first, grad_second};
}

}  // namespace
}  // namespace pyops::local_correlation

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("local_correlation(Tensor first, Tensor second, SymInt radius, SymInt dilation) -> Tensor");
  m.def(
      "local_correlation_backward(Tensor grad, Tensor first, Tensor second, SymInt radius, SymInt dilation, "
      "bool need_first, bool need_second) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("local_correlation", TORCH_BOX(&pyops::local_correlation::forward));
  m.impl("local_correlation_backward", TORCH_BOX(&pyops::local_correlation::backward));
}
