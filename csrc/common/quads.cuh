// Four neighbouring pixels of an image at a time, of any element type and memory layout, as values of the arithmetic type.
// A warp then moves whole 128-byte lines: 16 bytes a thread for float32, 4 for uint8.
#pragma once

#include "launch.cuh"
#include "pixel.h"

namespace pyops {

enum Access : int { kScalar, kPlanar, kInterleaved };  // how four neighbouring pixels lie in memory

// Images of any element type. The type is a run-time value, the same for all threads: five instances of the arithmetic
// would take five times as long to compile and run no faster.
struct Images {
  Pixels<void> pixels;
  ScalarType type;
  Access access;
};

// Four-element words need alignment of the first pixel, of every channel and of every image.
inline Images images_of(const Tensor& t) {
  const Pixels<void> p = pixels_of<void>(t);
  const size_t word = 4 * t.element_size();
  const bool aligned = word <= 16 && reinterpret_cast<uintptr_t>(p.data) % word == 0 && p.batch % 4 == 0 && p.linear;
  const Access access = aligned && p.column == 1 && p.channel % 4 == 0 ? kPlanar
                        : aligned && p.column == 3 && p.channel == 1   ? kInterleaved
                                                                       : kScalar;
  return {p, t.scalar_type(), access};
}

template <int kBytes>
struct Word;
template <>
struct Word<4> {
  using type = unsigned;
};
template <>
struct Word<8> {
  using type = uint2;
};
template <>
struct Word<16> {
  using type = uint4;
};
template <>
struct Word<32> {
  using type = uint4;
};  // never used: doubles have no word

// Four elements at once, marked as not to be read again.
template <class T>
__device__ __forceinline__ void load4(T* to, const T* from) {
  using W = typename Word<4 * sizeof(T)>::type;
  const W word = __ldcs(reinterpret_cast<const W*>(from));
  memcpy(to, &word, sizeof word);
}

template <class T>
__device__ __forceinline__ void store4(T* to, const T* from) {
  using W = typename Word<4 * sizeof(T)>::type;
  W word;
  memcpy(&word, from, sizeof word);
  __stcs(reinterpret_cast<W*>(to), word);
}

// Where four neighbouring pixels of image b begin. Offsets are those of the first channel; pixels past the end have -1.
struct Reach {
  bool words;  // one word a channel (planar) or three words (interleaved) hold them
  int64_t word;
  int64_t offset[4];

  __device__ __forceinline__ Reach(const Images& images, int64_t b, int64_t first, int64_t pixels) {
    const Pixels<void>& p = images.pixels;
    words = images.access != kScalar && first + 4 <= pixels;
    word = b * p.batch + (images.access == kPlanar ? first : 3 * first);
    int64_t row = p.linear ? 0 : first / p.width, column = first - row * p.width;  // one division for the four
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      offset[j] = first + j < pixels ? b * p.batch + row * p.row + column * p.column : -1;
      if (++column == p.width && !p.linear) ++row, column = 0;
    }
  }
};

// Four pixels by channel, decoded. Pixels past the end of the image read as 0.
template <class A>
struct Quad {
  A channel[3][4];
};

template <class T, class A>
__device__ __forceinline__ void load_typed(const Images& images, const Reach& at, Quad<A>& quad) {
  const T* data = static_cast<const T*>(images.pixels.data);
  const int64_t channel = images.pixels.channel;
  T raw[12];
  bool planar = true;
  if (sizeof(T) <= 4 && at.words) {
    planar = images.access == kPlanar;
#pragma unroll
    for (int k = 0; k < 3; ++k) load4(raw + 4 * k, data + at.word + k * (planar ? channel : 4));
  } else {
#pragma unroll
    for (int k = 0; k < 12; ++k) raw[k] = at.offset[k % 4] < 0 ? T(0) : data[at.offset[k % 4] + k / 4 * channel];
  }
#pragma unroll
  for (int k = 0; k < 12; ++k) quad.channel[k / 4][k % 4] = decode<T, A>(planar ? raw[k] : raw[k % 4 * 3 + k / 4]);
}

template <class T, class A>
__device__ __forceinline__ void store_typed(const Images& images, const Reach& at, const Quad<A>& quad) {
  T* data = static_cast<T*>(images.pixels.data);
  const int64_t channel = images.pixels.channel;
  const bool planar = images.access != kInterleaved || !at.words;
  T raw[12];
#pragma unroll
  for (int k = 0; k < 12; ++k) raw[k] = encode<T, A>(planar ? quad.channel[k / 4][k % 4] : quad.channel[k % 3][k / 3]);
  if (sizeof(T) <= 4 && at.words) {
#pragma unroll
    for (int k = 0; k < 3; ++k) store4(data + at.word + k * (planar ? channel : 4), raw + 4 * k);
  } else {
#pragma unroll
    for (int k = 0; k < 12; ++k)
      if (at.offset[k % 4] >= 0) data[at.offset[k % 4] + k / 4 * channel] = raw[k];
  }
}

#define PYOPS_FOR_TYPE(access)                                              \
  if constexpr (std::is_same_v<A, double>) {                                \
    access<double>(images, at, quad);                                       \
  } else {                                                                  \
    switch (images.type) {                                                  \
      case ScalarType::Byte: return access<uint8_t>(images, at, quad);      \
      case ScalarType::UInt16: return access<uint16_t>(images, at, quad);   \
      case ScalarType::Half: return access<Half>(images, at, quad);         \
      case ScalarType::BFloat16: return access<BFloat16>(images, at, quad); \
      default: return access<float>(images, at, quad);                      \
    }                                                                       \
  }

template <class A>
__device__ __forceinline__ void load(const Images& images, int64_t b, int64_t first, int64_t pixels, Quad<A>& quad) {
  const Reach at(images, b, first, pixels);
  PYOPS_FOR_TYPE(load_typed)
}

template <class A>
__device__ __forceinline__ void store(const Images& images, int64_t b, int64_t first, int64_t pixels,
                                      const Quad<A>& quad) {
  const Reach at(images, b, first, pixels);
  PYOPS_FOR_TYPE(store_typed)
}
#undef PYOPS_FOR_TYPE

}  // namespace pyops
