// Tiles of local correlation on the CPU: how images are divided, and how rows come from tensors and go there.
//
// Rows that lie a dilation apart are neighbours here.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "../common/pixel.h"
#include "local_correlation_args.h"
#include "local_correlation_rows.h"

namespace pyops::local_correlation {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kGrain = 1 << 17;    // multiplications worth a thread
constexpr int64_t kColumns = 64;       // of a tile
constexpr int64_t kCache = 256 << 10;  // bytes of a tile that a second-level cache holds
constexpr int64_t kManyRows = 6;       // of a tile, where they fit there

// ---- what is compiled for every instruction set ------------------------------------------------------------------------

#define PYOPS_TILES(A)                                                                                          \
  PYOPS_MULTIVERSION void correlate(int64_t rows, const rows::Rows<const A>& own, const rows::Shared<A>& other, \
                                    int64_t channels, int64_t columns, const rows::Rows<A>& to) {               \
    rows::correlate<A>(rows, own, other, channels, columns, to);                                                \
  }                                                                                                             \
  PYOPS_MULTIVERSION void gather(int64_t rows, const rows::Rows<const A>& grad, const rows::Shared<A>& other,   \
                                 int64_t channels, int64_t columns, const rows::Rows<A>& to) {                  \
    rows::gather<A>(rows, grad, other, channels, columns, to);                                                  \
  }
PYOPS_TILES(float)
PYOPS_TILES(double)
#undef PYOPS_TILES

#define PYOPS_ROW_IO(T, A)                                                           \
  PYOPS_MULTIVERSION void load_row(const T* from, int64_t step, int64_t n, A* to) {  \
    if (step == 1)                                                                   \
      for (int64_t i = 0; i < n; ++i) to[i] = decode<T, A>(from[i]);                 \
    else                                                                             \
      for (int64_t i = 0; i < n; ++i) to[i] = decode<T, A>(from[i * step]);          \
  }                                                                                  \
  PYOPS_MULTIVERSION void store_row(const A* from, int64_t step, int64_t n, T* to) { \
    if (step == 1)                                                                   \
      for (int64_t i = 0; i < n; ++i) to[i] = encode<T, A>(from[i]);                 \
    else                                                                             \
      for (int64_t i = 0; i < n; ++i) to[i * step] = encode<T, A>(from[i]);          \
  }
PYOPS_ROW_IO(float, float)
PYOPS_ROW_IO(Half, float)
PYOPS_ROW_IO(BFloat16, float)
PYOPS_ROW_IO(double, double)
#undef PYOPS_ROW_IO

// ---- tiles ---------------------------------------------------------------------------------------------------------------

// Elements to a row of a tile: whole cache lines, an odd number, so that neighbours lie in different sets of a cache.
template <class A>
int64_t pitch_for(int64_t columns) {
  constexpr int64_t line = 64 / sizeof(A);
  return (ceil_div(columns, line) | 1) * line;
}

// How an image is divided: rows by their remainder in the dilation, neighbours among them in groups, columns in tiles.
struct Division {
  int64_t rows, columns;         // of a tile
  int64_t parts, groups, tiles;  // of an image
  int64_t items;

  Division(const Problem& p, int64_t element) {
    tiles = ceil_div(p.width, kColumns);
    columns = std::min(p.width, ceil_div(ceil_div(p.width, tiles), int64_t(8)) * 8);
    tiles = ceil_div(p.width, columns);
    parts = p.parts(p.height);
    const int64_t most = ceil_div(p.height, parts);
    const bool fit = p.channels * (kManyRows + 1) * (columns + 16) * element <= kCache;
    groups = ceil_div(most, std::min(most, fit ? kManyRows : rows::kMostRows));
    rows = ceil_div(most, groups);
    items = p.batch * parts * groups * tiles;
  }
};

// Rows part + dilation * (first + i) for i < rows, of `count` that the part has; columns [begin, end).
struct Tile {
  int64_t b, part, first, rows, count;
  Span columns;

