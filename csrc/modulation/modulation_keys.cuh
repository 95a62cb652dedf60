// Pass 1 of relation-aware modulation on CUDA: pooled keys, and what attention makes of them, one 8 x 8 matrix an image.
//
// A block computes R on the pixels of a few neighbouring windows and the ring around them. The sums over a window,
// shifted by -1, 0 and 1 along each axis, are taken down the columns first, then along the rows, in a fixed order.
// Windows too large for a region are divided into pieces, each handled like a window; what reads the keys adds them.
#pragma once

#include "modulation_region.cuh"

namespace pyops::modulation {
namespace {

constexpr int kMostPieces = 64;  // of a block along an axis
constexpr int kChunk = 4;        // rows of pieces whose column sums are in shared memory at a time
constexpr int kSumPitch = kColumns + 1;

// One axis: windows, their pieces, and how many consecutive pieces a block takes: as many as surely fit a region.
struct Pieces {
  int64_t size, windows, each, count, blocks;  // pieces of a window, of all, and blocks
  int block;                                   // pieces of a block

  Pieces(int64_t size, int64_t windows, int64_t room) : size(size), windows(windows) {
    const int64_t longest = ceil_div(size, windows) + (size % windows == 0 ? 0 : 1);
    each = ceil_div(longest, room);
    int64_t fitting = 1;
    if (each > 1) fitting = room / ceil_div(longest, each);
    else
      while (fitting < kMostPieces && ceil_div((fitting + 1) * size, windows) + 1 <= room) ++fitting;
    count = windows * each;
    blocks = ceil_div(count, fitting);
    block = int(ceil_div(count, blocks));  // even shares
  }

