// lut3d for eight pixels at a time on a CPU: the same steps as lut3d.h, with the table packed to four floats a vertex.
//
//     packed[4 * vertex + c], c = red, green, blue, (unused)
//
// so that one 256-bit load brings the two ends of an edge along red, and four of them a whole cell. Pixels k and
// k + 4 share vectors where a pixel needs four lanes; `transpose` then brings results back to one vector a channel.
#pragma once

#include <type_traits>

#include "../common/simd.h"
#include "lut3d.h"

namespace pyops::lut3d {

template <class A>
struct Lattice {
  const A* values;  // planar [3][N^3] for the scalar code, packed [N^3][4] for the code in this file
  int size;
  Axis<A> axis[3];
  int steps[3];  // most steps that `locate` can take from the start of a bucket
};

// Sums over pixels, in double: table gradient [N^3][4] and vertex gradient [3][N]; null where not wanted.
struct Sums {
  double* lut;
  double* vertices;
};

// Adds what one pixel's `slope` (dL / d fraction) on one axis means for the two vertices around it.
template <class A>
PYOPS_HD void add_vertex_gradient(double* sums, const Axis<A>& axis, int cell, A fraction, A slope) {
  const A width = axis.vertices[cell + 1] - axis.vertices[cell];
  const double per_unit = width > A(0) ? double(slope) / width : 0.0;
  sums[cell] -= (1 - double(fraction)) * per_unit;
  sums[cell + 1] -= double(fraction) * per_unit;
}

namespace simd_detail {
using namespace simd;

struct Places {
  i32x8 cell[3], inside[3];
  f32x8 fraction[3], scale[3];
};

// `locate` for eight values of an irregular axis: every lane takes as many steps as any could need, without branches.
PYOPS_HD void locate_irregular(f32x8 v, const Axis<float>& axis, int steps, i32x8& cells, f32x8& fraction,
                               f32x8& scale) {
  const int last = axis.size - 2;
  const f32x8 zero = splat(0.f), one = splat(1.f);
  alignas(32) int32_t bucket[8], cell[8];
  alignas(32) float value[8], lower[8], upper[8];
  store(bucket, truncate(select(v < one, v, zero) * float(kBuckets))), store(value, v);
  for (int i = 0; i < 8; ++i) cell[i] = axis.start[bucket[i]];
  for (int step = 0; step < steps; ++step)
    for (int i = 0; i < 8; ++i) cell[i] += (cell[i] < last) & (axis.vertices[cell[i] + 1] <= value[i]);
  cells = select(v < one, load<i32x8>(cell), splat(last));  // NaN takes the last cell too
  store(cell, cells);
  for (int i = 0; i < 8; ++i) lower[i] = axis.vertices[cell[i]], upper[i] = axis.vertices[cell[i] + 1];
  const f32x8 width = load<f32x8>(upper) - load<f32x8>(lower), rest = v - load<f32x8>(lower);
  fraction = select(width > zero, rest / width, rest);
  scale = select(width > zero, one / width, zero);
}

template <bool kUniform>
PYOPS_HD Places locate(const float* const (&in)[3], int64_t i, const Lattice<float>& lattice) {
  Places p;
  const f32x8 zero = splat(0.f), one = splat(1.f);
  const f32x8 last = splat(float(lattice.size - 2)), scale = splat(float(lattice.size - 1));
  for (int c = 0; c < 3; ++c) {
    const f32x8 value = load<f32x8>(in[c] + i);
    p.inside[c] = (value >= zero) & (value <= one);
    const f32x8 v = select(value < zero, zero, select(value > one, one, value));
    if constexpr (kUniform) {
      const f32x8 t = v * scale;
      p.cell[c] = truncate(select(t < scale, t, last));
      p.fraction[c] = t - to_float(p.cell[c]);
      p.scale[c] = scale;
    } else {
      locate_irregular(v, lattice.axis[c], lattice.steps[c], p.cell[c], p.fraction[c], p.scale[c]);
    }
  }
  return p;
}

// Byte offset of the first corner of each cell in the packed table.
PYOPS_HD i32x8 origin(const Places& p, int size) { return (p.cell[0] + size * (p.cell[1] + size * p.cell[2])) * 16; }

// Corners of the tetrahedron of each pixel, see Stencil<A, true>.
struct Path {
  i32x8 offset[4], red_first, green_first, green_last, blue_last;
  f32x8 weight[4];

