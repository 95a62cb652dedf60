// Gradient to the image, gathered: each element is written once, by one thread, from the samples that look at it. So no
// atomics, no order that could change, and no zeroing beforehand.
//
// Two small launches prepare it for each axis. Samples get slots: points sorted by the pixel below them, so that those
// which look at a pixel are neighbours whatever the order of the coordinates; cells in their own order. And pixels get
// the range of slots that may look at them. Both compare everything with everything, K^2 and K * size comparisons, which
// is faster than a sort until both are in the tens of thousands: 1.6 million for 256x256 samples of 3840x2160, a
// microsecond.
//
// The third launch writes. 3840x2160, three float32 channels: 99.5 MB, 24 us at 4.2 TB/s. Each row of the image adds up the
// rows of the gradient that look at it, in shared memory (256 samples, from the first-level cache), and each of its
// elements one or two of these sums: 0.2 GFLOP. With the three starts, 32 us.
#pragma once

#include "sampling_axes.cuh"

namespace pyops::sampling {
namespace {

// A point: the pixel below it and the fraction beyond. A cell: its bounds.
template <class A>
struct Slot {
  A first, second;
  int pixel, sample;
};

struct Range {
  int begin, end;
};

// Of one axis: [batch, count] slots, [batch, size] ranges.
template <class A>
struct Slots {
  Source source;
  Slot<A>* slots;
  Range* ranges;
};

template <class A>
__device__ __forceinline__ Slot<A> point_slot(const Source& source, int64_t b, int k) {
  const Point<A> point = point_at(source.position(source.template value<A>(b, k)), source.axis);
  const A fraction = point.weight[1];
  int pixel = point.exists[0] ? point.pixel[0] : (point.exists[1] ? point.pixel[1] - 1 : -2);
  if (fraction != fraction) pixel = -1;  // NaN looks at pixel 0 only
  return {fraction, A(0), pixel, k};
}

template <class A>
__device__ __forceinline__ Slot<A> cell_slot(const Source& source, int64_t b, int k) {
  A near[3] = {};
  for (int i = 0; i < 3; ++i) {
    const int neighbour = k + i - 1;
    if (neighbour >= 0 && neighbour < source.count) near[i] = source.position(source.template value<A>(b, neighbour));
  }
  const A* const from = near - (k - 1);
  const Cell<A> cell =
      cell_between(cell_bound(from, source.count, k), cell_bound(from, source.count, k + 1), source.axis);
  return {cell.begin, cell.end, 0, k};
}

// What the sample takes of a pixel that it may look at.
template <class A, bool kCells>
__device__ __forceinline__ A weight_of(const Slot<A>& slot, int pixel, const Axis& axis) {
  if constexpr (kCells) return cell_weight(Cell<A>{slot.first, slot.second, 0, 0, false}, pixel, axis);
  else return pixel == slot.pixel ? A(1) - slot.first : (pixel == slot.pixel + 1 ? slot.first : A(0));
}

// blockIdx.x has kThreads samples of axis blockIdx.y.
template <class A, bool kCells>
__global__ void __launch_bounds__(kThreads) fill_slots(const Slots<A> x, const Slots<A> y, int64_t batch) {
  __shared__ int pixels[kThreads];
  const Slots<A> to = blockIdx.y == 0 ? x : y;
  const int count = to.source.count, k = int(blockIdx.x * kThreads + threadIdx.x);
  if (int64_t(blockIdx.x) * kThreads >= count) return;
  for (int64_t b = blockIdx.z; b < batch; b += gridDim.z) {
    Slot<A> slot{};
    int rank = k;
    if constexpr (kCells) {
      if (k < count) slot = cell_slot<A>(to.source, b, k);
    } else {
      if (k < count) slot = point_slot<A>(to.source, b, k), rank = 0;
      for (int first = 0; first < count; first += kThreads) {
        __syncthreads();
        if (first + int(threadIdx.x) < count)
          pixels[threadIdx.x] = point_slot<A>(to.source, b, first + int(threadIdx.x)).pixel;
        __syncthreads();
        const int others = count - first < kThreads ? count - first : kThreads;
        for (int i = 0; i < others; ++i)
          rank += pixels[i] < slot.pixel || (pixels[i] == slot.pixel && first + i < k) ? 1 : 0;
      }
    }
    if (k < count) to.slots[b * count + rank] = slot;
  }
}

// The first of `count` sorted slots whose pixel is at least `pixel`.
template <class A>
__device__ __forceinline__ int first_slot(const Slot<A>* slots, int count, int pixel) {
  int begin = 0;
  while (count > 0) {
    const int half = count / 2;
    if (slots[begin + half].pixel < pixel) begin += half + 1, count -= half + 1;
    else count = half;
  }
  return begin;
}

// blockIdx.x has kThreads pixels of axis blockIdx.y.
template <class A, bool kCells>
__global__ void __launch_bounds__(kThreads) find_ranges(const Slots<A> x, const Slots<A> y, int64_t batch) {
  __shared__ Range looks[kThreads];
  const Slots<A> to = blockIdx.y == 0 ? x : y;
  const int count = to.source.count, size = to.source.axis.size, pixel = int(blockIdx.x * kThreads + threadIdx.x);
  if (int64_t(blockIdx.x) * kThreads >= size) return;
  for (int64_t b = blockIdx.z; b < batch; b += gridDim.z) {
    const Slot<A>* const slots = to.slots + b * count;
    Range range{0, 0};
    if constexpr (kCells) {
      range.begin = count;
      for (int first = 0; first < count; first += kThreads) {
        __syncthreads();
        if (first + int(threadIdx.x) < count) {
          const Slot<A>& slot = slots[first + int(threadIdx.x)];
          const Cell<A> cell = cell_between(slot.first, slot.second, to.source.axis);
          looks[threadIdx.x] = {cell.first, cell.last};
        }
        __syncthreads();
        const int others = count - first < kThreads ? count - first : kThreads;
        for (int i = 0; i < others; ++i) {
          if (pixel < looks[i].begin || pixel > looks[i].end) continue;
          if (range.end == 0) range.begin = first + i;
          range.end = first + i + 1;
        }
      }
    } else if (pixel < size) {
      range = {first_slot(slots, count, pixel - 1), first_slot(slots, count, pixel + 1)};
    }
    if (pixel < size) to.ranges[b * size + pixel] = range;
  }
}

constexpr int kElementsEach = 4, kStripElements = kElementsEach * kThreads;
constexpr int kGradientChannels = 4, kGradientRows = 32;  // the most a block has
constexpr int kSlotTile = 256;                            // slots of columns whose sums a block keeps at a time
constexpr int kRowSlots = 64;                             // slots of rows whose weights it keeps at a time
constexpr int kKept =
    2;  // weights made once for all rows (columns) of a block: as many as cells touch when they are wide

// blockIdx.x has a strip of kStripElements elements of a row: columns, or with `interleaved` columns * chunk. blockIdx.y
// has one of `units` = batch * row parts * chunks of channels.
struct GradientGrid {
  int64_t units, channels;
  int rows_each, row_parts, chunk, chunks;
  bool interleaved;
};

// The elements of a thread: which slots look at them, and the first weights of these.
template <class A>
struct Elements {
  Range range[kElementsEach];  // {0, -1} past the end
  A kept[kElementsEach][kKept];
};

// Column and channel of element `m` of a thread.
__device__ __forceinline__ int2 element_place(const GradientGrid& grid, int chunk, int m) {
  const unsigned element = (blockIdx.x * kElementsEach + m) * kThreads + threadIdx.x;
  if (!grid.interleaved) return make_int2(int(element), 0);
  return make_int2(int(element / unsigned(chunk)), int(element % unsigned(chunk)));
}

template <class A, bool kCells>
__device__ __forceinline__ void find_elements(const Slots<A>& x, const GradientGrid& grid, int chunk, int64_t b,
                                              Elements<A>& elements) {
  const int width = x.source.axis.size;
#pragma unroll
  for (int m = 0; m < kElementsEach; ++m) {
    const int column = element_place(grid, chunk, m).x;
    elements.range[m] = column < width ? x.ranges[b * width + column] : Range{0, -1};
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      const int slot = elements.range[m].begin + i;
      elements.kept[m][i] = slot < elements.range[m].end
                                ? weight_of<A, kCells>(x.slots[b * x.source.count + slot], column, x.source.axis)
                                : A(0);
    }
  }
}

// What a row of the gradient contributes.
template <class A>
struct RowSlot {
  A weight;
  int64_t offset;  // in the gradient
};

template <class A>
struct GradientMemory {
  A line[2][kGradientChannels][kSlotTile];  // sums of rows of the gradient, by slot; two take turns
  Range rows[kGradientRows];
  RowSlot<A> kept[kGradientRows][kKept], run[kRowSlots];
  A sums[kElementsEach][kGradientChannels][kThreads];  // of elements whose slots do not fit one line
  int reduced[2 * kThreads / 32];
};

template <class A>
struct GradientUnit {
  int64_t b, channel;
  int chunk, row, end_row, first_slot, end_slot;
};

template <class A, bool kCells>
__device__ __forceinline__ RowSlot<A> row_slot(const Slots<A>& y, const Picture& grad, int64_t b, int slot, int row) {
  const Slot<A> s = y.slots[b * y.source.count + slot];
  return {weight_of<A, kCells>(s, row, y.source.axis), (kCells ? slot : s.sample) * grad.at.row};
}

// The ranges of the block's rows and the first weights in each. A barrier must follow.
template <class A, bool kCells>
__device__ __forceinline__ void stage_rows(const Slots<A>& y, const Picture& grad, const GradientUnit<A>& unit,
                                           GradientMemory<A>& memory) {
  for (int i = threadIdx.x; i < (unit.end_row - unit.row) * kKept; i += kThreads) {
    const int n = i / kKept, k = i % kKept, row = unit.row + n;
    const Range range = y.ranges[unit.b * y.source.axis.size + row];
    if (k == 0) memory.rows[n] = range;
    if (range.begin + k < range.end) memory.kept[n][k] = row_slot<A, kCells>(y, grad, unit.b, range.begin + k, row);
  }
}

// Adds up, for `count` slots of columns from `first` on, the rows of the gradient that look at `row`.
template <class A, bool kCells>
__device__ __forceinline__ void add_rows_of_gradient(const Slots<A>& x, const Slots<A>& y, const Picture& grad,
                                                     const GradientUnit<A>& unit, int row, int first, int count,
                                                     GradientMemory<A>& memory, A (*line)[kSlotTile]) {
  const Range rows = memory.rows[row - unit.row];
  const bool kept = rows.end - rows.begin <= kKept;
  for (int start = rows.begin; start < rows.end; start += kRowSlots) {
    const int run = rows.end - start < kRowSlots ? rows.end - start : kRowSlots;
    const RowSlot<A>* const row_slots = kept ? memory.kept[row - unit.row] : memory.run;
    if (!kept) {
      __syncthreads();  // the last run has been read
      if (int(threadIdx.x) < run)
        memory.run[threadIdx.x] = row_slot<A, kCells>(y, grad, unit.b, start + int(threadIdx.x), row);
      __syncthreads();
    }
    for (int i = threadIdx.x; i < count * unit.chunk; i += kThreads) {
      const int c = i / count, s = i - c * count;
      const int sample = kCells ? first + s : x.slots[unit.b * x.source.count + first + s].sample;
      const int64_t at = unit.b * grad.at.batch + (unit.channel + c) * grad.at.channel + sample * grad.at.column;
      A sum = start == rows.begin ? A(0) : line[c][s];
      for (int t = 0; t < run; ++t)
        if (row_slots[t].weight != A(0)) sum += row_slots[t].weight * load_float<A>(grad, row_slots[t].offset + at);
      line[c][s] = sum;
    }
  }
  __syncthreads();
}

// Adds to an element what its slots among `count` from `first` on give it.
template <class A, bool kCells>
__device__ __forceinline__ void add_slots(const Slots<A>& x, const GradientGrid& grid, const GradientUnit<A>& unit,
                                          const Range& range, const A (&kept)[kKept], const int2& place, int first,
                                          int count, const A (*line)[kSlotTile], A (&sum)[kGradientChannels]) {
  const int begin = range.begin > first ? range.begin : first;
  const int end = range.end < first + count ? range.end : first + count;
  for (int s = begin; s < end; ++s) {
    A weight = kept[0];
    if (s == range.begin + 1) weight = kept[1];
    else if (s > range.begin + 1)
      weight = weight_of<A, kCells>(x.slots[unit.b * x.source.count + s], place.x, x.source.axis);
    if (weight == A(0)) continue;
    if (grid.interleaved) {
      sum[0] += weight * line[place.y][s - first];
    } else {
#pragma unroll
      for (int c = 0; c < kGradientChannels; ++c)
        if (c < unit.chunk) sum[c] += weight * line[c][s - first];
    }
  }
}

struct Lowest {
  __device__ int operator()(int a, int b) const { return a < b ? a : b; }
};

template <class A, bool kCells>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 8 ? 1 : 6)
    image_gradient(const Slots<A> x, const Slots<A> y, const Picture grad, const Picture out, const GradientGrid grid) {
  __shared__ GradientMemory<A> memory;
  for (int64_t u = blockIdx.y; u < grid.units; u += gridDim.y) {
    GradientUnit<A> unit;
    unit.b = u / grid.chunks / grid.row_parts, unit.channel = u % grid.chunks * grid.chunk;
    unit.chunk = grid.channels - unit.channel < grid.chunk ? int(grid.channels - unit.channel) : grid.chunk;
    unit.row = int(u / grid.chunks % grid.row_parts) * grid.rows_each;
    unit.end_row = y.source.axis.size - unit.row < grid.rows_each ? y.source.axis.size : unit.row + grid.rows_each;
    Elements<A> elements;
    find_elements<A, kCells>(x, grid, unit.chunk, unit.b, elements);
    int slots[2] = {x.source.count, 0};  // that look at this strip: the first, and minus the end
#pragma unroll
    for (int m = 0; m < kElementsEach; ++m) {
      const Range& range = elements.range[m];
      if (range.begin >= range.end) continue;
      slots[0] = Lowest()(slots[0], range.begin), slots[1] = Lowest()(slots[1], -range.end);
    }
    block_reduce<kThreads>(slots, memory.reduced, Lowest());
    unit.first_slot = slots[0], unit.end_slot = -slots[1];
    stage_rows<A, kCells>(y, grad, unit, memory);
    __syncthreads();
    int turn = 0;
    for (int row = unit.row; row < unit.end_row; ++row) {
      const Range rows = memory.rows[row - unit.row];
      const int end_slot = rows.begin < rows.end ? unit.end_slot : unit.first_slot;
      int first = unit.first_slot;
      do {
        const int count = end_slot - first < kSlotTile ? end_slot - first : kSlotTile;
        // The other line may still be read: who writes this one has seen all come past the barrier after that.
        A(*const line)[kSlotTile] = memory.line[turn];
        turn = 1 - turn;
        if (count > 0) add_rows_of_gradient<A, kCells>(x, y, grad, unit, row, first, count, memory, line);
        const bool last = first + kSlotTile >= end_slot;
#pragma unroll
        for (int m = 0; m < kElementsEach; ++m) {
          if (elements.range[m].end < 0) continue;
          const int2 place = element_place(grid, unit.chunk, m);
          A sum[kGradientChannels];
#pragma unroll
          for (int c = 0; c < kGradientChannels; ++c)
            sum[c] = first == unit.first_slot ? A(0) : memory.sums[m][c][threadIdx.x];
          add_slots<A, kCells>(x, grid, unit, elements.range[m], elements.kept[m], place, first, count, line, sum);
          const int64_t at = unit.b * out.at.batch + (unit.channel + place.y) * out.at.channel + row * out.at.row +
                             place.x * out.at.column;
#pragma unroll
          for (int c = 0; c < kGradientChannels; ++c) {
            if (!last) memory.sums[m][c][threadIdx.x] = sum[c];
            else if (c < (grid.interleaved ? 1 : unit.chunk)) store_pixel(out, at + c * out.at.channel, sum[c]);
          }
        }
        first += kSlotTile;
      } while (first < end_slot);
    }
    __syncthreads();
  }
}

