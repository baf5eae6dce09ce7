// Owns: the CPU kernels as a program without torch: a call and its memory come on standard input, the memory goes back
// on standard output.
// Must not know: which calls, what is right.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "../../csrc/cpu/run.h"
#include "../cuda_host/plain_problem.h"

using namespace focal_ext;

namespace {

constexpr size_t kAlignment = 64;  // of the memory of a call; a tensor keeps its own place within it

char* memory;

struct Fields {
  std::map<std::string, std::string> values;

  template <class T>
  T get(const char* name) const {
    const auto found = values.find(name);
    if (found == values.end()) exit((fprintf(stderr, "no %s\n", name), 2));
    if constexpr (std::is_same_v<T, double>) return strtod(found->second.c_str(), nullptr);
    else return strtoll(found->second.c_str(), nullptr, 10);
  }
  const void* address(const char* name) const { return values.count(name) ? memory + get<int64_t>(name) : nullptr; }
};

void check(bool good) {
  if (!good) exit(3);
}

// One line each: the number of fields, and "name value" for each of them. A tensor is its place in the memory.
Fields read_fields() {
  Fields fields;
  int count = 0;
  check(scanf("%d", &count) == 1);
  for (char name[64], value[64]; count > 0; --count) {
    check(scanf("%63s %63s", name, value) == 2);
    fields.values[name] = value;
  }
  return fields;
}

void one_thread(int64_t n, void (*body)(void*, int64_t), void* context) {
  for (int64_t i = 0; i < n; ++i) body(context, i);
}

int64_t call(const std::string& what, const Fields& fields, const std::vector<Fields>& levels) {
  if (what == "run") cpu::run(problem_of(fields), one_thread);
  if (what == "run_pyramid") {
    const std::vector<Level> plain = levels_of(levels);
    cpu::run(pyramid_of(fields, plain), one_thread);
  }
  if (what == "scale")
    cpu::scale(const_cast<void*>(fields.address("gradient")), Scalar(fields.get<int64_t>("scalar")),
        fields.get<int64_t>("numel"), fields.address("factor"), fields.get<int64_t>("groups"), one_thread);
  if (what != "first_bad_id") return 0;
  Problem p = {};
  p.targets = fields.address("targets");
  p.target = Target(fields.get<int64_t>("target"));
  p.rows = fields.get<int64_t>("rows");
  p.classes = fields.get<int64_t>("classes");
  p.has_ignore_index = fields.get<int64_t>("has_ignore_index");
  p.ignore_index = fields.get<int64_t>("ignore_index");
  return cpu::first_bad_id(p, fields.get<int64_t>("background"), one_thread);
}

}  // namespace

int main() {
  char what[64];
  size_t bytes, level_count;
  while (scanf("%63s %zu %zu", what, &bytes, &level_count) == 3) {
    const Fields fields = read_fields();
    std::vector<Fields> levels(level_count);
    for (Fields& level : levels) level = read_fields();
    check(getchar() == '\n');
    const std::unique_ptr<char, void (*)(void*)> owned(
        static_cast<char*>(aligned_alloc(kAlignment, (bytes + kAlignment) / kAlignment * kAlignment)), free);
    memory = owned.get();
    check(fread(memory, 1, bytes, stdin) == bytes);
    const int64_t answer = call(what, fields, levels);
    check(fwrite(&answer, sizeof answer, 1, stdout) == 1 && fwrite(memory, 1, bytes, stdout) == bytes &&
          fflush(stdout) == 0);
  }
}
