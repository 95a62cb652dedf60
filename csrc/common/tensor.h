// What every operator needs from a stable-ABI tensor: checks, layouts, element types.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "memory.h"
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

inline std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes, bool channels_last) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = 0; i < sizes.size(); ++i) {
    constexpr size_t kChannelsLast[] = {1, 3, 2, 0};
    const size_t axis = channels_last ? kChannelsLast[i] : sizes.size() - 1 - i;
    strides[axis] = step;
    step *= sizes[axis];
  }
  return strides;
}

inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype,
                         bool channels_last = false) {
  using torch::headeronly::MemoryFormat;
#if defined(__linux__)
  if (like.is_cpu()) {
    namespace detail = torch::stable::detail;
    size_t bytes = aoti_torch_dtype_element_size(detail::to<int32_t>(detail::from(dtype)));
    for (const int64_t n : sizes) bytes *= size_t(n);
    const memory::Block block = bytes < memory::kLarge ? memory::Block() : memory::kept().take(bytes);
    if (block.data) {
      return torch::stable::from_blob(block.data, sizes, dense_strides(sizes, channels_last), like.device(), dtype,
                                      [block](void*) { memory::kept().give(block); });
    }
  }
#endif
  const auto format = channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  return torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt, format);
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
