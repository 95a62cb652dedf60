// Relation-aware modulation on the CPU: two passes over the image, see modulation.h.
//
// Pass 1 takes bands of rows to pooled keys, pass 2 takes tiles to the result. Both keep the few rows that each stage
// needs of the one before in rings that stay in the second-level cache; nothing of full size is ever stored.
#include "../common/pixel.h"
#include "../lut3d/lut3d_pack.h"
#include "../lut3d/lut3d_simd.h"
#include "modulation_args.h"
#include "modulation_simd.h"

namespace pyops::modulation {
namespace {

using torch::stable::parallel_for;
using Colours = float* const (&)[kColours];

constexpr int64_t kBandRows = 128;  // rows a task at least: of the 8 rows computed twice, little shows

// ---- what the tasks of a call share ----------------------------------------------------------------------------------

// The weights in the order of the row functions.
struct Weights {
  const float* plain;
  float conv[kFeatures * kColours * 9], key[kFeatures * kFeatures], value[kFeatures * kFeatures];
  float expand[2 * kHidden * kFeatures], contract[kFeatures * kHidden], out[kColours * kFeatures * 9];

  explicit Weights(const float* p) : plain(p) {
    rows::reorder<4>(p + at::conv, kFeatures, kColours, 9, conv);
    rows::reorder<8>(p + at::key_value, kFeatures, kFeatures, 1, key);
    rows::reorder<4>(p + at::key_value + kFeatures * kFeatures, kFeatures, kFeatures, 1, value);
    rows::reorder<4>(p + at::expand, 2 * kHidden, kFeatures, 1, expand);
    rows::reorder<4>(p + at::contract, kFeatures, kHidden, 1, contract);
    rows::reorder<3>(p + at::out, kColours, kFeatures, 9, out);
  }
};

// Rows of the image and of the result, whatever their element type and layout.
struct Source {
  const void* pixels;
  void (*load)(const void* pixels, int64_t b, int64_t y, int64_t x, int64_t n, Colours to);
};
struct Target {
  const void* pixels;
  void (*store)(const void* pixels, int64_t b, int64_t y, int64_t x, int64_t n, Colours from);
};

template <class T>
PYOPS_HD void load_pixels(const void* pixels, int64_t b, int64_t y, int64_t x, int64_t n, Colours to) {
  const auto& image = *static_cast<const Pixels<T>*>(pixels);
  const T* from = image.data + b * image.batch + y * image.row + x * image.column;
  if (image.column == 3 && image.channel == 1) {
    for (int64_t i = 0; i < n; ++i)
      for (int c = 0; c < kColours; ++c) to[c][i] = decode<T, float>(from[3 * i + c]);
    return;
  }
  for (int c = 0; c < kColours; ++c) {
    const T* plane = from + c * image.channel;
    if (image.column == 1)
      for (int64_t i = 0; i < n; ++i) to[c][i] = decode<T, float>(plane[i]);
    else
      for (int64_t i = 0; i < n; ++i) to[c][i] = decode<T, float>(plane[i * image.column]);
  }
}

template <class T>
PYOPS_HD void store_pixels(const void* pixels, int64_t b, int64_t y, int64_t x, int64_t n, Colours from) {
  const auto& image = *static_cast<const Pixels<T>*>(pixels);
  T* to = image.data + b * image.batch + y * image.row + x * image.column;
  if (image.column == 3) {
    for (int64_t i = 0; i < n; ++i)
      for (int c = 0; c < kColours; ++c) to[3 * i + c] = encode<T, float>(from[c][i]);
    return;
  }
  for (int c = 0; c < kColours; ++c)
    for (int64_t i = 0; i < n; ++i) to[c * image.channel + i] = encode<T, float>(from[c][i]);
}

#define PYOPS_ROW_IO(T)                                                                                               \
  PYOPS_MULTIVERSION void load_row(const Pixels<T>*, const void* pixels, int64_t b, int64_t y, int64_t x, int64_t n,  \
                                   Colours to) {                                                                      \
    load_pixels<T>(pixels, b, y, x, n, to);                                                                           \
  }                                                                                                                   \
  PYOPS_MULTIVERSION void store_row(const Pixels<T>*, const void* pixels, int64_t b, int64_t y, int64_t x, int64_t n, \
                                    Colours from) {                                                                   \
    store_pixels<T>(pixels, b, y, x, n, from);                                                                        \
  }
PYOPS_ROW_IO(float)
PYOPS_ROW_IO(Half)
PYOPS_ROW_IO(BFloat16)
PYOPS_ROW_IO(uint8_t)
PYOPS_ROW_IO(uint16_t)
#undef PYOPS_ROW_IO

template <class T>
Source source_of(const Pixels<T>& image) {
  return {&image, [](const void* pixels, int64_t b, int64_t y, int64_t x, int64_t n, Colours to) {
            load_row(static_cast<const Pixels<T>*>(nullptr), pixels, b, y, x, n, to);
          }};
}
template <class T>
Target target_of(const Pixels<T>& image) {
  return {&image, [](const void* pixels, int64_t b, int64_t y, int64_t x, int64_t n, Colours from) {
            store_row(static_cast<const Pixels<T>*>(nullptr), pixels, b, y, x, n, from);
          }};
}

struct Call {
  const Problem& p;
  Source image;
  Target result;
  const float* tables;  // packed
  const Weights& weights;

