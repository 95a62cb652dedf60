// Means over cells (antialias) and their gradients to the bounds of the cells. A block makes one row of the result at a
// time: it adds up the image's rows under the row's cell, neighbouring threads reading neighbouring pixels, into a tile
// in shared memory, and then sums along the tile, some lanes for each column.
//
// A 3840x2160 image of three float32 channels to 256x256: 99.5 MB that are read from memory once (rows where two cells
// meet come from the second-level cache the other time), 24 us at 4.2 TB/s. 25 million pixels take 1.2 multiply-adds
// each on the way down and one along, 0.1 GFLOP, and one weight for each column of a cell, 0.03 GFLOP: 5 us of
// instructions, under the loads of other blocks. With the start, the vertices and the last sums, 30 us.
#pragma once

#include "../common/quads.cuh"
#include "sampling_points.cuh"

namespace pyops::sampling {
namespace {

constexpr int kCellChannels = 4;    // the most a block sums at once
constexpr int kStripColumns = 512;  // the most columns of the result a block has
constexpr int kMostPasses = kStripColumns / (kThreads / 32);
constexpr int kRowsAtOnce = 4;
constexpr int kCellRows =
    64;  // the most rows of the result a block has, and of a cell whose weights are staged at once

// Columns of the image in a tile: 4 KB a line, half where three lines are needed.
template <class A, bool kSlopes>
constexpr int kTile = (kSlopes ? 2048 : 4096) / int(sizeof(A));

// blockIdx.x has a strip of columns, in passes of kThreads / lanes; blockIdx.y one of `units` = batch * row parts *
// chunks of channels.
struct CellGrid {
  int64_t units, channels;
  int lanes, columns, rows_each, row_parts, chunk, chunks;
  bool interleaved;  // the image's channels are neighbours in memory, and in the tile
  bool words;        // four neighbouring elements can be read at once
};

// What a thread adds up of each pixel: its weight in the cell's mean, and its slope's in d mean / d begin, d mean / d end.
template <class A>
struct Weights {
  A mean[kCellRows], begin[kCellRows], end[kCellRows];
};

template <class A, bool kSlopes>
struct Tile {
  static constexpr int kLines = kSlopes ? 3 : 1, kElements = kCellChannels * kTile<A, kSlopes>;
  alignas(16) A line[kLines][kElements];
  Weights<A> weights;
};

// ---- down the columns -------------------------------------------------------------------------------------------------

// n rows of four elements, decoded; after row `last` that row again. No load waits for a condition, so all are on their
// way before the first is looked at.
template <class A, int n>
__device__ __forceinline__ void load_rows(const Picture& image, int64_t first, int last, const int64_t (&offset)[4],
                                          bool word, A (&value)[n][4]) {
  int64_t row[n];
#pragma unroll
  for (int i = 0; i < n; ++i) row[i] = first + (i < last ? i : last) * image.at.row;
  with_pixel<A>(image.type, [&](auto zero) {
    using T = decltype(zero);
    const T* const data = static_cast<const T*>(image.at.data);
    T raw[n][4];
    if (sizeof(T) <= 4 && word) {
      using W = typename Word<4 * sizeof(T)>::type;
      W bits[n];
#pragma unroll
      for (int i = 0; i < n; ++i) bits[i] = *reinterpret_cast<const W*>(data + (row[i] + offset[0]));
      memcpy(raw, bits, sizeof raw < sizeof bits ? sizeof raw : sizeof bits);
    } else {
#pragma unroll
      for (int k = 0; k < 4 * n; ++k) raw[k / 4][k % 4] = data[row[k / 4] + offset[k % 4]];
    }
#pragma unroll
    for (int k = 0; k < 4 * n; ++k) value[k / 4][k % 4] = decode<T, A>(raw[k / 4][k % 4]);
  });
}

// Adds `rows` rows of four elements to `sum`; weights after them, up to a multiple of kRowsAtOnce, are 0. `previous` is
// the row above, for slopes.
template <class A, bool kSlopes>
__device__ __forceinline__ void add_rows(const Picture& image, int64_t first, int rows, const int64_t (&offset)[4],
                                         bool word, const Weights<A>& weights, A (&previous)[4],
                                         A (&sum)[Tile<A, kSlopes>::kLines][4]) {
#pragma unroll 1
  for (int r = 0; r < rows; r += kRowsAtOnce) {
    A value[kRowsAtOnce][4];
    load_rows(image, first + r * image.at.row, rows - 1 - r, offset, word, value);
#pragma unroll
    for (int k = 0; k < 4 * kRowsAtOnce; ++k) {
      const int i = k / 4, j = k % 4;
      sum[0][j] += weights.mean[r + i] * value[i][j];
      if constexpr (kSlopes) {
        const A slope = value[i][j] - (i == 0 ? previous[j] : value[i - (i > 0)][j]);
        sum[1][j] += weights.begin[r + i] * slope;
        sum[2][j] += weights.end[r + i] * slope;
        if (i == kRowsAtOnce - 1) previous[j] = value[i][j];
      }
    }
  }
}

// Weights of the rows from `first` on; those of slopes belong to the segment above a row.
template <class A, bool kSlopes>
__device__ __forceinline__ void stage_weights(const Cell<A>& cell, const Axis& axis, int first, int rows,
                                              Weights<A>& weights) {
  const int i = threadIdx.x;
  if (i >= ceil_div(rows, kRowsAtOnce) * kRowsAtOnce) return;
  if (i >= rows) {
    weights.mean[i] = weights.begin[i] = weights.end[i] = A(0);
    return;
  }
  weights.mean[i] = cell_weight(cell, first + i, axis);
  if constexpr (kSlopes) {
    const Segment<A> above = segment_of(cell, first + i - 1, axis);
    const bool flat = axis.border && first + i == 0;
    weights.begin[i] = flat ? A(0) : above.share * (A(1) - above.reach);
    weights.end[i] = flat ? A(0) : above.share * above.reach;
  }
}

// Fills the tile with columns `begin` to before `end` of `chunk` channels, summed over the rows of the cell. The first
// channel's image begins at element `origin`.
template <class A, bool kSlopes>
__device__ __forceinline__ void fill_tile(const Picture& image, int64_t origin, const CellGrid& grid, int chunk,
                                          const Cell<A>& cell, const Axis& axis, int begin, int end,
                                          Tile<A, kSlopes>& tile) {
  const Pixels<void>& at = image.at;
  constexpr int kLines = Tile<A, kSlopes>::kLines, kWidth = kTile<A, kSlopes>;
  const int line = grid.interleaved ? (end - begin) * chunk : end - begin, quads = ceil_div(line, 4);
  for (int64_t first = cell.first; first <= cell.last; first += kCellRows) {
    const int rows = cell.last - int(first) < kCellRows ? cell.last - int(first) + 1 : kCellRows;
    __syncthreads();  // the last weights and the last tile have been read
    stage_weights<A, kSlopes>(cell, axis, int(first), rows, tile.weights);
    __syncthreads();
    const bool ends = first + rows == axis.size && !axis.border;  // 0 follows, and a slope down to it
    for (int q = threadIdx.x; q < (grid.interleaved ? quads : quads * chunk); q += kThreads) {
      const int channel = grid.interleaved ? 0 : q / quads, element = 4 * (q - channel * quads);
      int64_t offset[4];
      bool word = grid.words;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        int column = begin + (grid.interleaved ? (element + j) / chunk : element + j);
        const int c = grid.interleaved ? (element + j) % chunk : channel;
        word = word && column < at.width;
        if (column >= at.width) column = int(at.width) - 1;  // read, but not used
        offset[j] = c * at.channel + column * at.column;
      }
      A* const to = &tile.line[0][channel * kWidth + element];
      A sum[kLines][4], previous[4] = {0, 0, 0, 0};
#pragma unroll
      for (int j = 0; j < 4; ++j)
        for (int l = 0; l < kLines; ++l)
          sum[l][j] = first == cell.first ? A(0) : to[l * Tile<A, kSlopes>::kElements + j];
      const int64_t row = origin + first * at.row;
      if constexpr (kSlopes) {
        A above[1][4] = {{0, 0, 0, 0}};
        if (first > cell.first) load_rows(image, row - at.row, 0, offset, word, above);
#pragma unroll
        for (int j = 0; j < 4; ++j) previous[j] = above[0][j];
      }
      add_rows<A, kSlopes>(image, row, rows, offset, word, tile.weights, previous, sum);
      if constexpr (kSlopes) {
        if (ends) {
          const Segment<A> below = segment_of(cell, axis.size - 1, axis);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            sum[1][j] -= below.share * (A(1) - below.reach) * previous[j];
            sum[2][j] -= below.share * below.reach * previous[j];
          }
        }
      }
#pragma unroll
      for (int j = 0; j < 4; ++j)
        for (int l = 0; l < kLines; ++l) to[l * Tile<A, kSlopes>::kElements + j] = sum[l][j];
    }
  }
  __syncthreads();
}

