// Bilinear samples and their gradients to positions. A warp has 32 columns of the result; the pixels and weights of the
// columns and rows of a block are made once, in shared memory.
//
// A 3840x2160 image of three float32 channels to 256x256: 2.4 MFLOP, and 512 rows of sectors to read, 14 to 24 MB (half
// of each sector is of use): 6 us at 4 TB/s. Making 512 vertices in every block and starting take 3 us more. There are
// 512 blocks for 132 multiprocessors, and 12 loads in flight a thread.
#pragma once

#include "sampling_axes.cuh"

namespace pyops::sampling {
namespace {

constexpr int kPointColumns = 32, kPointRowsAtOnce = kThreads / kPointColumns, kPointRows = 64;
constexpr int kPointChannels = 4;  // loaded at once

// How a grid of blocks divides the samples: blockIdx.x has columns, blockIdx.y one of `units` = batch * row parts *
// channel parts.
struct PointGrid {
  int64_t units, channels, channels_each;
  int rows_each, row_parts, channel_parts;
  bool interleaved;  // neighbouring lanes write neighbouring channels
};

struct PointUnit {
  int64_t b, first_channel, end_channel;
  int part, row, end_row, column, end_column;

  __device__ PointUnit(const PointGrid& grid, int64_t unit, const Axes& axes) {
    const int channel_part = int(unit % grid.channel_parts), row_part = int(unit / grid.channel_parts % grid.row_parts);
    b = unit / grid.channel_parts / grid.row_parts;
    first_channel = channel_part * grid.channels_each;
    end_channel =
        first_channel + grid.channels_each < grid.channels ? first_channel + grid.channels_each : grid.channels;
    part = row_part * grid.channel_parts + channel_part;
    row = row_part * grid.rows_each;
    end_row = axes.y.count - row < grid.rows_each ? axes.y.count : row + grid.rows_each;
    column = int(blockIdx.x) * kPointColumns;
    end_column = axes.x.count - column < kPointColumns ? axes.x.count : column + kPointColumns;
  }
};

template <class A>
struct Points {
  Point<A> column[kPointColumns], row[kPointRows];
};

// All threads of the block come here.
template <class A>
__device__ __forceinline__ void stage_points(const Axes& axes, const PointUnit& unit, Points<A>& points) {
  __shared__ A x[kPointColumns], y[kPointRows];
  __syncthreads();
  stage_positions(axes, unit.b, Window<A>{x, unit.column, unit.end_column}, Window<A>{y, unit.row, unit.end_row});
  __syncthreads();
  if (unit.column + int(threadIdx.x) < unit.end_column)
    points.column[threadIdx.x] = point_at(x[threadIdx.x], axes.x.axis);
  if (unit.row + int(threadIdx.x) < unit.end_row) points.row[threadIdx.x] = point_at(y[threadIdx.x], axes.y.axis);
  __syncthreads();
}

// The four pixels around some samples, decoded. No load waits for a condition, so all are on their way before the first
// is looked at.
template <class A>
struct Corners {
  A value[kPointChannels][2][2];  // by row and column
  int column[kPointChannels];     // of the block
  int64_t channel[kPointChannels];

