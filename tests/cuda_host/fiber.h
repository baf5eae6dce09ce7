// Owns: fibers, the threads of the device made of a CPU: making one, changing to one, and what the sanitizers are told
// about it.
// Must not know: blocks, warps, kernels, CUDA.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <ucontext.h>

#include <memory>

namespace cuda_host {

struct Fiber {
  uint32_t thread = 0;
  bool started = true;
  void* resume[5];
  ucontext_t start;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* tsan = nullptr;        // ThreadSanitizer's
};

// The thread that called the device, and the fiber that has the CPU.
extern Fiber host, *running;

// A fiber that begins with `live` when it is first changed to. `live` never returns and calls has_started first.
std::unique_ptr<Fiber> make_fiber(uint32_t thread, void (*live)());
void has_started();
void switch_to(Fiber& to);

// To ThreadSanitizer the code from here on is this fiber's, whatever ran before; nothing is ordered by it.
void continue_as(const Fiber& fiber);
void host_is_this_thread();

// To ThreadSanitizer what came before a release comes before what follows an acquire of the same order.
void acquire(char& order);
void release(char& order);

}  // namespace cuda_host
