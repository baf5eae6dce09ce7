// Owns: tensors as plain memory: dtypes as the enums of problem.h, checked pointers, results, threads, streams.
// Must not know: which op asks.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <optional>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "problem.h"

#ifdef FOCAL_EXT_WITH_CUDA
// Present in a CUDA build of torch only; weak, so that one library loads into both.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(
    int32_t device_index, void** ret_stream);
#endif

namespace focal_ext {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline Scalar scalar_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return Scalar::f64;
    case ScalarType::BFloat16: return Scalar::bf16;
    case ScalarType::Half: return Scalar::f16;
    default: STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, "inputs: unsupported dtype"); return Scalar::f32;
  }
}

inline ScalarType accumulation_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Target id_target(const Tensor& ids) {
  switch (ids.scalar_type()) {
    case ScalarType::Byte: return Target::u8;
    case ScalarType::Char: return Target::i8;
    case ScalarType::UInt16: return Target::u16;
    case ScalarType::Short: return Target::i16;
    case ScalarType::UInt32: return Target::u32;
    case ScalarType::Int: return Target::i32;
    case ScalarType::UInt64: return Target::u64;
    default:
      STD_TORCH_CHECK(ids.scalar_type() == ScalarType::Long, "targets: class ids must be integers");
      return Target::i64;
  }
}

inline Target dense_target(const Tensor& inputs, const Tensor& targets) {
  const ScalarType type = targets.scalar_type();
  if (type == ScalarType::Bool || type == ScalarType::Byte) return Target::dense_u8;
  if (type == inputs.scalar_type()) return Target::dense_scalar;
  if (inputs.is_cpu()) {
    if (type == ScalarType::Char) return Target::dense_i8;
    if (type == ScalarType::Short) return Target::dense_i16;
    if (type == ScalarType::Int) return Target::dense_i32;
    if (type == ScalarType::Long) return Target::dense_i64;
  }
  STD_TORCH_CHECK(type == accumulation_type(inputs), "targets: unsupported dtype of dense targets");
  return Target::dense_acc;
}

// All tensors must be on one device: a kernel would read another's with a pointer that means nothing there.
inline bool on_device_of(const Tensor& t, const Tensor& like) {
  int32_t device = 0, wanted = 0;
  const bool known = aoti_torch_get_device_type(t.get(), &device) == AOTI_TORCH_SUCCESS &&
                     aoti_torch_get_device_type(like.get(), &wanted) == AOTI_TORCH_SUCCESS;
  return known && device == wanted && t.get_device_index() == like.get_device_index();
}

// Whether the storage holds every element: torch lets a storage be freed or shortened under its tensors, and reads of
// those end the process.
inline void check_allocated(const Tensor& t, const char* name) {
  const int64_t numel = t.numel();
  if (numel == 0) return;
  int64_t bytes = 0, last = t.storage_offset();
  if (t.is_contiguous()) last += numel - 1;
  else
    for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
  STD_TORCH_CHECK(
      aoti_torch_get_storage_size(t.get(), &bytes) == AOTI_TORCH_SUCCESS && bytes / int64_t(t.element_size()) > last,
      name, ": its data is not allocated; a storage of ", bytes, " bytes does not hold its ", numel,
      " elements (was it freed by untyped_storage().resize_()?)");
}

inline Tensor as_contiguous(const Tensor& t, const char* name) {
  check_allocated(t, name);
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

// An interval of memory, for ops that write over one of their arguments.
struct Bytes {
  intptr_t begin, end;
};

inline Bytes bytes_of(const Tensor& t) {
  const intptr_t begin = reinterpret_cast<intptr_t>(t.const_data_ptr());
  return {begin, begin + t.numel() * int64_t(t.element_size())};
}

// No other input may read what is written, unless it reads each element in the place where that is written. A `t` of
// another layout is copied before, so it is apart.
inline void check_apart(const Bytes& written, const Tensor& t, const char* name) {
  if (!t.is_contiguous() || t.numel() == 0) return;
  const Bytes read = bytes_of(t);
  STD_TORCH_CHECK(read.end <= written.begin || written.end <= read.begin ||
                      (read.begin == written.begin && read.end == written.end),
      name, ": shares memory, at another place, with what the op writes; clone it");
}

inline void check_apart(const Bytes& written, const OptionalTensor& t, const char* name) {
  if (t) check_apart(written, *t, name);
}

// Memory of a tensor of the accumulation dtype and the given number of elements, or null. `name` leads the error.
inline const void* checked_data(const OptionalTensor& t, const Tensor& inputs, int64_t numel, const char* name) {
  if (!t) return nullptr;
  STD_TORCH_CHECK(t->is_contiguous() && t->numel() == numel && t->scalar_type() == accumulation_type(inputs) &&
                      on_device_of(*t, inputs),
      name, ": must be contiguous, of the accumulation dtype and on the device of inputs, and hold ", numel,
      " elements");
  check_allocated(*t, name);
  return t->const_data_ptr();
}

// The numbers that multiply losses; a NaN would pass as some branch of the formulas, not as NaN.
inline void check_numbers(const LossParameters& p, double alpha_positive, double alpha_negative, double divisor_value) {
  for (const double number : p.numbers)
    STD_TORCH_CHECK(0 <= number && std::isfinite(number), "numbers: must be finite and >= 0, got ", number);
  STD_TORCH_CHECK(std::isfinite(alpha_positive) && std::isfinite(alpha_negative),
      "alpha_positive, alpha_negative: must be finite, got ", alpha_positive, ", ", alpha_negative);
  STD_TORCH_CHECK(std::isfinite(divisor_value), "divisor_value: must be finite, got ", divisor_value);
}

inline void on_torch_threads(int64_t n, void (*body)(void*, int64_t), void* context) {
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(context, i);
  });
}