// ---- host side -------------------------------------------------------------------------------------------------------

// Scratch memory for the slots and ranges of both axes: [slots x | slots y | ranges x | ranges y].
template <class A>
class SlotMemory {
 public:
  Slots<A> x, y;

  SlotMemory(const Problem& p, const Tensor& like, const Axes& axes) {
    const int64_t slots = p.batch * (int64_t(p.columns) + p.rows), ranges = p.batch * (int64_t(p.x.size) + p.y.size);
    memory_ = new_tensor(like, {int64_t(slots * sizeof(Slot<A>) + ranges * sizeof(Range))}, ScalarType::Byte);
    Slot<A>* const first = static_cast<Slot<A>*>(memory_.mutable_data_ptr());
    Range* const first_range = reinterpret_cast<Range*>(first + slots);
    x = {axes.x, first, first_range};
    y = {axes.y, first + p.batch * p.columns, first_range + p.batch * p.x.size};
  }

 private:
  Tensor memory_;
};

template <class A, bool kCells>
GradientGrid divide_gradient(const Problem& p, const Picture& out) {
  GradientGrid grid{};
  grid.channels = p.channels;
  grid.chunk = int(p.channels < kGradientChannels ? p.channels : kGradientChannels);
  grid.chunks = int(ceil_div<int64_t>(p.channels, grid.chunk));
  grid.interleaved = is_interleaved(out);
  const int64_t strips = ceil_div<int64_t>(int64_t(p.x.size) * (grid.interleaved ? grid.chunk : 1), kStripElements);
  const int64_t blocks = strips * p.y.size * grid.chunks * p.batch;
  const int64_t turns = ceil_div(blocks, 2 * resident_blocks(image_gradient<A, kCells>, kThreads, 0));
  grid.rows_each = int(turns < kGradientRows ? turns : kGradientRows);
  grid.row_parts = ceil_div(p.y.size, grid.rows_each);
  grid.units = p.batch * grid.row_parts * grid.chunks;
  return grid;
}

