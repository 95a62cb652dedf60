// lut3d on the CPU: schema, loops over pixels, registration.
//
// Pixels go through blocks of planar arithmetic-type values, so that element types and memory layouts live in
// `load_block` and `store_block` only. Planar float32 images skip the copy. Large float images use the packed table
// of lut3d_simd.h; double, and images too small to pay for packing, use the scalar code below.
#include <algorithm>

#include "../common/pixel.h"
#include "lut3d_args.h"
#include "lut3d_pack.h"
#include "lut3d_simd.h"

namespace pyops::lut3d {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kBlock = 512;    // pixels that pass through the first-level cache together
constexpr int64_t kGrain = 16384;  // pixels worth a thread

template <class A>
struct Block {
  alignas(64) A channel[3][kBlock];
};

// ---- element types and layouts ----------------------------------------------------------------------------------------

template <class A, class T>
PYOPS_HD void load_block(const Pixels<T>& image, int64_t base, int64_t first, int64_t n, A (*block)[kBlock]) {
  if (image.linear && image.column == 3 && image.channel == 1) {
    const T* pixel = image.data + base + 3 * first;
    for (int64_t i = 0; i < n; ++i)
      for (int c = 0; c < 3; ++c) block[c][i] = decode<T, A>(pixel[3 * i + c]);
    return;
  }
  for (int c = 0; c < 3; ++c) {
    const T* plane = image.data + base + c * image.channel;
    if (image.linear && image.column == 1)
      for (int64_t i = 0; i < n; ++i) block[c][i] = decode<T, A>(plane[first + i]);
    else
      for (int64_t i = 0; i < n; ++i) block[c][i] = decode<T, A>(plane[image.offset(first + i)]);
  }
}

template <class A, class T>
PYOPS_HD void store_block(const Pixels<T>& image, int64_t base, int64_t first, int64_t n, const A (*block)[kBlock]) {
  T* to = image.data + base + first * image.column;  // results are planar or interleaved
  if (image.column == 3) {
    for (int64_t i = 0; i < n; ++i)
      for (int c = 0; c < 3; ++c) to[3 * i + c] = encode<T, A>(block[c][i]);
    return;
  }
  for (int c = 0; c < 3; ++c) {
    T* plane = to + c * image.channel;
    for (int64_t i = 0; i < n; ++i) plane[i] = encode<T, A>(block[c][i]);
  }
}

// ---- scalar arithmetic ---------------------------------------------------------------------------------------------

template <class A, bool kTetrahedral>
void scalar_forward(const Lattice<A>& lattice, Block<A>& block, int64_t n) {
  const int64_t cells = int64_t(lattice.size) * lattice.size * lattice.size;
  for (int64_t i = 0; i < n; ++i) {
    A f[3];
    int64_t origin = 0;
    for (int c = 2; c >= 0; --c) {
      const auto place = locate(block.channel[c][i], lattice.axis[c]);
      f[c] = place.fraction, origin = origin * lattice.size + place.cell;
    }
    const Stencil<A, kTetrahedral> stencil(f, lattice.size);
    for (int c = 0; c < 3; ++c) {
      A sum = 0;
      for (int k = 0; k < stencil.kCorners; ++k)
        sum += stencil.weight[k] * lattice.values[c * cells + origin + stencil.offset[k]];
      block.channel[c][i] = sum;
    }
  }
}

// Leaves the gradient of the image in `block`.
template <class A, bool kTetrahedral>
void scalar_backward(const Lattice<A>& lattice, Block<A>& block, const Block<A>& grad, const Sums& sums, int64_t n) {
  const int64_t cells = int64_t(lattice.size) * lattice.size * lattice.size;
  using Corners = Stencil<A, kTetrahedral>;
  for (int64_t i = 0; i < n; ++i) {
    Place<A> place[3];
    A f[3], s[Corners::kCorners], slope[3];
    int64_t origin = 0;
    for (int c = 2; c >= 0; --c) {
      place[c] = locate(block.channel[c][i], lattice.axis[c]);
      f[c] = place[c].fraction, origin = origin * lattice.size + place[c].cell;
    }
    const Corners stencil(f, lattice.size);
    for (int k = 0; k < Corners::kCorners; ++k) {
      const int64_t vertex = origin + stencil.offset[k];
      s[k] = 0;
      for (int c = 0; c < 3; ++c) {
        const A g = grad.channel[c][i];
        s[k] += lattice.values[c * cells + vertex] * g;
        if (sums.lut) sums.lut[4 * vertex + c] += double(stencil.weight[k]) * g;
      }
    }
    stencil.slopes(s, slope);
    for (int c = 0; c < 3; ++c) {
      if (sums.vertices)
        add_vertex_gradient(sums.vertices + c * lattice.size, lattice.axis[c], place[c].cell, f[c], slope[c]);
      block.channel[c][i] = place[c].slope != 0 ? slope[c] * place[c].slope : A(0);
    }
  }
}

// ---- vector arithmetic: one clone for each instruction set -----------------------------------------------------------

PYOPS_MULTIVERSION void simd_forward(const Lattice<float>& lattice, bool tetrahedral, const float* const (&in)[3],
                                     float* const (&out)[3], int64_t n) {
  using simd_detail::forward;
  const bool uniform = lattice.axis[0].vertices == nullptr;
  if (tetrahedral) uniform ? forward<true, true>(lattice, in, out, n) : forward<true, false>(lattice, in, out, n);
  else uniform ? forward<false, true>(lattice, in, out, n) : forward<false, false>(lattice, in, out, n);
}

PYOPS_MULTIVERSION void simd_backward(const Lattice<float>& lattice, bool tetrahedral, const float* const (&in)[3],
                                      const float* const (&grad)[3], float* const (&grad_in)[3], const Sums& sums,
                                      int64_t n) {
  using simd_detail::backward;
  const bool uniform = lattice.axis[0].vertices == nullptr;
  if (tetrahedral)
    uniform ? backward<true, true>(lattice, in, grad, grad_in, sums, n)
            : backward<true, false>(lattice, in, grad, grad_in, sums, n);
  else
    uniform ? backward<false, true>(lattice, in, grad, grad_in, sums, n)
            : backward<false, false>(lattice, in, grad, grad_in, sums, n);
}

// Fills the last vector of eight with copies of the last pixel, which touch no cell that it does not touch itself.
void pad(Block<float>& block, int64_t n) {
  for (auto& channel : block.channel) std::fill(channel + n, channel + ceil_div<int64_t>(n, 8) * 8, channel[n - 1]);
}

#define PYOPS_BLOCK_IO(T)                                                                                              \
  PYOPS_MULTIVERSION void load(const Pixels<T>& image, int64_t base, int64_t first, int64_t n, Block<float>& block) {  \
    load_block<float>(image, base, first, n, block.channel);                                                           \
  }                                                                                                                    \
  PYOPS_MULTIVERSION void store(const Pixels<T>& image, int64_t base, int64_t first, int64_t n, Block<float>& block) { \
    store_block<float>(image, base, first, n, block.channel);                                                          \
  }
PYOPS_BLOCK_IO(float)
PYOPS_BLOCK_IO(Half)
PYOPS_BLOCK_IO(BFloat16)
PYOPS_BLOCK_IO(uint8_t)
PYOPS_BLOCK_IO(uint16_t)
#undef PYOPS_BLOCK_IO

template <class T>
void load(const Pixels<T>& image, int64_t base, int64_t first, int64_t n, Block<double>& block) {
  load_block<double>(image, base, first, n, block.channel);
}
template <class T>
void store(const Pixels<T>& image, int64_t base, int64_t first, int64_t n, Block<double>& block) {
  store_block<double>(image, base, first, n, block.channel);
}

// ---- tables --------------------------------------------------------------------------------------------------------

// The tables of a call in the form the chosen code wants, one lattice for each table.
template <class A>
struct Tables {
  Tensor values, vertices, start;  // own the memory the lattices point to
  std::vector<Lattice<A>> lattice;
  bool packed;

