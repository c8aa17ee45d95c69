// One step of Adam with a second moment a block, for all parameters at once (Adam-mini, arXiv 2406.16793, Algorithm 1).
//
// A tensor lies in memory as segments: runs of `length` elements. In kind ROWS a segment is a block, whose gradient is read once and
// stays in cache; in kind SEGMENTS segment s belongs to block segment[s]; in kind COLUMNS element c of it belongs to block
// segment[s] + column[c]; in kind EACH every element is a block. `lightning_adam_mini/optim/segments.py` makes these tables.
//
// For momentum in 8 bits and for random rounding a tensor is also rows of `row` elements, one after another in memory, as in the order of
// its indices. Within a row the element at place c in memory is the one at place order[c] by its indices, so that the runs of codes and
// the random bits do not depend on the memory format.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

enum Kind : int64_t { EACH, ROWS, SEGMENTS, COLUMNS };

struct Task {  // the same fields as in backend.py and run.py
    int64_t param, grad, exp_avg, exp_avg_sq, step;  // addresses
    int64_t exp_avg_scale;                           // address of float scales where exp_avg is in 8 bits
    int64_t segment, column, size, order;  // addresses of int32, int32, double and int32 tables; 0 where they are the obvious ones
    int64_t kind, numel, length, blocks, dtype, exp_avg_dtype;
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
    C beta1, rest1, decay, coupled, sign, lr, root2, eps, beta2, rest2;

    Step(const Group& g, double step) {
        beta1 = C(g.beta1);
        rest1 = C(1 - g.beta1);
        decay = C(g.decoupled != 0 ? 1 - g.lr * g.weight_decay : 1);
        coupled = C(g.decoupled != 0 ? 0 : g.weight_decay);
        sign = C(g.maximize != 0 ? -1 : 1);
        lr = C(g.lr / (1 - std::pow(g.beta1, step)));
        root2 = C(1 / std::sqrt(1 - std::pow(g.beta2, step)));
        eps = C(g.eps);
        beta2 = C(g.beta2);
        rest2 = C(1 - g.beta2);
    }
    C gradient(C grad, C param) const { return sign * grad + (coupled != 0 ? coupled * param : C(0)); }  // nothing of an infinite param
    C second(C old, double mean) const { return beta2 * old + C(double(rest2) * mean); }  // C need not hold the mean of a step
    C scale(C exp_avg_sq) const { return lr / (std::sqrt(exp_avg_sq) * root2 + eps); }
};

// The step sizes of a stretch of elements: one, one each, or each from its own gradient.
template <class C>
struct OneSize {
    C size;
    C operator()(int64_t, C) const { return size; }
};

template <class C>
struct Sizes {
    const C* sizes;
    C operator()(int64_t i, C) const { return sizes[i]; }
};

template <class C>
struct OwnSizes {
    Step<C> step;
    C* exp_avg_sq;
    C operator()(int64_t i, C gradient) const {
        exp_avg_sq[i] = step.beta2 * exp_avg_sq[i] + step.rest2 * gradient * gradient;
        return step.scale(exp_avg_sq[i]);
    }
};

// The momentum of a stretch of elements: in floating point, in codes with one scale, or in codes with one each. `fetched` is how many
// parameters ahead of it are fetched.
template <class M, class C>
struct Moments {
    static constexpr int64_t fetched = 0;
    M* values;
    C load(int64_t i) const { return C(values[i]); }
    void keep(int64_t i, C moment) const { values[i] = moment; }
    Moments after(int64_t n) const { return {values + n}; }
};

template <class C>
C decode(int8_t code, C scale) {
    const C c = C(code);
    return c * std::abs(c) * (1 / (kRoot<C> * kRoot<C>)) * scale;  // exactly the scale for the largest code
}

template <class C>
struct Codes {
    static constexpr int64_t fetched = kStrip;  // between two stretches codes are written, and the processor loses track
    const int8_t* codes;
    C scale;
    C* moments;  // kept here until their scale is known
    C load(int64_t i) const { return decode(codes[i], scale); }
    void keep(int64_t i, C moment) const { moments[i] = moment; }
    Codes after(int64_t n) const { return {codes + n, scale, moments + n}; }
};