template <class A, bool kCells>
void run_image_gradient(const Problem& p, const Tensor& grad, const Axes& axes, const Tensor& out,
                        cudaStream_t stream) {
  const char* const name = "separable_grid_sample_backward (image)";
  const SlotMemory<A> memory(p, grad, axes);
  const auto blocks = [&](int x, int y) {
    return dim3(blocks_for(x > y ? x : y, kThreads), 2, blocks_for(p.batch, 1, kMostRows));
  };
  launch(name, fill_slots<A, kCells>, blocks(p.columns, p.rows), kThreads, 0, stream, memory.x, memory.y, p.batch);
  launch(name, find_ranges<A, kCells>, blocks(p.x.size, p.y.size), kThreads, 0, stream, memory.x, memory.y, p.batch);
  const Picture to = picture_of(out);
  const GradientGrid grid = divide_gradient<A, kCells>(p, to);
  const int64_t elements = int64_t(p.x.size) * (grid.interleaved ? grid.chunk : 1);
  launch(name, image_gradient<A, kCells>,
         dim3(blocks_for(elements, kStripElements), blocks_for(grid.units, 1, kMostRows)), kThreads, 0, stream,
         memory.x, memory.y, picture_of(grad), to, grid);
}

}  // namespace
}  // namespace pyops::sampling