  PYOPS_HD int taken(int64_t first) const { return count - first < block ? int(count - first) : block; }
  PYOPS_HD Window pixels(int64_t piece) const {
    const Window whole = window(piece / each, size, windows);
    const int64_t length = whole.end - whole.begin, part = piece % each;
    return {whole.begin + length * part / each, whole.begin + length * (part + 1) / each};
  }
  PYOPS_HD int64_t length(int64_t piece) const {  // of its window
    const Window whole = window(piece / each, size, windows);
    return whole.end - whole.begin;
  }
};

// The pixels of a piece, and the length of its window.
struct Span {
  Window pixels;
  float length;
};

// Of `count` pieces, each by the thread of its number: the divisions take longer than they look.
__device__ __forceinline__ void stage_spans(const Pieces& pieces, int64_t first, int count, int number, Span* to) {
  if (number < count) to[number] = {pieces.pixels(first + number), float(pieces.length(first + number))};
}

constexpr int64_t kKeyShared =
    int64_t(sizeof(KeyWeights)) + sizeof(float) * (kFeatures * kPlane + kColours * kGradedPlane);
static_assert(kChunk * 3 * kFeatures * kSumPitch <= kColours * kGradedPlane, "sums take the place of the colours");

// Sums of value(i) over [begin, end), not empty, shifted by -1, 0 and 1.
template <class F>
__device__ __forceinline__ void shifted_sums(int begin, int end, float (&sum)[3], const F& value) {
  const float left = value(begin - 1), first = value(begin), last = value(end - 1), right = value(end);
  float inner = 0;  // what the three have in common
#pragma unroll 4
  for (int i = begin + 1; i < end - 1; ++i) inner += value(i);
  const bool single = end - begin == 1;
  sum[0] = single ? left : left + first + inner;
  sum[1] = single ? first : first + inner + last;
  sum[2] = single ? right : inner + last + right;
}

// Adds v[i] over eight neighbouring lanes; lane i gets sum i.
__device__ __forceinline__ float sum_across_lanes(float (&v)[kFeatures]) {
#pragma unroll
  for (int half = kFeatures / 2; half > 0; half /= 2) {
    const bool upper = (threadIdx.x & unsigned(half)) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float mine = upper ? v[i + half] : v[i], other = upper ? v[i] : v[i + half];
      v[i] = mine + __shfl_xor_sync(kWarp, other, half);
    }
  }
  return v[0];
}

// keys [B][pieces along y][pieces along x][8]
__global__ void __launch_bounds__(kThreads, 2)
    key_kernel(const Scene scene, const Pieces rows, const Pieces columns, float* keys) {
  PYOPS_DYNAMIC_SHARED(float, shared);
  __shared__ Span row_span[kMostPieces], column_span[kMostPieces];
  auto& w = *reinterpret_cast<KeyWeights*>(shared);
  float* const planes = shared + sizeof(KeyWeights) / sizeof(float);
  float* const graded = planes + kFeatures * kPlane;
  const unsigned across = unsigned(columns.blocks), down = unsigned(rows.blocks), block_row = blockIdx.x / across;
  const int64_t b = block_row / down, first_row = int64_t(block_row % down) * rows.block;
  const int64_t first_column = int64_t(blockIdx.x % across) * columns.block;
  const int row_count = rows.taken(first_row), column_count = columns.taken(first_column);
  stage_spans(rows, first_row, row_count, int(threadIdx.x), row_span);
  stage_spans(columns, first_column, column_count, kThreads - 1 - int(threadIdx.x), column_span);
  stage_weights(w, scene.parameters);
  __syncthreads();
  const Frame frame(scene, b, row_span[0].pixels.begin - 1, column_span[0].pixels.begin - 1);
  const Owned own(frame);
  grade(scene, frame, graded);
  __syncthreads();
  {
    float r[kFeatures][kOwned];
    features(graded, w.features, own, r);
#pragma unroll
    for (int c = 0; c < kFeatures; ++c) write(planes + c * kPlane + own.here, r[c]);
  }
  __syncthreads();

  float* const sums = graded;  // [kChunk][shift along y][feature][column]
  static_assert(kThreads == kFeatures * kColumns, "a thread sums a column of a feature");
  for (int begin = 0; begin < row_count; begin += kChunk) {
    const int chunk = row_count - begin < kChunk ? row_count - begin : kChunk;
    const float* column = planes + int(threadIdx.x) / kColumns * kPlane + int(threadIdx.x) % kColumns;
    float* to = sums + int(threadIdx.x) / kColumns * kSumPitch + int(threadIdx.x) % kColumns;
    for (int i = 0; i < chunk; ++i) {
      const Window pixels = row_span[begin + i].pixels;
      float sum[3];
      shifted_sums(int(pixels.begin - frame.top), int(pixels.end - frame.top), sum,
                   [=](int y) { return column[y * kColumns]; });
#pragma unroll
      for (int s = 0; s < 3; ++s) to[(i * 3 + s) * kFeatures * kSumPitch] = sum[s];
    }
    __syncthreads();
    const int feature = int(threadIdx.x) % kFeatures, lane = int(threadIdx.x) % 32;
    const int items = chunk * column_count * kFeatures;
    for (int of_warp = int(threadIdx.x) - lane; of_warp < items; of_warp += kThreads) {  // a warp stays together
      const int item = of_warp + lane, piece = (item < items ? item : items - 1) / kFeatures;
      const int i = piece / column_count, j = piece % column_count;
      const Window pixels = column_span[j].pixels;
      float sum[3][3];  // [shift along y][along x]
#pragma unroll
      for (int s = 0; s < 3; ++s) {
        const float* row = sums + ((i * 3 + s) * kFeatures + feature) * kSumPitch;
        shifted_sums(int(pixels.begin - frame.left), int(pixels.end - frame.left), sum[s],
                     [=](int x) { return row[x]; });
      }
      float key[kFeatures];
#pragma unroll
      for (int c = 0; c < kFeatures; ++c) {
        float tap[kTaps], total = 0;
        read(tap, w.depthwise[c]);
#pragma unroll
        for (int t = 0; t < 9; ++t) total += tap[t] * sum[t / 3][t % 3];
        key[c] = w.mix[c][feature] * total;
      }
      const float mean = sum_across_lanes(key) / (row_span[begin + i].length * column_span[j].length);
      const int64_t at = (b * rows.count + first_row + begin + i) * columns.count + first_column + j;
      if (item < items) keys[at * kFeatures + feature] = mean;
    }
    __syncthreads();
  }
}

// ---- attention -------------------------------------------------------------------------------------------------------

constexpr int kMomentThreads = 256;

// Moments of part `blockIdx.x % parts` of the positions of an image: sums [B][parts][kMoments]. query [B][8][positions].
__global__ void __launch_bounds__(kMomentThreads)
    moment_kernel(const float* query, const float* keys, const Pieces rows, const Pieces columns, int parts,
                  float* sums) {
  __shared__ float by_warp[kMomentThreads / 32][kMoments];
  const int64_t b = blockIdx.x / unsigned(parts), positions = rows.windows * columns.windows;
  float sum[kMoments] = {};
  for (int64_t i = int64_t(blockIdx.x % unsigned(parts)) * kMomentThreads + threadIdx.x; i < positions;
       i += int64_t(parts) * kMomentThreads) {
    const int64_t row = i / columns.windows * rows.each, column = i % columns.windows * columns.each;
    float key[kFeatures] = {};
    for (int64_t y = row; y < row + rows.each; ++y)
      for (int64_t x = column; x < column + columns.each; ++x) {
        float piece[kFeatures];
        read(piece, keys + ((b * rows.count + y) * columns.count + x) * kFeatures);
#pragma unroll
        for (int c = 0; c < kFeatures; ++c) key[c] += piece[c];
      }
#pragma unroll
    for (int c = 0; c < kFeatures; ++c) {
      const float q = query[(b * kFeatures + c) * positions + i];
      sum[moment::query + c] += q * q, sum[moment::key + c] += key[c] * key[c];
#pragma unroll
      for (int j = 0; j < kHeadFeatures; ++j) {
        const int other = c / kHeadFeatures * kHeadFeatures + j;
        sum[moment::product + c % kHeadFeatures * kFeatures + other] += q * key[other];
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kMoments; ++m) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum[m] += __shfl_xor_sync(kWarp, sum[m], step);
    if (threadIdx.x % 32 == 0) by_warp[threadIdx.x / 32][m] = sum[m];
  }
  __syncthreads();
  if (threadIdx.x < kMoments) {
    float total = 0;
    for (int i = 0; i < kMomentThreads / 32; ++i) total += by_warp[i][threadIdx.x];
    sums[int64_t(blockIdx.x) * kMoments + threadIdx.x] = total;
  }
}

// The weights of pass 2 for image `blockIdx.x`, from the moments of all parts.
__global__ void weight_kernel(const float* sums, const float* parameters, int parts, ResultWeights* weights) {
  __shared__ double moments[kMoments];
  ResultWeights& to = weights[blockIdx.x];
  if (threadIdx.x < kMoments) {
    double total = 0;
#pragma unroll 16  // loads under way at a time
    for (int i = 0; i < parts; ++i) total += sums[(int64_t(blockIdx.x) * parts + i) * kMoments + threadIdx.x];
    moments[threadIdx.x] = total;
  }
  stage_weights(to, parameters);
  __syncthreads();
  if (threadIdx.x >= kFeatures) return;
  float row[kFeatures];
  mixing_row(moments, parameters, int(threadIdx.x), row);
  for (int c = 0; c < kFeatures; ++c) to.mixing[c][threadIdx.x] = row[c];
}

// ResultWeights [B]
Tensor result_weights(const Problem& p, const Scene& scene, const Tensor& query, cudaStream_t stream) {
  const Pieces rows(p.height, p.key_height, kRows - 2), columns(p.width, p.key_width, kColumns - 2);
  const auto scratch = [&](int64_t floats) { return new_tensor(query, {floats}, ScalarType::Float); };
  const Tensor planar = contiguous_as(query, ScalarType::Float);
  const Tensor keys = scratch(p.batch * rows.count * columns.count * kFeatures);
  launch("relation_aware_modulation (keys)", key_kernel, blocks_for(p.batch * rows.blocks * columns.blocks, 1),
         kThreads, kKeyShared, stream, scene, rows, columns, keys.mutable_data_ptr<float>());
  const int parts = int(blocks_for(p.key_height * p.key_width, 2 * kMomentThreads, 64));
  const Tensor sums = scratch(p.batch * parts * kMoments);
  launch("relation_aware_modulation (moments)", moment_kernel, blocks_for(p.batch * parts, 1), kMomentThreads, 0,
         stream, planar.const_data_ptr<float>(), keys.const_data_ptr<float>(), rows, columns, parts,
         sums.mutable_data_ptr<float>());
  const Tensor weights = scratch(p.batch * int64_t(sizeof(ResultWeights) / sizeof(float)));
  launch("relation_aware_modulation (weights)", weight_kernel, blocks_for(p.batch, 1), kMomentThreads, 0, stream,
         sums.const_data_ptr<float>(), scene.parameters, parts,
         static_cast<ResultWeights*>(weights.mutable_data_ptr()));
  return weights;
}

}  // namespace
}  // namespace pyops::modulation