template <class C>
struct ScaledCodes {
    static constexpr int64_t fetched = kStrip;
    const int8_t* codes;
    C* moments;  // the scales, until the moment is kept
    C load(int64_t i) const { return decode(codes[i], moments[i]); }
    void keep(int64_t i, C moment) const { moments[i] = moment; }
    ScaledCodes after(int64_t n) const { return {codes + n, moments + n}; }
};

// Random numbers of 16 bits, which follow from the step's number, the tensor's, and the element's in the order of its indices.
struct Noise {
    uint32_t key0, key1;
    int64_t first, row;
    const int32_t* order;

    Noise(const Task& task, uint64_t step) : first(task.first), row(task.row), order(reinterpret_cast<const int32_t*>(task.order)) {
        uint64_t x = step * 0x9E3779B97F4A7C15 + uint64_t(task.place) * 0xD1B54A32D192ED03;  // SplitMix64's finaliser, as in rounding.py
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
        x ^= x >> 31;
        key0 = uint32_t(x);
        key1 = uint32_t(x >> 32);
    }

    [[gnu::noinline]] void list(int64_t from, int64_t to, uint32_t* out) const {
        if (!order) return list(uint64_t(first + from), to - from, out, [](int64_t i) { return uint32_t(i); });
        for (int64_t next; from < to; out += next - from, from = next) {
            const int64_t c = from % row;
            next = std::min(to, from - c + row);
            list(uint64_t(first + from - c), next - from, out, [of = order + c](int64_t i) { return uint32_t(of[i]); });
        }
    }

    template <class Place>
    void list(uint64_t start, int64_t n, uint32_t* __restrict out, const Place& place) const {
        constexpr uint32_t odd = 0x9E3779B1;
        const uint32_t key = key0, low = uint32_t(start), high = key1 + uint32_t(start >> 32) * odd;
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) {
            uint32_t x = low + place(i);
            const uint32_t added = high + (x < low ? odd : 0);  // the lower half of its number has run over
            x ^= key;
            x = (x ^ x >> 16) * 0x7feb352d;
            x = ((x ^ x >> 15) + added) * 0x846ca68b;
            x = (x ^ x >> 16) * 0x7feb352d;
            out[i] = x >> 16;
        }
    }
};

// Hands out the momentum of a tensor, from an element on: as move(begin, end, moments), for stretches of elements in turn.
template <class M, class C>
struct Momentum {
    M* exp_avg;

    Momentum(const Task& task, int64_t) : exp_avg(reinterpret_cast<M*>(task.exp_avg)) {}

    template <class Move>
    void each(int64_t begin, int64_t end, const Move& move) {
        move(begin, end, Moments<M, C>{exp_avg + begin});
    }
};

// In 8 bits, the moments of whole runs are kept until all of a run are there, and so its scale.
template <class C>
struct Momentum<int8_t, C> {
    using Bits = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;  // of numbers that are not negative: in their order, and NaN last
    struct Span {  // elements of one run that lie together in memory
        int32_t begin, end, run;
    };

    int8_t* codes;
    float* scales;
    const int64_t row, runs;  // elements and runs of a row
    int64_t place, run;       // where the next element is in its row, and its run
    const bool ordered;
    std::vector<Span> spans;  // of the elements at hand: some runs, or a row whose runs are scattered
    std::vector<C> moments, factors;
    std::vector<Bits> largest;

