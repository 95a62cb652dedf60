// lut3d on CUDA, gradients. Those of the image need no sums; those of the vertices are fixed-point sums of each cell of
// each axis; those of the table are in lut3d_lut_gradient.cuh.
#include "lut3d_lut_gradient.cuh"

namespace pyops::lut3d {
namespace {

// A slope is a sum of three products of a gradient and a difference of two table values.
__device__ __forceinline__ int slope_exponent(const FixedSums& sums) {
  const int e = fixed::exponent(__uint_as_float(*sums.bound)) + fixed::exponent(__uint_as_float(*sums.lut_bound)) - 33;
  return e > 126 ? 126 : e;  // 30 = (30 + 30) - 33 + 3, and 2^3 > 3 * 2
}

// Vertex gradients of a block. Sum (axis, cell, which) has `copies` slots so that lanes of a warp that meet in one cell,
// as neighbours in an image do, seldom meet in one address.
struct VertexSums {
  uint32_t *low, *high;
  int cells, copies;

  __device__ int slot(int axis, int cell, int which) const { return ((axis * cells + cell) * 2 + which) * copies; }
  static __host__ __device__ int64_t slots(int size, int copies) { return int64_t(3) * (size - 1) * 2 * copies; }
};

template <class Table, bool kTetrahedral>
__global__ void __launch_bounds__(Table::kThreads)
    backward_kernel(const TableSet<typename Table::Arithmetic> set, const Images image, const Images grad,
                    const Images grad_image, const FixedSums vertex_sums, int64_t vertex_table_stride, int copies) {
  using A = typename Table::Arithmetic;
  PYOPS_DYNAMIC_SHARED(char, shared);
  const int64_t quads = ceil_div<int64_t>(set.pixels, 4);
  constexpr bool kCanSum = std::is_same_v<Table, Packed<A>>;  // else the table has the shared memory
  const bool vertices_wanted = kCanSum && vertex_sums.sum != nullptr;
  const int e = vertices_wanted ? slope_exponent(vertex_sums) : 0;
  for (int64_t t = blockIdx.y; t < set.tables; t += gridDim.y) {
    Axis<A> axis[3];
    char* const own = stage_axes(set, t, shared, axis);
    const Table table(set, t, own);
    const int64_t slots = vertices_wanted ? VertexSums::slots(set.size, copies) : 0;
    const VertexSums sums{reinterpret_cast<uint32_t*>(own), reinterpret_cast<uint32_t*>(own) + slots, set.size - 1,
                          copies};
    for (int64_t i = threadIdx.x; i < 2 * slots; i += blockDim.x) sums.low[i] = 0;
    __syncthreads();
    for (int64_t i = global_thread(); i < set.images_each * quads; i += grid_threads()) {
      const int64_t b = t * set.images_each + i / quads, first = i % quads * 4;
      Quad<A> q, g;
      load(image, b, first, set.pixels, q);
      load(grad, b, first, set.pixels, g);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const A value[3] = {q.channel[0][j], q.channel[1][j], q.channel[2][j]};
        const Spot<A> spot(value, axis);
        const Stencil<A, kTetrahedral> stencil(spot.f, set.size);
        A s[stencil.kCorners], slope[3];
#pragma unroll
        for (int k = 0; k < stencil.kCorners; ++k) {
          A rgb[3];
          table.point(spot.origin + stencil.offset[k], rgb);
          s[k] = rgb[0] * g.channel[0][j] + rgb[1] * g.channel[1][j] + rgb[2] * g.channel[2][j];
        }
        stencil.slopes(s, slope);
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          if (kCanSum && vertices_wanted && first + j < set.pixels) {
            const float both[2] = {float(slope[c]), float(slope[c] * spot.f[c])};
            for (int which = 0; which < 2; ++which) {
              const int slot = sums.slot(c, spot.place[c].cell, which) + threadIdx.x % copies;
              if (fixed::is_finite(both[which]))
                fixed::add_shared(sums.low + slot, sums.high + slot, fixed::quantise(both[which], e));
              else vertex_sums.poison[t * vertex_table_stride + slot / copies] = 1;
            }
          }
          q.channel[c][j] = spot.place[c].slope != 0 ? slope[c] * spot.place[c].slope : A(0);
        }
      }
      if (grad_image.pixels.data != nullptr) store(grad_image, b, first, set.pixels, q);
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < slots; i += blockDim.x) {
      const uint64_t sum = uint64_t(sums.high[i]) << 32 | sums.low[i];
      if (sum != 0) fixed::add_global(vertex_sums.sum + t * vertex_table_stride + i / copies, sum);
    }
    __syncthreads();
  }
}

