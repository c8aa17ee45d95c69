// One step of Adam with a second moment a block, for all parameters at once (Adam-mini, arXiv 2406.16793, Algorithm 1).
//
// A tensor lies in memory as segments: runs of `length` elements. In kind ROWS a segment is a block, whose gradient is read once and
// stays in cache; in kind SEGMENTS segment s belongs to block segment[s]; in kind COLUMNS element c of it belongs to block
// segment[s] + column[c]; in kind EACH every element is a block. `lightning_adam_mini/optim/segments.py` makes these tables.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

enum Kind : int64_t { EACH, ROWS, SEGMENTS, COLUMNS };

struct Task {  // the same fields as in step.py
    int64_t param, grad, exp_avg, exp_avg_sq, step;   // addresses
    int64_t exp_avg_scale;                            // address of float scales where exp_avg is in 8 bits
    int64_t segment, column, size;                    // addresses of int32, int32 and double tables; 0 where they are the obvious ones
    int64_t kind, numel, length, blocks, dtype, exp_avg_dtype, group;
};

struct Group {
    double lr, beta1, beta2, eps, weight_decay, decoupled, maximize;
};

struct bfloat16 {
    uint16_t bits;
    operator float() const {
        uint32_t wide = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
    bfloat16& operator=(float value) {
        uint32_t wide;
        std::memcpy(&wide, &value, 4);
        uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;  // to nearest, ties to even
        bits = value == value ? uint16_t(rounded) : uint16_t(0x7fc0);
        return *this;
    }
};

constexpr int64_t kSmall = 1 << 17;  // elements of a tensor that one thread does alone, in cache
constexpr int64_t kItem = 1 << 16;   // elements of a piece of work
constexpr int64_t kParts = 16;       // partial sums of a tensor: a constant, so that results do not depend on the number of threads
constexpr int64_t kRun = 4096;       // elements that are summed in single precision
constexpr int64_t kLanes = 64;         // sums side by side
constexpr int64_t kCodes = 256;        // elements of a momentum in 8 bits that share a scale: RUN of quantized.py
constexpr int64_t kFetched = 1 << 18;  // bytes that are fetched ahead and still in cache when they are needed

// The scalars of one tensor's step. C is the type that it is computed in: float, or double for double parameters.
template <class C>
struct Step {
    C weight1, decay, coupled, sign, lr, root2, eps, beta2, rest2;

    Step(const Group& g, double step) {
        weight1 = C(1 - g.beta1);
        decay = C(g.decoupled != 0 ? 1 - g.lr * g.weight_decay : 1);
        coupled = C(g.decoupled != 0 ? 0 : g.weight_decay);
        sign = C(g.maximize != 0 ? -1 : 1);
        lr = C(g.lr / (1 - std::pow(g.beta1, step)));
        root2 = C(1 / std::sqrt(1 - std::pow(g.beta2, step)));
        eps = C(g.eps);
        beta2 = C(g.beta2);
        rest2 = C(1 - g.beta2);
    }
    C scale(C exp_avg_sq) const { return lr / (std::sqrt(exp_avg_sq) * root2 + eps); }
};

template <class P, class M, class C>
struct Tensors {
    const Task& task;
    const Step<C> step;
    P* param;
    const P* grad;
    M* exp_avg;
    C* exp_avg_sq;
    float* exp_avg_scale;
    const int32_t *segment, *column;
    const double* size;

    Tensors(const Task& t, const Group& g)
        : task(t), step(g, *reinterpret_cast<const float*>(t.step)), param(reinterpret_cast<P*>(t.param)),
          grad(reinterpret_cast<const P*>(t.grad)), exp_avg(reinterpret_cast<M*>(t.exp_avg)),
          exp_avg_sq(reinterpret_cast<C*>(t.exp_avg_sq)), exp_avg_scale(reinterpret_cast<float*>(t.exp_avg_scale)), segment(reinterpret_cast<const int32_t*>(t.segment)),
          column(reinterpret_cast<const int32_t*>(t.column)), size(reinterpret_cast<const double*>(t.size)) {}