    Momentum(const Task& task, int64_t begin)
        : codes(reinterpret_cast<int8_t*>(task.exp_avg)), scales(reinterpret_cast<float*>(task.exp_avg_scale)), row(task.row),
          runs((task.row + kCodes - 1) / kCodes), place(begin % row), run(begin / row * runs + place / kCodes), ordered(task.order != 0),
          moments((ordered ? row : kStrip) + kFilled), factors(ordered ? runs : kStrip), largest(factors.size()) {
        const int32_t* order = reinterpret_cast<const int32_t*>(task.order);
        for (int32_t c = 0, next; ordered && c < row; c = next) {
            const int32_t of = order[c] / kCodes;
            for (next = c + 1; next < row && order[next] / kCodes == of;) ++next;
            spans.push_back({c, next, of});
        }
    }

    // The elements from begin to end: whole runs, or whole rows where these are scattered.
    template <class Move>
    void each(int64_t begin, int64_t end, const Move& move) {
        for (int64_t from = begin, count; from < end; from += spans.back().end, run += count) {
            count = ordered ? runs : take(end - from);
            std::fill_n(largest.begin(), count, Bits(0));
            in_strips([&](const Span* span, const Span* last) {
                open(from, span, last, move);
                find_largest(span, last);
            });
            rescale(count);
            in_strips([&](const Span* span, const Span* last) { close(from, span, last); });
        }
    }

    // Take the next runs, of at most `available` elements. Returns how many runs.
    int64_t take(int64_t available) {
        spans.clear();
        int32_t count = 0;
        for (int64_t begin = 0, end; begin < available; begin = end) {
            end = begin + std::min(kCodes, row - place);
            if (end > kStrip) break;
            spans.push_back({int32_t(begin), int32_t(end), count++});
            place += end - begin;
            if (place == row) place = 0;
        }
        return count;
    }

    // The spans at hand in turn: long ones alone, short ones so many at a time as have at most kStrip elements.
    template <class Use>
    void in_strips(const Use& use) const {
        const Span* const last = spans.data() + spans.size();
        for (const Span *span = spans.data(), *next; span < last; span = next) {
            next = span + 1;
            if (span->end - span->begin < kLong)
                while (next < last && next->end - span->begin <= kStrip && next->end - next->begin < kLong) ++next;
            use(span, next);
        }
    }

    template <class Move>
    void open(int64_t from, const Span* span, const Span* last, const Move& move) {
        const int64_t begin = from + span->begin, end = from + last[-1].end;
        const float* scale = scales + run;
        C* moment = moments.data() + span->begin;
        if (last - span == 1) return move(begin, end, Codes<C>{codes + begin, C(scale[span->run]), moment});
        for (const Span* s = span; s < last; ++s) fill(moments.data(), s->begin, s->end, C(scale[s->run]));
        move(begin, end, ScaledCodes<C>{codes + begin, moment});
    }

    [[gnu::noinline]] void find_largest(const Span* span, const Span* last) {
        const C* moment = moments.data();
        for (const Span* s = span; s < last; ++s) {
            Bits most = largest[s->run];
            for (int64_t i = s->begin; i < s->end; ++i) most = std::max(most, bits_of<Bits>(std::abs(moment[i])));
            largest[s->run] = most;
        }
    }

    [[gnu::noinline]] void rescale(int64_t count) {
        constexpr C tiny = 7.888609052210118e-31;  // 2^-100
        float* scale = scales + run;
        for (int64_t k = 0; k < count; ++k) {
            const C most = bits_of<C>(largest[k]);
            const bool finite = most <= std::numeric_limits<C>::max();
            scale[k] = !finite ? NAN : most < tiny ? 0.0f : float(most);
            factors[k] = scale[k] > 0 ? kRoot<C> * kRoot<C> / C(scale[k]) : C(0);
            if (finite) continue;
            for (const Span& s : spans)
                if (s.run == k) std::fill(moments.begin() + s.begin, moments.begin() + s.end, C(0));  // whose codes are 0
        }
    }

