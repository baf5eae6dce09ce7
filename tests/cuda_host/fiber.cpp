// Owns: what fiber.h declares.
// Must not know: blocks, warps, kernels, CUDA. Never compiled with a sanitizer: what it does is no part of the program
// under test.
#include "fiber.h"

#include <sys/mman.h>

#include <stdexcept>
#include <utility>

#include "device.h"

// Present when the process runs under the sanitizer.
extern "C" {
#define IF_PRESENT __attribute__((weak))
IF_PRESENT void* __tsan_get_current_fiber();
IF_PRESENT void* __tsan_create_fiber(unsigned flags);
IF_PRESENT void __tsan_switch_to_fiber(void* fiber, unsigned flags);
IF_PRESENT void __tsan_acquire(void* address);
IF_PRESENT void __tsan_release(void* address);
IF_PRESENT void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t size);
IF_PRESENT void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* size);
}

namespace cuda_host {

Fiber host, *running = &host;

void acquire(char& order) {
  if (__tsan_acquire) __tsan_acquire(&order);
}
void release(char& order) {
  if (__tsan_release) __tsan_release(&order);
}
void continue_as(const Fiber& fiber) {
  constexpr unsigned no_sync = 1;
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(fiber.tsan, no_sync);
}
void host_is_this_thread() {
  if (__tsan_get_current_fiber) host.tsan = __tsan_get_current_fiber();
}
static Fiber* before;  // the one that runs
void has_started() {
  if (!__sanitizer_finish_switch_fiber) return;
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (before == &host) host.stack = bottom, host.stack_bytes = size;
}

__attribute__((noinline, noreturn)) static void jump(Fiber& to) {
  if (!to.started) {
    to.started = true;
    setcontext(&to.start);
  }
  __builtin_longjmp(to.resume, 1);
}

// ucontext's swap would make two system calls; these builtins save three registers and let the compiler save the
// others. In a function of its own, and no deeper than it must be: after a change the CPU guesses every return wrong.
__attribute__((noinline)) void switch_to(Fiber& to) {
  Fiber& from = *std::exchange(running, &to);
  before = &from;
  thread_index.x = to.thread;
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
  if (__builtin_setjmp(from.resume) == 0) jump(to);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(running->fake_stack, nullptr, nullptr);
}

std::unique_ptr<Fiber> make_fiber(uint32_t thread, void (*live)()) {
  constexpr size_t kStackBytes = 256 << 10;
  auto fiber = std::make_unique<Fiber>();
  fiber->thread = thread;
  fiber->started = false;
  void* const stack =
      mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) throw std::runtime_error("no memory for the stack of a device thread");
  fiber->stack = stack;
  fiber->stack_bytes = kStackBytes;
  getcontext(&fiber->start);
  fiber->start.uc_stack.ss_sp = stack;
  fiber->start.uc_stack.ss_size =
      kStackBytes - thread % 128 * 320;  // else all stacks meet in the same lines of a cache
  makecontext(&fiber->start, live, 0);
  if (__tsan_create_fiber) fiber->tsan = __tsan_create_fiber(0);
  return fiber;
}

}  // namespace cuda_host
