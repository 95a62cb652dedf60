// lut3d on CUDA.
//
// Forward and gradient of the image: a thread takes four neighbouring pixels (16-byte accesses for float32) and gathers
// lattice points from the fastest place that holds the table. Blocks stay on their multiprocessor and walk the pixels,
// so a table in shared memory is staged once:
//
//     SharedHalf    float16 tables, 6 bytes a vertex (33^3: 216 KB, one block of 1024 threads on sm_90)
//     SharedFloat   others that fit, 12 bytes a vertex (17^3: 59 KB)
//     Packed        the rest, 16 bytes a vertex in global memory, through the first-level cache
//
// Gradient of the table: see lut_gradient.
#include "../common/fixed_point.cuh"
#include "../common/launch.cuh"
#include "../common/pixel.h"
#include "lut3d_args.h"

namespace pyops::lut3d {
namespace {

using fixed::add_global;
using fixed::add_shared;

// ---- pixels --------------------------------------------------------------------------------------------------------

enum Access : int { kScalar, kPlanar, kInterleaved };  // how four neighbouring pixels lie in memory

// Images of any element type. The type is a run-time value, the same for all threads: five instances of the arithmetic
// would take five times as long to compile and run no faster.
struct Images {
  Pixels<void> pixels;
  ScalarType type;
  Access access;
};

// Four-element words need alignment of the first pixel, of every channel and of every image.
Images images_of(const Tensor& t) {
  const Pixels<void> p = pixels_of<void>(t);
  const size_t word = 4 * t.element_size();
  const bool aligned = word <= 16 && reinterpret_cast<uintptr_t>(p.data) % word == 0 && p.batch % 4 == 0 && p.linear;
  const Access access = aligned && p.column == 1 && p.channel % 4 == 0 ? kPlanar
                        : aligned && p.column == 3 && p.channel == 1   ? kInterleaved
                                                                       : kScalar;
  return {p, t.scalar_type(), access};
}

template <int kBytes>
struct Word;
template <> struct Word<4> { using type = unsigned; };
template <> struct Word<8> { using type = uint2; };
template <> struct Word<16> { using type = uint4; };
template <> struct Word<32> { using type = uint4; };  // never used: doubles have no word

// Four elements at once, marked as not to be read again.
template <class T>
__device__ __forceinline__ void load4(T* to, const T* from) {
  using W = typename Word<4 * sizeof(T)>::type;
  const W word = __ldcs(reinterpret_cast<const W*>(from));
  memcpy(to, &word, sizeof word);
}

template <class T>
__device__ __forceinline__ void store4(T* to, const T* from) {
  using W = typename Word<4 * sizeof(T)>::type;
  W word;
  memcpy(&word, from, sizeof word);
  __stcs(reinterpret_cast<W*>(to), word);
}

// Where four neighbouring pixels of image b begin. Offsets are those of the first channel; pixels past the end have -1.
struct Reach {
  bool words;  // one word a channel (planar) or three words (interleaved) hold them
  int64_t word;
  int64_t offset[4];