    [[gnu::noinline]] void close(int64_t from, const Span* span, const Span* last) {
        int8_t* code = codes + from + span->begin;
        const C* moment = moments.data() + span->begin;
        const auto encode = [code, moment, n = last[-1].end - span->begin](auto factor_of) {
            constexpr C whole = sizeof(C) == 4 ? C(3 << 22) : C(int64_t(3) << 51);  // what is added to it is rounded, in its lowest bits
#pragma omp simd
            for (int64_t i = 0; i < n; ++i) {
                const C code_of = std::sqrt(std::abs(moment[i]) * factor_of(i));
                code[i] = int8_t(bits_of<Bits>(whole + std::copysign(code_of, moment[i])));
            }
        };
        if (last - span == 1) return encode([factor = factors[span->run]](int64_t) { return factor; });
        C listed[kStrip + kFilled];
        for (const Span* s = span; s < last; ++s) fill(listed, s->begin - span->begin, s->end - span->begin, factors[s->run]);
        encode([&listed](int64_t i) { return listed[i]; });
    }
};

template <class P, class C>
struct Tensors {
    const Task& task;
    const Step<C> step;
    P* param;
    const P* grad;
    C* exp_avg_sq;
    const int32_t *segment, *column;
    const double* size;
    const Noise noise;

    Tensors(const Task& t, const Group& g)
        : task(t), step(g, *reinterpret_cast<const float*>(t.step)), param(reinterpret_cast<P*>(t.param)),
          grad(reinterpret_cast<const P*>(t.grad)), exp_avg_sq(reinterpret_cast<C*>(t.exp_avg_sq)),
          segment(reinterpret_cast<const int32_t*>(t.segment)), column(reinterpret_cast<const int32_t*>(t.column)),
          size(reinterpret_cast<const double*>(t.size)), noise(t, uint64_t(*reinterpret_cast<const float*>(t.step))) {}

    int64_t block_of(int64_t s) const { return segment ? segment[s] : task.blocks == 1 ? 0 : s; }
    double block_size(int64_t b) const { return size ? size[b] : double(task.numel) / double(task.blocks); }

    // Sum of squares of what get(i) gives.
    template <class Get>
    static double sum_square(int64_t begin, int64_t end, const Get& get) {
        double sum = 0;
        for (int64_t from = begin; from < end; from += kSummed) {
            const int64_t to = std::min(end, from + kSummed);
            C part = 0;
            int64_t i = from;
            if (i + kLanes <= to) {  // many sums side by side, because each addition waits for the one before it
                C parts[kLanes] = {};
                for (; i + kLanes <= to; i += kLanes)
#pragma omp simd
                    for (int64_t lane = 0; lane < kLanes; ++lane) parts[lane] += get(i + lane) * get(i + lane);
                for (int64_t half = kLanes / 2; half >= 8; half /= 2)
#pragma omp simd
                    for (int64_t lane = 0; lane < half; ++lane) parts[lane] += parts[lane + half];
                part = sum_of_8(parts);
            }
            for (; i + 8 <= to; i += 8) {
                C squares[8];
#pragma omp simd
                for (int64_t lane = 0; lane < 8; ++lane) squares[lane] = get(i + lane) * get(i + lane);
                part += sum_of_8(squares);
            }
            for (; i < to; ++i) part += get(i) * get(i);
            if (part <= std::numeric_limits<C>::max()) {
                sum += double(part);
            } else {  // too large for single precision, although the mean may not be
                for (int64_t j = from; j < to; ++j) sum += double(get(j)) * double(get(j));
            }
        }
        return sum;
    }

    // Update the elements from begin to end, whose moments these are; meanwhile fetch the gradients that lie `ahead`, needed next.
    template <class Stretch, class Size>
    void update(int64_t begin, int64_t end, const Stretch& moments, const Size& size, int64_t ahead = 0) const {
        if constexpr (std::is_same_v<P, bfloat16>)
            if (task.place >= 0) return update_rounding<true>(begin, end, moments, size, ahead);
        update_rounding<false>(begin, end, moments, size, ahead);
    }