  Tables(const Problem& p, const Tensor& lut, const std::optional<Tensor>& vertex_tensor, bool pack)
      : values(contiguous_as(lut, std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float)), packed(pack) {
    const int64_t cells = p.cells(), n = p.size;
    int64_t stride = 3 * cells;
    if (pack) {
      const int64_t luts = p.shared_lut ? 1 : p.batch;
      values = lut3d::pack<A>(values, luts, n);
      stride = 4 * cells;
    }
    const A* axes = nullptr;
    const uint8_t* starts = nullptr;
    if (p.has_vertices) {
      vertices = contiguous_as(*vertex_tensor, values.scalar_type());
      axes = vertices.template const_data_ptr<A>();
      const int64_t count = vertices.numel() / n;
      start = new_tensor(vertices, {count, kBuckets}, ScalarType::Byte);
      uint8_t* first = start.template mutable_data_ptr<uint8_t>();
      for (int64_t i = 0; i < count * kBuckets; ++i)
        first[i] = first_cell(axes + i / kBuckets * n, int(n), int(i % kBuckets));
      starts = first;
    }
    for (int64_t t = 0; t < p.tables(); ++t) {
      Lattice<A> l{values.template const_data_ptr<A>() + (p.shared_lut ? 0 : t) * stride, p.size, {}, {}};
      for (int64_t c = 0; c < 3; ++c) {
        const int64_t row = (p.shared_vertices ? 0 : t) * 3 + c;
        l.axis[c] = {p.size, axes ? axes + row * n : nullptr, axes ? starts + row * kBuckets : nullptr};
        for (int bucket = 0; axes && bucket < kBuckets; ++bucket) {
          const uint8_t* start = starts + row * kBuckets + bucket;
          l.steps[c] = std::max(l.steps[c], (bucket + 1 < kBuckets ? start[1] : p.size - 2) - start[0]);
        }
      }
      lattice.push_back(l);
    }
  }
};

// Packing writes 4 N^3 floats: worth it once there are about that many pixels.
bool worth_packing(const Problem& p) { return p.pixels * p.batch / p.tables() * 4 >= p.cells(); }

// ---- forward -------------------------------------------------------------------------------------------------------

template <class A, class T>
void forward_span(const Problem& p, const Tables<A>& tables, const Pixels<T>& image, const Pixels<T>& out, int64_t b,
                  int64_t begin, int64_t end) {
  const Lattice<A>& lattice = tables.lattice[tables.lattice.size() > 1 ? b : 0];
  const int64_t from = b * image.batch, to = b * out.batch;
  if constexpr (std::is_same_v<T, float> && std::is_same_v<A, float>) {
    if (tables.packed && image.linear && image.column == 1 && out.column == 1) {
      const int64_t n = (end - begin) / 8 * 8;
      const float* in[3];
      float* result[3];
      for (int64_t c = 0; c < 3; ++c) {
        in[c] = image.data + from + c * image.channel + begin;
        result[c] = out.data + to + c * out.channel + begin;
      }
      simd_forward(lattice, p.tetrahedral, in, result, n);
      begin += n;
    }
  }
  Block<A> block;
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t n = std::min(kBlock, end - first);
    load(image, from, first, n, block);
    if constexpr (std::is_same_v<A, float>) {
      if (tables.packed) {
        pad(block, n);
        const float* in[3] = {block.channel[0], block.channel[1], block.channel[2]};
        float* result[3] = {block.channel[0], block.channel[1], block.channel[2]};
        simd_forward(lattice, p.tetrahedral, in, result, n);
        store(out, to, first, n, block);
        continue;
      }
    }
    p.tetrahedral ? scalar_forward<A, true>(lattice, block, n) : scalar_forward<A, false>(lattice, block, n);
    store(out, to, first, n, block);
  }
}