  lut3d::Lattice<float> lattice(int64_t b) const {
    const int size = p.lut.size;
    const lut3d::Axis<float> axis{size, nullptr, nullptr};
    return {tables + (p.lut.shared_lut ? 0 : b * 4 * p.lut.cells()), size, {axis, axis, axis}, {}};
  }
};

// ---- stages ----------------------------------------------------------------------------------------------------------

// A ring of the latest `kRows` rows of a stage with `kChannels` channels, in memory that the task owns.
template <int kChannels, int kRows>
struct Ring {
  static constexpr int64_t kFloats = int64_t(kChannels) * kRows * kStride;
  float* memory;
  explicit Ring(float*& free) : memory(free) { free += kFloats; }
  float* row(int64_t y) const { return memory + (y + 4 * kRows) % kRows * kChannels * kStride + kPad; }
};

// Columns of a tile: column i of a row is column left + i of the image; the row has n of them.
struct Columns {
  int64_t left, width;  // of the image
  int n;
  int begin() const { return int(std::max<int64_t>(0, -left)); }
  int end() const { return int(std::min<int64_t>(n, width - left)); }
  void clear_outside(float* row, int channels) const {
    if (left < 0 || left + n > width) rows::clear_outside(row, channels, begin(), end(), n);
  }
};

bool inside(int64_t y, int64_t height) { return y >= 0 && y < height; }

// graded(y) for n columns from `left` on, channels `stride` apart.
PYOPS_HD void grade(const Call& call, const lut3d::Lattice<float>& lattice, int64_t b, int64_t y,
                    const Columns& columns, float* to, int64_t stride) {
  float* const row[kColours] = {to, to + stride, to + 2 * stride};
  const int begin = columns.begin(), end = columns.end(), n = columns.n;
  if (!inside(y, call.p.height)) {
    for (float* r : row) std::fill(r, r + n, 0.f);
    return;
  }
  float* const inner[kColours] = {row[0] + begin, row[1] + begin, row[2] + begin};
  call.image.load(call.image.pixels, b, y, columns.left + begin, end - begin, inner);
  for (float* r : row) std::fill(r, r + begin, 0.f), std::fill(r + end, r + n, 0.f);
  const float* const in[kColours] = {row[0], row[1], row[2]};
  lut3d::simd_detail::forward<false, true>(lattice, in, row, n);
  for (float* r : row) std::fill(r, r + begin, 0.f), std::fill(r + end, r + n, 0.f);
}

// ---- pass 1: pooled keys ---------------------------------------------------------------------------------------------

// What a task owns: three rows of graded, a stretch of features, a row of R, sums over the windows of a row.
struct KeyScratch {
  int64_t stride;  // of the channels of a row of graded; column x of the image is at kPad + x
  float *graded, *stretch, *features, *sums;

