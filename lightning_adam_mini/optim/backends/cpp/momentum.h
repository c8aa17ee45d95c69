// The momentum of a tensor, as it is or in 8 bits, and the random numbers of rounding.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "numbers.h"

namespace {

// The momentum of a stretch of elements: in floating point, in codes with one scale, or in codes with one each. `fetched` says whether
// fetching parameters ahead of it pays.
template <class M, class C>
struct Moments {
    static constexpr bool fetched = false;
    M* values;
    C load(int64_t i) const { return C(values[i]); }
    void fetch(int64_t i, int64_t n) const {
        for (int64_t k = 0; k < n; k += 64 / int64_t(sizeof(M))) __builtin_prefetch(values + i + k);
    }
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
    static constexpr bool fetched = true;  // between two stretches codes are written, and the processor loses track
    const int8_t* codes;
    C scale;
    C* moments;  // kept here until their scale is known
    C load(int64_t i) const { return decode(codes[i], scale); }
    void fetch(int64_t, int64_t) const {}
    void keep(int64_t i, C moment) const { moments[i] = moment; }
    Codes after(int64_t n) const { return {codes + n, scale, moments + n}; }
};

template <class C>
struct ScaledCodes {
    static constexpr bool fetched = true;
    const int8_t* codes;
    C* moments;  // the scales, until the moment is kept
    C load(int64_t i) const { return decode(codes[i], moments[i]); }
    void fetch(int64_t, int64_t) const {}
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

}  // namespace