    template <bool at_random, class Stretch, class Size>
    [[gnu::noinline]] void update_rounding(int64_t begin, int64_t end, const Stretch moments, const Size size, int64_t ahead) const {
        const Step<C> of = step;
        P* __restrict p = param + begin;
        const P* __restrict g = grad + begin;
        constexpr int64_t line = 64 / int64_t(sizeof(P)), strip = 8 * line;
        uint32_t added[at_random ? strip : 1];
        for (int64_t from = 0, n = end - begin; from < n; from += strip) {
            const int64_t to = std::min(n, from + strip);
            for (int64_t i = from; ahead && i < to; i += line) __builtin_prefetch(g + i + ahead);
            for (int64_t i = from; Stretch::fetched && i < to; i += line) __builtin_prefetch(p + i + Stretch::fetched);
            if constexpr (at_random) noise.list(begin + from, begin + to, added);
#pragma omp simd
            for (int64_t i = from; i < to; ++i) {
                const C x = C(p[i]);
                const C gradient = of.gradient(C(g[i]), x);
                const C old = moments.load(i);
                const C now = of.beta1 * old + of.rest1 * gradient;  // nothing cancels, as old + rest1 * (gradient - old) does for a small beta1
                const C next = x * of.decay - size(i, gradient) * now;
                moments.keep(i, now);
                if constexpr (at_random) p[i].set(next, added[i - from]);
                else p[i] = next;
            }
        }
    }

    // Update elements with the step sizes of their blocks, of which `scales` has those from `base` on.
    template <class Stretch>
    void advance(int64_t begin, int64_t end, Stretch moments, const C* scales, int64_t base = 0, int64_t ahead = 0) const {
        for (int64_t from = begin, n; from < end; from += n, moments = moments.after(n)) {
            const int64_t s = from / task.length, c = from - s * task.length, left = task.length - c;
            const bool one = left >= std::min(end - from, kCodes);  // segment: all, or enough of them for a loop of its own
            n = std::min(end - from, one ? left : kStrip);
            if (one && task.kind != COLUMNS) {
                update(from, from + n, moments, OneSize<C>{scales[block_of(s) - base]}, ahead);
            } else if (one && !column) {
                update(from, from + n, moments, Sizes<C>{scales + (segment ? segment[s] : 0) + c}, ahead);
            } else {
                C sizes[kStrip + kFilled];
                n = std::min(n, kStrip);
                list_sizes(s, c, n, sizes, scales, base);
                update(from, from + n, moments, Sizes<C>{sizes}, ahead);
            }
        }
    }

    // The step sizes of n elements, from element c of segment s on.
    [[gnu::noinline]] void list_sizes(int64_t s, int64_t c, int64_t n, C* sizes, const C* scales, int64_t base) const {
        for (int64_t i = 0, next; i < n; i = next, c = 0, ++s) {
            next = std::min(n, i + task.length - c);
            if (task.kind != COLUMNS) {
                fill(sizes, i, next, scales[block_of(s) - base]);
                continue;
            }
            const C* of = scales + (segment ? segment[s] : 0);
            if (!column) std::copy(of + c, of + c + (next - i), sizes + i);
            else for (int64_t j = i; j < next; ++j) sizes[j] = of[column[c + j - i]];
        }
    }

    // Step the elements of kinds whose blocks need nothing of others: EACH and ROWS.
    template <class M>
    void alone(int64_t begin, int64_t end, Momentum<M, C> momentum) const {
        if (task.kind == EACH)
            return momentum.each(begin, end, [this](int64_t from, int64_t to, const auto& moments) {
                this->update(from, to, moments, OwnSizes<C>{step, exp_avg_sq + from});
            });
        const int64_t length = task.length, chunk = std::max(length, kStrip / length * length);  // short segments together
        const int64_t ahead = chunk * int64_t(sizeof(P)) <= kFetched ? chunk : 0;
        double sums[kStrip];
        C scales[kStrip];
        for (int64_t from = begin; from < end; from += chunk) {
            const int64_t to = std::min(end, from + chunk), first = from / length, n = (to - from) / length;
            std::fill_n(sums, n, 0.0);
            reduce(from, to, sums, first);
            C* __restrict second = exp_avg_sq + first;
#pragma omp simd
            for (int64_t s = 0; s < n; ++s) {
                second[s] = step.second(second[s], sums[s] / double(length));
                scales[s] = step.scale(second[s]);
            }
            momentum.each(from, to, [&](int64_t a, int64_t b, const auto& moments) {
                if (n == 1) this->update(a, b, moments, OneSize<C>{scales[0]}, ahead);
                else this->advance(a, b, moments, scales, first, ahead);
            });
        }
    }

