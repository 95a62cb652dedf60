// A GPU's threads, warps and blocks on one CPU thread. "cuda_emulator.h" puts CUDA's names on top.
//
// Every thread of a block has a stack of its own and gives way only where it must wait. Whenever one waits, a
// thread drawn at random goes on; blocks come in random order too. So code that relies on an order that CUDA does
// not promise (a missing barrier, above all) goes wrong for some seed. Blocks run one after another, in full.
#pragma once
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda_types.h"
#include "stack.h"

namespace simt {

constexpr unsigned kWarp = 32, kMaxThreads = 1024, kAllLanes = 0xffffffffu;

// ---- State of the block that is running: one launch at a time, so plain globals -----------------
struct Site {  // where in the kernel's source a thread waits
  const char* file = "";
  int line = 0;
  static Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  bool operator==(const Site& o) const { return line == o.line && !std::strcmp(file, o.file); }
  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

struct Thread;
using Finish = void (*)(Thread* warp, unsigned lanes);  // sets `result` of `lanes` from their `value`s

struct Thread {
  uint3 index;
  unsigned number;         // linear index in the block
  Stack* stack = nullptr;  // none until it starts
  bool done = false;
  Site site{};  // the rest describes what it waits for
  const char* waits_for = "its turn";
  Finish finish = nullptr;  // a warp collective: what is done when all have come; none at another wait
  unsigned mask = 0;        // ... which lanes take part, what they bring and get
  uint64_t value = 0, result = 0;
  unsigned source = 0;
};

struct Warp {
  unsigned live = 0;     // lanes that have not returned
  unsigned waiting = 0;  // of these, the lanes at a barrier or in a collective
  unsigned asking = 0;   // and those in __activemask
};

struct Votes {
  unsigned yes = 0, threads = 0;
};

inline std::mt19937 random;
inline const std::function<void()>* kernel_body = nullptr;
inline std::exception_ptr error;
inline std::vector<Thread> threads;
inline Warp warps[kMaxThreads / kWarp];
inline std::vector<Thread*> ready, at_barrier;
inline unsigned live = 0;
inline Votes votes, vote_result;
inline Thread* current = nullptr;
inline std::deque<Stack> stacks;
inline std::vector<Stack*> idle;

}  // namespace simt

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace simt {

inline unsigned lane() { return current->number % kWarp; }
inline Warp& warp_of(const Thread& t) { return warps[t.number / kWarp]; }

template <class Visit>
void each_lane(unsigned lanes, Visit visit) {
  for (; lanes; lanes &= lanes - 1) visit(unsigned(__builtin_ctz(lanes)));
}

// ---- Scheduler ----------------------------------------------------------------------------------
inline void begin_on_stack();

// Lets a random ready thread run; returns when the calling stack is switched to again. Nothing left to run (or an
// error) leads back to the launch. A thread starts on the stack left idle last: its predecessor's, when that just
// returned, so a kernel without barriers never switches stacks.
inline void run_next() {
  Stack* next = &launcher;
  if (!ready.empty() && !error) {
    std::swap(ready[random() % ready.size()], ready.back());
    current = ready.back();
    ready.pop_back();
    threadIdx = current->index;
    if (!current->stack) {
      if (idle.empty()) idle.push_back(&stacks.emplace_back(begin_on_stack));
      current->stack = idle.back();
      idle.pop_back();
    }
    next = current->stack;
  }
  switch_to(next);
}

inline void give_way_sometimes() {
  if (random() % 16) return;
  ready.push_back(current);
  run_next();
}

inline void wait_at(const char* what, Finish finish, Site site) {
  current->waits_for = what;
  current->finish = finish;
  current->site = site;
  warp_of(*current).waiting |= 1u << lane();
}

inline void release(Thread& t) {
  warp_of(t).waiting &= ~(1u << t.number % kWarp);
  ready.push_back(&t);
}

// A collective of a warp is complete when every live lane of its mask has come, with the same mask and operation.
inline void finish_warp_if_complete(const Thread& t) {
  if (!t.finish) return;
  const Warp& warp = warp_of(t);
  Thread* lanes = &threads[t.number / kWarp * kWarp];
  const unsigned wanted = t.mask & warp.live;
  bool complete = (wanted & ~warp.waiting) == 0;
  each_lane(wanted, [&](unsigned l) { complete &= lanes[l].mask == t.mask && lanes[l].finish == t.finish; });
  if (!complete) return;
  t.finish(lanes, wanted);
  each_lane(wanted, [&](unsigned l) { release(lanes[l]); });
}

inline void finish_barrier_if_complete() {
  if (at_barrier.empty() || at_barrier.size() != live) return;
  vote_result = {votes.yes, live};
  votes = {};
  for (Thread* t : at_barrier) release(*t);
  at_barrier.clear();
}

inline Votes block_barrier(bool vote, Site site) {
  if (!at_barrier.empty() && !(at_barrier.front()->site == site))
    throw std::runtime_error("divergent barrier: threads of one block wait at " + at_barrier.front()->site.text() +
                             " and at " + site.text());
  wait_at("__syncthreads", nullptr, site);
  votes.yes += vote;
  at_barrier.push_back(current);
  finish_barrier_if_complete();
  run_next();
  return vote_result;
}

inline uint64_t warp_collective(unsigned mask, uint64_t value, unsigned source, Finish finish, Site site) {
  Thread& me = *current;
  if (!(mask >> lane() & 1))
    throw std::runtime_error("a lane that is not in the mask calls a warp function at " + site.text());
  wait_at("the lanes of their warp", finish, site);
  me.mask = mask;
  me.value = value;
  me.source = source;
  finish_warp_if_complete(me);
  run_next();
  return me.result;
}

// The lanes that have come here when the others of the warp can go no further: what a GPU would usually see, although
// CUDA promises no more than some set of lanes that holds the calling one.
inline unsigned active_lanes() {
  Thread& me = *current;
  Warp& warp = warp_of(me);
  warp.asking |= 1u << lane();
  for (me.result = 0; !me.result;) {
    ready.push_back(&me);
    run_next();
    if (warp.live & ~warp.waiting & ~warp.asking) continue;
    const unsigned lanes = std::exchange(warp.asking, 0);
    each_lane(lanes, [&](unsigned l) { threads[me.number / kWarp * kWarp + l].result = lanes; });
  }
  return unsigned(me.result);
}

// CUDA's barriers do not wait for a thread that has returned, so its leaving may complete one.
inline void leave(Thread& t) {
  t.done = true;
  --live;
  Warp& warp = warp_of(t);
  warp.live &= ~(1u << t.number % kWarp);
  finish_barrier_if_complete();
  each_lane(warp.waiting, [&](unsigned l) {
    if (warp.waiting >> l & 1) finish_warp_if_complete(threads[t.number / kWarp * kWarp + l]);
  });
}

// The bottom of every stack: runs the thread that was made current, then whichever comes to this stack next.
inline void begin_on_stack() {
  confirm_switch();
  for (;;) {
    try {
      (*kernel_body)();
    } catch (...) {
      error = std::current_exception();
    }
    leave(*current);
    idle.push_back(running);
    run_next();
  }
}

}  // namespace simt
