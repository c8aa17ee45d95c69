// What the kernel is told of a tensor and of its group, and the numbers of a step.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

enum Kind : int64_t { EACH, ROWS, SEGMENTS, COLUMNS, CROSSED };

struct Task {  // the same fields as in backend.py and prepared.py
    int64_t param, grad, exp_avg, exp_avg_sq, step;  // addresses
    int64_t exp_avg_scale;                           // address of float scales where exp_avg is in 8 bits
    int64_t exp_avg_sq_col;                          // address of the other mean, of kind CROSSED
    int64_t segment, column, size, order;  // addresses of int32, int32, double and int32 tables; 0 where they are the obvious ones
    int64_t line, across, common;          // addresses of int32 tables of kind CROSSED; 0 where they are the obvious ones
    int64_t kind, numel, length, blocks, dtype, exp_avg_dtype;
    int64_t columns, other_blocks, turned;  // turned: of kind CROSSED, whether segments are of blocks of the other mean
    int64_t row;           // elements of a row; those of the tensor where it is one row
    int64_t first, place;  // number of the first element, and of the tensor, for random rounding; place -1: to nearest
    int64_t group;
};

struct Group {
    double lr, beta1, beta2, eps, weight_decay, decoupled, maximize;
};

template <class To, class From>
To bits_of(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To bits;
    std::memcpy(&bits, &value, sizeof(To));
    return bits;
}

struct bfloat16 {
    uint16_t bits;
    operator float() const { return bits_of<float>(uint32_t(bits) << 16); }
    void set(float value, uint32_t added) {
        bits = value == value ? uint16_t((bits_of<uint32_t>(value) + added) >> 16) : uint16_t(0x7fc0);
    }
    bfloat16& operator=(float value) {
        set(value, 0x7fff + (bits_of<uint32_t>(value) >> 16 & 1));  // to nearest, ties to even
        return *this;
    }
};

constexpr int64_t kSmall = 1 << 17;  // elements of a tensor that one thread does alone, in cache
constexpr int64_t kItem = 1 << 16;   // elements of a piece of work
constexpr int64_t kParts = 16;       // partial sums of a tensor: a constant, so that results do not depend on the number of threads
constexpr int64_t kSummed = 4096;    // elements that are summed in single precision
constexpr int64_t kLanes = 64;       // sums side by side
constexpr int64_t kCodes = 256;      // elements of a momentum in 8 bits that share a scale, as in codecs.py
constexpr int64_t kStrip = 512;      // elements whose step sizes or momentum are written down before they are used
constexpr int64_t kLong = 128;       // elements that share a scale and are worth a loop of their own
constexpr int64_t kFilled = 8;       // elements that fill() writes at a time
constexpr int64_t kFetched = 1 << 18;  // bytes that are fetched ahead and still in cache when they are needed
constexpr int64_t kStacked = 512;  // segments over which elements are summed in single precision

template <class C>
constexpr C kRoot = 127;  // the largest code

// Write a value for the elements from begin to end, and for up to kFilled - 1 after them, whose turn comes later.
template <class C>
void fill(C* out, int64_t begin, int64_t end, C value) {
    for (int64_t i = begin; i < end; i += kFilled)
#pragma omp simd
        for (int64_t lane = 0; lane < kFilled; ++lane) out[i + lane] = value;
}

template <class C>
C sum_of_8(const C* x) {
    return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
}

// The scalars of one tensor's step. C is the type that it is computed in: float, or double for double parameters.
template <class C>
struct Step {
    C beta1, rest1, decay, coupled, sign, lr, root2, eps, beta2, rest2, most;

    Step(const Group& g, double step) {
        beta1 = C(g.beta1);
        rest1 = C(1 - g.beta1);
        decay = C(g.decoupled != 0 ? 1 - g.lr * g.weight_decay : 1);
        coupled = C(g.decoupled != 0 ? 0 : g.weight_decay);
        sign = C(g.maximize != 0 ? -1 : 1);
        const double correction1 = 1 - std::pow(g.beta1, step);
        lr = C(g.lr / correction1);
        root2 = C(1 / std::sqrt(1 - std::pow(g.beta2, step)));
        eps = C(g.eps);
        beta2 = C(g.beta2);
        rest2 = C(1 - g.beta2);
        most = C(correction1 * std::max(1.0, (1 - g.beta1) / std::sqrt(1 - g.beta2)));  // Adam's bound, Kingma & Ba, section 2.1
    }
    C gradient(C grad, C param) const { return sign * grad + (coupled != 0 ? coupled * param : C(0)); }  // nothing of an infinite param
    C second(C old, double mean) const { return beta2 * old + C(double(rest2) * mean); }  // C need not hold the mean of a step
    C scale(C exp_avg_sq) const { return lr / (std::sqrt(exp_avg_sq) * root2 + eps); }
    C bounded(C moment, C root) const { return lr * std::min(std::max(moment / (root + eps), -most), most); }  // NaN stays NaN
};

}  // namespace
