// Small kernels, right and deliberately wrong ones, for test_emulator.py. Needs neither CUDA nor torch.
#include <exception>
#include <string>

#include "cuda_emulator.h"

#define SHARED(T, name) T* name = reinterpret_cast<T*>(simt::dynamic_shared())
#define EXPORT extern "C" __attribute__((visibility("default")))
#define TEST(name, ...) EXPORT int name(__VA_ARGS__)

static std::string message;
EXPORT const char* last_message() { return message.c_str(); }

// Runs a launch for ctypes, through which no exception may pass: -1 and last_message(), or CUDA's error code.
template <class Launch>
static int attempt(Launch launch) {
  try {
    launch();
    return cudaGetLastError();
  } catch (const std::exception& e) {
    message = e.what();
    return -1;
  }
}

// ---- Right kernels ------------------------------------------------------------------------------
template <class T>
__device__ __forceinline__ T warp_sum(T v) {
  for (int o = 16; o > 0; o /= 2) v += __shfl_xor_sync(0xffffffffu, v, o);
  return v;
}

__global__ void __launch_bounds__(256) sum(const float* __restrict__ x, int n, float* total) {
  __shared__ float partial[8];
  float v = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += __ldg(x + i);
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x < 32) {
    v = warp_sum(threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.f);
    if (threadIdx.x == 0) atomicAdd(total, v);
  }
}
TEST(run_sum, const float* x, int n, float* total) {
  return attempt([=] { simt::launch(sum, 3, 256, 0)(x, n, total); });
}

__global__ void softmax(const float* x, float* y, int width) {
  SHARED(float, row);
  __shared__ float largest, total;
  x += blockIdx.x * width, y += blockIdx.x * width;
  for (int i = threadIdx.x; i < width; i += blockDim.x) row[i] = x[i];
  __syncthreads();
  if (threadIdx.x == 0) {
    largest = row[0], total = 0;
    for (int i = 1; i < width; ++i) largest = fmaxf(largest, row[i]);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < width; i += blockDim.x) row[i] = expf(row[i] - largest), atomicAdd(&total, row[i]);
  __syncthreads();
  for (int i = threadIdx.x; i < width; i += blockDim.x) y[i] = row[i] / total;
}
TEST(run_softmax, const float* x, float* y, int rows, int width) {
  return attempt([=] { simt::launch(softmax, rows, 96, width * sizeof(float))(x, y, width); });
}

__global__ void compact(const int* x, int n, int* out, int* count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32;
  const bool keep = i < n && x[i] > 0;
  const unsigned kept = __ballot_sync(0xffffffffu, keep);
  int start = 0;
  if (lane == __ffs(kept) - 1) start = atomicAdd(count, __popc(kept));
  start = __shfl_sync(0xffffffffu, start, kept ? __ffs(kept) - 1 : 0);
  if (keep) out[start + __popc(kept & ((1u << lane) - 1))] = x[i];
}
TEST(run_compact, const int* x, int n, int* out, int* count) {
  return attempt([=] { simt::launch(compact, (n + 127) / 128, 128, 0)(x, n, out, count); });
}

// One atomic for each distinct key of a warp; lanes past the end have left.
__global__ void histogram(const int* keys, int n, int* bins) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const unsigned same = __match_any_sync(__activemask(), keys[i]);
  if (int(threadIdx.x % 32) == __ffs(same) - 1) atomicAdd(bins + keys[i], __popc(same));
}
TEST(run_histogram, const int* keys, int n, int* bins) {
  return attempt([=] { simt::launch(histogram, (n + 63) / 64, 64, 0)(keys, n, bins); });
}

// A 64-bit sum from 32-bit atomics: the thread whose addition overflows carries.
__global__ void carry_sum(const unsigned* x, int n, unsigned* low_high) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n && atomicAdd(low_high, x[i]) + x[i] < x[i]) atomicAdd(low_high + 1, 1u);
}
TEST(run_carry_sum, const unsigned* x, int n, unsigned* low_high) {
  return attempt([=] { simt::launch(carry_sum, (n + 255) / 256, 256, 0)(x, n, low_high); });
}

// Columns of out[column][thread of one warp]; test_emulator.py computes the same.
__global__ void warp_functions(int* out) {
  const int lane = threadIdx.x;
  const unsigned all = 0xffffffffu;
  int column = 0;
  const auto put = [&](int v) { out[32 * column++ + lane] = v; };
  put(__shfl_sync(all, lane, lane + 3, 8));
  put(__shfl_up_sync(all, lane, 3, 16));
  put(__shfl_down_sync(all, lane, 3, 16));
  put(__shfl_xor_sync(all, lane, 5));
  put(__shfl_xor_sync(all, lane, 8, 8));
  put(lane < 20 ? __shfl_sync(0xfffffu, lane, 25) : -2);
  put(__reduce_add_sync(all, lane));
  put(__reduce_min_sync(all, -lane));
  put(__reduce_max_sync(all, -lane));
  put(int(__reduce_or_sync(all, 1u << lane)));
  put(__any_sync(all, lane == 7));
  put(__all_sync(all, lane != 7));
  put(lane % 3 ? int(__activemask()) : 0);
  __syncwarp();
  put(__syncthreads_count(lane < 9));
  put(__syncthreads_or(lane == 9));
  put(__syncthreads_and(lane == 9));
}
TEST(run_warp_functions, int* out) {
  return attempt([=] { simt::launch(warp_functions, 1, 32, 0)(out); });
}