// Calls f(image, begin, end) for the pixels [begin, end) of all images in a row, image by image.
template <class F>
void for_each_image(const Problem& p, int64_t begin, int64_t end, const F& f) {
  while (begin < end) {
    const int64_t b = begin / p.pixels, stop = std::min(end, (b + 1) * p.pixels);
    f(b, begin - b * p.pixels, stop - b * p.pixels);
    begin = stop;
  }
}

template <class A, class T>
void run_forward(const Problem& p, const Tensor& image, const Tensor& lut, const std::optional<Tensor>& vertices,
                 const Tensor& out) {
  const Tables<A> tables(p, lut, vertices, std::is_same_v<A, float> && worth_packing(p));
  const auto source = pixels_of<T>(image), target = pixels_of<T>(out);
  const int64_t blocks = ceil_div(p.batch * p.pixels, kBlock);
  parallel_for(0, blocks, kGrain / kBlock, [&](int64_t begin, int64_t end) {
    for_each_image(
        p, begin * kBlock, std::min(end * kBlock, p.batch * p.pixels),
        [&](int64_t b, int64_t first, int64_t last) { forward_span<A, T>(p, tables, source, target, b, first, last); });
  });
}

Tensor forward(const Tensor& image, const Tensor& lut, const std::optional<Tensor>& vertices, bool tetrahedral) {
  const Problem p = check(image, lut, vertices, tetrahedral);
  const Tensor out = new_tensor(image, sizes_of(image), image.scalar_type(), is_channels_last(image));
  if (out.numel() == 0) return out;
  if (image.scalar_type() == ScalarType::Double) {
    run_forward<double, double>(p, image, lut, vertices, out);
  } else {
    dispatch_pixel(image.scalar_type(), "image", [&](auto pixel) {
      using T = decltype(pixel);
      if (computes_in_double(image, lut, vertices)) run_forward<double, T>(p, image, lut, vertices, out);
      else run_forward<float, T>(p, image, lut, vertices, out);
    });
  }
  return out;
}

