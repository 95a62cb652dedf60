// Sums that do not depend on their order: every addend is rounded to a multiple of one power of two and added as a
// 64-bit integer. Integer addition is associative, so gradients that scatter are the same bits in every run.
//
// An addend has 31 bits, scaled so that the largest magnitude that can occur uses 30 of them; a sum has 64. Shared
// memory has no native 64-bit atomic add (it compiles to a compare-and-swap loop), so a sum there is two 32-bit words:
// one native atomic on the low word, and one on the high word in the rare case that it changes.
#pragma once

#include "quads.cuh"

namespace pyops::fixed {

// Exponent e with |v| * 2^e < 2^30 for all |v| <= bound. For device-side bounds: the scale never visits the host.
PYOPS_HD int exponent(float bound) {
  int e = 0;
  frexpf(bound, &e);  // bound < 2^e; 0 for 0
  const int scale = 30 - e;
  return scale > 126 ? 126 : scale;
}

__device__ __forceinline__ bool is_finite(float v) { return v - v == 0.f; }

__device__ __forceinline__ int quantise(float v, int e) { return __float2int_rn(ldexpf(v, e)); }

__device__ __forceinline__ void add_shared(uint32_t* low, uint32_t* high, int addend) {
  if (addend == 0) return;
  const uint32_t bits = uint32_t(addend), sum = atomicAdd(low, bits) + bits;
  const uint32_t carry = (sum < bits ? 1u : 0u) - (addend < 0 ? 1u : 0u);
  if (carry != 0) atomicAdd(high, carry);
}

__device__ __forceinline__ void add_global(uint64_t* sum, uint64_t addend) {
  atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(addend));
}

__device__ __forceinline__ double value(uint64_t sum, int e) { return ldexp(double(int64_t(sum)), -e); }

// Largest finite |v| of images as the bits of a float (which sort like the floats). *result starts at 0.
template <class A>
__global__ void absolute_maximum(const Images images, int64_t batch, int64_t pixels, uint32_t* result) {
  __shared__ uint32_t block_maximum;
  if (threadIdx.x == 0) block_maximum = 0;
  __syncthreads();
  const int64_t quads = ceil_div<int64_t>(pixels, 4);
  float largest = 0.f;
  for (int64_t i = global_thread(); i < batch * quads; i += grid_threads()) {
    Quad<A> quad;
    load(images, i / quads, i % quads * 4, pixels, quad);
#pragma unroll
    for (int k = 0; k < 12; ++k) {
      const float v = fabsf(float(quad.channel[k / 4][k % 4]));
      if (is_finite(v) && v > largest) largest = v;
    }
  }
  atomicMax(&block_maximum, __float_as_uint(largest));
  __syncthreads();
  if (threadIdx.x == 0) atomicMax(result, block_maximum);
}

}  // namespace pyops::fixed