  PYOPS_HD Path(const Places& p, int size) {
    const f32x8 r = p.fraction[0], g = p.fraction[1], b = p.fraction[2];
    const i32x8 rg = r >= g, gb = g >= b, rb = r >= b;
    red_first = rg & rb, green_first = ~rg & gb, green_last = rg & ~gb, blue_last = gb & rb;
    const f32x8 high = select(red_first, r, select(green_first, g, b));
    const f32x8 low = select(blue_last, b, select(green_last, g, r));
    const f32x8 mid = middle(r, g, b);
    const i32x8 sr = splat(16), sg = splat(16 * size), sb = splat(16 * size * size);
    offset[0] = origin(p, size);
    offset[1] = offset[0] + select(red_first, sr, select(green_first, sg, sb));
    offset[3] = offset[0] + 16 * (1 + size + size * size);
    offset[2] = offset[3] - select(blue_last, sb, select(green_last, sg, sr));
    weight[0] = 1.f - high, weight[1] = high - mid, weight[2] = mid - low, weight[3] = low;
  }

  // The one of (r, g, b) that is neither first nor last.
  PYOPS_HD f32x8 middle(f32x8 r, f32x8 g, f32x8 b) const {
    const i32x8 red_last = ~(blue_last | green_last);
    return select(~(red_first | red_last), r, select(~(green_first | green_last), g, b));
  }

  PYOPS_HD void slopes(f32x8 high, f32x8 mid, f32x8 low, f32x8 (&d)[3]) const {
    const i32x8 red_last = ~(blue_last | green_last), blue_first = ~(red_first | green_first);
    d[0] = select(red_first, high, select(red_last, low, mid));
    d[1] = select(green_first, high, select(green_last, low, mid));
    d[2] = select(blue_first, high, select(blue_last, low, mid));
  }
};

template <class T>
PYOPS_HD T* at_byte(T* table, uint32_t offset) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(table) + offset);
}

// Vertices of pixel k (low half) and pixel k + 4 (high half).
PYOPS_HD f32x8 load_pair(const float* packed, const uint32_t* at, int k) {
  return concat(load<f32x4>(at_byte(packed, at[k])), load<f32x4>(at_byte(packed, at[k + 4])));
}

// The four red edges of a pixel's cell, each (red 0 | red 1), blended along green and blue. `dg` and `db` are the
// derivatives along those axes.
struct Edges {
  f32x8 value, dg, db;

  PYOPS_HD Edges(const float* cell, int size, float g, float b) {
    const int64_t row = 4 * size, plane = row * size;
    const f32x8 e00 = load<f32x8>(cell), e10 = load<f32x8>(cell + row);
    const f32x8 e01 = load<f32x8>(cell + plane), e11 = load<f32x8>(cell + plane + row);
    const f32x8 d0 = e10 - e00, d1 = e11 - e01;
    const f32x8 low = e00 + d0 * splat(g), high = e01 + d1 * splat(g);
    db = high - low;
    dg = d0 + (d1 - d0) * splat(b);
    value = low + db * splat(b);
  }
};

template <int k>
PYOPS_HD f32x8 trilinear_pair(const float* packed, int size, const uint32_t* at, const float* g, const float* b,
                              f32x8 r) {
  const Edges near(at_byte(packed, at[k]), size, g[k], b[k]);
  const Edges far(at_byte(packed, at[k + 4]), size, g[k + 4], b[k + 4]);
  const f32x8 low = lows(near.value, far.value), high = highs(near.value, far.value);
  return low + (high - low) * repeat<k>(r);
}

