// Gradient of the table: a scatter of 24 (tetrahedral: 12) addends a pixel into few cells, as sums in shared memory.
#pragma once

#include "../common/fixed_point.cuh"
#include "../common/quads.cuh"
#include "lut3d_tables.cuh"

namespace pyops::lut3d {
namespace {

// Fixed-point sums over pixels: for table gradients one for each value of the table, for vertex gradients two for each
// cell of each axis. `poison` marks sums that met a value that is not finite.
struct FixedSums {
  uint64_t* sum;
  uint32_t* poison;
  const uint32_t* bound;      // bits of the largest finite |grad|
  const uint32_t* lut_bound;  // and of the largest finite |lut|
};

template <class T>
__device__ __forceinline__ T from_double(double v) {
  if constexpr (std::is_same_v<T, double>) return v;
  else return T(float(v));
}

// A slab is a part of the table that fits shared memory as fixed-point sums: some planes of constant blue, of one
// channel or of all three. Block (x, slab, table) walks every gridDim.x-th run of pixels, adds what falls into its slab,
// and adds its sums to the global ones at the end: no global atomic for each pixel.
struct Slabs {
  int channels;  // of a slab: 3, or 1
  int planes;    // of a slab; 0: tables too large for slabs take one global atomic for each addend
  int count;

  static Slabs of(int size, int64_t limit) {
    const int64_t plane = int64_t(size) * size * sizeof(uint64_t);
    if (3 * plane * size <= limit) return {3, size, 1};
    const int planes = int(limit / plane < size ? limit / plane : size);
    if (planes == 0 || 3 * ceil_div(size, planes) > 12) return {1, 0, 3};
    return {1, planes, 3 * ceil_div(size, planes)};
  }
  __host__ __device__ int64_t sums(int size) const { return int64_t(channels) * planes * size * size; }
};

constexpr int kLutThreads = 512;

template <class A, bool kTetrahedral>
__global__ void __launch_bounds__(kLutThreads)
    lut_gradient(const TableSet<A> set, const Images image, const Images grad, const FixedSums total,
                 int64_t table_stride, const Slabs slabs) {
  PYOPS_DYNAMIC_SHARED(char, shared);
  const int e = fixed::exponent(__uint_as_float(*total.bound));
  const int first_channel = slabs.channels == 3 ? 0 : int(blockIdx.y) % 3;
  const int slab_cells = slabs.planes * set.size * set.size;
  const int first_cell = slabs.channels == 3 ? 0 : int(blockIdx.y) / 3 * slab_cells;
  const int slab_sums = int(slabs.sums(set.size));
  const int64_t quads = ceil_div<int64_t>(set.pixels, 4);
  for (int64_t t = blockIdx.z; t < set.tables; t += gridDim.z) {
    Axis<A> axis[3];
    uint32_t* const low = reinterpret_cast<uint32_t*>(stage_axes(set, t, shared, axis));
    uint32_t* const high = low + slab_sums;
    for (int i = threadIdx.x; i < 2 * slab_sums; i += blockDim.x) low[i] = 0;
    __syncthreads();
    uint64_t* const sums = total.sum + t * table_stride;
    for (int64_t i = global_thread(); i < set.images_each * quads; i += grid_threads()) {
      const int64_t b = t * set.images_each + i / quads, first = i % quads * 4;
      Quad<A> q, g;
      load(image, b, first, set.pixels, q);
      load(grad, b, first, set.pixels, g);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (first + j >= set.pixels) break;
        const A value[3] = {q.channel[0][j], q.channel[1][j], q.channel[2][j]};
        const Spot<A> spot(value, axis);
        const Stencil<A, kTetrahedral> stencil(spot.f, set.size);
#pragma unroll
        for (int k = 0; k < stencil.kCorners; ++k) {
          const int cell = spot.origin + stencil.offset[k] - first_cell;
          if (slabs.planes != 0 && (cell < 0 || cell >= slab_cells)) continue;
#pragma unroll
          for (int c = 0; c < 3; ++c) {
            const int channel = c - first_channel;
            if (channel < 0 || channel >= slabs.channels) continue;
            const float v = float(stencil.weight[k] * g.channel[c][j]);
            if (!fixed::is_finite(v)) total.poison[t * table_stride + int64_t(c) * set.cells + first_cell + cell] = 1;
            else if (slabs.planes == 0)
              fixed::add_global(sums + int64_t(c) * set.cells + cell, uint64_t(int64_t(fixed::quantise(v, e))));
            else
              fixed::add_shared(low + channel * slab_cells + cell, high + channel * slab_cells + cell,
                                fixed::quantise(v, e));
          }
        }
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < slab_sums; i += blockDim.x) {
      const uint64_t sum = uint64_t(high[i]) << 32 | low[i];
      const int cell = first_cell + i % slab_cells;
      if (sum != 0) fixed::add_global(sums + int64_t(first_channel + i / slab_cells) * set.cells + cell, sum);
    }
    __syncthreads();
  }
}

template <class L>
__global__ void finish_lut(const FixedSums sums, L* grad, int64_t count) {
  const int e = fixed::exponent(__uint_as_float(*sums.bound));
  for (int64_t i = global_thread(); i < count; i += grid_threads())
    grad[i] = from_double<L>(sums.poison[i] ? double(NAN) : fixed::value(sums.sum[i], e));
}

template <class F>
void dispatch_any_float(const Tensor& t, const char* name, const F& f) {
  if (t.scalar_type() == ScalarType::Double) f(double());
  else dispatch_float(t.scalar_type(), name, f);
}

template <class A>
void launch_absolute_maximum(const Images& images, int64_t batch, int64_t pixels, const uint32_t* result,
                             cudaStream_t stream) {
  launch("lut3d_backward (bounds)", fixed::absolute_maximum<A>,
         blocks_for(batch * ceil_div<int64_t>(pixels, 4), 256 * 4), 256, 0, stream, images, batch, pixels,
         const_cast<uint32_t*>(result));
}

// Zeroed fixed-point sums, their poison marks and their bounds, in one allocation: [count sums | count marks | 2 bounds].
struct Workspace {
  Tensor memory;
  FixedSums sums;

