// lut3d on CUDA, forward: a thread maps four pixels a turn. For the tables see lut3d_tables.cuh, for the gradients
// lut3d_backward.cu (image, vertices) and lut3d_lut_gradient.cuh (table).
#include "../common/quads.cuh"
#include "lut3d_tables.cuh"

namespace pyops::lut3d {
namespace {

template <class Table, bool kTetrahedral>
__global__ void __launch_bounds__(Table::kThreads)
    forward_kernel(const TableSet<typename Table::Arithmetic> set, const Images image, const Images out) {
  using A = typename Table::Arithmetic;
  PYOPS_DYNAMIC_SHARED(char, shared);
  const int64_t quads = ceil_div<int64_t>(set.pixels, 4);
  for (int64_t t = blockIdx.y; t < set.tables; t += gridDim.y) {
    Axis<A> axis[3];
    const Table table(set, t, stage_axes(set, t, shared, axis));
    __syncthreads();
    for (int64_t i = global_thread(); i < set.images_each * quads; i += grid_threads()) {
      const int64_t b = t * set.images_each + i / quads, first = i % quads * 4;
      Quad<A> q;
      load(image, b, first, set.pixels, q);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const A value[3] = {q.channel[0][j], q.channel[1][j], q.channel[2][j]};
        const Spot<A> spot(value, axis);
        const Stencil<A, kTetrahedral> stencil(spot.f, set.size);
        A sum[3] = {0, 0, 0};
#pragma unroll
        for (int k = 0; k < stencil.kCorners; ++k) {
          A rgb[3];
          table.point(spot.origin + stencil.offset[k], rgb);
#pragma unroll
          for (int c = 0; c < 3; ++c) sum[c] += stencil.weight[k] * rgb[c];
        }
#pragma unroll
        for (int c = 0; c < 3; ++c) q.channel[c][j] = sum[c];
      }
      store(out, b, first, set.pixels, q);
    }
    __syncthreads();
  }
}

template <class Table>
void run_forward(const Problem& p, const Tensor& image, const Tensor& lut, const std::optional<Tensor>& vertices,
                 const Tensor& out, Storage storage, cudaStream_t stream) {
  using A = typename Table::Arithmetic;
  const DeviceTables<A> tables(p, lut, vertices, storage, stream);
  const int64_t shared = axis_bytes<A>(p.size, !p.has_vertices) + Table::bytes(p.cells());
  const auto kernel = p.tetrahedral ? forward_kernel<Table, true> : forward_kernel<Table, false>;
  launch("lut3d", kernel, pixel_grid<Table>(kernel, p, shared), Table::kThreads, shared, stream, tables.set,
         images_of(image), images_of(out));
}

Tensor forward(const Tensor& image, const Tensor& lut, const std::optional<Tensor>& vertices, bool tetrahedral) {
  const Problem p = check(image, lut, vertices, tetrahedral);
  const Tensor out = new_tensor(image, sizes_of(image), image.scalar_type(), is_channels_last(image));
  if (out.numel() == 0) return out;
  const DeviceScope scope(image);
  const bool in_double = image.scalar_type() == ScalarType::Double;
  const Storage storage = choose_storage(p, lut, !vertices, in_double, shared_memory_limit());
  dispatch_storage(storage, in_double, [&](auto* table) {
    run_forward<std::remove_pointer_t<decltype(table)>>(p, image, lut, vertices, out, storage, scope.stream());
  });
  return out;
}

}  // namespace
}  // namespace pyops::lut3d

PYOPS_CUDA_KERNELS(m) { m.impl("lut3d", TORCH_BOX(&pyops::lut3d::forward)); }