template <int k>
PYOPS_HD f32x8 tetrahedral_pair(const float* packed, const uint32_t (&at)[4][8], const Path& path) {
  f32x8 sum = load_pair(packed, at[0], k) * repeat<k>(path.weight[0]);
  sum += load_pair(packed, at[1], k) * repeat<k>(path.weight[1]);
  sum += load_pair(packed, at[2], k) * repeat<k>(path.weight[2]);
  return sum + load_pair(packed, at[3], k) * repeat<k>(path.weight[3]);
}

template <bool kTetrahedral, bool kUniform>
PYOPS_HD void forward(const Lattice<float>& lattice, const float* const (&in)[3], float* const (&out)[3], int64_t n) {
  const float* packed = lattice.values;
  const int size = lattice.size;
  for (int64_t i = 0; i < n; i += 8) {
    const Places p = locate<kUniform>(in, i, lattice);
    f32x8 rgb[4], channel[3];
    if constexpr (kTetrahedral) {
      const Path path(p, size);
      alignas(32) uint32_t at[4][8];
      for (int k = 0; k < 4; ++k) store(at[k], path.offset[k]);
      rgb[0] = tetrahedral_pair<0>(packed, at, path), rgb[1] = tetrahedral_pair<1>(packed, at, path);
      rgb[2] = tetrahedral_pair<2>(packed, at, path), rgb[3] = tetrahedral_pair<3>(packed, at, path);
    } else {
      alignas(32) uint32_t at[8];
      alignas(32) float g[8], b[8];
      store(at, origin(p, size)), store(g, p.fraction[1]), store(b, p.fraction[2]);
      const f32x8 r = p.fraction[0];
      rgb[0] = trilinear_pair<0>(packed, size, at, g, b, r), rgb[1] = trilinear_pair<1>(packed, size, at, g, b, r);
      rgb[2] = trilinear_pair<2>(packed, size, at, g, b, r), rgb[3] = trilinear_pair<3>(packed, size, at, g, b, r);
    }
    transpose(rgb, channel[0], channel[1], channel[2]);
    for (int c = 0; c < 3; ++c) store(out[c] + i, channel[c]);
  }
}

PYOPS_HD f32x8 dot(const f32x8 (&v)[4], const f32x8 (&grad)[3]) {
  f32x8 x, y, z;
  transpose(v, x, y, z);
  return x * grad[0] + y * grad[1] + z * grad[2];
}

template <int k>
PYOPS_HD void trilinear_slopes_pair(const float* packed, int size, const uint32_t* at, const float* g, const float* b,
                                    f32x8 r, f32x8 (&dr)[4], f32x8 (&dg)[4], f32x8 (&db)[4]) {
  const Edges near(at_byte(packed, at[k]), size, g[k], b[k]);
  const Edges far(at_byte(packed, at[k + 4]), size, g[k + 4], b[k + 4]);
  dr[k] = highs(near.value, far.value) - lows(near.value, far.value);
  const f32x8 g_low = lows(near.dg, far.dg), b_low = lows(near.db, far.db);
  dg[k] = g_low + (highs(near.dg, far.dg) - g_low) * repeat<k>(r);
  db[k] = b_low + (highs(near.db, far.db) - b_low) * repeat<k>(r);
}

template <int k>
PYOPS_HD void tetrahedral_slopes_pair(const float* packed, const uint32_t (&at)[4][8], f32x8 (&high)[4],
                                      f32x8 (&mid)[4], f32x8 (&low)[4]) {
  const f32x8 v0 = load_pair(packed, at[0], k), v1 = load_pair(packed, at[1], k);
  const f32x8 v2 = load_pair(packed, at[2], k), v3 = load_pair(packed, at[3], k);
  high[k] = v1 - v0, mid[k] = v2 - v1, low[k] = v3 - v2;
}

// The upstream gradient of pixel i as (red, green, blue, 0).
PYOPS_HD f64x4 upstream(const float* const (&grad)[3], int64_t i) {
  return f64x4{double(grad[0][i]), double(grad[1][i]), double(grad[2][i]), 0.0};
}

PYOPS_HD void add(double* vertex, f64x4 v) { store(vertex, load<f64x4>(vertex) + v); }

