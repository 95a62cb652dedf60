// Stacks that code can be left on and returned to: the emulated GPU gives each of its threads one.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__) || defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

// ---- The processor's part: `jump` leaves one stack for another and returns when someone jumps back
#if defined(__x86_64__) && !defined(SIMT_UCONTEXT)
using Registers = void*;  // the stack pointer; the registers a callee must keep lie on the stack itself

// Ten times faster than swapcontext, which asks the kernel for the signal mask. noipa: the compiler must treat
// this as a call that may change any memory and every register a call may change.
__attribute__((naked, noinline, noipa)) inline void jump(Registers* /*from*/, const Registers* /*to*/) {
  asm("push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15\n"
      "mov %rsp, (%rdi)\n"
      "mov (%rsi), %rsp\n"
      "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp\n"
      "ret");
}

inline void prepare(Registers& registers, char* bottom, size_t bytes, void (*entry)()) {
  auto top = reinterpret_cast<uint64_t*>(bottom + bytes);
  top[-1] = 0;  // entry's return address: none
  top[-2] = reinterpret_cast<uint64_t>(entry);
  registers = top - 8;  // where `jump` finds six registers and the address to return to
}
#else
using Registers = ucontext_t;

inline void jump(Registers* from, const Registers* to) { swapcontext(from, to); }

inline void prepare(Registers& registers, char* bottom, size_t bytes, void (*entry)()) {
  getcontext(&registers);
  registers.uc_stack.ss_sp = bottom;
  registers.uc_stack.ss_size = bytes;
  registers.uc_link = nullptr;
  makecontext(&registers, entry, 0);
}
#endif

// ---- The stacks ---------------------------------------------------------------------------------
struct Stack {
  Registers registers{};
  const void* bottom = nullptr;  // of the usable part
  size_t bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's own
  char* memory = nullptr;      // what is mapped: a page that faults on overflow, then the usable part

  Stack() = default;  // stands for the stack of whoever launches
  explicit Stack(void (*entry)()) : bytes(256 * 1024) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    void* mapped =
        mmap(nullptr, page + bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    memory = static_cast<char*>(mapped);
    mprotect(memory, page, PROT_NONE);
    bottom = memory + page;
    prepare(registers, memory + page, bytes, entry);
  }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  ~Stack() {
    if (!memory) return;
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(bottom, bytes);  // frames of an abandoned thread; the addresses may be reused
#endif
    munmap(memory, bytes + size_t(static_cast<const char*>(bottom) - memory));
  }
};

inline Stack launcher;
inline Stack* running = &launcher;
inline Stack* left = nullptr;  // the stack that was running before

// To be called first on a stack just switched to. The bounds it learns are news only for the launcher's stack.
inline void confirm_switch() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(running->fake_stack, &left->bottom, &left->bytes);
#endif
}

inline void switch_to(Stack* next) {
  if (next == running) return;
  left = running;
  running = next;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&left->fake_stack, next->bottom, next->bytes);
#endif
  jump(&left->registers, &next->registers);
  confirm_switch();
}

}  // namespace simt