    int64_t block_of(int64_t s) const { return segment ? segment[s] : task.blocks == 1 ? 0 : s; }
    double block_size(int64_t b) const { return size ? size[b] : double(task.numel) / double(task.blocks); }

    C gradient(int64_t i) const { return step.sign * C(grad[i]) + step.coupled * C(param[i]); }

    // Sum of squares of a gradient. Many sums side by side, because each addition waits for the one before it.
    double sum_square(int64_t begin, int64_t end) const {
        return step.coupled == 0 ? sum_square_of(begin, end, [g = grad](int64_t i) { return C(g[i]); })
                                 : sum_square_of(begin, end, [this](int64_t i) { return gradient(i); });
    }

    template <class Get>
    double sum_square_of(int64_t begin, int64_t end, const Get& get) const {
        double sum = 0;
        for (int64_t from = begin; from < end; from += kRun) {
            const int64_t to = std::min(end, from + kRun);
            C parts[kLanes] = {};
            int64_t i = from;
            for (; i + kLanes <= to; i += kLanes)
#pragma omp simd
                for (int64_t lane = 0; lane < kLanes; ++lane) parts[lane] += get(i + lane) * get(i + lane);
            C part = 0;
            for (; i < to; ++i) part += get(i) * get(i);
            for (int64_t lane = 0; lane < kLanes; ++lane) part += parts[lane];
            sum += double(part);
        }
        return sum;
    }

    // Update the elements from begin to end; meanwhile fetch the gradients that lie `ahead`, whose squares are summed next.
    void update(int64_t begin, int64_t end, C scale, int64_t ahead = 0) {
        const C sign = step.sign, coupled = step.coupled, weight1 = step.weight1, decay = step.decay;
        const auto decay_of = [coupled](C x) { return coupled != 0 ? coupled * x : C(0); };  // nothing of an infinite x either
        P* __restrict p = param;
        const P* __restrict g = grad;
        M* __restrict m = exp_avg;
        constexpr int64_t line = 64 / int64_t(sizeof(P)), strip = 4 * line;
        for (int64_t from = begin; from < end; from += strip) {
            const int64_t to = std::min(end, from + strip);
            if (ahead)
                for (int64_t i = from; i < to; i += line) __builtin_prefetch(g + i + ahead);
#pragma omp simd
            for (int64_t i = from; i < to; ++i) {
                const C x = C(p[i]);
                const C old = C(m[i]);
                const C now = old + weight1 * (sign * C(g[i]) + decay_of(x) - old);
                m[i] = now;
                p[i] = x * decay - scale * now;
            }
        }
    }

    void update_columns(int64_t begin, int64_t end, const C* scales) {
        const C sign = step.sign, coupled = step.coupled, weight1 = step.weight1, decay = step.decay;
        const auto decay_of = [coupled](C x) { return coupled != 0 ? coupled * x : C(0); };  // nothing of an infinite x either
        for (int64_t s = begin / task.length; s * task.length < end; ++s) {
            P* __restrict p = param + s * task.length;
            const P* __restrict g = grad + s * task.length;
            M* __restrict m = exp_avg + s * task.length;
            const C* __restrict scale = scales + (segment ? segment[s] : 0);
            const int32_t* __restrict of = column;
#pragma omp simd
            for (int64_t c = 0; c < task.length; ++c) {
                const C x = C(p[c]);
                const C old = C(m[c]);
                const C now = old + weight1 * (sign * C(g[c]) + decay_of(x) - old);
                m[c] = now;
                p[c] = x * decay - scale[of ? of[c] : c] * now;
            }
        }
    }