  Tile(const Problem& p, const Division& d, int64_t i) {
    columns.begin = i % d.tiles * d.columns;
    columns.end = std::min(p.width, columns.begin + d.columns);
    part = i / d.tiles % d.parts;
    first = i / d.tiles / d.parts % d.groups * d.rows;
    b = i / d.tiles / d.parts / d.groups;
    count = ceil_div(p.height - part, p.dilation);
    rows = std::max<int64_t>(0, std::min(d.rows, count - first));
  }
  int64_t width() const { return columns.end - columns.begin; }
  int64_t row(const Problem& p, int64_t i) const { return part + p.dilation * i; }

  // Calls f(other, i, rows): row `other` of the part meets `rows` rows of the tile from i on. `begin` is called before
  // with each `other`.
  template <class Begin, class F>
  void for_meetings(const Problem& p, const Begin& begin, const F& f) const {
    const int64_t reach = p.reach(p.height);
    for (int64_t other = std::max<int64_t>(0, first - reach); other < std::min(count, first + rows + reach); ++other) {
      begin(other);
      int64_t i = std::max<int64_t>(0, other - reach - first);
      const int64_t end = std::min(rows, other + reach + 1 - first);
      for (int64_t shares = ceil_div<int64_t>(end - i, rows::kMostRows); shares > 0; --shares) {
        const int64_t n = ceil_div(end - i, shares);
        f(other, i, n);
        i += n;
      }
    }
  }
};

template <class A>
struct Buffers {
  int64_t reach, halo;  // of columns: in steps, in pixels
  int64_t pitch, shared_pitch;
  std::vector<A> own, shared, volume;

  Buffers(const Problem& p, const Division& d)
      : reach(p.reach(p.width)),
        halo(reach * p.dilation),
        pitch(pitch_for<A>(d.columns)),
        shared_pitch(pitch_for<A>(pitch_for<A>(d.columns) + 2 * halo)),
        own(d.rows * p.channels * pitch),
        shared(p.channels * shared_pitch),
        volume(rows::kMostRows * displacements() * pitch) {}

  int64_t displacements() const { return 2 * reach + 1; }
  rows::Rows<A> own_rows(const Problem& p, int64_t i) {
    return {&own[i * p.channels * pitch], p.channels * pitch, pitch};
  }
  rows::Rows<A> volume_rows() { return {volume.data(), displacements() * pitch, pitch}; }
  rows::Shared<A> shared_row(const Problem& p) { return {shared.data(), shared_pitch, p.dilation, displacements()}; }

  template <class T>
  void load_own(const Problem& p, const Pixels<T>& from, const Tile& tile) {
    for (int64_t i = 0; i < tile.rows; ++i)
      load(p, from, tile.b, tile.row(p, tile.first + i), tile.columns, own_rows(p, i).data, pitch);
  }
  template <class T>
  void load_shared(const Problem& p, const Pixels<T>& from, const Tile& tile, int64_t other) {
    load(p, from, tile.b, tile.row(p, other), {tile.columns.begin - halo, tile.columns.end + halo}, shared.data(),
         shared_pitch);
  }

 private:
  template <class T>
  static void load(const Problem& p, const Pixels<T>& from, int64_t b, int64_t y, Span columns, A* to, int64_t pitch) {
    const int64_t begin = std::max<int64_t>(0, columns.begin), end = std::min(p.width, columns.end);
    const T* start = from.data + b * from.batch + y * from.row + begin * from.column;
    for (int64_t c = 0; c < p.channels; ++c, start += from.channel, to += pitch) {
      std::fill(to, to + (begin - columns.begin), A(0));
      load_row(start, from.column, end - begin, to + (begin - columns.begin));
      std::fill(to + (end - columns.begin), to + (columns.end - columns.begin), A(0));
    }
  }
};

template <class F>
void for_tiles(const Problem& p, const Division& d, int64_t items, const F& f) {
  const int64_t displacements = (2 * p.reach(p.height) + 1) * (2 * p.reach(p.width) + 1);
  const int64_t work = std::max<int64_t>(1, p.channels * displacements * d.rows * d.columns);
  parallel_for(0, items, std::max<int64_t>(1, kGrain / work), f);
}

}  // namespace
}  // namespace pyops::local_correlation
