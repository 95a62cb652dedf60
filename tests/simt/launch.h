// Launches on the emulated GPU, its shared memory, and the few calls of CUDA's runtime that launchers make.
#pragma once
#include <link.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda_types.h"
#include "machine.h"

namespace simt {

constexpr size_t kSharedWithoutOptIn = 48 * 1024, kMostShared = 256 * 1024, kGuard = 1024;

// ---- Settings, and the error a launch leaves behind ---------------------------------------------
inline unsigned seed = 0;
inline size_t shared_limit = 232448;  // bytes a block may have on an H100
inline int multiprocessors = 2;       // few, so that small inputs already give every one several blocks
inline cudaError_t last_error = cudaSuccess;
inline std::map<const void*, size_t> opted_in;  // kernel -> dynamic shared memory it may have

// ---- Shared memory ------------------------------------------------------------------------------
alignas(128) inline unsigned char shared_memory[kGuard + kMostShared + kGuard];
inline void* dynamic_shared() { return shared_memory + kGuard; }

#ifdef __SANITIZE_ADDRESS__
// Not in the TLS segment, and not poisoned: see __shared__.
inline std::pair<void*, size_t> static_shared() { return {nullptr, 0}; }

inline void set_guards(size_t shared_bytes) {
  ASAN_UNPOISON_MEMORY_REGION(shared_memory, sizeof shared_memory);
  ASAN_POISON_MEMORY_REGION(shared_memory, kGuard);
  ASAN_POISON_MEMORY_REGION(shared_memory + kGuard + shared_bytes, kGuard);
}

inline void check_guards(size_t) {}  // AddressSanitizer has reported the access itself
#else
// The TLS segment of this library, as the calling thread has it.
inline std::pair<void*, size_t> static_shared() {
  [[maybe_unused]] static thread_local volatile char touched;
  touched = 1;  // a thread gets its copy of the segment at its first access
  std::pair<void*, size_t> found{nullptr, 0};
  dl_iterate_phdr(
      [](dl_phdr_info* library, size_t, void* result) {
        bool ours = false;
        size_t bytes = 0;
        for (const ElfW(Phdr)* part = library->dlpi_phdr; part != library->dlpi_phdr + library->dlpi_phnum; ++part) {
          const auto offset = reinterpret_cast<ElfW(Addr)>(shared_memory) - library->dlpi_addr - part->p_vaddr;
          if (part->p_type == PT_LOAD) ours |= offset < part->p_memsz;
          if (part->p_type == PT_TLS) bytes = part->p_memsz;
        }
        if (ours) *static_cast<std::pair<void*, size_t>*>(result) = {library->dlpi_tls_data, bytes};
        return int(ours);
      },
      &found);
  return found;
}

inline void set_guards(size_t shared_bytes) {
  std::memset(shared_memory, 0xa5, kGuard);
  std::memset(shared_memory + kGuard + shared_bytes, 0xa5, kGuard);
}

inline void check_guards(size_t shared_bytes) {
  const auto written = [](unsigned char byte) { return byte != 0xa5; };
  const unsigned char* end = shared_memory + kGuard + shared_bytes;
  if (std::any_of(shared_memory, shared_memory + kGuard, written) || std::any_of(end, end + kGuard, written))
    throw std::runtime_error("a kernel wrote outside its " + std::to_string(shared_bytes) +
                             " bytes of dynamic shared memory");
}
#endif

// ---- Blocks and grids ---------------------------------------------------------------------------
inline std::string describe_deadlock() {
  std::map<std::string, int> groups;
  for (const Thread& t : threads)
    if (!t.done) ++groups[std::string(t.waits_for) + " at " + t.site.text()];
  std::string text = "deadlock (divergent barrier):";
  for (const auto& [what, count] : groups) text += "\n  " + std::to_string(count) + " threads wait for " + what;
  return text;
}

inline void run_block(size_t shared_bytes, std::pair<void*, size_t> statics) {
  // 0xff bytes are NaN in every floating-point type, so a read of memory that nobody wrote shows in the result
  std::memset(dynamic_shared(), 0xff, shared_bytes);
  if (statics.first) std::memset(statics.first, 0xff, statics.second);
  live = unsigned(threads.size());
  ready.clear();
  at_barrier.clear();
  votes = {};
  for (Warp& warp : warps) warp = {};
  for (unsigned i = 0; i < live; ++i) {
    threads[i] = Thread{};
    threads[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    threads[i].number = i;
    warp_of(threads[i]).live |= 1u << i % kWarp;
    ready.push_back(&threads[i]);
  }
  run_next();
  if (error) std::rethrow_exception(error);
  if (live) throw std::runtime_error(describe_deadlock());
  check_guards(shared_bytes);
}

inline cudaError_t check_launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
  if (!threads || threads > kMaxThreads || block.z > 64) return cudaErrorInvalidConfiguration;
  if (!blocks || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  size_t allowed = shared_limit;
  if (kernel) allowed = std::min(allowed, opted_in.count(kernel) ? opted_in[kernel] : kSharedWithoutOptIn);
  return shared_bytes > allowed ? cudaErrorInvalidValue : cudaSuccess;
}

inline std::mutex launching;

inline void run_grid(const std::function<void()>& body, const void* kernel, dim3 grid, dim3 block,
                     size_t shared_bytes) {
  const std::lock_guard<std::mutex> lock(launching);
  if (const cudaError_t refused = check_launch(kernel, grid, block, shared_bytes)) {
    last_error = refused;
    return;
  }
  random.seed(seed);
  kernel_body = &body;
  gridDim = grid, blockDim = block;
  threads.resize(size_t(block.x) * block.y * block.z);
  std::vector<size_t> order(size_t(grid.x) * grid.y * grid.z);
  std::iota(order.begin(), order.end(), size_t(0));
  std::shuffle(order.begin(), order.end(), random);
  set_guards(shared_bytes);
  const auto statics = static_shared();
  try {
    for (const size_t i : order) {
      blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
      run_block(shared_bytes, statics);
    }
  } catch (...) {
    error = nullptr;
    idle.clear();
    stacks.clear();  // threads that never returned still lie on them
    throw;
  }
}

// launch(kernel, grid, block, bytes)(arguments...) is kernel<<<grid, block, bytes>>>(arguments...). As in CUDA, a
// refused launch sets cudaGetLastError(); an error inside the kernel throws. `kernel` may be any callable, but
// only for a plain function can it be checked that it opted in to more than 48 KB of dynamic shared memory.
template <class Kernel>
auto launch(Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  return [=](const auto&... arguments) {
    const void* address = nullptr;
    if constexpr (std::is_pointer_v<Kernel>) address = reinterpret_cast<const void*>(kernel);
    run_grid([&] { kernel(arguments...); }, address, grid, block, shared_bytes);
  };
}

}  // namespace simt

// ---- CUDA's runtime -----------------------------------------------------------------------------
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };

inline cudaError_t cudaPeekAtLastError() { return simt::last_error; }
inline cudaError_t cudaGetLastError() { return std::exchange(simt::last_error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorInvalidValue) return "invalid argument";
  return error == cudaSuccess ? "no error" : "invalid configuration argument";
}

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t = nullptr) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t = nullptr) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? simt::multiprocessors : int(simt::shared_limit);
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  if (bytes < 0 || size_t(bytes) > simt::shared_limit) return simt::last_error = cudaErrorInvalidValue;
  simt::opted_in[reinterpret_cast<const void*>(kernel)] = size_t(bytes);
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int threads, size_t shared_bytes) {
  const size_t by_shared = simt::shared_limit / std::max<size_t>(shared_bytes, 1), by_threads = 2048 / size_t(threads);
  *blocks = int(std::min<size_t>({by_shared, by_threads, 32}));
  return cudaSuccess;
}

// ---- For the tests: exported from every library built with the emulator -------------------------
#define SIMT_EXPORT extern "C" __attribute__((visibility("default"), used)) inline
SIMT_EXPORT void pyops_simt_set_seed(unsigned seed) { simt::seed = seed; }
SIMT_EXPORT void pyops_simt_set_shared_limit(int bytes) {
  simt::shared_limit = std::clamp<size_t>(size_t(std::max(bytes, 0)), 0, simt::kMostShared);
}
SIMT_EXPORT void pyops_simt_set_multiprocessors(int count) { simt::multiprocessors = count; }
#undef SIMT_EXPORT