    // The same with momentum in 8 bits, for whole runs of codes; fill(from, to, sizes) writes the step size of each element.
    template <class Fill>
    void update_codes(int64_t begin, int64_t end, const Fill& fill) {
        const C sign = step.sign, coupled = step.coupled, weight1 = step.weight1, decay = step.decay;
        const auto decay_of = [coupled](C x) { return coupled != 0 ? coupled * x : C(0); };
        constexpr C root = 127, tiny = 7.888609052210118e-31;  // 2^-100
        C sizes[kCodes], moments[kCodes];
        C* __restrict size = sizes;
        C* __restrict moment = moments;
        for (int64_t from = begin; from < end; from += kCodes) {
            const int64_t n = std::min(end - from, kCodes);
            fill(from, from + n, sizes);
            P* __restrict p = param + from;
            const P* __restrict g = grad + from;
            M* __restrict m = exp_avg + from;
            const C scale = C(exp_avg_scale[from / kCodes]);
#pragma omp simd
            for (int64_t i = 0; i < n; ++i) {
                const C x = C(p[i]);
                const C code = C(m[i]);
                const C old = code * std::abs(code) * (1 / (root * root)) * scale;  // exactly the scale for a code of 127
                const C now = old + weight1 * (sign * C(g[i]) + decay_of(x) - old);
                moment[i] = now;
                p[i] = x * decay - size[i] * now;
            }
            C largest = 0, nothing = 0;  // which is NaN if a momentum is not finite
#pragma omp simd reduction(max : largest) reduction(+ : nothing)
            for (int64_t i = 0; i < n; ++i) {
                const C magnitude = std::abs(moment[i]);
                largest = magnitude > largest ? magnitude : largest;
                nothing += 0 * magnitude;
            }
            const float kept = nothing != 0 ? NAN : largest < tiny ? 0.0f : float(largest);
            const C factor = kept > 0 ? root * root / C(kept) : C(0);
            exp_avg_scale[from / kCodes] = kept;
            if (factor == 0) {
                std::fill(m, m + n, M(0));
                continue;
            }
#pragma omp simd
            for (int64_t i = 0; i < n; ++i) {
                const C code = std::rint(std::sqrt(std::abs(moment[i]) * factor));
                m[i] = M(int32_t(std::copysign(code, moment[i])));
            }
        }
    }

    void apply_codes(int64_t begin, int64_t end, const C* scales) {
        update_codes(begin, end, [this, scales](int64_t from, int64_t to, C* sizes) {
            for (int64_t next; from < to; sizes += next - from, from = next) {
                const int64_t s = from / task.length, c = from - s * task.length;
                next = std::min(to, (s + 1) * task.length);
                const C* of = scales + (task.kind != COLUMNS ? block_of(s) : segment ? segment[s] : 0);
                if (task.kind != COLUMNS) std::fill(sizes, sizes + (next - from), *of);
                else if (!column) std::copy(of + c, of + c + (next - from), sizes);
                else for (int64_t i = 0; i < next - from; ++i) sizes[i] = of[column[c + i]];
            }
        });
    }

    void each_code(int64_t begin, int64_t end) {
        update_codes(begin, end, [this](int64_t from, int64_t to, C* sizes) {
            for (int64_t i = from; i < to; ++i) {
                const C g = gradient(i);
                exp_avg_sq[i] = step.beta2 * exp_avg_sq[i] + step.rest2 * g * g;
                sizes[i - from] = step.scale(exp_avg_sq[i]);
            }
        });
    }

    void each(int64_t begin, int64_t end) {
        if constexpr (std::is_same_v<M, int8_t>) return each_code(begin, end);
        const Step<C> s = step;
        P* __restrict p = param;
        const P* __restrict grads = grad;
        M* __restrict m = exp_avg;
        C* __restrict v = exp_avg_sq;
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) {
            const C x = C(p[i]);
            const C g = s.sign * C(grads[i]) + (s.coupled != 0 ? s.coupled * x : C(0));
            const C old = C(m[i]);
            const C now = old + s.weight1 * (g - old);
            const C square = s.beta2 * v[i] + s.rest2 * g * g;
            m[i] = now;
            v[i] = square;
            p[i] = x * s.decay - s.lr * now / (std::sqrt(square) * s.root2 + s.eps);
        }
    }

    void rows(int64_t begin, int64_t end) {
        const int64_t length = task.length;
        for (int64_t from = begin, s = begin / length; from < end; from += length, ++s) {
            exp_avg_sq[s] = step.beta2 * exp_avg_sq[s] + step.rest2 * C(sum_square(from, from + length) / double(length));
            update(from, from + length, step.scale(exp_avg_sq[s]), length * sizeof(P) <= kFetched ? length : 0);
        }
    }

