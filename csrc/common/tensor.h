// What every operator needs from a stable-ABI tensor: checks, layouts, element types.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "portable.h"

#define PYOPS_CHECK STD_TORCH_CHECK

namespace pyops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Half = torch::headeronly::Half;
using BFloat16 = torch::headeronly::BFloat16;

// Calls f with a value of the C++ type of `dtype`: f(float()), f(Half()), ...
template <class F>
void dispatch_float(ScalarType dtype, const char* name, const F& f) {
  switch (dtype) {
    case ScalarType::Float: return f(float());
    case ScalarType::Half: return f(Half());
    case ScalarType::BFloat16: return f(BFloat16());
    default: PYOPS_CHECK(false, name, " must be float32, float16 or bfloat16");
  }
}

// With float64 too, for backends that have it.
template <class F>
void dispatch_floating(ScalarType dtype, const char* name, const F& f) {
  if (dtype == ScalarType::Double) return f(double());
  dispatch_float(dtype, name, f);
}

// What elements are computed in.
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class F>
void dispatch_pixel(ScalarType dtype, const char* name, const F& f) {
  switch (dtype) {
    case ScalarType::Byte: return f(uint8_t());
    case ScalarType::UInt16: return f(uint16_t());
    default: dispatch_float(dtype, name, f);
  }
}

inline bool is_floating(const Tensor& t) {
  const auto dtype = t.scalar_type();
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

inline void check_same_device(const Tensor& t, const Tensor& image, const char* name) {
  PYOPS_CHECK(t.is_cuda() == image.is_cuda() && t.get_device() == image.get_device(), name,
              " must be on the same device as image");
}

// True for the channels_last layout where it differs from the contiguous one. The fake kernels use the same rule.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 || t.is_contiguous()) return false;
  int64_t expected = 1;
  for (const int axis : {1, 3, 2, 0}) {
    if (t.size(axis) == 1) continue;
    if (t.stride(axis) != expected) return false;
    expected *= t.size(axis);
  }
  return true;
}

// Large fresh CPU memory costs more in page faults (4 KiB each) than most kernels cost in arithmetic: 100 MB take about
// 80 ms of faults, and under 10 ms in huge pages. Where the system leaves the choice to us, choose huge pages.
inline void advise_huge_pages(const Tensor& t) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096;
  constexpr size_t kLarge = size_t(4) << 20;
  const size_t bytes = size_t(t.numel()) * t.element_size();
  if (bytes < kLarge || !t.is_cpu()) return;
  const uintptr_t begin = ceil_div(reinterpret_cast<uintptr_t>(t.const_data_ptr()), kPage) * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(t.const_data_ptr()) + bytes) / kPage * kPage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice only: failure changes nothing
#endif
}

inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype,
                         bool channels_last = false) {
  using torch::headeronly::MemoryFormat;
  const auto format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  Tensor t = torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt, format);
  advise_huge_pages(t);
  return t;
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes(t.dim());
  for (int64_t i = 0; i < t.dim(); ++i) sizes[i] = t.size(i);
  return sizes;
}

// `t` itself where it is contiguous and of that type already.
inline Tensor contiguous_as(const Tensor& t, ScalarType dtype) {
  const Tensor typed = t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
  return typed.is_contiguous() ? typed : torch::stable::contiguous(typed);
}

inline Tensor in_order(const Tensor& t) { return contiguous_as(t, t.scalar_type()); }

// A gradient, uninitialised: of the layout of `like`, or contiguous, where wanted; of shape [0] where not.
inline Tensor new_gradient(const Tensor& like, bool need, bool keep_layout = true) {
  return need ? new_tensor(like, sizes_of(like), like.scalar_type(), keep_layout && is_channels_last(like))
              : new_tensor(like, {0}, like.scalar_type());
}

// An image [B, 3, H, W] of any strides, seen as B rows of H * W pixels where the layout allows it.
template <class T>
struct Pixels {
  T* data;
  int64_t batch, channel, row, column;  // strides in elements
  int64_t width;
  bool linear;  // pixel p of an image lies at p * column

  PYOPS_HD int64_t offset(int64_t pixel) const {
    return linear ? pixel * column : pixel / width * row + pixel % width * column;
  }
};

template <class T>
Pixels<T> pixels_of(const Tensor& t) {
  const bool linear = t.size(2) == 1 || t.stride(2) == t.stride(3) * t.size(3);
  return {static_cast<T*>(const_cast<void*>(t.const_data_ptr())),
          t.stride(0),
          t.stride(1),
          t.stride(2),
          t.stride(3),
          t.size(3),
          linear};
}

}  // namespace pyops