// ---- along a row -----------------------------------------------------------------------------------------------------

// Which unit of the grid a block has, with the positions of its samples and what columns each pass looks at.
template <class A>
struct CellUnit {
  int64_t b, channel;
  int chunk, part, row, end_row, column, end_column, passes;
  Window<A> x, y;

  __device__ CellUnit(const CellGrid& grid, int64_t unit, const Axes& axes, A* positions_x, A* positions_y) {
    const int chunk_number = int(unit % grid.chunks), row_part = int(unit / grid.chunks % grid.row_parts);
    b = unit / grid.chunks / grid.row_parts;
    channel = int64_t(chunk_number) * grid.chunk;
    chunk = grid.channels - channel < grid.chunk ? int(grid.channels - channel) : grid.chunk;
    part = row_part * grid.chunks + chunk_number;
    row = row_part * grid.rows_each;
    end_row = axes.y.count - row < grid.rows_each ? axes.y.count : row + grid.rows_each;
    column = int(blockIdx.x) * grid.columns;
    end_column = axes.x.count - column < grid.columns ? axes.x.count : column + grid.columns;
    passes = ceil_div(end_column - column, kThreads / grid.lanes);
    x = with_neighbours(positions_x, column, end_column, axes.x.count);
    y = with_neighbours(positions_y, row, end_row, axes.y.count);
  }

