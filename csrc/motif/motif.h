// The mathematics of motif channel attention, for host and device, without torch.
//
//     constant_highpass   out[c] = z[c] - box(sum over the channels of z) / 9, box being the sum over 3x3 pixels, zero
//                         beyond the image. It is a symmetric matrix, so its gradient is the function itself.
//     camp_conv           out[c](q) = sum over dc and k of W[dc][k](q) * f[c + dc](q + k), with the 27 weights of a pixel
//                         W[dc][k](q) = sum over s of K[s][dc][k] * m[s](q + k), and zeros beyond image and channels.
//
// With g the gradient that comes in, and p = q + k:
//
//     grad f[c](p)    = sum over dc and k of (sum over s of K[s][dc][k] * m[s](p)) * g[c - dc](p - k), the same convolution
//                       by weights of the pixel itself, in the opposite order
//     A[dc][k](p)     = sum over c of f[c](p) * g[c - dc](p - k), 27 numbers a pixel
//     grad m[s](p)    = sum over dc and k of K[s][dc][k] * A[dc][k](p)
//     grad K[s][dc][k] = sum over p of m[s](p) * A[dc][k](p)
//
// A tap is numbered j = 9 * (dc + 1) + 3 * (dy + 1) + dx + 1; that of the opposite direction is 26 - j.
#pragma once

#include "../common/portable.h"

namespace pyops::motif {

constexpr int kTaps = 27, kPlane = 9;  // of one dc

}  // namespace pyops::motif