#ifdef FOCAL_EXT_WITH_CUDA
inline void* current_stream(const Tensor& t) {
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "focal_ext: this torch has no CUDA");
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) == AOTI_TORCH_SUCCESS,
      "focal_ext: no CUDA stream");
  return stream;
}

inline void check_launch(const char* error) {
  STD_TORCH_CHECK(error == nullptr, "focal_ext: a CUDA launch failed: ", error ? error : "");
}
#endif

// Straight to the allocator: through the dispatcher each of a call's outputs would cost a microsecond more.
inline Tensor empty_strided(
    const Tensor& like, int64_t dim, const int64_t* sizes, const int64_t* strides, ScalarType type) {
  int32_t device_type = 0;
  AtenTensorHandle result = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_device_type(like.get(), &device_type) == AOTI_TORCH_SUCCESS,
      "focal_ext: a tensor without a device");
  const AOTITorchError error = aoti_torch_empty_strided(dim, sizes, strides,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), device_type, like.get_device_index(),
      &result);
  if (error != AOTI_TORCH_SUCCESS) {  // whose own words the stable ABI keeps to itself
    int64_t numel = 1;
    for (int64_t d = 0; d < dim; ++d) numel *= sizes[d];
    STD_TORCH_CHECK(false, "focal_ext: not enough memory for a result of ", numel,
        " numbers; overwrite_inputs=True needs none for the gradient");
  }
  return Tensor(result);
}

inline Tensor empty(const Tensor& like, int64_t dim, const int64_t* sizes, ScalarType type) {
  constexpr int64_t kFew = 8;
  int64_t few[kFew], stride = 1;
  std::vector<int64_t> many(dim > kFew ? dim : 0);  // torch knows no largest number of dimensions
  int64_t* strides = dim > kFew ? many.data() : few;
  for (int64_t d = dim - 1; d >= 0; --d) strides[d] = stride, stride *= sizes[d] > 0 ? sizes[d] : 1;
  return empty_strided(like, dim, sizes, strides, type);
}

// A result that is as large as the logits, in large pages if the system takes the advice. glibc maps such a block anew
// for every call, and a fault for each small page costs more than the arithmetic: 22 ms of 201,600 x 80 fp32, 13 with
// large ones. The advice is about this memory alone.
//
// A virtual machine that gave its free memory back to the host waits for it at first touch: 4.4 ms for a large page
// instead of 0.2. So the pages are touched here, and timed. A few slow ones are borne, as a page is quick from then on.
// Where many are slow, other work gives large pages back between the calls: the pages of the next seconds are small.
inline Tensor with_huge_pages(Tensor made) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr int64_t kHugePage = int64_t(2) << 20;
  using Clock = std::chrono::steady_clock;
  constexpr auto kSlow = std::chrono::milliseconds(1);
  constexpr int kPatience = 8;
  constexpr auto kPause = std::chrono::seconds(10);
  static std::atomic<Clock::time_point> next{Clock::time_point::min()};
  if (!made.is_cpu()) return made;
  const int64_t data = reinterpret_cast<intptr_t>(made.mutable_data_ptr());
  const int64_t first = (data + kHugePage - 1) / kHugePage,
                end = (data + made.numel() * size_of(scalar_of(made))) / kHugePage;
  const auto advise = [=](int advice) {
    return madvise(reinterpret_cast<void*>(first * kHugePage), size_t(end - first) * kHugePage, advice);
  };
  if (end <= first || Clock::now() < next.load(std::memory_order_relaxed) || advise(MADV_HUGEPAGE) != 0) return made;
  std::atomic<int> slow = 0;
  torch::stable::parallel_for(first, end, 1, [&](int64_t begin, int64_t last) {
    for (int64_t page = begin; page < last && slow < kPatience; ++page) {
      const auto start = Clock::now();
      *reinterpret_cast<volatile char*>(page * kHugePage) = 0;
      if (Clock::now() - start > kSlow && ++slow == kPatience) advise(MADV_NOHUGEPAGE);
    }
  });
  if (slow >= kPatience) next.store(Clock::now() + kPause, std::memory_order_relaxed);
#endif
  return made;
}

inline Tensor empty_logits(const Tensor& like) {
  return with_huge_pages(empty(like, like.dim(), like.sizes().data(), like.scalar_type()));
}

}  // namespace focal_ext
