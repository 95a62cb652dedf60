// The host side of a CUDA kernel: device and stream as torch has them, launch, checks, limits of the device.
//
// With PYOPS_EMULATE the same source compiles as C++ against the emulator of the tests, one fiber for each CUDA thread,
// and registers its kernels as CPU operators of the namespace pyops_simt.
#pragma once

#include "tensor.h"

#if defined(PYOPS_EMULATE)
#include "cuda_emulator.h"
#define PYOPS_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(pyops_simt, CPU, m)
#define PYOPS_DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(simt::dynamic_shared())
#else
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#define PYOPS_CUDA_KERNELS(m) STABLE_TORCH_LIBRARY_IMPL(pyops, CUDA, m)
#define PYOPS_DYNAMIC_SHARED(T, name)                           \
  extern __shared__ __align__(16) unsigned char pyops_shared[]; \
  T* const name = reinterpret_cast<T*>(pyops_shared)
#endif

namespace pyops {

inline void check_cuda(cudaError_t error, const char* what) {
  PYOPS_CHECK(error == cudaSuccess, "CUDA error in ", what, ": ", cudaGetErrorString(error));
}

// Makes the device of `t` current for a scope and gives torch's current stream on it.
class DeviceScope {
 public:
#if defined(PYOPS_EMULATE)
  explicit DeviceScope(const Tensor&) {}
#else
  // The stream comes from a symbol of libtorch_cuda that is looked up at the first launch, so that this library links
  // and loads beside a torch without CUDA. torch opens libtorch_cuda locally: ask for it by name.
  explicit DeviceScope(const Tensor& t) : guard_(t.get_device_index()) {
    using Lookup = AOTITorchError (*)(int32_t, void**);
    static const Lookup lookup = [] {
      void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
      return reinterpret_cast<Lookup>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
    }();
    PYOPS_CHECK(lookup != nullptr, "this torch has no CUDA runtime (libtorch_cuda.so is not loaded)");
    void* stream = nullptr;
    PYOPS_CHECK(lookup(t.get_device_index(), &stream) == 0, "torch has no current CUDA stream");
    stream_ = static_cast<cudaStream_t>(stream);
  }
#endif
  cudaStream_t stream() const { return stream_; }

 private:
#if !defined(PYOPS_EMULATE)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  cudaStream_t stream_ = nullptr;
};

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

// Shared memory a block can have: 227 KB on sm_90, 163 on sm_80, 99 on sm_86 and sm_89.
inline int64_t shared_memory_limit() { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads, int64_t shared,
            cudaStream_t stream, const Arguments&... arguments) {
  if (shared > 48 * 1024)
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    int(shared)),
               name);
#if defined(PYOPS_EMULATE)
  simt::launch(kernel, grid, dim3(threads), size_t(shared))(Parameters(arguments)...);
#else
  kernel<<<grid, threads, size_t(shared), stream>>>(Parameters(arguments)...);
#endif
  check_cuda(cudaGetLastError(), name);
}

// Blocks for `items` work items of which a block takes `each` a turn, at most `most`.
inline unsigned blocks_for(int64_t items, int64_t each, int64_t most = 0x7fffffff) {
  const int64_t blocks = ceil_div(items, each);
  return unsigned(blocks < 1 ? 1 : (blocks < most ? blocks : most));
}

// Blocks of a kernel that the device holds at a time.
template <class Kernel>
int64_t resident_blocks(Kernel kernel, int threads, int64_t shared) {
  int each = 1;
  if (shared > 48 * 1024)
    cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                         int(shared));
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, size_t(shared));
  return int64_t(each < 1 ? 1 : each) * device_attribute(cudaDevAttrMultiProcessorCount);
}

__device__ __forceinline__ int64_t global_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t grid_threads() { return int64_t(gridDim.x) * blockDim.x; }

}  // namespace pyops