// ---- backward ------------------------------------------------------------------------------------------------------

template <class A, class T>
void backward_span(const Problem& p, const Tables<A>& tables, const Pixels<T>& image, const Pixels<T>& grad,
                   const Pixels<T>* grad_image, const Sums& sums, int64_t b, int64_t begin, int64_t end) {
  const Lattice<A>& lattice = tables.lattice[tables.lattice.size() > 1 ? b : 0];
  Block<A> block, up;
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t n = std::min(kBlock, end - first), padded = ceil_div<int64_t>(n, 8) * 8;
    load(image, b * image.batch, first, n, block);
    load(grad, b * grad.batch, first, n, up);
    if constexpr (std::is_same_v<A, float>) {
      if (tables.packed) {
        pad(block, n);
        for (auto& channel : up.channel) std::fill(channel + n, channel + padded, 0.f);
        const float* in[3] = {block.channel[0], block.channel[1], block.channel[2]};
        const float* g[3] = {up.channel[0], up.channel[1], up.channel[2]};
        float* result[3] = {block.channel[0], block.channel[1], block.channel[2]};
        if (!grad_image) result[0] = nullptr;
        simd_backward(lattice, p.tetrahedral, in, g, result, sums, n);
        if (grad_image) store(*grad_image, b * grad_image->batch, first, n, block);
        continue;
      }
    }
    p.tetrahedral ? scalar_backward<A, true>(lattice, block, up, sums, n)
                  : scalar_backward<A, false>(lattice, block, up, sums, n);
    if (grad_image) store(*grad_image, b * grad_image->batch, first, n, block);
  }
}

// Writes to `grad` [count, 3, length] the sums of each of its tables: partial sums [parts, ...] in the order of the
// parts, so that the result does not depend on which thread was first. sums[part][i * step + c * hop] is element (c, i).
void reduce(const Tensor& grad, const double* sums, int64_t parts, int64_t part_size, int64_t count, int64_t length,
            int64_t step, int64_t hop) {
  const int64_t parts_each = parts / count;
  const auto write = [&](auto type) {
    using T = decltype(type);
    T* to = static_cast<T*>(grad.mutable_data_ptr());
    parallel_for(0, count * 3 * length, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t table = i / (3 * length), c = i / length % 3, k = i % length;
        double sum = 0;
        for (int64_t part = table * parts_each; part < (table + 1) * parts_each; ++part)
          sum += sums[part * part_size + k * step + c * hop];
        to[i] = T(sum);
      }
    });
  };
  if (grad.scalar_type() == ScalarType::Double) write(double());
  else dispatch_float(grad.scalar_type(), "gradient", write);
}