__global__ void number_3d(int* out) {
  const dim3 b = blockIdx, g = gridDim, t = threadIdx, d = blockDim;
  const int block = (b.z * g.y + b.y) * g.x + b.x, thread = (t.z * d.y + t.y) * d.x + t.x;
  atomicAdd(out + block * d.x * d.y * d.z + thread, block * 1000 + thread);
}
TEST(run_number_3d, int* out) {
  return attempt([=] { simt::launch(number_3d, dim3(2, 3, 4), dim3(5, 3, 2), 0)(out); });
}

// Neither barriers nor warp functions wait for threads that have returned, before or after the others came.
__global__ void early_exit(int* out) {
  __shared__ int seen[64];
  if (threadIdx.x % 2) return;
  seen[threadIdx.x] = __shfl_xor_sync(0xffffffffu, int(threadIdx.x), 2);
  __syncthreads();
  out[threadIdx.x] = seen[62 - threadIdx.x];
}
TEST(run_early_exit, int* out) {
  return attempt([=] { simt::launch(early_exit, 1, 64, 0)(out); });
}

// When each thread came by, twice.
__global__ void tickets(int* counter, int* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  out[2 * i] = atomicAdd(counter, 1);
  out[2 * i + 1] = atomicAdd(counter, 1);
}
TEST(run_tickets, int* counter, int* out) {
  return attempt([=] { simt::launch(tickets, 4, 32, 0)(counter, out); });
}

__global__ void scale(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = 2 * x[i];
}
TEST(run_scale, const float* x, float* y, int n) {
  return attempt([=] { simt::launch(scale, (n + 255) / 256, 256, 0)(x, y, n); });
}

// ---- Wrong kernels ------------------------------------------------------------------------------
__global__ void reverse(const int* x, int* y, bool barrier) {
  __shared__ int copy[64];
  copy[threadIdx.x] = x[threadIdx.x];
  if (barrier) __syncthreads();
  y[threadIdx.x] = copy[63 - threadIdx.x];
}
TEST(run_reverse, const int* x, int* y, bool barrier) {
  return attempt([=] { simt::launch(reverse, 1, 64, 0)(x, y, barrier); });
}

template <class T>
__global__ void read_unwritten(T* fixed, T* dynamic) {
  __shared__ T memory[4];
  SHARED(T, more);
  fixed[threadIdx.x] += memory[threadIdx.x];  // the second block must not see what the first wrote
  dynamic[threadIdx.x] += more[threadIdx.x];
  memory[threadIdx.x] = more[threadIdx.x] = 1;
}
TEST(run_read_unwritten, float* fixed, float* dynamic) {
  return attempt([=] { simt::launch(read_unwritten<float>, 2, 4, 4 * sizeof(float))(fixed, dynamic); });
}

__global__ void write_dynamic(int index) {
  SHARED(int, memory);
  memory[index] = 1;
}
TEST(run_write_dynamic, int index) {
  return attempt([=] { simt::launch(write_dynamic, 1, 1, 10 * sizeof(int))(index); });
}

__global__ void write_static(int index) {
  __shared__ int memory[10];
  static_cast<volatile int*>(memory)[index] = 1;
}
TEST(run_write_static, int index) {
  return attempt([=] { simt::launch(write_static, 1, 1, 0)(index); });
}

__global__ void diverge(int kind) {
  const bool first = threadIdx.x < 16;
  if (kind == 0) {
    if (first) __syncthreads();
    else __syncthreads();
  } else if (kind == 1) {
    first ? __syncthreads() : __syncwarp();
  } else if (kind == 2) {
    first ? __syncwarp() : void(__any_sync(0xffffffffu, 1));
  } else if (kind == 3) {
    if (first) __syncwarp(0xffff0000u);
  } else if (threadIdx.x == 5) {
    throw std::runtime_error("thrown in a kernel");
  } else {
    __syncthreads();
  }
}
TEST(run_diverge, int kind) {
  return attempt([=] { simt::launch(diverge, 2, 32, 0)(kind); });
}

TEST(run_empty, int threads, int shared_bytes, int opt_in) {
  return attempt([=] {
    if (opt_in) cudaFuncSetAttribute(write_dynamic, cudaFuncAttributeMaxDynamicSharedMemorySize, opt_in);
    simt::launch(write_dynamic, 1, threads, shared_bytes)(0);
  });
}

// ---- Functions of one thread --------------------------------------------------------------------
TEST(round_to_int, float x) { return __float2int_rn(x); }
EXPORT long long round_to_long(float x) { return __float2ll_rn(x); }
EXPORT float saturate(float x) { return __saturatef(x); }
EXPORT unsigned funnel(bool left, unsigned low, unsigned high, unsigned n) {
  return left ? __funnelshift_l(low, high, n) : __funnelshift_r(low, high, n);
}
