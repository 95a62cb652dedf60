// Windows of lines that are rows of memory, on the CPU.
//
// Every line lies in a place of its own, so that a window costs a line of the cache or two from far away, and a lookup
// takes as long as these are waited for. So a tile of pixels is placed, and its lines are asked for, kAhead tiles before
// they are read, over all levels in one sequence.
#pragma once

#include "lookup_taps.h"

namespace pyops::lookup {
namespace {

constexpr int kAhead = 8, kRing = 16;  // tiles
constexpr int kBlock = 4;              // taps that are read at a time

template <class T, class A>
struct Tile {
  static constexpr int n = kLanes<A>;
  Vector<A> fraction;
  int64_t start[n];  // where a line's first tap lies, from those of the image on
  int first[n];
  bool inside;  // all taps of all pixels

  PYOPS_HD void place(const Lines<T>& lines, const Run<A>& run, const Positions<A>& positions, int tile, int radius) {
    const auto whole = split(positions.of(lines, tile), fraction);
    const auto outside = (whole < radius) | (whole + radius + 2 > int(lines.taps));
    inside = !simd::any(outside);
    const T* const line = lines.data + run.b * lines.batch;
    const int64_t pixel = run.pixel_of(tile), last = run.count_of(tile) - 1;
    for (int k = 0; k < n; ++k) {
      first[k] = int(whole[k]) - radius;
      start[k] = (pixel + std::min<int64_t>(k, last)) * lines.pixel + first[k];
      __builtin_prefetch(line + start[k]), __builtin_prefetch(line + start[k] + 2 * radius + 1);
    }
  }

  // Taps begin .. begin + 3 of all pixels; 0 beyond the line.
  PYOPS_HD void read(const T* line, int64_t begin, int64_t taps, Vector<A> (&block)[kBlock]) const {
    const T* from[n];
    T padded[n][kBlock];
    for (int k = 0; k < n; ++k) from[k] = line + start[k] + begin;
    for (int k = 0; !inside && k < n; ++k) {
      const int64_t at = first[k] + begin;
      if (at >= 0 && at + kBlock <= taps) continue;
      for (int i = 0; i < kBlock; ++i) padded[k][i] = uint64_t(at + i) < uint64_t(taps) ? from[k][i] : T(0);
      from[k] = padded[k];
    }
    if constexpr (n == 2 * kBlock) {
      for (int k = 0; k < kBlock; ++k) block[k] = simd::load_halves<T>(from[k], from[k + kBlock]);
    } else {
      for (int k = 0; k < kBlock; ++k) block[k] = simd::load_elements<T, A>(from[k]);
    }
    simd::transpose(block);
  }
};

inline bool are_rows(int64_t tap, int64_t channels, int radius) {
  return tap == 1 && channels == 1 && 2 * radius + 2 >= kBlock;
}

// Of all lines, those that are rows.
template <class T, class A>
PYOPS_HD void look_up_rows(const Lines<T>* lines, int64_t kinds, const Run<A>& run, const Positions<A>& positions,
                           int radius, T* out) {
  const Lines<T>* rows[2 * kMostLevels];
  int64_t count = 0;
  for (int64_t k = 0; k < kinds; ++k)
    if (are_rows(lines[k].tap, lines[k].channels, radius)) rows[count++] = lines + k;
  const int64_t tiles = run.tiles(), all = count * tiles, window = 2 * radius + 1;
  Tile<T, A> ring[kRing];
  int64_t soon_row = 0, soon_tile = 0, row = 0, tile = 0;
  for (int64_t i = -kAhead; i < all; ++i) {
    if (i + kAhead < all) {
      ring[(i + kAhead) % kRing].place(*rows[soon_row], run, positions, int(soon_tile), radius);
      if (++soon_tile == tiles) soon_tile = 0, ++soon_row;
    }
    if (i < 0) continue;
    const Lines<T>& here = *rows[row];
    const Tile<T, A>& taps = ring[i % kRing];
    const T* const line = here.data + run.b * here.batch;
    T* to = out + here.out * run.pixels + run.pixel_of(int(tile));
    const int64_t stored = run.count_of(int(tile));
    const Vector<A> f = taps.fraction, rest = simd::splat(A(1)) - f;
    Vector<A> last{};
    for (int64_t done = 0; done < window;) {  // values of the window; the last block overlaps the one before it
      const int64_t begin = std::min(done + (done > 0), window + 1 - kBlock);
      Vector<A> block[kBlock];
      taps.read(line, begin, here.taps, block);
      const auto put = [&](int64_t d, Vector<A> before, Vector<A> after) PYOPS_INLINED {
        if (d == done) simd::store_elements<T, A>(to, rest * before + f * after, stored), to += run.pixels, ++done;
      };
      if (begin > 0) put(begin - 1, last, block[0]);
      for (int k = 0; k + 1 < kBlock; ++k) put(begin + k, block[k], block[k + 1]);
      last = block[kBlock - 1];
    }
    if (++tile == tiles) tile = 0, ++row;
  }
}

}  // namespace
}  // namespace pyops::lookup
