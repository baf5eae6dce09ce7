// Owns: the closed forms of formulas.py once more, compiled, and the errors of results against them: every float32 of a
// curve within half a minute.
// Must not know: losses' names (exact.py), which logits are looked at, how the results were made.
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <bit>
#include <initializer_list>

// glibc's vector functions, off by at most 4 ULP of double; math.h has them for -ffast-math only.
#if defined __x86_64__ && defined __GLIBC_PREREQ
#if __GLIBC_PREREQ(2, 35)
extern "C" {
__attribute__((simd("notinbranch"))) double exp(double) noexcept;
__attribute__((simd("notinbranch"))) double log(double) noexcept;
__attribute__((simd("notinbranch"))) double log1p(double) noexcept;
}
#endif
#endif

namespace {

constexpr int kBlock = 256;  // a block's arrays stay in the first-level cache
constexpr int kEdges = 6;
constexpr double kNear = 0x1p-16, kAny = 1e30;  // formulas.py's NEAR and ANY
constexpr double kSmallestNormal = 0x1p-126;

enum Form { kSoft, kQuality, kShifted, kMean };

using Doubles = double[kBlock];

// As exact.py mirrors them.
struct Curve {
  int32_t form, cancels;
  double target, exponent, smoothing, clip;
  double slope;  // what multiplies in the derivative, the exponent or 0; of kMean the power of p
  double lost;  // how far the target moves where it is computed
  double factor;  // of loss and gradient
  double slack;  // what a result may be off without an error
  double edges[kEdges];
};

struct Errors {
  double worst, at, total, good_below;
  int64_t count, not_finite, above[kEdges];  // above[i]: errors above edges[i]
};

struct Exact {
  Doubles loss, gradient, loss_terms, gradient_terms;
};

struct Logits {
  Doubles x, p, q, log1p_exp;  // p = sigmoid(x), q = 1 - p, log1p_exp = log(1 + exp(-|x|))
};

// A compiler turns every such loop over a block into vector instructions.
#define FOR_BLOCK _Pragma("omp simd") for (int i = 0; i < kBlock; ++i)

void prepare(const float* x, bool with_log, Logits& at) {
  FOR_BLOCK {
    const double z = x[i], e = exp(-fabs(z)), larger = 1 / (1 + e), smaller = e * larger;
    at.x[i] = z;
    at.p[i] = z > 0 ? larger : smaller;
    at.q[i] = z > 0 ? smaller : larger;
    at.log1p_exp[i] = e;
  }
  if (!with_log) return;
  FOR_BLOCK at.log1p_exp[i] = log1p(at.log1p_exp[i]);
}

// base^exponent: products where twice the exponent is a small whole number. A base of 0 gives something tiny, not
// always 0.
void raise(const Doubles& base, double exponent, Doubles& power) {
  const double twice = 2 * exponent;
  if (twice < 0 || twice > 16 || twice != floor(twice)) {
    FOR_BLOCK power[i] = exp(exponent * log(base[i] > 1e-150 ? base[i] : 1e-150));
    return;
  }
  FOR_BLOCK power[i] = 1;
  if (int(twice) % 2 != 0) {
    FOR_BLOCK power[i] = sqrt(base[i]);
  }
  for (int product = 0; product < int(twice) / 2; ++product) {
    FOR_BLOCK power[i] *= base[i];
  }
}

// soft(): u^g ce and u^g (g (1-2t) h ce + p (1-t) - q t), u = p (1-t) + q t, h = p q / u; with t 0 or 1 hard(), with
// exponent 0 varifocal()'s positives.
void soft(const Curve& curve, const Logits& at, Exact& exact) {
  const double t = curve.target, gamma = curve.exponent, kept = 1 - curve.smoothing, half = curve.smoothing / 2;
  const double moved = t * kept + half, rest = (1 - t) * kept + half;
  Doubles u, power;
  FOR_BLOCK u[i] = at.p[i] * (1 - t) + at.q[i] * t;
  raise(u, gamma, power);
  FOR_BLOCK {
    const double x = at.x[i], p = at.p[i], q = at.q[i], ce = at.log1p_exp[i] + (x > 0 ? x * rest : -x * moved);
    const double bend = curve.slope * (1 - 2 * t) * (p * q / u[i]) * ce;
    const double scale = curve.factor * power[i];
    exact.loss[i] = scale * ce;
    exact.gradient[i] = scale * (bend + (p * rest - q * moved));
    exact.loss_terms[i] = exact.loss[i] + curve.lost * fabs(x);
    exact.gradient_terms[i] = scale * (fabs(bend) + (p * rest + q * moved)) + curve.lost;
  }
}

// The cross entropy with max(p^a s^(1-a), 0.01).
void mean(const Curve& curve, const Logits& at, Exact& exact) {
  const double of_score = (1 - curve.slope) * log(curve.target);
  FOR_BLOCK {
    const double x = at.x[i], p = at.p[i], q = at.q[i];
    const double exponent = curve.slope * ((x > 0 ? 0 : x) - at.log1p_exp[i]) + of_score, product = exp(exponent);
    const double t = product > 0.01 ? product : 0.01, rest = product > 0.01 ? 1 - product : 0.99;
    exact.loss[i] = at.log1p_exp[i] + (x > 0 ? x * rest : -x * t);
    exact.gradient[i] = p * rest - q * t;
    exact.loss_terms[i] = exact.loss[i] + t * fabs(x);
    exact.gradient_terms[i] = p * rest + q * t + t;
  }
}

// quality(): |d|^b ce and |d|^(b-1) sign(d) (d^2 + b p q ce), d = p (1-t) - q t.
void quality(const Curve& curve, const Logits& at, Exact& exact) {
  const double t = curve.target, beta = curve.exponent;
  Doubles size, about, power, about_power;
  FOR_BLOCK {
    size[i] = fabs(at.p[i] * (1 - t) - at.q[i] * t);
    about[i] = size[i] + kNear / 16 * (at.p[i] * (1 - t) + at.q[i] * t);
  }
  raise(size, beta - 1, power);
  if (curve.cancels) raise(about, beta - 1, about_power);
  FOR_BLOCK {
    const double x = at.x[i], p = at.p[i], q = at.q[i], ce = at.log1p_exp[i] + (x > 0 ? x * (1 - t) : -x * t);
    const double d = p * (1 - t) - q * t, bend = d * d + beta * p * q * ce;
    exact.loss[i] = power[i] * size[i] * ce;
    exact.gradient[i] = power[i] * (d > 0 ? bend : d < 0 ? -bend : 0.0);
  }
  if (!curve.cancels) return;
  FOR_BLOCK {
    const double x = at.x[i], p = at.p[i], q = at.q[i], ce = at.log1p_exp[i] + (x > 0 ? x * (1 - t) : -x * t);
    const double terms = p * (1 - t) + q * t, bend = size[i] * size[i] + beta * p * q * ce;
    const double magnitude =
        power[i] * (bend + 2 * size[i] * terms) + (beta - 1) * about_power[i] / about[i] * terms * bend;
    exact.loss_terms[i] = exact.loss[i] + beta * about_power[i] * terms * ce;
    exact.gradient_terms[i] = beta < 2 && size[i] <= kNear * terms ? kAny : magnitude;
  }
}

// shifted(): -u^g log(1-u) and p q u^g (g R + 1/(1-u)), R = -log(1-u) / u, u = max(p - clip, 0).
void shifted(const Curve& curve, const Logits& at, Exact& exact) {
  const double gamma = curve.exponent, clip = curve.clip;
  Doubles u, about, minus_log, power, about_power;
  FOR_BLOCK {
    const double above = at.p[i] - clip;
    u[i] = above > 0 ? above : 0;
    about[i] = u[i] + kNear / 16 * (at.p[i] + clip);
  }
  FOR_BLOCK minus_log[i] = -log1p(-u[i]);
  raise(u, gamma, power);
  raise(about, gamma, about_power);
  FOR_BLOCK {
    const double p = at.p[i], q = at.q[i], rest = q + clip, whole = p + clip;
    const bool counts = u[i] > 0;
    const double gradient = p * q * power[i] * (gamma * minus_log[i] / (counts ? u[i] : 1) + 1 / rest);
    const double magnitude = p * q * about_power[i] * (gamma * 2 + 1) / rest * (1 + (gamma + 1) * whole / about[i]);
    exact.loss[i] = counts ? power[i] * minus_log[i] : 0;
    exact.gradient[i] = counts ? gradient : 0;
    exact.loss_terms[i] = exact.loss[i] + (gamma + 2) * about_power[i] * whole / rest;
    exact.gradient_terms[i] = gamma < 1 && fabs(p - clip) <= kNear * whole ? kAny : magnitude;
  }
}

void evaluate(const Curve& curve, const float* x, Exact& exact) {
  Logits at;
  prepare(x, curve.form != kShifted, at);
  (curve.form == kSoft         ? soft
      : curve.form == kQuality ? quality
      : curve.form == kMean    ? mean
                               : shifted)(curve, at, exact);
  if (curve.cancels) return;
  FOR_BLOCK {
    exact.loss_terms[i] = exact.loss[i];
    exact.gradient_terms[i] = fabs(exact.gradient[i]);
  }
}

// As curves.py's errors_of(); what is rare is looked for in a block that has it only.
void add(const Curve& curve, const float* x, const float* got, const Doubles& want, const Doubles& terms, int count,
    Errors& errors) {
  Doubles error;
  double worst = 0, total = 0;
  int not_finite = 0;
#pragma omp simd reduction(max : worst) reduction(+ : total, not_finite)
  for (int i = 0; i < count; ++i) {
    const bool finite = (std::bit_cast<uint32_t>(got[i]) & 0x7f800000) != 0x7f800000;
    const double magnitude = terms[i] > kSmallestNormal ? terms[i] : kSmallestNormal;
    const double unit = std::bit_cast<double>(std::bit_cast<int64_t>(magnitude) & 0x7ff0000000000000) * 0x1p-23;
    const double off = fabs(got[i] - want[i]) - curve.slack;
    error[i] = finite && off > 0 ? off / unit : 0;
    worst = error[i] > worst ? error[i] : worst;
    total += error[i];
    not_finite += !finite;
  }
  errors.total += total;
  errors.count += count;
  errors.not_finite += not_finite;
  for (int edge = 0; edge < kEdges && worst > curve.edges[edge]; ++edge) {
    int above = 0;
#pragma omp simd reduction(+ : above)
    for (int i = 0; i < count; ++i) above += error[i] > curve.edges[edge];
    errors.above[edge] += above;
  }
  if (worst > errors.worst)
    for (int i = count - 1; i >= 0; --i)
      if (error[i] == worst) errors.worst = worst, errors.at = x[i];
  if (worst > curve.edges[kEdges - 1] || not_finite)
    for (int i = 0; i < count; ++i)
      if ((error[i] > curve.edges[kEdges - 1] || !isfinite(got[i])) && fabs(double(x[i])) < errors.good_below)
        errors.good_below = fabs(double(x[i]));
}

// Calls see(first, size, logits, exact values) for each block of `count` logits.
template <class See>
void for_blocks(const Curve& curve, int64_t count, const float* x, const See& see) {
  Exact exact;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int size = int(count - first < kBlock ? count - first : kBlock);
    float padded[kBlock] = {};
    memcpy(padded, x + first, sizeof(float) * size_t(size));
    evaluate(curve, padded, exact);
    see(first, size, padded, exact);
  }
}

}  // namespace

// Loss, gradient and the magnitudes of their terms: four arrays of `count` after each other.
extern "C" void exact_values(const Curve* curve, int64_t count, const float* x, double* results) {
  for_blocks(*curve, count, x, [=](int64_t first, int size, const float*, const Exact& exact) {
    int row = 0;
    for (const Doubles* values : {&exact.loss, &exact.gradient, &exact.loss_terms, &exact.gradient_terms})
      memcpy(results + count * row++ + first, *values, sizeof(double) * size_t(size));
  });
}

// Adds the errors of `count` losses and gradients at the logits x.
extern "C" void exact_errors(const Curve* curve, int64_t count, const float* x, const float* loss,
    const float* gradient, Errors* of_loss, Errors* of_gradient) {
  for_blocks(*curve, count, x, [=](int64_t first, int size, const float* here, const Exact& exact) {
    add(*curve, here, loss + first, exact.loss, exact.loss_terms, size, *of_loss);
    add(*curve, here, gradient + first, exact.gradient, exact.gradient_terms, size, *of_gradient);
  });
}