    // Sums of squares of the elements from begin to end, added to those of their blocks.
    void reduce(int64_t begin, int64_t end, double* sums) const {
        if (task.kind == SEGMENTS) {
            for (int64_t from = begin, to; from < end; from = to) {
                const int64_t s = from / task.length;
                to = std::min(end, (s + 1) * task.length);
                sums[block_of(s)] += sum_square(from, to);
            }
            return;
        }
        const C sign = step.sign, coupled = step.coupled;
        const auto decay_of = [coupled](C x) { return coupled != 0 ? coupled * x : C(0); };
        for (int64_t s = begin / task.length; s * task.length < end; ++s) {
            const P* g = grad + s * task.length;
            const P* p = param + s * task.length;
            double* into = sums + (segment ? segment[s] : 0);
            if (column) {
                for (int64_t c = 0; c < task.length; ++c) {
                    const double x = double(sign * C(g[c]) + decay_of(C(p[c])));
                    into[column[c]] += x * x;
                }
            } else {
#pragma omp simd
                for (int64_t c = 0; c < task.length; ++c) {
                    const double x = double(sign * C(g[c]) + decay_of(C(p[c])));
                    into[c] += x * x;
                }
            }
        }
    }

    void finish(const double* sums, int64_t parts, C* scales) {
        for (int64_t b = 0; b < task.blocks; ++b) {
            double sum = 0;
            for (int64_t part = 0; part < parts; ++part) sum += sums[part * task.blocks + b];
            exp_avg_sq[b] = step.beta2 * exp_avg_sq[b] + step.rest2 * C(sum / block_size(b));
            scales[b] = step.scale(exp_avg_sq[b]);
        }
    }

    void apply(int64_t begin, int64_t end, const C* scales) {
        if constexpr (std::is_same_v<M, int8_t>) return apply_codes(begin, end, scales);
        if (task.kind == COLUMNS) return update_columns(begin, end, scales);
        for (int64_t from = begin, to; from < end; from = to) {
            const int64_t s = from / task.length;
            to = std::min(end, (s + 1) * task.length);
            update(from, to, scales[block_of(s)]);
        }
    }
};

// A large tensor whose blocks are split over pieces of work: sums first, then the rest.
struct Split {
    const Task* task;
    std::vector<double> sums, scales;  // scales hold C
};

struct Item {
    int64_t task, begin, end, split, part;
};

template <class Work>
void in_parallel(int64_t items, int64_t threads, const Work& work) {
    std::atomic<int64_t> next{0};
    auto run = [&] {
        for (int64_t i; (i = next.fetch_add(1)) < items;) work(i);
    };
    std::vector<std::thread> others;
    try {
        for (int64_t t = 1; t < std::min(threads, items); ++t) others.emplace_back(run);
    } catch (const std::exception&) {  // no thread to be had: those that there are do the work
    }
    run();
    for (auto& other : others) other.join();
}

template <class Use>
void with_types(const Task& task, const Group& group, const Use& use) {  // codes: 0 float, 1 double, 2 bfloat16, 3 half, 4 int8
    switch (task.dtype * 8 + task.exp_avg_dtype) {
        case 0: { Tensors<float, float, float> t(task, group); return use(t, float()); }
        case 2: { Tensors<float, bfloat16, float> t(task, group); return use(t, float()); }
        case 4: { Tensors<float, int8_t, float> t(task, group); return use(t, float()); }
        case 9: { Tensors<double, double, double> t(task, group); return use(t, double()); }
        case 12: { Tensors<double, int8_t, double> t(task, group); return use(t, double()); }
        case 16: { Tensors<bfloat16, float, float> t(task, group); return use(t, float()); }
        case 18: { Tensors<bfloat16, bfloat16, float> t(task, group); return use(t, float()); }
        case 20: { Tensors<bfloat16, int8_t, float> t(task, group); return use(t, float()); }
#ifdef __FLT16_MAX__
        case 24: { Tensors<_Float16, float, float> t(task, group); return use(t, float()); }
        case 26: { Tensors<_Float16, bfloat16, float> t(task, group); return use(t, float()); }
        case 27: { Tensors<_Float16, _Float16, float> t(task, group); return use(t, float()); }
        case 28: { Tensors<_Float16, int8_t, float> t(task, group); return use(t, float()); }
#endif
    }
}

}  // namespace