  static int64_t stride_of(const Problem& p) { return ceil_div(p.width, int64_t(16)) * 16 + 2 * kPad; }
  static int64_t floats(const Problem& p) {
    return 9 * stride_of(p) + kFeatures * kStride + (p.width + 2 + 3 * p.key_width) * kFeatures;
  }
  KeyScratch(const Problem& p, float* memory) : stride(stride_of(p)), graded(memory) {
    stretch = graded + 9 * stride;
    features = stretch + kFeatures * kStride;
    sums = features + (p.width + 2) * kFeatures;
  }
  float* row(int64_t y) const { return graded + (y + 3) % 3 * 3 * stride; }
};

// R(y) as [1 + width + 1][8], zero outside the image, from graded(y - 1 .. y + 1).
PYOPS_HD void feature_row(const Call& call, int64_t y, const KeyScratch& scratch) {
  using namespace simd;
  const int64_t width = call.p.width;
  for (int64_t x = 0; x < width; x += kSpan) {
    const int64_t last = std::min<int64_t>(kSpan, width - x);
    const int n = int(ceil_div(last, int64_t(16)) * 16);
    const float* const from[3] = {scratch.row(y - 1) + kPad + x, scratch.row(y) + kPad + x,
                                  scratch.row(y + 1) + kPad + x};
    rows::convolve<kColours, kFeatures, 4>(from, scratch.stride, call.weights.conv, call.weights.plain + at::conv_bias,
                                           scratch.stretch, n);
    for (int64_t i = 0; i < last; i += 8) {
      f32x8 v[kFeatures];
      for (int c = 0; c < kFeatures; ++c) v[c] = load<f32x8>(scratch.stretch + c * kStride + i);
      rows::normalise<true>(v, call.weights.plain + at::norm1);
      simd::transpose(v);
      float* to = scratch.features + (1 + x + i) * kFeatures;
      for (int64_t k = 0; k < std::min<int64_t>(8, last - i); ++k) store(to + k * kFeatures, v[k]);
    }
  }
  std::fill(scratch.features, scratch.features + kFeatures, 0.f);
  std::fill(scratch.features + (1 + width) * kFeatures, scratch.features + (2 + width) * kFeatures, 0.f);
}

// Of one row of R: for each window of columns the sums over it of key_mix R, shifted by -1, 0, 1 and weighted with row s
// of the depthwise kernel: sums[s][window][8].
PYOPS_HD void window_sums(const Problem& p, const Weights& w, const float* features, float* sums) {
  using namespace simd;
  f32x8 depthwise[9];
  for (int tap = 0; tap < 9; ++tap) {
    alignas(32) float channel[kFeatures];
    for (int c = 0; c < kFeatures; ++c) channel[c] = w.plain[at::key_value_depthwise + c * 9 + tap];
    depthwise[tap] = load<f32x8>(channel);
  }
  for (int64_t j = 0; j < p.key_width; ++j) {
    const Window columns = window(j, p.width, p.key_width);
    const float* first = features + (1 + columns.begin) * kFeatures;  // of the window
    const float* end = features + (1 + columns.end) * kFeatures;
    f32x8 inner = splat(0.f);  // what the three shifted windows have in common
    for (const float* f = first + kFeatures; f < end - kFeatures; f += kFeatures) inner += load<f32x8>(f);
    const f32x8 left = load<f32x8>(first - kFeatures), right = load<f32x8>(end);
    const f32x8 head = load<f32x8>(first), tail = load<f32x8>(end - kFeatures);
    const bool single = end - first == kFeatures;
    const f32x8 shifted[3] = {single ? left : inner + left + head, single ? head : inner + head + tail,
                              single ? right : inner + tail + right};
    f32x8 sum[3] = {splat(0.f), splat(0.f), splat(0.f)};
    for (int t = 0; t < 3; ++t) {
      alignas(32) float feature[kFeatures];
      store(feature, shifted[t]);
      f32x8 mixed = splat(0.f);
      for (int i = 0; i < kFeatures; ++i) mixed += splat(feature[i]) * load<f32x8>(w.key + i * kFeatures);
      for (int s = 0; s < 3; ++s) sum[s] += mixed * depthwise[3 * s + t];
    }
    for (int s = 0; s < 3; ++s) store(sums + (s * p.key_width + j) * kFeatures, sum[s]);
  }
}

// Rows [begin, end) of the pooled keys [h][w][8] of image b.
PYOPS_MULTIVERSION void key_rows(const Call& call, int64_t b, int64_t begin, int64_t end, float* memory, float* keys) {
  using namespace simd;
  const Problem& p = call.p;
  const auto lattice = call.lattice(b);
  const KeyScratch scratch(p, memory);
  const Columns columns{-kPad, p.width, int(scratch.stride)};
  const int64_t row_floats = p.key_width * kFeatures;
  std::fill(keys + begin * row_floats, keys + end * row_floats, 0.f);
  const int64_t top = std::max<int64_t>(0, window(begin, p.height, p.key_height).begin - 1);
  const int64_t bottom = std::min(p.height - 1, window(end - 1, p.height, p.key_height).end);
  for (int64_t y = top - 1; y <= top; ++y) grade(call, lattice, b, y, columns, scratch.row(y), scratch.stride);
  for (int64_t y = top; y <= bottom; ++y) {
    grade(call, lattice, b, y + 1, columns, scratch.row(y + 1), scratch.stride);
    feature_row(call, y, scratch);
    window_sums(p, call.weights, scratch.features, scratch.sums);
    for (int64_t s = 0; s < 3; ++s) {  // tap s of output row `to` looks at row to + s - 1
      const int64_t to = y + 1 - s;
      if (!inside(to, p.height)) continue;
      const int64_t first = std::max(begin, first_window(to, p.height, p.key_height));
      const int64_t last = std::min(end - 1, last_window(to, p.height, p.key_height));
      for (int64_t i = first; i <= last; ++i)
        for (int64_t k = 0; k < row_floats; k += 8)
          store(keys + i * row_floats + k,
                load<f32x8>(keys + i * row_floats + k) + load<f32x8>(scratch.sums + s * row_floats + k));
    }
  }
  for (int64_t i = begin; i < end; ++i) {
    const Window row = window(i, p.height, p.key_height);
    for (int64_t j = 0; j < p.key_width; ++j) {
      const Window column = window(j, p.width, p.key_width);
      float* key = keys + i * row_floats + j * kFeatures;
      store(key, load<f32x8>(key) * (1.f / float((row.end - row.begin) * (column.end - column.begin))));
    }
  }
}

// ---- between the passes: attention over channels -----------------------------------------------------------------------

constexpr int64_t kMomentRun = 256;  // positions summed in float before they join the sum in double

// Adds the moments of positions [begin, end): query planar [8][positions], keys [positions][8].
PYOPS_MULTIVERSION void add_moments(const float* query, const float* keys, int64_t positions, int64_t begin,
                                    int64_t end, double* moments) {
  using namespace simd;
  for (int64_t run = begin; run < end; run += kMomentRun) {
    const f32x8 zero = splat(0.f);
    f32x8 product[kHeadFeatures] = {zero, zero, zero, zero}, query_square = zero, key_square = zero;
    for (int64_t i = run; i < std::min(end, run + kMomentRun); i += 8) {
      f32x8 q[8];
      const int64_t n = std::min<int64_t>(8, end - i);
      for (int c = 0; c < kFeatures; ++c) {
        if (n == 8) q[c] = load<f32x8>(query + c * positions + i);
        else
          for (int64_t k = 0; k < 8; ++k) q[c][k] = k < n ? query[c * positions + i + k] : 0.f;
      }
      simd::transpose(q);
      for (int64_t k = 0; k < n; ++k) {
        const f32x8 key = load<f32x8>(keys + (i + k) * kFeatures);
        product[0] += repeat<0>(q[k]) * key, product[1] += repeat<1>(q[k]) * key;
        product[2] += repeat<2>(q[k]) * key, product[3] += repeat<3>(q[k]) * key;
        query_square += q[k] * q[k], key_square += key * key;
      }
    }
    for (int j = 0; j < kFeatures; ++j) {
      for (int i = 0; i < kHeadFeatures; ++i) moments[moment::product + i * kFeatures + j] += product[i][j];
      moments[moment::query + j] += query_square[j], moments[moment::key + j] += key_square[j];
    }
  }
}

// ---- pass 2: the result ------------------------------------------------------------------------------------------------

constexpr int64_t kTileScratch = Ring<kColours, 3>::kFloats + 2 * Ring<kFeatures, 2>::kFloats +
                                 2 * Ring<kFeatures, 3>::kFloats + Ring<2 * kHidden, 3>::kFloats +
                                 Ring<kFeatures, 2>::kFloats + Ring<kHidden, 1>::kFloats + Ring<kColours, 1>::kFloats +
                                 Ring<2, 1>::kFloats;

// Rows [top, bottom) and the inner columns of a tile. `mixing` is project * A, reordered.
PYOPS_MULTIVERSION void tile(const Call& call, const float* mixing, int64_t b, int64_t top, int64_t bottom,
                             const Columns& columns, float* scratch) {
  const Weights& w = call.weights;
  const int64_t height = call.p.height;
  const int n = columns.n;
  const auto lattice = call.lattice(b);
  std::fill(scratch, scratch + kTileScratch, 0.f);
  const Ring<kColours, 3> graded(scratch);
  const Ring<kFeatures, 2> features(scratch);  // R
  const Ring<kFeatures, 3> values(scratch);    // value_mix R
  const Ring<kFeatures, 2> attended(scratch);  // R1
  const Ring<2 * kHidden, 3> hidden(scratch);  // expand norm2(R1)
  const Ring<kFeatures, 3> refined(scratch);   // R2
  const Ring<kFeatures, 2> temporary(scratch);
  const Ring<kHidden, 1> gated(scratch);
  const Ring<kColours, 1> result(scratch);
  const Ring<2, 1> pair(scratch);
  for (int64_t y = top - 4; y < bottom + 4; ++y) {
    grade(call, lattice, b, y, columns, graded.row(y), kStride);

    int64_t r = y - 1;  // every stage runs one row behind the one before
    if (r < top - 3) continue;
    if (inside(r, height)) {
      const float* const from[3] = {graded.row(r - 1), graded.row(r), graded.row(r + 1)};
      rows::convolve<kColours, kFeatures, 4>(from, kStride, w.conv, w.plain + at::conv_bias, temporary.row(0), n);
      rows::normalise_row<true>(temporary.row(0), w.plain + at::norm1, features.row(r), n);
      columns.clear_outside(features.row(r), kFeatures);
      rows::mix<kFeatures, kFeatures>(features.row(r), w.value, nullptr, values.row(r), n);
    } else {
      rows::clear_outside(values.row(r), kFeatures, n, n, n);
    }

    if (--r < top - 2) continue;
    if (inside(r, height)) {
      for (int c = 0; c < kFeatures; ++c)
        rows::depthwise(values.row(r - 1) + c * kStride, values.row(r) + c * kStride, values.row(r + 1) + c * kStride,
                        w.plain + at::key_value_depthwise + (kFeatures + c) * 9, temporary.row(0) + c * kStride, n);
      rows::mix<kFeatures, kFeatures>(temporary.row(0), mixing, features.row(r), attended.row(r), n);
      rows::normalise_row<false>(attended.row(r), w.plain + at::norm2, temporary.row(1), n);
      rows::mix<kFeatures, 2 * kHidden>(temporary.row(1), w.expand, nullptr, hidden.row(r), n);
      columns.clear_outside(hidden.row(r), 2 * kHidden);
    } else {
      rows::clear_outside(hidden.row(r), 2 * kHidden, n, n, n);
    }

    if (--r < top - 1) continue;
    if (inside(r, height)) {
      const float *above = hidden.row(r - 1), *here = hidden.row(r), *below = hidden.row(r + 1);
      for (int i = 0; i < kHidden; ++i) {
        for (int part = 0; part < 2; ++part) {
          const int c = i + part * kHidden;
          rows::depthwise(above + c * kStride, here + c * kStride, below + c * kStride,
                          w.plain + at::expand_depthwise + c * 9, pair.row(0) + part * kStride, n);
        }
        rows::gate(pair.row(0), pair.row(0) + kStride, gated.row(0) + i * kStride, n);
      }
      rows::mix<kHidden, kFeatures>(gated.row(0), w.contract, attended.row(r), refined.row(r), n);
      columns.clear_outside(refined.row(r), kFeatures);
    } else {
      rows::clear_outside(refined.row(r), kFeatures, n, n, n);
    }

    if (--r < top) continue;
    const float* const from[3] = {refined.row(r - 1), refined.row(r), refined.row(r + 1)};
    rows::convolve<kFeatures, kColours, 3>(from, kStride, w.out, w.plain + at::out_bias, result.row(0), n);
    float* const colours[kColours] = {result.row(0) + kPad, result.row(0) + kStride + kPad,
                                      result.row(0) + 2 * kStride + kPad};
    const int64_t x = columns.left + kPad, count = std::min<int64_t>(n - 2 * kPad, columns.width - x);
    call.result.store(call.result.pixels, b, r, x, count, colours);
  }
}

// ---- a call ------------------------------------------------------------------------------------------------------------

// Runs f(task, scratch) for every task, with `floats` of memory for each thread.
template <class F>
void for_each_task(const Tensor& like, int64_t tasks, int64_t floats, const F& f) {
  parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    const Tensor memory = new_tensor(like, {floats}, ScalarType::Float);
    for (int64_t task = begin; task < end; ++task) f(task, memory.mutable_data_ptr<float>());
  });
}

