// The mathematics of local correlation, for host and device, without torch.
//
//     out[dy, dx][y][x]   = sum over channels c of f[c][y][x] s[c][y + D dy][x + D dx],   0 where that lies outside
//     grad f[c][y][x]     = sum over dy, dx of g[dy, dx][y][x] s[c][y + D dy][x + D dx]
//     grad s[c][y][x]     = sum over dy, dx of g[-dy, -dx][y + D dy][x + D dx] f[c][y + D dy][x + D dx]
//
// So both gradients are the same gather from the other image; only where the gradient of the result is read differs. A
// step of D pixels joins rows that lie D apart, and columns too: an image falls into D * D parts, each of dilation 1.
#pragma once

#include "../common/portable.h"

namespace pyops::local_correlation {

struct Span {
  int64_t begin, end;
};

// Positions of [begin, end) that stay in [0, size) when they are shifted; empty, but inside [begin, end], if none does.
PYOPS_HD Span with_partner(Span part, int64_t size, int64_t shift) {
  const int64_t low = -shift > part.begin ? -shift : part.begin,
                high = size - shift < part.end ? size - shift : part.end;
  return low < high ? Span{low, high} : Span{part.begin, part.begin};
}

}  // namespace pyops::local_correlation
