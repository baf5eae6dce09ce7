// Owns: every loss of the list, its derivative written by hand beside the one that dual numbers make of its value; and
// a loss without a derivative in the CPU's own kernel. Prints rows "loss, numbers, method, worst error" for
// tests/test_derivatives.py.
// Must not know: how large an error may be.
#include <cmath>
#include <cstdio>
#include <vector>

#define FOCAL_EXT_LEVEL trial
#include "../../csrc/cpu/rows.h"
#include "poly1.h"

using namespace focal_ext;
using D = Dual<Double>;
using N = Number<double>;

namespace {

const double kTargets[] = {0, 1, 0.3, 0.75, 1e-3};

// Error relative to the larger derivative among those whose terms the formula adds: it cancels where p meets the
// target.
struct Worst {
  double error = 0, at = 0;
  void see(double x, double by_hand, double dual, double scale) {
    const double e = std::fabs(by_hand - dual) / (scale + 1e-300);
    if (!(e <= error)) error = e, at = x;
  }
};

void print(const LossParameters& p, const char* method, const Worst& worst) {
  const double* const n = p.numbers;
  std::printf("%d,%g,%g,%g,%g,%s,%.3g,%g\n", int(p.loss), n[0], n[1], n[2], n[3], method, worst.error, worst.at);
}

template <class Loss>
void compare(const LossParameters& p, const Loss& loss) {
  Worst negative, positive, dense;
  // Without 0, where a mirrored formula's two halves meet and a dual number follows one of them.
  for (double x = -40.03; x < 40; x += 0.0917) {
    const auto low = loss.template negative<Double>(x);
    negative.see(x, low.gradient, loss.template negative<D>(N{x, 1}).value.slope,
        std::fabs(low.gradient) + std::fabs(low.value));
    for (double t : kTargets) {
      const auto high = loss.template positive<Double>(x, t), any = loss.template dense<Double>(x, t);
      positive.see(x, high.gradient, loss.template positive<D>(N{x, 1}, N{t, 0}).value.slope,
          std::fabs(high.gradient) + std::fabs(high.value));
      dense.see(x, any.gradient, loss.template dense<D>(N{x, 1}, N{t, 0}).value.slope,
          std::fabs(any.gradient) + std::fabs(any.value));
    }
  }
  print(p, "negative", negative);
  print(p, "positive", positive);
  print(p, "dense", dense);
}

void compare_all(const LossParameters& p) {
  const auto each = [&]<class Loss>(const Loss& loss) {
    if constexpr (requires { Loss::is_derived; }) print(p, "dense", {});  // by dual numbers itself
    else compare(p, loss);
  };
  with_loss<true>(p, each);
  with_loss<false>(p, each);
}

// Poly1 through Rows, in float, with class ids: loss and gradient against the closed form.
void poly1() {
  constexpr int64_t rows = 700, classes = 7;
  std::vector<float> x(rows * classes), gradient(x.size());
  std::vector<int64_t> ids(rows);
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(std::sin(double(i)) * 12);
  for (int64_t r = 0; r < rows; ++r) ids[r] = r % 5 == 0 ? r % classes : r % 11 == 0 ? -2 : -1;
  Problem p{};
  p.inputs = x.data(), p.rows = rows, p.classes = classes, p.targets = ids.data(), p.target = Target::i64;
  p.has_ignore_index = true, p.ignore_index = -2, p.alpha_positive = p.alpha_negative = 1, p.divisor_value = 1;
  float loss = 0;
  p.loss = &loss, p.gradient = gradient.data();
  const FromValue<Poly1> poly{{2.0}};
  const double total = cpu::trial::Rows<HostFloat, FromValue<Poly1>>(p, poly, {1.0, nullptr}).run(0, rows * classes);
  double want = 0, magnitude = 0;
  Worst worst;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < classes; ++c) {
      const double z = x[r * classes + c], s = ids[r] == c ? -1 : 1, q = 1 / (1 + std::exp(-s * z)),
                   weight = ids[r] == -2 ? 0 : 1;
      const double value = weight * (std::log1p(std::exp(s * z)) + 2 * q), slope = weight * s * (q + 2 * q * (1 - q));
      want += value, magnitude += value;
      worst.see(z, gradient[r * classes + c], slope, std::fabs(slope));
    }
  std::printf("poly1,2,0,0,0,kernel gradient,%.3g,%g\npoly1,2,0,0,0,kernel loss,%.3g,0\n", worst.error, worst.at,
      std::fabs(total - want) / magnitude);
}

}  // namespace

// Lines "loss number number ..." on standard input.
int main() {
  for (int loss; std::scanf("%d", &loss) == 1;) {
    double numbers[4] = {};
    for (int i = 0; i < facts_of(Loss(loss)).numbers; ++i)
      if (std::scanf("%lf", numbers + i) != 1) return 1;
    compare_all(parameters_of(Loss(loss), numbers));
  }
  poly1();
}