void run(const Call& call, const Tensor& query) {
  const Problem& p = call.p;
  const int64_t positions = p.key_height * p.key_width;

  const Tensor keys = new_tensor(query, {p.batch, positions, kFeatures}, ScalarType::Float);
  const int64_t band = std::max<int64_t>(1, kBandRows * p.key_height / p.height), bands = ceil_div(p.key_height, band);
  for_each_task(query, p.batch * bands, KeyScratch::floats(p), [&](int64_t task, float* scratch) {
    const int64_t b = task / bands, first = task % bands * band;
    float* to = keys.mutable_data_ptr<float>() + b * positions * kFeatures;
    key_rows(call, b, first, std::min(first + band, p.key_height), scratch, to);
  });

  const Tensor mixing = new_tensor(query, {p.batch, kFeatures * kFeatures}, ScalarType::Float);
  parallel_for(0, p.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      double moments[kMoments] = {};
      float plain[kFeatures * kFeatures];
      add_moments(query.const_data_ptr<float>() + b * positions * kFeatures,
                  keys.const_data_ptr<float>() + b * positions * kFeatures, positions, 0, positions, moments);
      for (int o = 0; o < kFeatures; ++o) mixing_row(moments, call.weights.plain, o, plain + o * kFeatures);
      rows::reorder<4>(plain, kFeatures, kFeatures, 1, mixing.mutable_data_ptr<float>() + b * kFeatures * kFeatures);
    }
  });

  const int64_t across = ceil_div<int64_t>(p.width, kSpan - 2 * kPad);
  const int64_t wanted = ceil_div<int64_t>(8 * torch::stable::get_num_threads(), p.batch * across);
  const int64_t rows = std::max(kBandRows, ceil_div(p.height, wanted)), down = ceil_div(p.height, rows);
  const int64_t tile_width = ceil_div(ceil_div(p.width, across), int64_t(16)) * 16;
  for_each_task(query, p.batch * down * across, kTileScratch, [&](int64_t task, float* scratch) {
    const int64_t b = task / (down * across), top = task / across % down * rows, left = task % across * tile_width;
    if (left >= p.width) return;
    const int n = int(ceil_div(std::min(tile_width, p.width - left) + 2 * kPad, int64_t(16)) * 16);
    tile(call, mixing.const_data_ptr<float>() + b * kFeatures * kFeatures, b, top, std::min(top + rows, p.height),
         {left - kPad, p.width, n}, scratch);
  });
}

Tensor forward(const Tensor& image, const Tensor& lut, const Tensor& query, const Tensor& parameters) {
  const Problem p = check(image, lut, query, parameters);
  const Tensor out = new_tensor(image, sizes_of(image), image.scalar_type(), is_channels_last(image));
  if (out.numel() == 0) return out;
  const Tensor tables =
      lut3d::pack<float>(contiguous_as(lut, ScalarType::Float), p.lut.shared_lut ? 1 : p.batch, p.lut.size);
  const Weights weights(parameters.const_data_ptr<float>());
  const Tensor planar_query = contiguous_as(query, ScalarType::Float);
  dispatch_pixel(image.scalar_type(), "image", [&](auto pixel) {
    using T = decltype(pixel);
    const auto from = pixels_of<T>(image), to = pixels_of<T>(out);
    run({p, source_of(from), target_of(to), tables.const_data_ptr<float>(), weights}, planar_query);
  });
  return out;
}

}  // namespace
}  // namespace pyops::modulation

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("relation_aware_modulation(Tensor image, Tensor lut, Tensor query, Tensor parameters) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("relation_aware_modulation", TORCH_BOX(&pyops::modulation::forward));
}