 private:
  static __device__ Window<A> with_neighbours(A* positions, int begin, int end, int count) {
    return {positions, begin > 0 ? begin - 1 : 0, end < count ? end + 1 : count};
  }
};

// The columns of the image that pass `p` looks at, found by a warp for each pass. A barrier must follow.
template <class A>
__device__ __forceinline__ void find_spans(const CellUnit<A>& unit, const Source& source, int each, int2* spans) {
  for (int p = threadIdx.x / 32; p < unit.passes; p += kThreads / 32) {
    int first = source.axis.size, last = 0;
    for (int i = threadIdx.x % 32; i < each; i += 32) {
      const int k = unit.column + p * each + i;
      if (k >= unit.end_column) continue;
      const Cell<A> cell = unit.x.cell(k, source);
      first = cell.first < first ? cell.first : first;
      last = cell.last > last ? cell.last : last;
    }
    first = __reduce_min_sync(kAllLanes, first), last = __reduce_max_sync(kAllLanes, last);
    if (threadIdx.x % 32 == 0) spans[p] = make_int2(first, last);
  }
}

// Adds what one lane of a column takes of the tile: segments `from` to before `to`, every `lanes`-th. Forward: a sum for
// each channel. Slopes: the gradient times d mean / d begin, d mean / d end of the column's cell and of the row's.
template <class A, bool kSlopes>
__device__ __forceinline__ void add_segments(const Tile<A, kSlopes>& tile, const CellGrid& grid, int chunk,
                                             const Cell<A>& cell, const Axis& axis, int loaded, int from, int to,
                                             const A (&up)[kCellChannels], A (&sum)[4]) {
  constexpr int kWidth = kTile<A, kSlopes>;
  const int start = first_segment(cell), stop = last_segment(cell, axis);
  const int along = grid.interleaved ? chunk : 1, across = grid.interleaved ? 1 : kWidth;
  int j = from > start ? from : start;
  j += (int(threadIdx.x) - (j - start)) & (grid.lanes - 1);
  for (; j < to && j <= stop; j += grid.lanes) {
    const Segment<A> s = segment_of(cell, j, axis);
    const bool has_left = j >= 0, has_right = j + 1 < axis.size;
    const int left = (j - loaded) * along, right = left + along;
#pragma unroll
    for (int c = 0; c < kCellChannels; ++c) {
      if (c >= chunk) continue;
      const A l = has_left ? tile.line[0][left + c * across] : A(0);
      const A r = has_right ? tile.line[0][right + c * across] : A(0);
      if constexpr (!kSlopes) {
        sum[c] += s.share * ((A(1) - s.place) * l + s.place * r);
      } else {
        const A slope = axis.border && !(has_left && has_right) ? A(0) : up[c] * s.share * (r - l);
        sum[0] += slope * (A(1) - s.reach);
        sum[1] += slope * s.reach;
#pragma unroll
        for (int line = 1; line < 3; ++line) {
          const A l2 = has_left ? tile.line[line][left + c * across] : A(0);
          const A r2 = has_right ? tile.line[line][right + c * across] : A(0);
          sum[1 + line] += up[c] * s.share * ((A(1) - s.place) * l2 + s.place * r2);
        }
      }
    }
  }
}

