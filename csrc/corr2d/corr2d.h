// The mathematics of all-pairs correlation of images, for host and device, without torch.
//
//     volume[h][w][u][v] = scale * sum over c of first[c][h][w] second[c][u][v]
//
// A pixel (h, w) has a plane of correlations. Level l of its pyramid is level l - 1 averaged in squares of 2 x 2, an odd
// last row and column dropped: entry (j, i) of level l is the mean of a square of 2^l x 2^l of the volume, and, the sum
// over c being linear, the correlation with the mean of such a square of second.
//
// A lookup at (x, y) reads a window of a plane p, 0 outside of it. With column = floor(x), f = x - column, row =
// floor(y), g = y - row, and rows blended first, v(i, j) = (1 - g) p(row + j, column + i) + g p(row + j + 1, column + i),
//
//     out[i][j]  = (1 - f) v(i, j) + f v(i + 1, j),   i, j = -radius .. radius
//
// The gradient to the plane is that to a product of two lookups in lines, csrc/lookup/lookup.h. No two pixels share a
// plane, so nothing that is summed into one depends on an order of threads.
#pragma once

#include "../common/portable.h"
#include "../lookup/lookup.h"

namespace pyops::corr2d {

using lookup::Place;

constexpr int kMostLevels = 16, kMostRadius = 1 << 10;

// The levels of planes of rows x columns entries.
struct Planes {
  int64_t planes, rows, columns, levels;

  PYOPS_HD int64_t entries(int64_t level) const { return (rows >> level) * (columns >> level); }
};

}  // namespace pyops::corr2d
