// Tables of lut3d on the device. A kernel gathers lattice points from the fastest place that holds its table. Blocks stay
// on their multiprocessor and walk the pixels, so a table in shared memory is staged once:
//
//     SharedHalf    float16 tables, 6 bytes a vertex (33^3: 216 KB, one block of 1024 threads on sm_90)
//     SharedFloat   others that fit, 12 bytes a vertex (17^3: 59 KB)
//     Packed        the rest, 16 bytes a vertex in global memory, through the first-level cache
#pragma once

#include "../common/launch.cuh"
#include "lut3d_args.h"

namespace pyops::lut3d {
namespace {

// What the kernels know of the tables of a call; table t serves images t * images_each and following.
template <class A>
struct TableSet {
  const void* values;  // planar [tables][3][N^3] or packed [tables][N^3][4]
  int64_t stride;      // elements from one table to the next, 0 if shared
  const A* vertices;   // [tables][3][N], null for uniform axes
  int64_t vertex_stride;
  int64_t tables, images_each, pixels;
  int size, cells;
};

// Bytes of shared memory that the axes take in front of a kernel's own.
template <class A>
PYOPS_HD int64_t axis_bytes(int size, bool uniform) {
  return uniform ? 0 : ceil_div<int64_t>(3 * size * sizeof(A) + 3 * kBuckets, 16) * 16;
}

// Copies the axes of table t to shared memory and builds their lookup tables. Returns the memory after them.
template <class A>
__device__ __forceinline__ char* stage_axes(const TableSet<A>& set, int64_t t, char* shared, Axis<A> (&axis)[3]) {
  const bool uniform = set.vertices == nullptr;
  A* vertices = reinterpret_cast<A*>(shared);
  uint8_t* start = reinterpret_cast<uint8_t*>(vertices + 3 * set.size);
  for (int c = 0; c < 3; ++c)
    axis[c] = {set.size, uniform ? nullptr : vertices + c * set.size, uniform ? nullptr : start + c * kBuckets};
  if (!uniform) {
    const A* from = set.vertices + t * set.vertex_stride;
    for (int i = threadIdx.x; i < 3 * set.size; i += blockDim.x) vertices[i] = from[i];
    for (int i = threadIdx.x; i < 3 * kBuckets; i += blockDim.x)
      start[i] = first_cell(from + i / kBuckets * set.size, set.size, i % kBuckets);
  }
  return shared + axis_bytes<A>(set.size, uniform);
}

// Copies the planar values of table t to shared memory, three to a vertex.
template <class S>
__device__ __forceinline__ void stage_values(const TableSet<float>& set, int64_t t, char* shared) {
  const S* from = static_cast<const S*>(set.values) + t * set.stride;
  S* to = reinterpret_cast<S*>(shared);
  for (int c = 0; c < 3; ++c)
    for (int i = threadIdx.x; i < set.cells; i += blockDim.x) to[3 * i + c] = from[int64_t(c) * set.cells + i];
}

struct SharedHalf {
  using Arithmetic = float;
  static constexpr int kThreads = 1024;
  static int64_t bytes(int64_t cells) { return ceil_div<int64_t>(6 * cells + 2, 4) * 4; }  // `point` reads whole words
  const uint32_t* words;

  __device__ SharedHalf(const TableSet<float>& set, int64_t t, char* shared)
      : words(reinterpret_cast<uint32_t*>(shared)) {
    stage_values<Half>(set, t, shared);
  }

  // A vertex begins on a word or in the middle of one: two words hold it either way.
  __device__ __forceinline__ void point(int vertex, float (&rgb)[3]) const {
    const int half = 3 * vertex, word = half >> 1;
    const uint32_t low = words[word], high = words[word + 1];
    const uint32_t first_two = __funnelshift_r(low, high, (half & 1) * 16),
                   last = half & 1 ? high >> 16 : high & 0xffff;
    rgb[0] = float(Half(uint16_t(first_two & 0xffff), Half::from_bits()));
    rgb[1] = float(Half(uint16_t(first_two >> 16), Half::from_bits()));
    rgb[2] = float(Half(uint16_t(last), Half::from_bits()));
  }
};

struct SharedFloat {
  using Arithmetic = float;
  static constexpr int kThreads = 512;
  static int64_t bytes(int64_t cells) { return 12 * cells; }
  const float* values;

  __device__ SharedFloat(const TableSet<float>& set, int64_t t, char* shared)
      : values(reinterpret_cast<float*>(shared)) {
    stage_values<float>(set, t, shared);
  }

  __device__ __forceinline__ void point(int vertex, float (&rgb)[3]) const {
#pragma unroll
    for (int c = 0; c < 3; ++c) rgb[c] = values[3 * vertex + c];
  }
};

template <class A>
struct Packed {
  using Arithmetic = A;
  static constexpr int kThreads = 256;
  static int64_t bytes(int64_t) { return 0; }
  struct alignas(16) Vertex {
    A rgb[4];
  };
  const Vertex* vertices;