// A mean of finite pixels is finite. Infinite pixels make it NaN, whatever their weight.
template <class A>
__device__ __forceinline__ A mean_or_nan(A v) {
  return v - v == A(0) ? v : std::numeric_limits<A>::quiet_NaN();
}

template <class A, bool kSlopes>
struct CellMemory {
  Tile<A, kSlopes> tile;
  A x[kStripColumns + 2], y[kCellRows + 2];
  int2 spans[kMostPasses];
  A column_sums[kSlopes ? kStripColumns : 1][2], reduced[2 * kThreads / 32];
};

// One row of the result in the columns of the block.
template <class A, bool kSlopes>
__device__ __forceinline__ void run_row(const Axes& axes, const CellUnit<A>& unit, const CellGrid& grid,
                                        const Picture& image, const Picture& result, int row,
                                        CellMemory<A, kSlopes>& memory, A (&row_sums)[2]) {
  const int64_t origin = unit.b * image.at.batch + unit.channel * image.at.channel;
  const int each = kThreads / grid.lanes;
  const Cell<A> down = unit.y.cell(row, axes.y);
  int strip_end = 0, loaded = 0, loaded_end = 0;
  for (int p = 0; p < unit.passes; ++p) strip_end = memory.spans[p].y >= strip_end ? memory.spans[p].y + 1 : strip_end;
  for (int p = 0; p < unit.passes; ++p) {
    const int k = unit.column + p * each + int(threadIdx.x) / grid.lanes;
    const bool active = k < unit.end_column;
    const Cell<A> cell = unit.x.cell(active ? k : unit.column, axes.x);
    const int64_t at =
        unit.b * result.at.batch + unit.channel * result.at.channel + row * result.at.row + k * result.at.column;
    A up[kCellChannels], sum[4] = {0, 0, 0, 0};
#pragma unroll
    for (int c = 0; c < kCellChannels; ++c)
      up[c] = kSlopes && active && c < unit.chunk ? load_float<A>(result, at + c * result.at.channel) : A(0);
    const int2 span = memory.spans[p];
    int segment = span.x == 0 ? -1 : span.x;
    for (bool more = true; more;) {
      const int column = segment < 0 ? 0 : segment;
      if (column < loaded || (loaded_end <= span.y && loaded_end <= column + 1)) {
        loaded = column / 4 * 4;
        loaded_end = strip_end - loaded < kTile<A, kSlopes> ? strip_end : loaded + kTile<A, kSlopes>;
        fill_tile(image, origin, grid, unit.chunk, down, axes.y.axis, loaded, loaded_end, memory.tile);
      }
      more = loaded_end <= span.y;
      const int to = more ? loaded_end - 1 : axes.x.axis.size;
      if (active)
        add_segments<A, kSlopes>(memory.tile, grid, unit.chunk, cell, axes.x.axis, loaded, segment, to, up, sum);
      segment = to;
    }
    for (int offset = grid.lanes / 2; offset > 0; offset /= 2)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[i] += __shfl_xor_sync(kAllLanes, sum[i], offset);
    if (!active || threadIdx.x % grid.lanes != 0) continue;
    if constexpr (kSlopes) {
      memory.column_sums[k - unit.column][0] += cell.reversed ? sum[1] : sum[0];
      memory.column_sums[k - unit.column][1] += cell.reversed ? sum[0] : sum[1];
      row_sums[0] += down.reversed ? sum[3] : sum[2];
      row_sums[1] += down.reversed ? sum[2] : sum[3];
    } else {
#pragma unroll
      for (int c = 0; c < kCellChannels; ++c)
        if (c < unit.chunk) store_pixel(result, at + c * result.at.channel, mean_or_nan(sum[c]));
    }
  }
}