  __device__ __forceinline__ Reach(const Images& images, int64_t b, int64_t first, int64_t pixels) {
    const Pixels<void>& p = images.pixels;
    words = images.access != kScalar && first + 4 <= pixels;
    word = b * p.batch + (images.access == kPlanar ? first : 3 * first);
    int64_t row = p.linear ? 0 : first / p.width, column = first - row * p.width;  // one division for the four
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      offset[j] = first + j < pixels ? b * p.batch + row * p.row + column * p.column : -1;
      if (++column == p.width && !p.linear) ++row, column = 0;
    }
  }
};

// Four pixels by channel, decoded. Pixels past the end of the image read as 0.
template <class A>
struct Quad {
  A channel[3][4];
};

template <class T, class A>
__device__ __forceinline__ void load_typed(const Images& images, const Reach& at, Quad<A>& quad) {
  const T* data = static_cast<const T*>(images.pixels.data);
  const int64_t channel = images.pixels.channel;
  T raw[12];
  bool planar = true;
  if (sizeof(T) <= 4 && at.words) {
    planar = images.access == kPlanar;
#pragma unroll
    for (int k = 0; k < 3; ++k) load4(raw + 4 * k, data + at.word + k * (planar ? channel : 4));
  } else {
#pragma unroll
    for (int k = 0; k < 12; ++k) raw[k] = at.offset[k % 4] < 0 ? T(0) : data[at.offset[k % 4] + k / 4 * channel];
  }
#pragma unroll
  for (int k = 0; k < 12; ++k) quad.channel[k / 4][k % 4] = decode<T, A>(planar ? raw[k] : raw[k % 4 * 3 + k / 4]);
}

template <class T, class A>
__device__ __forceinline__ void store_typed(const Images& images, const Reach& at, const Quad<A>& quad) {
  T* data = static_cast<T*>(images.pixels.data);
  const int64_t channel = images.pixels.channel;
  const bool planar = images.access != kInterleaved || !at.words;
  T raw[12];
#pragma unroll
  for (int k = 0; k < 12; ++k) raw[k] = encode<T, A>(planar ? quad.channel[k / 4][k % 4] : quad.channel[k % 3][k / 3]);
  if (sizeof(T) <= 4 && at.words) {
#pragma unroll
    for (int k = 0; k < 3; ++k) store4(data + at.word + k * (planar ? channel : 4), raw + 4 * k);
  } else {
#pragma unroll
    for (int k = 0; k < 12; ++k)
      if (at.offset[k % 4] >= 0) data[at.offset[k % 4] + k / 4 * channel] = raw[k];
  }
}

#define PYOPS_FOR_TYPE(access)                                                   \
  if constexpr (std::is_same_v<A, double>) {                                     \
    access<double>(images, at, quad);                                            \
  } else {                                                                       \
    switch (images.type) {                                                       \
      case ScalarType::Byte: return access<uint8_t>(images, at, quad);           \
      case ScalarType::UInt16: return access<uint16_t>(images, at, quad);        \
      case ScalarType::Half: return access<Half>(images, at, quad);              \
      case ScalarType::BFloat16: return access<BFloat16>(images, at, quad);      \
      default: return access<float>(images, at, quad);                           \
    }                                                                            \
  }

template <class A>
__device__ __forceinline__ void load(const Images& images, int64_t b, int64_t first, int64_t pixels, Quad<A>& quad) {
  const Reach at(images, b, first, pixels);
  PYOPS_FOR_TYPE(load_typed)
}

template <class A>
__device__ __forceinline__ void store(const Images& images, int64_t b, int64_t first, int64_t pixels, const Quad<A>& quad) {
  const Reach at(images, b, first, pixels);
  PYOPS_FOR_TYPE(store_typed)
}
#undef PYOPS_FOR_TYPE

// ---- tables --------------------------------------------------------------------------------------------------------

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
__host__ __device__ __forceinline__ int64_t axis_bytes(int size, bool uniform) {
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

struct SharedHalf {
  using Arithmetic = float;
  static constexpr int kThreads = 1024;
  static int64_t bytes(int64_t cells) { return ceil_div<int64_t>(6 * cells + 2, 4) * 4; }  // `point` reads whole words
  const uint32_t* words;

  __device__ SharedHalf(const TableSet<float>& set, int64_t t, char* shared) : words(reinterpret_cast<uint32_t*>(shared)) {
    const Half* from = static_cast<const Half*>(set.values) + t * set.stride;
    Half* to = reinterpret_cast<Half*>(shared);
    for (int c = 0; c < 3; ++c)
      for (int i = threadIdx.x; i < set.cells; i += blockDim.x) to[3 * i + c] = from[int64_t(c) * set.cells + i];
  }

  // A vertex begins on a word or in the middle of one: two words hold it either way.
  __device__ __forceinline__ void point(int vertex, float (&rgb)[3]) const {
    const int half = 3 * vertex, word = half >> 1;
    const uint32_t low = words[word], high = words[word + 1];
    const uint32_t first_two = __funnelshift_r(low, high, (half & 1) * 16), last = half & 1 ? high >> 16 : high & 0xffff;
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

  __device__ SharedFloat(const TableSet<float>& set, int64_t t, char* shared) : values(reinterpret_cast<float*>(shared)) {
    const float* from = static_cast<const float*>(set.values) + t * set.stride;
    float* to = reinterpret_cast<float*>(shared);
    for (int c = 0; c < 3; ++c)
      for (int i = threadIdx.x; i < set.cells; i += blockDim.x) to[3 * i + c] = from[int64_t(c) * set.cells + i];
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

// ---- forward, gradient of the image ----------------------------------------------------------------------------------

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

// Fixed-point sums over pixels: for table gradients one for each value of the table, for vertex gradients two for each
// cell of each axis. `poison` marks sums that met a value that is not finite.
struct FixedSums {
  uint64_t* sum;
  uint32_t* poison;
  const uint32_t* bound;      // bits of the largest finite |grad|
  const uint32_t* lut_bound;  // and of the largest finite |lut|
};

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
    const VertexSums sums{reinterpret_cast<uint32_t*>(own), reinterpret_cast<uint32_t*>(own) + slots, set.size - 1, copies};
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
              if (fixed::is_finite(both[which])) add_shared(sums.low + slot, sums.high + slot, fixed::quantise(both[which], e));
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
      if (sum != 0) add_global(vertex_sums.sum + t * vertex_table_stride + i / copies, sum);
    }
    __syncthreads();
  }
}

template <class T>
__device__ __forceinline__ T from_double(double v) {
  if constexpr (std::is_same_v<T, double>) return v;
  else return T(float(v));
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

// ---- gradient of the table -------------------------------------------------------------------------------------------

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
              add_global(sums + int64_t(c) * set.cells + cell, uint64_t(int64_t(fixed::quantise(v, e))));
            else add_shared(low + channel * slab_cells + cell, high + channel * slab_cells + cell, fixed::quantise(v, e));
          }
        }
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < slab_sums; i += blockDim.x) {
      const uint64_t sum = uint64_t(high[i]) << 32 | low[i];
      const int cell = first_cell + i % slab_cells;
      if (sum != 0) add_global(sums + int64_t(first_channel + i / slab_cells) * set.cells + cell, sum);
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

// ---- host side -------------------------------------------------------------------------------------------------------

template <class A>
constexpr ScalarType kArithmetic = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;

enum Storage { kSharedHalf, kSharedFloat, kPacked };

// Staging reads the whole table for each block: worth it for several pixels a cell.
Storage choose_storage(const Problem& p, const Tensor& lut, bool uniform, bool in_double, int64_t limit) {
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
  const int64_t most = Table::bytes(1) == 0 ? 0x7fffffff : ceil_div(resident_blocks(kernel, Table::kThreads, shared), rows);
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

template <class F>
void dispatch_any_float(const Tensor& t, const char* name, const F& f) {
  if (t.scalar_type() == ScalarType::Double) f(double());
  else dispatch_float(t.scalar_type(), name, f);
}

void launch_absolute_maximum(const Tensor& t, int64_t batch, int64_t pixels, uint32_t* result, cudaStream_t stream) {
  dispatch_any_float(t, "gradient", [&](auto value) {
    using T = decltype(value);
    // A tensor that is no image counts as one row of values.
    const Pixels<T> view = batch ? pixels_of<T>(t) : Pixels<T>{static_cast<T*>(t.mutable_data_ptr()), 0, 0, 0, 1, 1, true};
    launch("lut3d.absolute_maximum", fixed::absolute_maximum<T>, blocks_for(t.numel(), 256 * 16), 256, 0, stream, view,
           batch ? batch : 1, int64_t(batch ? 3 : 1), pixels, result);
  });
}

// Zeroed fixed-point sums, their poison marks and their bounds, in one allocation: [count sums | count marks | 2 bounds].
struct Workspace {
  Tensor memory;
  FixedSums sums;

  Workspace(const Tensor& like, int64_t count)
      : memory(new_tensor(like, {12 * count + 8}, ScalarType::Byte)) {
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
  launch_absolute_maximum(grad, p.batch, p.pixels, const_cast<uint32_t*>(workspace.sums.bound), stream);
  const Slabs slabs = Slabs::of(p.size, shared_memory_limit() - axes);
  const int64_t shared = axes + 8 * slabs.sums(p.size);
  const auto kernel = p.tetrahedral ? lut_gradient<A, true> : lut_gradient<A, false>;
  const int64_t rows = p.tables() < kMaxRows ? p.tables() : kMaxRows;
  const int64_t quads = p.batch / p.tables() * ceil_div<int64_t>(p.pixels, 4);
  const int64_t most = slabs.planes ? ceil_div(resident_blocks(kernel, kLutThreads, shared), slabs.count * rows) : 0x7fffffff;
  launch("lut3d_backward (lut)", kernel, dim3(blocks_for(quads, kLutThreads, most), slabs.count, unsigned(rows)), kLutThreads,
         shared, stream, set, images_of(image), images_of(grad), workspace.sums, p.shared_lut ? 0 : 3 * p.cells(), slabs);
  dispatch_any_float(grad_lut, "lut", [&](auto value) {
    using L = decltype(value);
    launch("lut3d_backward (lut sums)", finish_lut<L>, blocks_for(count, 256), 256, 0, stream, workspace.sums,
           static_cast<L*>(grad_lut.mutable_data_ptr()), count);
  });
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
    const Tensor values = contiguous_as(lut, lut.scalar_type());
    launch_absolute_maximum(grad, p.batch, p.pixels, const_cast<uint32_t*>(workspace.sums.bound), stream);
    launch_absolute_maximum(values, 0, values.numel(), const_cast<uint32_t*>(workspace.sums.lut_bound), stream);
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
    launch("lut3d_backward (vertices)", finish_vertices<A, V>, blocks_for(axes * p.size, 128), 128, 0, stream, workspace.sums,
           tables.set.vertices, static_cast<V*>(grad_vertices->mutable_data_ptr()), axes, p.size);
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
    run_backward<std::remove_pointer_t<decltype(table)>>(p, grad, image, lut, vertices, g.image_or_null(), g.lut_or_null(),
                                                         g.vertices_or_null(), storage, scope.stream());
  });
  return g.tuple();
}

}  // namespace
}  // namespace pyops::lut3d

PYOPS_CUDA_KERNELS(m) {
  m.impl("lut3d", TORCH_BOX(&pyops::lut3d::forward));
  m.impl("lut3d_backward", TORCH_BOX(&pyops::lut3d::backward));
}