  __device__ Packed(const TableSet<A>& set, int64_t t, char*)
      : vertices(static_cast<const Vertex*>(set.values) + t * set.stride / 4) {}

  __device__ __forceinline__ void point(int vertex, A (&rgb)[3]) const {
    const Vertex v = vertices[vertex];
    rgb[0] = v.rgb[0], rgb[1] = v.rgb[1], rgb[2] = v.rgb[2];
  }
};

template <class A>
__global__ void pack(const A* planar, A* packed, int64_t cells, int64_t count) {
  for (int64_t i = global_thread(); i < count; i += grid_threads()) {
    const int64_t table = i / cells, vertex = i % cells;
    for (int c = 0; c < 4; ++c) packed[4 * i + c] = c < 3 ? planar[(3 * table + c) * cells + vertex] : A(0);
  }
}

// The cell of one pixel and its place in it.
template <class A>
struct Spot {
  Place<A> place[3];
  A f[3];
  int origin;

  __device__ Spot(const A (&value)[3], const Axis<A> (&axis)[3]) : origin(0) {
#pragma unroll
    for (int c = 2; c >= 0; --c) {
      place[c] = locate(value[c], axis[c]);
      f[c] = place[c].fraction, origin = origin * axis[c].size + place[c].cell;
    }
  }
};

// ---- host side -------------------------------------------------------------------------------------------------------

template <class A>
constexpr ScalarType kArithmetic = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;

enum Storage { kSharedHalf, kSharedFloat, kPacked };

// Staging reads the whole table for each block: worth it for several pixels a cell.
inline Storage choose_storage(const Problem& p, const Tensor& lut, bool uniform, bool in_double, int64_t limit) {
  const int64_t room = limit - axis_bytes<float>(p.size, uniform), cells = p.cells();
  if (in_double || p.pixels * p.batch / p.tables() < 4 * cells) return kPacked;
  if (lut.scalar_type() == ScalarType::Half && SharedHalf::bytes(cells) <= room) return kSharedHalf;
  return SharedFloat::bytes(cells) <= room ? kSharedFloat : kPacked;
}

// The tables of a call on the device, in the form that the chosen storage reads.
template <class A>
struct DeviceTables {
  Tensor values, vertices;
  TableSet<A> set;

  DeviceTables(const Problem& p, const Tensor& lut, const std::optional<Tensor>& vertex_tensor, Storage storage,
               cudaStream_t stream)
      : values(contiguous_as(lut, storage == kSharedHalf ? ScalarType::Half : kArithmetic<A>)), vertices(values) {
    const int64_t cells = p.cells(), luts = p.shared_lut ? 1 : p.batch;
    if (storage == kPacked) {
      const Tensor planar = values;
      values = new_tensor(planar, {luts, cells, 4}, kArithmetic<A>);
      launch("lut3d.pack", pack<A>, blocks_for(luts * cells, 256), 256, 0, stream, planar.template const_data_ptr<A>(),
             values.template mutable_data_ptr<A>(), cells, luts * cells);
    }
    if (p.has_vertices) vertices = contiguous_as(*vertex_tensor, kArithmetic<A>);
    set = {values.const_data_ptr(),
           p.shared_lut ? 0 : (storage == kPacked ? 4 : 3) * cells,
           p.has_vertices ? vertices.template const_data_ptr<A>() : nullptr,
           p.shared_vertices ? 0 : int64_t(3) * p.size,
           p.tables(),
           p.batch / p.tables(),
           p.pixels,
           p.size,
           int(cells)};
  }
};

constexpr int64_t kMaxRows = 65535;  // limit of gridDim.y and gridDim.z

template <class Table, class Kernel>
dim3 pixel_grid(Kernel kernel, const Problem& p, int64_t shared) {
  const int64_t quads = p.batch / p.tables() * ceil_div<int64_t>(p.pixels, 4);
  const int64_t rows = p.tables() < kMaxRows ? p.tables() : kMaxRows;
  const int64_t most =
      Table::bytes(1) == 0 ? 0x7fffffff : ceil_div(resident_blocks(kernel, Table::kThreads, shared), rows);
  return dim3(blocks_for(quads, Table::kThreads, most), unsigned(rows));
}

// Calls f(Table*) with the class of the chosen storage.
template <class F>
void dispatch_storage(Storage storage, bool in_double, const F& f) {
  if (in_double) f(static_cast<Packed<double>*>(nullptr));
  else if (storage == kSharedHalf) f(static_cast<SharedHalf*>(nullptr));
  else if (storage == kSharedFloat) f(static_cast<SharedFloat*>(nullptr));
  else f(static_cast<Packed<float>*>(nullptr));
}

}  // namespace
}  // namespace pyops::lut3d