// `result` is that of the forward operator, or the gradient to it.
template <class A, bool kSlopes>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 8 ? 1 : (kSlopes ? 6 : 8))
    cells(const Axes axes, const Picture image, const Picture result, const Partials<A> partials, const CellGrid grid,
          int64_t batch) {
  __shared__ CellMemory<A, kSlopes> memory;
  for (int64_t u = blockIdx.y; u < grid.units; u += gridDim.y) {
    __syncthreads();
    const CellUnit<A> unit(grid, u, axes, memory.x, memory.y);
    stage_positions(axes, unit.b, unit.x, unit.y);
    if constexpr (kSlopes)
      for (int i = threadIdx.x; i < kStripColumns; i += kThreads)
        memory.column_sums[i][0] = memory.column_sums[i][1] = A(0);
    __syncthreads();
    find_spans(unit, axes.x, kThreads / grid.lanes, memory.spans);
    __syncthreads();
    for (int row = unit.row; row < unit.end_row; ++row) {
      A sums[2] = {0, 0};
      run_row(axes, unit, grid, image, result, row, memory, sums);
      if constexpr (kSlopes) {
        block_reduce<kThreads>(sums, memory.reduced, Sum());
        const int64_t part = int64_t(blockIdx.x) * grid.chunks + unit.part % grid.chunks;
        A* const to = partials.y + ((part * batch + unit.b) * axes.y.count + row) * 2;
        if (threadIdx.x == 0) to[0] = sums[0], to[1] = sums[1];
      }
    }
    if constexpr (kSlopes) {
      __syncthreads();
      for (int i = threadIdx.x; i < 2 * (unit.end_column - unit.column); i += kThreads)
        partials.x[((unit.part * batch + unit.b) * axes.x.count + unit.column) * 2 + i] =
            memory.column_sums[i / 2][i % 2];
    }
  }
}

// ---- host side -------------------------------------------------------------------------------------------------------

// Passes as wide as a tile, and blocks enough for the device: by narrower passes, then by fewer channels a block. Once
// there are many, a block makes several rows: with logits it makes its positions anew.
template <class A, bool kSlopes>
CellGrid divide_cells(const Problem& p, const Picture& image) {
  constexpr int64_t kWidth = kTile<A, kSlopes>;
  const int64_t wanted = resident_blocks(cells<A, kSlopes>, kThreads, 0);
  CellGrid grid{};
  grid.channels = p.channels;
  grid.chunk = int(p.channels < kCellChannels ? p.channels : kCellChannels);
  grid.interleaved = is_interleaved(image);
  grid.lanes = 1;
  const auto span = [&] { return ceil_div<int64_t>(int64_t(kThreads / grid.lanes) * p.x.size, p.columns); };
  while (grid.lanes < 32 && span() > kWidth) grid.lanes *= 2;
  const int64_t each = kThreads / grid.lanes, most = kStripColumns / each, passes = kWidth / span();
  grid.columns = int(each * (passes < 1 ? 1 : (passes < most ? passes : most)));
  const auto blocks = [&] {
    return ceil_div<int64_t>(p.columns, grid.columns) * p.rows * p.batch * ceil_div<int64_t>(p.channels, grid.chunk);
  };
  while (2 * blocks() <= wanted) {
    if (grid.columns > kThreads / grid.lanes) grid.columns = kThreads / grid.lanes;
    else if (grid.lanes < 32) grid.lanes *= 2, grid.columns = kThreads / grid.lanes;
    else if (grid.chunk > 1 && !grid.interleaved) grid.chunk = (grid.chunk + 1) / 2;
    else break;
  }
  const int64_t turns = blocks() / (4 * wanted);
  grid.rows_each = int(turns < 1 ? 1 : (turns < kCellRows ? turns : kCellRows));
  grid.row_parts = ceil_div(p.rows, grid.rows_each);
  grid.chunks = int(ceil_div<int64_t>(p.channels, grid.chunk));
  grid.units = p.batch * grid.row_parts * grid.chunks;
  return grid;
}

// Whether four neighbouring elements of the tile are four of the image, on a boundary of four.
inline bool reads_words(const Picture& image, const Tensor& t, const CellGrid& grid) {
  const Pixels<void>& at = image.at;
  const size_t word = 4 * t.element_size();
  const bool aligned =
      word <= 16 && reinterpret_cast<uintptr_t>(at.data) % word == 0 && at.batch % 4 == 0 && at.row % 4 == 0;
  return aligned && (grid.interleaved ? at.column == grid.channels && grid.chunk == grid.channels
                                      : at.column == 1 && at.channel % 4 == 0);
}

inline dim3 blocks_of(const CellGrid& grid, const Problem& p) {
  return dim3(blocks_for(p.columns, grid.columns), blocks_for(grid.units, 1, kMostRows));
}

}  // namespace
}  // namespace pyops::sampling