extern "C" int64_t fields() { return sizeof(Task) / sizeof(int64_t); }

extern "C" int64_t options() { return sizeof(Group) / sizeof(double); }

extern "C" int has_half() {
#ifdef __FLT16_MAX__
    return 1;
#else
    return 0;
#endif
}

extern "C" void adam_mini_step(const Task* tasks, int64_t n, const Group* groups, int64_t threads) {
    std::vector<Item> first, second;
    std::vector<Split> splits;
    int64_t total = 0;
    for (int64_t i = 0; i < n; ++i) {
        const Task& t = tasks[i];
        *reinterpret_cast<float*>(t.step) += 1;
        total += t.numel;
        const int64_t line = t.kind == EACH ? 1 : t.length;
        if (t.numel <= kSmall) {
            first.push_back({i, 0, t.numel, -1, 0});
        } else if (t.kind == EACH || t.kind == ROWS) {
            const int64_t by = std::max(line, kItem / line * line);
            for (int64_t a = 0; a < t.numel; a += by) first.push_back({i, a, std::min(t.numel, a + by), -1, 0});
        } else {
            const int64_t split = int64_t(splits.size()), unit = t.kind == COLUMNS ? line : 16;
            const int64_t unit2 = t.exp_avg_scale ? kCodes : unit;  // whole runs of codes
            const int64_t by = ((t.numel + kParts - 1) / kParts + unit - 1) / unit * unit;
            splits.push_back({&t, std::vector<double>(kParts * t.blocks, 0.0), std::vector<double>(t.blocks)});
            for (int64_t a = 0, part = 0; a < t.numel; a += by, ++part) first.push_back({i, a, std::min(t.numel, a + by), split, part});
            const int64_t piece = std::max(unit2, kItem / unit2 * unit2);
            for (int64_t a = 0; a < t.numel; a += piece) second.push_back({i, a, std::min(t.numel, a + piece), split, 0});
        }
    }
    threads = std::max<int64_t>(1, std::min(threads, total / kItem));
    in_parallel(int64_t(first.size()), threads, [&](int64_t i) {
        const Item& item = first[i];
        const Task& task = tasks[item.task];
        with_types(task, groups[task.group], [&](auto& t, auto zero) {
            using C = decltype(zero);
            if (item.split >= 0) return t.reduce(item.begin, item.end, splits[item.split].sums.data() + item.part * task.blocks);
            if (task.kind == EACH) return t.each(item.begin, item.end);
            if (task.kind == ROWS) return t.rows(item.begin, item.end);
            thread_local std::vector<double> sums, scales;
            sums.assign(task.blocks, 0.0);
            scales.resize(task.blocks);
            t.reduce(0, task.numel, sums.data());
            t.finish(sums.data(), 1, reinterpret_cast<C*>(scales.data()));
            t.apply(0, task.numel, reinterpret_cast<const C*>(scales.data()));
        });
    });
    in_parallel(int64_t(splits.size()), threads, [&](int64_t i) {
        Split& split = splits[i];
        with_types(*split.task, groups[split.task->group], [&](auto& t, auto zero) {
            t.finish(split.sums.data(), kParts, reinterpret_cast<decltype(zero)*>(split.scales.data()));
        });
    });
    in_parallel(int64_t(second.size()), threads, [&](int64_t i) {
        const Item& item = second[i];
        const Task& task = tasks[item.task];
        with_types(task, groups[task.group], [&](auto& t, auto zero) {
            t.apply(item.begin, item.end, reinterpret_cast<const decltype(zero)*>(splits[item.split].scales.data()));
        });
    });
}