template <bool kTetrahedral, bool kUniform>
PYOPS_HD void backward(const Lattice<float>& lattice, const float* const (&in)[3], const float* const (&grad)[3],
                       float* const (&grad_in)[3], const Sums& sums, int64_t n) {
  const float* packed = lattice.values;
  const int size = lattice.size;
  const int64_t row = 4 * size, plane = row * size;
  const bool slopes_wanted = grad_in[0] != nullptr || sums.vertices != nullptr;
  for (int64_t i = 0; i < n; i += 8) {
    const Places p = locate<kUniform>(in, i, lattice);
    const f32x8 g[3] = {load<f32x8>(grad[0] + i), load<f32x8>(grad[1] + i), load<f32x8>(grad[2] + i)};
    f32x8 slope[3], v0[4], v1[4], v2[4];
    if constexpr (kTetrahedral) {
      const Path path(p, size);
      alignas(32) uint32_t at[4][8];
      alignas(32) float weight[4][8];
      for (int k = 0; k < 4; ++k) store(at[k], path.offset[k]), store(weight[k], path.weight[k]);
      if (slopes_wanted) {
        tetrahedral_slopes_pair<0>(packed, at, v0, v1, v2), tetrahedral_slopes_pair<1>(packed, at, v0, v1, v2);
        tetrahedral_slopes_pair<2>(packed, at, v0, v1, v2), tetrahedral_slopes_pair<3>(packed, at, v0, v1, v2);
        path.slopes(dot(v0, g), dot(v1, g), dot(v2, g), slope);
      }
      if (sums.lut)
        for (int j = 0; j < 8; ++j) {
          const f64x4 up = upstream(grad, i + j);
          for (int k = 0; k < 4; ++k) add(sums.lut + at[k][j] / 4, up * splat(double(weight[k][j])));
        }
    } else {
      alignas(32) uint32_t at[8];
      alignas(32) float fr[8], fg[8], fb[8];
      store(at, origin(p, size)), store(fr, p.fraction[0]), store(fg, p.fraction[1]), store(fb, p.fraction[2]);
      if (slopes_wanted) {
        const f32x8 r = p.fraction[0];
        trilinear_slopes_pair<0>(packed, size, at, fg, fb, r, v0, v1, v2);
        trilinear_slopes_pair<1>(packed, size, at, fg, fb, r, v0, v1, v2);
        trilinear_slopes_pair<2>(packed, size, at, fg, fb, r, v0, v1, v2);
        trilinear_slopes_pair<3>(packed, size, at, fg, fb, r, v0, v1, v2);
        slope[0] = dot(v0, g), slope[1] = dot(v1, g), slope[2] = dot(v2, g);
      }
      if (sums.lut)
        for (int j = 0; j < 8; ++j) {
          double* cell = sums.lut + at[j] / 4;
          const f64x4 up = upstream(grad, i + j), up_b = up * splat(double(fb[j])), up_0 = up - up_b;
          const f64x4 wr = splat(double(fr[j])), wg = splat(double(fg[j]));
          const f64x4 edges[4] = {up_0 - up_0 * wg, up_0 * wg, up_b - up_b * wg, up_b * wg};
          double* const ends[4] = {cell, cell + row, cell + plane, cell + plane + row};
          for (int e = 0; e < 4; ++e) {
            const f64x4 far = edges[e] * wr;
            add(ends[e], edges[e] - far), add(ends[e] + 4, far);
          }
        }
    }
    for (int c = 0; c < 3 && sums.vertices; ++c)
      for (int j = 0; j < 8; ++j)
        add_vertex_gradient(sums.vertices + c * size, lattice.axis[c], int(p.cell[c][j]), float(p.fraction[c][j]),
                            float(slope[c][j]));
    for (int c = 0; c < 3 && grad_in[0]; ++c)
      store(grad_in[c] + i, select(p.inside[c], slope[c] * p.scale[c], splat(0.f)));
  }
}

}  // namespace simd_detail
}  // namespace pyops::lut3d