    // Sums of squares of the elements from begin to end, added to those of their blocks, of which `sums` has those from `base` on.
    [[gnu::noinline]] void reduce(int64_t begin, int64_t end, double* sums, int64_t base = 0) const {
        if (task.kind == COLUMNS) return reduce_columns(begin, end, sums);
        const auto add = [this, begin, end, sums, base](const auto& get) {
            int64_t s = begin / task.length;
            for (int64_t from = begin, to; from < end; from = to, ++s) {
                to = std::min(end, (s + 1) * task.length);
                sums[block_of(s) - base] += sum_square(from, to, get);
            }
        };
        if (step.coupled == 0) add([g = grad](int64_t i) { return C(g[i]); });
        else add([this](int64_t i) { return step.gradient(C(grad[i]), C(param[i])); });
    }

    // The same for whole segments whose elements are of different blocks.
    void reduce_columns(int64_t begin, int64_t end, double* sums) const {
        const Step<C> of = step;
        for (int64_t s = begin / task.length; s * task.length < end; ++s) {
            const P* g = grad + s * task.length;
            const P* p = param + s * task.length;
            double* into = sums + (segment ? segment[s] : 0);
            if (column) {
                for (int64_t c = 0; c < task.length; ++c) {
                    const double x = double(of.gradient(C(g[c]), C(p[c])));
                    into[column[c]] += x * x;
                }
            } else {
#pragma omp simd
                for (int64_t c = 0; c < task.length; ++c) {
                    const double x = double(of.gradient(C(g[c]), C(p[c])));
                    into[c] += x * x;
                }
            }
        }
    }

    [[gnu::noinline]] void finish(const double* sums, int64_t parts, C* scales) const {
        for (int64_t b = 0; b < task.blocks; ++b) {
            double sum = 0;
            for (int64_t part = 0; part < parts; ++part) sum += sums[part * task.blocks + b];
            exp_avg_sq[b] = step.second(exp_avg_sq[b], sum / block_size(b));
            scales[b] = step.scale(exp_avg_sq[b]);
        }
    }

