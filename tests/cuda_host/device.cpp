// Owns: blocks of threads of the device, their scheduler, their meeting points and shared arrays.
// Must not know: any kernel, CUDA's headers, how a thread is made (fiber.h). Never compiled with a sanitizer: what it
// does is no part of the program under test.
//
// A thread runs until it waits; the next is chosen at random. 512 threads that wait 20 times in each of 128 blocks, as
// in the label scan, take 3 seconds as threads of the operating system and 50 milliseconds as fibers. To
// ThreadSanitizer every fiber is a thread, and changing to another one orders nothing: only sync_block and sync_warp
// do. It therefore judges all orders, not the one that ran.
#include "device.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>

#include "fiber.h"

namespace cuda_host {

Index thread_index, block_index, grid_size;
int planted = -1;

namespace {

constexpr uint32_t kMaxThreads = 1024, kLanes = 32;

enum class Place { nowhere, sync_block, sync_warp, shuffle, ballot };
constexpr const char* kPlaces[] = {"nowhere", "__syncthreads", "__syncwarp", "a shuffle", "a ballot"};

// Where threads wait for each other, again and again. Turns alternate: a thread may come for the next turn while others
// still leave.
struct Meeting {
  Place place = Place::nowhere;
  uint64_t turn = 0;
  std::vector<Fiber*> waiting;
  char order[2] = {};  // what ThreadSanitizer knows as a lock, one per turn
};

struct Warp {
  Meeting meeting;
  uint64_t values[2][kLanes];
};

struct Free {
  void operator()(void* memory) const { free(memory); }
};
struct SharedArray {
  const void* declaration;
  std::unique_ptr<void, Free> memory;  // its own allocation, so that AddressSanitizer guards its ends
};

struct Block {
  explicit Block(uint32_t threads) : alive(threads), warps(threads / kLanes) {}
  uint32_t alive;
  Meeting meeting;
  std::vector<Warp> warps;
  std::vector<SharedArray> arrays;
  std::vector<Fiber*> ready;
};

// Neighbouring blocks in the order of a launch use different fibers, so that ThreadSanitizer sees a race between two
// blocks.
std::vector<std::unique_ptr<Fiber>> fibers[2];
// of the launch, the last one runs; freed together: an address used again would order two blocks
std::vector<Block> blocks;
std::string failure;
std::mt19937_64 random_order;
std::vector<uint32_t> only_blocks;
void (*body)(const void*);
const void* body_context;
char launch_order, finish_order;

// While one exists the device is at work, and not the thread that called it: the lists it keeps are no shared memory of
// the kernel.
struct DeviceAtWork {
  DeviceAtWork() { continue_as(host); }
  ~DeviceAtWork() { continue_as(*running); }
};

Warp& own_warp() { return blocks.back().warps[running->thread / kLanes]; }

// The next thread runs, or the host where none can. Without the host between them threads change twice as fast.
__attribute__((always_inline)) inline void go_on() {
  auto& ready = blocks.back().ready;
  if (ready.empty() || !failure.empty()) return switch_to(host);
  std::swap(ready[random_order() % ready.size()], ready.back());
  Fiber& next = *ready.back();
  ready.pop_back();
  if (&next != running) switch_to(next);
}

// `waiting` threads are all that are left: they may go on.
void dissolve(Meeting& meeting) {
  auto& ready = blocks.back().ready;
  ready.insert(ready.end(), meeting.waiting.begin(), meeting.waiting.end());
  meeting.waiting.clear();
  ++meeting.turn;
}

__attribute__((always_inline)) inline void wait(Meeting& meeting, Place place, size_t participants) {
  const DeviceAtWork at_work;
  if (meeting.waiting.empty()) meeting.place = place;
  else if (meeting.place != place)
    failure = std::string("threads meet at ") + kPlaces[int(meeting.place)] + " and " + kPlaces[int(place)];
  meeting.waiting.push_back(running);
  if (meeting.waiting.size() == participants) dissolve(meeting);
  go_on();
}

__attribute__((always_inline)) inline void meet(
    Meeting& meeting, Place place, size_t participants, bool orders_memory) {
  char& order = meeting.order[meeting.turn % 2];
  if (orders_memory) release(order);
  wait(meeting, place, participants);
  if (orders_memory) acquire(order);
}

[[noreturn]] void live() {
  has_started();
  for (;;) {
    continue_as(*running);
    acquire(launch_order);
    body(body_context);
    release(finish_order);
    continue_as(host);
    Block& block = blocks.back();
    if (--block.alive > 0 && block.meeting.waiting.size() == block.alive) dissolve(block.meeting);
    go_on();
  }
}

void run_block(std::vector<std::unique_ptr<Fiber>>& pool, uint32_t threads) {
  while (pool.size() < threads) pool.push_back(make_fiber(uint32_t(pool.size()), live));
  Block& block = blocks.emplace_back(threads);
  for (uint32_t t = 0; t < threads; ++t) block.ready.push_back(pool[t].get());
  go_on();
  if (failure.empty() && block.alive > 0)
    failure = std::to_string(block.alive) + " threads wait for others that will never come";
  if (failure.empty()) return;
  // in the middle of a kernel: never resumed, their stacks are left to the process's end
  for (auto& abandoned : fibers)
    for (auto& fiber : abandoned) fiber.release();
  fibers[0].clear(), fibers[1].clear();
  throw std::runtime_error(std::exchange(failure, ""));
}

}  // namespace

uint64_t launches = 0;

void run_grid(uint32_t grid, uint32_t threads, void (*kernel)(const void*), const void* context) {
  if (grid == 0 || threads == 0 || threads > kMaxThreads || threads % kLanes)
    throw std::runtime_error("invalid configuration of a launch");
  ++launches;
  body = kernel, body_context = context, grid_size.x = grid;
  host_is_this_thread();
  release(launch_order);
  blocks.clear();
  blocks.reserve(grid);
  std::vector<uint32_t> order(grid);
  std::iota(order.begin(), order.end(), 0);
  const auto skipped = [](uint32_t b) {
    return !only_blocks.empty() && std::find(only_blocks.begin(), only_blocks.end(), b) == only_blocks.end();
  };
  order.erase(std::remove_if(order.begin(), order.end(), skipped), order.end());
  std::shuffle(order.begin(), order.end(), random_order);
  for (size_t i = 0; i < order.size(); ++i) {
    block_index.x = order[i];
    run_block(fibers[i % 2], threads);
  }
  acquire(finish_order);
}

void sync_block() { meet(blocks.back().meeting, Place::sync_block, blocks.back().alive, true); }
void sync_warp() { meet(own_warp().meeting, Place::sync_warp, kLanes, true); }

namespace {

// All lanes' values; valid until the next exchange but one.
__attribute__((always_inline)) inline const uint64_t* exchange(Place place, uint32_t mask, uint64_t value) {
  if (mask != ~0u) failure = "a shuffle or ballot of a part of a warp";
  Warp& warp = own_warp();
  uint64_t* const values = warp.values[warp.meeting.turn % 2];
  values[thread_index.x % kLanes] = value;
  meet(warp.meeting, place, kLanes, false);
  return values;
}

}  // namespace

uint64_t shuffle(uint32_t mask, uint64_t value, uint32_t from_lane) {
  return exchange(Place::shuffle, mask, value)[from_lane];
}

uint32_t ballot(uint32_t mask, bool predicate) {
  const uint64_t* const values = exchange(Place::ballot, mask, predicate);
  uint32_t bits = 0;
  for (uint32_t lane = 0; lane < kLanes; ++lane) bits |= uint32_t(values[lane]) << lane;
  return bits;
}

void poison(void* memory, size_t bytes) {
  constexpr unsigned char pattern[] = {0xa5, 0xa5, 0xa5, 0xff};
  for (size_t i = 0; i < bytes; ++i) static_cast<unsigned char*>(memory)[i] = pattern[i % sizeof(pattern)];
}

void* shared_array(const void* declaration, size_t bytes) {
  auto& arrays = blocks.back().arrays;
  auto found = std::find_if(
      arrays.begin(), arrays.end(), [&](const SharedArray& array) { return array.declaration == declaration; });
  if (found == arrays.end()) {
    const DeviceAtWork at_work;  // no thread of the block makes it
    void* const memory = malloc(bytes);
    poison(memory, bytes);
    release(*static_cast<char*>(memory));
    arrays.push_back({declaration, std::unique_ptr<void, Free>(memory)});
    found = arrays.end() - 1;
  }
  acquire(*static_cast<char*>(found->memory.get()));
  return found->memory.get();
}

void set_seed(uint64_t seed) { random_order.seed(seed); }
void set_only_blocks(std::vector<uint32_t> blocks) { only_blocks = std::move(blocks); }

}  // namespace cuda_host
