// Owns: what ThreadSanitizer cannot see in a libgomp that was compiled without it: that a parallel region begins after
// what its caller did before, and that the caller goes on after all threads are done. Preloaded, it stands before the
// GOMP_parallel that torch calls.
// Must not know: torch, losses.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>

void __tsan_acquire(void* address);
void __tsan_release(void* address);

typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);
struct Region {
  void (*body)(void*);
  void* data;
  char begins, ends;
};

static int find_libgomp(struct dl_phdr_info* info, size_t size, void* found) {
  (void)size;
  if (!strstr(info->dlpi_name, "libgomp")) return 0;
  *(void**)found = dlopen(info->dlpi_name, RTLD_NOLOAD | RTLD_LAZY);
  return 1;
}

static void in_every_thread(void* argument) {
  struct Region* region = argument;
  __tsan_acquire(&region->begins);
  region->body(region->data);
  __tsan_release(&region->ends);
}

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags) {
  static Parallel original;
  if (!original) {
    void* libgomp = 0;
    dl_iterate_phdr(find_libgomp, &libgomp);
    original = (Parallel)dlsym(libgomp, "GOMP_parallel");
  }
  if (getenv("FORK_JOIN_UNSEEN"))
    return original(body, data, threads, flags);  // to show that the sanitizer looks at all
  struct Region region = {body, data, 0, 0};
  __tsan_release(&region.begins);
  original(in_every_thread, &region, threads, flags);
  __tsan_acquire(&region.ends);
}
