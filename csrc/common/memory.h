// Memory of large CPU results, kept for the next ones.
//
// Fresh memory costs more than most kernels: the system clears every page before the kernel overwrites it. What a
// result leaves behind therefore waits here for the next result of about its size, in huge pages, and marked so that
// the system may take it when memory runs short.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <vector>

namespace pyops::memory {

constexpr size_t kLarge = size_t(4) << 20;  // bytes from which on memory comes from here
constexpr size_t kHugePage = size_t(2) << 20;

struct Block {
  void* data;
  size_t bytes;
};

class Kept {
 public:
  // nullptr where nothing is to be kept, or none to be had. Content is undefined.
  Block take(size_t bytes) {
    bytes = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    // Never waits: a process forked while another thread was here would wait forever.
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock) {
      if (limit_ == 0) return {nullptr, 0};
      for (size_t i = blocks_.size(); i-- > 0;) {
        const Block block = blocks_[i];
        if (block.bytes < bytes || block.bytes - bytes > bytes / 4) continue;
        blocks_.erase(blocks_.begin() + i);
        total_ -= block.bytes;
        return block;
      }
    }
    void* data = nullptr;
    if (posix_memalign(&data, kHugePage, bytes) != 0) return {nullptr, 0};
    madvise(data, bytes, MADV_HUGEPAGE);  // advice only, here and below: failure changes nothing
    return {data, bytes};
  }

  void give(Block block) {
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock && block.bytes <= limit_) {
      shrink(limit_ - block.bytes);
      madvise(block.data, block.bytes, MADV_FREE);
      blocks_.push_back(block);
      total_ += block.bytes;
      return;
    }
    std::free(block.data);
  }

  // Returns the former limit.
  size_t keep(size_t limit) {
    const std::lock_guard lock(mutex_);
    std::swap(limit, limit_);
    shrink(limit_);
    return limit;
  }

 private:
  void shrink(size_t limit) {  // the oldest go first
    while (total_ > limit) {
      total_ -= blocks_.front().bytes;
      std::free(blocks_.front().data);
      blocks_.erase(blocks_.begin());
    }
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;
  size_t total_ = 0, limit_ = size_t(256) << 20;
};

inline Kept& kept() {
  static Kept& all = *new Kept;  // never destroyed: tensors may outlive every static object
  return all;
}

}  // namespace pyops::memory
#endif