template <class A, class T>
void run_backward(const Problem& p, const Tensor& grad, const Tensor& image, const Tensor& lut,
                  const std::optional<Tensor>& vertices, const Tensor* grad_image, const Tensor* grad_lut,
                  const Tensor* grad_vertices) {
  const Tables<A> tables(p, lut, vertices, std::is_same_v<A, float> && worth_packing(p));
  const auto source = pixels_of<T>(image), upstream = pixels_of<T>(grad);
  const Pixels<T> target = grad_image ? pixels_of<T>(*grad_image) : Pixels<T>{};
  // Every part owns its sums. Parts follow from the sizes and the number of threads alone.
  const int64_t total = p.batch * p.pixels, per_table = total / p.tables();
  int64_t parts_each = ceil_div(per_table, kGrain);
  if (grad_lut || grad_vertices)
    parts_each = std::min(parts_each, ceil_div<int64_t>(torch::stable::get_num_threads(), p.tables()));
  const int64_t parts = parts_each * p.tables();
  const int64_t part_pixels = ceil_div(ceil_div(per_table, parts_each), int64_t(8)) * 8;
  const int64_t lut_size = grad_lut ? 4 * p.cells() : 0, vertex_size = grad_vertices ? 3 * p.size : 0;
  const Tensor scratch = new_tensor(image, {parts, lut_size + vertex_size}, ScalarType::Double);
  double* sums = scratch.mutable_data_ptr<double>();
  parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      double* own = sums + part * (lut_size + vertex_size);
      std::fill(own, own + lut_size + vertex_size, 0.0);
      const Sums into{grad_lut ? own : nullptr, grad_vertices ? own + lut_size : nullptr};
      const int64_t table = part / parts_each, slot = part % parts_each;
      const int64_t first = table * per_table + std::min(slot * part_pixels, per_table);
      const int64_t last = table * per_table + std::min((slot + 1) * part_pixels, per_table);
      for_each_image(p, first, last, [&](int64_t b, int64_t from, int64_t to) {
        backward_span<A, T>(p, tables, source, upstream, grad_image ? &target : nullptr, into, b, from, to);
      });
    }
  });
  const int64_t part_size = lut_size + vertex_size;
  if (grad_lut) reduce(*grad_lut, sums, parts, part_size, p.shared_lut ? 1 : p.batch, p.cells(), 4, 1);
  if (grad_vertices)
    reduce(*grad_vertices, sums + lut_size, parts, part_size, p.shared_vertices ? 1 : p.batch, p.size, 1, p.size);
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& image, const Tensor& lut,
                                            const std::optional<Tensor>& vertices, bool tetrahedral, bool need_image,
                                            bool need_lut, bool need_vertices) {
  const Problem p = check(image, lut, vertices, tetrahedral);
  check_gradient(grad, image);
  Gradients g(image, lut, vertices, need_image, need_lut, need_vertices);
  if (g.zero_if_empty(image)) return g.tuple();
  const auto run = [&](auto arithmetic, auto pixel) {
    run_backward<decltype(arithmetic), decltype(pixel)>(p, grad, image, lut, vertices, g.image_or_null(),
                                                        g.lut_or_null(), g.vertices_or_null());
  };
  if (image.scalar_type() == ScalarType::Double) run(double(), double());
  else
    dispatch_float(image.scalar_type(), "image", [&](auto pixel) {
      computes_in_double(image, lut, vertices) ? run(double(), pixel) : run(float(), pixel);
    });
  return g.tuple();
}

}  // namespace
}  // namespace pyops::lut3d

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("lut3d(Tensor image, Tensor lut, Tensor? vertices, bool tetrahedral) -> Tensor");
  m.def(
      "lut3d_backward(Tensor grad, Tensor image, Tensor lut, Tensor? vertices, bool tetrahedral, bool need_image, "
      "bool need_lut, bool need_vertices) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("lut3d", TORCH_BOX(&pyops::lut3d::forward));
  m.impl("lut3d_backward", TORCH_BOX(&pyops::lut3d::backward));
}