// From sums over cells to the gradient of vertex i: the cell above it gave -(1 - f) * slope / width, the one below
// -f * slope / width.
template <class A, class V>
__global__ void finish_vertices(const FixedSums sums, const A* vertices, V* grad, int64_t axes, int size) {
  const int e = slope_exponent(sums);
  for (int64_t i = global_thread(); i < axes * size; i += grid_threads()) {
    const int64_t axis = i / size;
    const int vertex = int(i % size);
    double total = 0;
    for (int cell = vertex - 1; cell <= vertex; ++cell) {
      if (cell < 0 || cell > size - 2) continue;
      const int64_t at = (axis * (size - 1) + cell) * 2;
      const A width = vertices[axis * size + cell + 1] - vertices[axis * size + cell];
      const double s = fixed::value(sums.sum[at], e), fs = fixed::value(sums.sum[at + 1], e);
      if (sums.poison[at] || sums.poison[at + 1]) total = NAN;
      if (width > A(0)) total -= (cell == vertex ? s - fs : fs) / double(width);
    }
    grad[i] = from_double<V>(total);
  }
}

template <class Table>
void run_backward(const Problem& p, const Tensor& grad, const Tensor& image, const Tensor& lut,
                  const std::optional<Tensor>& vertices, const Tensor* grad_image, const Tensor* grad_lut,
                  const Tensor* grad_vertices, Storage storage, cudaStream_t stream) {
  using A = typename Table::Arithmetic;
  const DeviceTables<A> tables(p, lut, vertices, storage, stream);
  if (grad_lut) run_lut_gradient<A>(p, grad, image, lut, tables.set, *grad_lut, stream);
  if (!grad_image && !grad_vertices) return;

  const int64_t cells = grad_vertices ? grad_vertices->numel() / p.size * (p.size - 1) * 2 : 0;
  Workspace workspace(image, cells);
  int64_t shared = axis_bytes<A>(p.size, !p.has_vertices);
  int copies = 32;
  if (grad_vertices) {
    while (copies > 1 && 8 * VertexSums::slots(p.size, copies) > 64 * 1024) copies /= 2;
    shared += 8 * VertexSums::slots(p.size, copies);
    launch_absolute_maximum<A>(images_of(grad), p.batch, p.pixels, workspace.sums.bound, stream);
    const Tensor values = contiguous_as(lut, kArithmetic<A>);  // as one image of three channels
    const int64_t third = values.numel() / 3;
    const Pixels<void> all{values.mutable_data_ptr(), 0, third, 0, 1, third, true};
    launch_absolute_maximum<A>({all, kArithmetic<A>, kScalar}, 1, third, workspace.sums.lut_bound, stream);
  } else {
    shared += Table::bytes(p.cells());
    workspace.sums.sum = nullptr;
  }
  const auto kernel = p.tetrahedral ? backward_kernel<Table, true> : backward_kernel<Table, false>;
  dim3 grid = pixel_grid<Table>(kernel, p, shared);
  if (grad_vertices) {
    const int64_t resident = ceil_div(resident_blocks(kernel, Table::kThreads, shared), int64_t(grid.y));
    grid.x = unsigned(grid.x < resident ? grid.x : resident);  // each block flushes its sums once
  }
  launch("lut3d_backward (image)", kernel, grid, Table::kThreads, shared, stream, tables.set, images_of(image),
         images_of(grad), grad_image ? images_of(*grad_image) : Images{}, workspace.sums,
         p.shared_vertices ? int64_t(0) : int64_t(3) * (p.size - 1) * 2, copies);
  if (!grad_vertices) return;
  dispatch_any_float(*grad_vertices, "vertices", [&](auto value) {
    using V = decltype(value);
    const int64_t axes = grad_vertices->numel() / p.size;
    launch("lut3d_backward (vertices)", finish_vertices<A, V>, blocks_for(axes * p.size, 128), 128, 0, stream,
           workspace.sums, tables.set.vertices, static_cast<V*>(grad_vertices->mutable_data_ptr()), axes, p.size);
  });
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& image, const Tensor& lut,
                                            const std::optional<Tensor>& vertices, bool tetrahedral, bool need_image,
                                            bool need_lut, bool need_vertices) {
  const Problem p = check(image, lut, vertices, tetrahedral);
  check_gradient(grad, image);
  Gradients g(image, lut, vertices, need_image, need_lut, need_vertices);
  if (g.zero_if_empty(image)) return g.tuple();
  const DeviceScope scope(image);
  const bool in_double = image.scalar_type() == ScalarType::Double;
  // Shared memory goes to the vertex sums where those are wanted.
  const Storage storage = choose_storage(p, lut, !vertices, in_double || g.vertices_wanted(), shared_memory_limit());
  dispatch_storage(storage, in_double, [&](auto* table) {
    run_backward<std::remove_pointer_t<decltype(table)>>(p, grad, image, lut, vertices, g.image_or_null(),
                                                         g.lut_or_null(), g.vertices_or_null(), storage,
                                                         scope.stream());
  });
  return g.tuple();
}

}  // namespace
}  // namespace pyops::lut3d

PYOPS_CUDA_KERNELS(m) { m.impl("lut3d_backward", TORCH_BOX(&pyops::lut3d::backward)); }