    template <class M>
    void apply(int64_t begin, int64_t end, const C* scales, Momentum<M, C> momentum) const {
        momentum.each(begin, end, [this, scales](int64_t from, int64_t to, const auto& moments) {
            this->advance(from, to, moments, scales);
        });
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

bool in_codes(const Task& task) { return task.exp_avg_dtype == 4; }

// Whether blocks are stepped one by one, for which runs of codes must end where they do.
bool steps_alone(const Task& task) {
    if (task.kind != ROWS) return task.kind == EACH;
    return !in_codes(task) || task.length % task.row == 0 || (task.row % task.length == 0 && task.length % kCodes == 0 && !task.order);
}

// Cut a tensor into pieces of about kItem elements, as use(begin, end).
template <class Use>
void cut(const Task& task, const Use& use) {
    int64_t unit = 16, within = task.numel;  // a piece holds whole units, and does not go over the end of a stretch of so many elements
    if (task.kind == ROWS && steps_alone(task)) {
        unit = task.length;
    } else if (in_codes(task)) {
        const bool whole = task.order || task.row <= kItem;
        unit = whole ? task.row : kCodes;
        within = whole ? task.numel : task.row;
    }
    const int64_t by = std::max(unit, kItem / unit * unit);
    for (int64_t stretch = 0; stretch < task.numel; stretch += within)
        for (int64_t a = 0; a < within; a += by) use(stretch + a, stretch + std::min(within, a + by));
}

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

template <class P, class M, class C, class Use>
void with(const Task& task, const Group& group, const Use& use) {
    use(Tensors<P, C>(task, group), M(), C());
}

template <class Use>
void with_types(const Task& task, const Group& group, const Use& use) {  // codes: 0 float, 1 double, 2 bfloat16, 3 half, 4 int8
    switch (task.dtype * 8 + task.exp_avg_dtype) {
        case 0: return with<float, float, float>(task, group, use);
        case 2: return with<float, bfloat16, float>(task, group, use);
        case 4: return with<float, int8_t, float>(task, group, use);
        case 9: return with<double, double, double>(task, group, use);
        case 12: return with<double, int8_t, double>(task, group, use);
        case 16: return with<bfloat16, float, float>(task, group, use);
        case 18: return with<bfloat16, bfloat16, float>(task, group, use);
        case 20: return with<bfloat16, int8_t, float>(task, group, use);
#ifdef __FLT16_MAX__
        case 24: return with<_Float16, float, float>(task, group, use);
        case 26: return with<_Float16, bfloat16, float>(task, group, use);
        case 27: return with<_Float16, _Float16, float>(task, group, use);
        case 28: return with<_Float16, int8_t, float>(task, group, use);
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
        if (t.numel == 0) continue;
        if (t.numel <= kSmall) {
            first.push_back({i, 0, t.numel, -1, 0});
        } else if (steps_alone(t)) {
            cut(t, [&](int64_t begin, int64_t end) { first.push_back({i, begin, end, -1, 0}); });
        } else {
            const int64_t split = int64_t(splits.size()), unit = t.kind == COLUMNS ? t.length : 16;
            const int64_t by = ((t.numel + kParts - 1) / kParts + unit - 1) / unit * unit;
            splits.push_back({&t, std::vector<double>(kParts * t.blocks, 0.0), std::vector<double>(t.blocks)});
            for (int64_t a = 0, part = 0; a < t.numel; a += by, ++part) first.push_back({i, a, std::min(t.numel, a + by), split, part});
            cut(t, [&](int64_t begin, int64_t end) { second.push_back({i, begin, end, split, 0}); });
        }
    }
    threads = std::max<int64_t>(1, std::min(threads, total / kItem));
    in_parallel(int64_t(first.size()), threads, [&](int64_t i) {
        const Item& item = first[i];
        const Task& task = tasks[item.task];
        with_types(task, groups[task.group], [&](const auto& t, auto m, auto c) {
            using M = decltype(m);
            using C = decltype(c);
            if (item.split >= 0) return t.reduce(item.begin, item.end, splits[item.split].sums.data() + item.part * task.blocks);
            if (steps_alone(task)) return t.alone(item.begin, item.end, Momentum<M, C>(task, item.begin));
            thread_local std::vector<double> sums, scales;
            sums.assign(task.blocks, 0.0);
            scales.resize(task.blocks);
            t.reduce(0, task.numel, sums.data());
            t.finish(sums.data(), 1, reinterpret_cast<C*>(scales.data()));
            t.apply(0, task.numel, reinterpret_cast<const C*>(scales.data()), Momentum<M, C>(task, 0));
        });
    });
    in_parallel(int64_t(splits.size()), threads, [&](int64_t i) {
        Split& split = splits[i];
        with_types(*split.task, groups[split.task->group], [&](const auto& t, auto, auto c) {
            t.finish(split.sums.data(), kParts, reinterpret_cast<decltype(c)*>(split.scales.data()));
        });
    });
    in_parallel(int64_t(second.size()), threads, [&](int64_t i) {
        const Item& item = second[i];
        const Task& task = tasks[item.task];
        with_types(task, groups[task.group], [&](const auto& t, auto m, auto c) {
            using C = decltype(c);
            const auto* scales = reinterpret_cast<const C*>(splits[item.split].scales.data());
            t.apply(item.begin, item.end, scales, Momentum<decltype(m), C>(task, item.begin));
        });
    });
}