  __device__ __forceinline__ void load(const Picture& image, int64_t batch, const Point<A>& row,
                                       const Point<A>* columns) {
    const int64_t line[2] = {batch + row.pixel[0] * image.at.row, batch + row.pixel[1] * image.at.row};
    with_pixel<A>(image.type, [&](auto zero) {
      using T = decltype(zero);
      const T* const data = static_cast<const T*>(image.at.data);
      T raw[kPointChannels][2][2];
#pragma unroll
      for (int n = 0; n < kPointChannels; ++n) {
        const int64_t origin = channel[n] * image.at.channel;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int64_t along = origin + columns[column[n]].pixel[j] * image.at.column;
          raw[n][0][j] = data[line[0] + along], raw[n][1][j] = data[line[1] + along];
        }
      }
#pragma unroll
      for (int k = 0; k < 4 * kPointChannels; ++k)
        value[k / 4][k / 2 % 2][k % 2] = decode<T, A>(raw[k / 4][k / 2 % 2][k % 2]);
    });
  }
};

template <class A>
__device__ __forceinline__ A weighted(const Point<A>& point, A first, A second) {
  return (point.exists[0] ? point.weight[0] * first : A(0)) + (point.exists[1] ? point.weight[1] * second : A(0));
}

// Along one axis; the slope of a clamped position is 0 whatever its pixels are.
template <class A>
__device__ __forceinline__ A difference(const Point<A>& point, A first, A second) {
  return point.slope != A(0) ? (point.exists[1] ? second : A(0)) - (point.exists[0] ? first : A(0)) : A(0);
}

// ---- forward ---------------------------------------------------------------------------------------------------------

template <class A>
__device__ __forceinline__ void sample_points(const Points<A>& points, const PointUnit& unit, const Picture& image,
                                              const Picture& out, bool interleaved) {
  const int lane = threadIdx.x % 32, columns = unit.end_column - unit.column;
  const int64_t channels = unit.end_channel - unit.first_channel;
  for (int row = unit.row + int(threadIdx.x) / 32; row < unit.end_row; row += kPointRowsAtOnce) {
    const Point<A>& across = points.row[row - unit.row];
    for (int64_t step = 0; step < channels; step += kPointChannels) {
      Corners<A> corners;
      bool wanted[kPointChannels];
#pragma unroll
      for (int i = 0; i < kPointChannels; ++i) {
        int column = lane;
        int64_t channel = step + i;
        if (interleaved) {
          const unsigned element = unsigned(step + i) * 32u + unsigned(lane);
          column = int(element / unsigned(channels)), channel = element % unsigned(channels);
        }
        wanted[i] = column < columns && step + i < channels;
        corners.column[i] = wanted[i] ? column : 0;  // what is not wanted is read somewhere all the same
        corners.channel[i] = unit.first_channel + (wanted[i] ? channel : 0);
      }
      corners.load(image, unit.b * image.at.batch, across, points.column);
#pragma unroll
      for (int i = 0; i < kPointChannels; ++i) {
        if (!wanted[i]) continue;
        const Point<A>& along = points.column[corners.column[i]];
        const auto& v = corners.value[i];
        const A left = weighted(across, v[0][0], v[1][0]), right = weighted(across, v[0][1], v[1][1]);
        store_pixel(out,
                    unit.b * out.at.batch + corners.channel[i] * out.at.channel + row * out.at.row +
                        (unit.column + corners.column[i]) * out.at.column,
                    weighted(along, left, right));
      }
    }
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    points_forward(const Axes axes, const Picture image, const Picture out, const PointGrid grid) {
  __shared__ Points<A> points;
  for (int64_t u = blockIdx.y; u < grid.units; u += gridDim.y) {
    const PointUnit unit(grid, u, axes);
    stage_points(axes, unit, points);
    sample_points(points, unit, image, out, grid.interleaved);
  }
}

// ---- gradients to positions ------------------------------------------------------------------------------------------

// What blocks found, to be added in the order of the blocks: x is [parts][batch][columns], y [strips * channel
// parts][batch][rows], each with `width` values (1 for points, 2 for the bounds of cells).
template <class A>
struct Partials {
  A *x, *y;
};

template <class A>
__device__ __forceinline__ void point_slopes(const Points<A>& points, const PointUnit& unit, const Picture& image,
                                             const Picture& grad, A& along_x, A* y) {
  const int lane = threadIdx.x % 32;
  const bool active = unit.column + lane < unit.end_column;
  const Point<A>& along = points.column[lane];
  for (int row = unit.row + int(threadIdx.x) / 32; row < unit.end_row; row += kPointRowsAtOnce) {
    const Point<A>& across = points.row[row - unit.row];
    A along_y = 0;
    for (int64_t first = unit.first_channel; active && first < unit.end_channel; first += kPointChannels) {
      Corners<A> corners;
      A up[kPointChannels];
#pragma unroll
      for (int i = 0; i < kPointChannels; ++i) {
        corners.column[i] = lane;
        corners.channel[i] = first + i < unit.end_channel ? first + i : first;
        up[i] = load_float<A>(grad, unit.b * grad.at.batch + corners.channel[i] * grad.at.channel + row * grad.at.row +
                                        (unit.column + lane) * grad.at.column);
      }
      corners.load(image, unit.b * image.at.batch, across, points.column);
#pragma unroll
      for (int i = 0; i < kPointChannels; ++i) {
        if (first + i >= unit.end_channel) continue;
        const auto& v = corners.value[i];
        along_x += up[i] * difference(along, weighted(across, v[0][0], v[1][0]), weighted(across, v[0][1], v[1][1]));
        along_y += up[i] * difference(across, weighted(along, v[0][0], v[0][1]), weighted(along, v[1][0], v[1][1]));
      }
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) along_y += __shfl_xor_sync(kAllLanes, along_y, offset);
    if (lane == 0) y[row] = along_y;
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    points_backward(const Axes axes, const Picture image, const Picture grad, const Partials<A> partials,
                    const PointGrid grid, int64_t batch) {
  __shared__ Points<A> points;
  __shared__ A sums[kPointRowsAtOnce][kPointColumns];
  const int lane = threadIdx.x % 32;
  for (int64_t u = blockIdx.y; u < grid.units; u += gridDim.y) {
    const PointUnit unit(grid, u, axes);
    stage_points(axes, unit, points);
    const int64_t y_part = int64_t(blockIdx.x) * grid.channel_parts + unit.part % grid.channel_parts;
    A* const y = partials.y + (y_part * batch + unit.b) * axes.y.count;
    A along_x = 0;
    point_slopes(points, unit, image, grad, along_x, y);
    sums[threadIdx.x / 32][lane] = along_x;
    __syncthreads();
    if (threadIdx.x >= 32 || unit.column + lane >= unit.end_column) continue;
    A sum = 0;
    for (int i = 0; i < kPointRowsAtOnce; ++i) sum += sums[i][lane];
    partials.x[(unit.part * batch + unit.b) * axes.x.count + unit.column + lane] = sum;
  }
}

// ---- host side -------------------------------------------------------------------------------------------------------

// Few rows a block while blocks are few, then more: with logits a block makes its positions anew.
template <class Kernel>
PointGrid divide_points(const Problem& p, Kernel kernel, bool interleaved) {
  const int64_t strips = ceil_div(p.columns, kPointColumns), wanted = resident_blocks(kernel, kThreads, 0);
  PointGrid grid{};
  grid.channels = p.channels;
  const int64_t groups = ceil_div<int64_t>(p.rows, kPointRowsAtOnce), blocks = strips * groups * p.batch;
  const int64_t turns = blocks / (4 * wanted), most = kPointRows / kPointRowsAtOnce;
  grid.rows_each = int(turns < 1 ? 1 : (turns < most ? turns : most)) * kPointRowsAtOnce;
  grid.row_parts = int(ceil_div(p.rows, grid.rows_each));
  const int64_t batches = ceil_div<int64_t>(p.channels, kPointChannels);
  int64_t parts = wanted / blocks;
  parts = parts < 1 ? 1 : (parts < batches ? parts : batches);
  grid.channels_each = ceil_div(batches, parts) * kPointChannels;
  grid.channel_parts = int(ceil_div(p.channels, grid.channels_each));
  grid.interleaved = interleaved && grid.channels_each <= 1 << 20;  // whose products with 32 fit 32 bits
  grid.units = p.batch * grid.row_parts * grid.channel_parts;
  return grid;
}

inline dim3 blocks_of(const PointGrid& grid, const Problem& p) {
  return dim3(blocks_for(p.columns, kPointColumns), blocks_for(grid.units, 1, kMostRows));
}

}  // namespace
}  // namespace pyops::sampling