  Workspace(const Tensor& like, int64_t count) : memory(new_tensor(like, {12 * count + 8}, ScalarType::Byte)) {
    torch::stable::zero_(memory);
    auto* bytes = memory.mutable_data_ptr<uint8_t>();
    auto* words = reinterpret_cast<uint32_t*>(bytes + 8 * count);
    sums = {reinterpret_cast<uint64_t*>(bytes), words, words + count, words + count + 1};
  }
};

template <class A>
void run_lut_gradient(const Problem& p, const Tensor& grad, const Tensor& image, const Tensor& lut,
                      const TableSet<A>& set, const Tensor& grad_lut, cudaStream_t stream) {
  const int64_t count = grad_lut.numel(), axes = axis_bytes<A>(p.size, !p.has_vertices);
  const Workspace workspace(lut, count);
  launch_absolute_maximum<A>(images_of(grad), p.batch, p.pixels, workspace.sums.bound, stream);
  const Slabs slabs = Slabs::of(p.size, shared_memory_limit() - axes);
  const int64_t shared = axes + 8 * slabs.sums(p.size);
  const auto kernel = p.tetrahedral ? lut_gradient<A, true> : lut_gradient<A, false>;
  const int64_t rows = p.tables() < kMaxRows ? p.tables() : kMaxRows;
  const int64_t quads = p.batch / p.tables() * ceil_div<int64_t>(p.pixels, 4);
  const int64_t most =
      slabs.planes ? ceil_div(resident_blocks(kernel, kLutThreads, shared), slabs.count * rows) : 0x7fffffff;
  launch("lut3d_backward (lut)", kernel, dim3(blocks_for(quads, kLutThreads, most), slabs.count, unsigned(rows)),
         kLutThreads, shared, stream, set, images_of(image), images_of(grad), workspace.sums,
         p.shared_lut ? 0 : 3 * p.cells(), slabs);
  dispatch_any_float(grad_lut, "lut", [&](auto value) {
    using L = decltype(value);
    launch("lut3d_backward (lut sums)", finish_lut<L>, blocks_for(count, 256), 256, 0, stream, workspace.sums,
           static_cast<L*>(grad_lut.mutable_data_ptr()), count);
  });
}

}  // namespace
}  // namespace pyops::lut3d
