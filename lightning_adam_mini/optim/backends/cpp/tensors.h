// The sums and the update of a tensor.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "momentum.h"
#include "numbers.h"

namespace {

// How far each of a stretch of elements moves, by its gradient and moment: with one step size, with one each, with one from its own
// gradient, or by two factors of the root of its second moment. `fetched` says whether fetching parameters and moments ahead pays.
template <class C>
struct OneSize {
    static constexpr bool fetched = false;
    C size;
    C operator()(int64_t, C, C moment) const { return size * moment; }
};

template <class C>
struct Sizes {
    static constexpr bool fetched = true;
    const C* sizes;
    C operator()(int64_t i, C, C moment) const { return sizes[i] * moment; }
};

template <class C>
struct OwnSizes {
    static constexpr bool fetched = false;
    Step<C> step;
    C* exp_avg_sq;
    C operator()(int64_t i, C gradient, C moment) const {
        exp_avg_sq[i] = step.beta2 * exp_avg_sq[i] + step.rest2 * gradient * gradient;
        return step.scale(exp_avg_sq[i]) * moment;
    }
};

template <class C>
struct Factors {
    static constexpr bool fetched = true;
    Step<C> step;
    C line;
    const C* columns;
    C operator()(int64_t i, C, C moment) const { return step.bounded(moment, line * columns[i]); }
};

// Sums of squares of a stretch of a tensor: of its blocks, or of its columns and of its segments.
struct Part {
    std::vector<double> columns, lines;
};

// A mean of squares for each of some blocks.
template <class C>
struct Mean {
    C* values;
    int64_t blocks;
    const double* size;  // elements of each block; null where all have the same

    // Take in the sums of squares of what belongs to these blocks.
    void renew(const Step<C>& step, const std::vector<double>& sums, const int32_t* block_of, int64_t numel) const {
        thread_local std::vector<double> totals;
        const double* of = sums.data();
        if (block_of) {
            totals.assign(blocks, 0.0);
            for (size_t i = 0; i < sums.size(); ++i) totals[block_of[i]] += sums[i];
            of = totals.data();
        }
        const double all = double(numel) / double(blocks);
#pragma omp simd
        for (int64_t b = 0; b < blocks; ++b) values[b] = step.second(values[b], of[b] / (size ? size[b] : all));
    }
};

template <class P, class C>
struct Tensors {
    const Task& task;
    const Step<C> step;
    P* param;
    const P* grad;
    C* exp_avg_sq;
    const int32_t *segment, *column, *line, *across, *common;
    const Mean<C> mean, other;
    const Noise noise;

    Tensors(const Task& t, const Group& g)
        : task(t), step(g, *reinterpret_cast<const float*>(t.step)), param(reinterpret_cast<P*>(t.param)),
          grad(reinterpret_cast<const P*>(t.grad)), exp_avg_sq(reinterpret_cast<C*>(t.exp_avg_sq)),
          segment(reinterpret_cast<const int32_t*>(t.segment)), column(reinterpret_cast<const int32_t*>(t.column)),
          line(reinterpret_cast<const int32_t*>(t.line)), across(reinterpret_cast<const int32_t*>(t.across)),
          common(reinterpret_cast<const int32_t*>(t.common)), mean{exp_avg_sq, t.blocks, reinterpret_cast<const double*>(t.size)},
          other{reinterpret_cast<C*>(t.exp_avg_sq_col), t.other_blocks, nullptr},
          noise(t, uint64_t(*reinterpret_cast<const float*>(t.step))) {}

    int64_t block_of(int64_t s) const { return segment ? segment[s] : task.blocks == 1 ? 0 : s; }
    int64_t line_of(int64_t s) const { return line ? line[s] : across ? 0 : s; }
    int64_t first_column(int64_t s) const { return segment ? segment[s] : 0; }
    int64_t column_block(int64_t i) const { return column ? column[i] : i; }
    const Mean<C>& of_lines() const { return task.turned ? other : mean; }

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
    template <class Stretch, class Move>
    void update(int64_t begin, int64_t end, const Stretch& moments, const Move& move, int64_t ahead = 0) const {
        if constexpr (std::is_same_v<P, bfloat16>)
            if (task.place >= 0) return update_rounding<true>(begin, end, moments, move, ahead);
        update_rounding<false>(begin, end, moments, move, ahead);
    }

    template <bool at_random, class Stretch, class Move>
    [[gnu::noinline]] void update_rounding(int64_t begin, int64_t end, const Stretch moments, const Move move, int64_t ahead) const {
        const Step<C> of = step;
        P* __restrict p = param + begin;
        const P* __restrict g = grad + begin;
        constexpr int64_t line = 64 / int64_t(sizeof(P)), strip = 8 * line;
        uint32_t added[at_random ? strip : 1];
        for (int64_t from = 0, n = end - begin; from < n; from += strip) {
            const int64_t to = std::min(n, from + strip);
            for (int64_t i = from; ahead && i < to; i += line) __builtin_prefetch(g + i + ahead);
            for (int64_t i = from; (Stretch::fetched || Move::fetched) && i < to; i += line) {
                __builtin_prefetch(p + i + kStrip);
                moments.fetch(i + kStrip, line);
            }
            if constexpr (at_random) noise.list(begin + from, begin + to, added);
#pragma omp simd
            for (int64_t i = from; i < to; ++i) {
                const C x = C(p[i]);
                const C gradient = of.gradient(C(g[i]), x);
                const C old = moments.load(i);
                const C now = of.beta1 * old + of.rest1 * gradient;  // nothing cancels, as in lerp for a small beta1
                const C next = x * of.decay - move(i, gradient, now);
                moments.keep(i, now);
                if constexpr (at_random) p[i].set(next, added[i - from]);
                else p[i] = next;
            }
        }
    }

    // Update elements with the step sizes of their blocks or columns, of which `scales` has those from `base` on; or, in kind CROSSED, with
    // the factors of lines and columns.
    template <class Stretch>
    void advance(int64_t begin, int64_t end, Stretch moments, const C* scales, int64_t base = 0, int64_t ahead = 0) const {
        const C* columns = task.kind == CROSSED ? scales + of_lines().blocks : scales;
        for (int64_t from = begin, n; from < end; from += n, moments = moments.after(n)) {
            const int64_t s = from / task.length, c = from - s * task.length, left = task.length - c;
            const bool one = left >= std::min(end - from, kCodes) && !across;  // segment: all, or enough of them for a loop of its own
            n = std::min(end - from, one ? left : kStrip);
            if (!one) {
                C listed[kStrip + kFilled];
                list(s, c, n, listed, scales, columns, base);
                if (task.kind == CROSSED) update(from, from + n, moments, Factors<C>{step, C(1), listed}, ahead);
                else update(from, from + n, moments, Sizes<C>{listed}, ahead);
            } else if (task.kind == CROSSED) {
                update(from, from + n, moments, Factors<C>{step, scales[line_of(s)], columns + first_column(s) + c}, ahead);
            } else if (task.kind == COLUMNS) {
                update(from, from + n, moments, Sizes<C>{columns + first_column(s) + c}, ahead);
            } else {
                update(from, from + n, moments, OneSize<C>{scales[block_of(s) - base]}, ahead);
            }
        }
    }

    // The step sizes of n elements, from element c of segment s on; in kind CROSSED, the roots of their second moments.
    [[gnu::noinline]] void list(int64_t s, int64_t c, int64_t n, C* out, const C* scales, const C* columns, int64_t base) const {
        for (int64_t i = 0, next; i < n; i = next, c = 0, ++s) {
            next = std::min(n, i + task.length - c);
            if (task.kind != COLUMNS && task.kind != CROSSED) {
                fill(out, i, next, scales[block_of(s) - base]);
                continue;
            }
            const C* from = columns + first_column(s) + c - i;
            const C factor = task.kind == CROSSED && !across ? scales[line_of(s)] : C(1);
#pragma omp simd
            for (int64_t j = i; j < next; ++j) out[j] = factor * from[j];
            for (int64_t j = i; across && j < next; ++j) out[j] *= scales[line_of(s) + across[c + j - i]];
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

    // Sums of squares of the elements from begin to end: whole segments where these have columns.
    [[gnu::noinline]] void reduce(int64_t begin, int64_t end, Part& part) const {
        part.columns.assign(task.columns, 0.0);
        if (task.kind != COLUMNS && task.kind != CROSSED) return reduce(begin, end, part.columns.data(), 0);
        part.lines.assign(across ? of_lines().blocks : (end - begin) / task.length, 0.0);
        const auto add = [&](const auto& get) {
            if (across) this->scatter(begin, end, part, get);
            else this->stack(begin, end, part, get);
        };
        if (step.coupled == 0) add([g = grad](int64_t i) { return C(g[i]); });
        else add([this](int64_t i) { return step.gradient(C(grad[i]), C(param[i])); });
    }

    // The same of segments or blocks, added to `sums`, which has those from `base` on.
    [[gnu::noinline]] void reduce(int64_t begin, int64_t end, double* sums, int64_t base) const {
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

    // Of any segments, one by one.
    template <class Get>
    void scatter(int64_t begin, int64_t end, Part& part, const Get& get) const {
        for (int64_t s = begin / task.length; s * task.length < end; ++s)
            for (int64_t c = 0; c < task.length; ++c) {
                const double x = double(get(s * task.length + c));
                part.lines[line_of(s) + across[c]] += x * x;
                part.columns[first_column(s) + c] += x * x;
            }
    }

    // Four segments at once, so that the sums of columns are read and written a quarter as often; and far from each other, because the
    // processor fetches ahead in several places at a time.
    template <class Get>
    void stack(int64_t begin, int64_t end, Part& part, const Get& get) const {
        thread_local std::vector<C> stacked;
        stacked.resize(task.length);
        const int64_t n = task.length, past = end / n;
        for (int64_t s = begin / n, next; s < past; s = next) {
            const int64_t first = first_column(s), last = std::min(past, s + kStacked);
            for (next = s + 1; next < last && first_column(next) == first;) ++next;
            double* const lines = part.lines.data() + s - begin / n;
            double* const columns = part.columns.data() + first;
            C* const sums = stacked.data();
            std::fill_n(sums, n, C(0));
            const int64_t apart = (next - s) / 4;
            for (int64_t i = 0; i < apart; ++i) stack<4>((s + i) * n, apart, sums, lines + i, get);
            for (int64_t i = 4 * apart; i < next - s; ++i) stack<1>((s + i) * n, 0, sums, lines + i, get);
            int64_t large = 0;
#pragma omp simd reduction(+ : large)
            for (int64_t c = 0; c < n; ++c) {
                const bool fits = sums[c] <= std::numeric_limits<C>::max();
                columns[c] += fits ? double(sums[c]) : 0.0;
                large += !fits;
            }
            // What is too large for single precision, although the means may not be.
            const auto square = [&get](int64_t i) { return double(get(i)) * double(get(i)); };
            for (int64_t c = 0; large && c < n; ++c)
                for (int64_t i = s; !(sums[c] <= std::numeric_limits<C>::max()) && i < next; ++i) columns[c] += square(i * n + c);
            for (int64_t i = s; i < next; ++i) {
                if (std::isfinite(lines[i - s])) continue;
                lines[i - s] = 0;
                for (int64_t c = 0; c < n; ++c) lines[i - s] += square(i * n + c);
            }
        }
    }

    // Add the squares of some segments to the sums of columns, and to each segment's own.
    template <int64_t rows, class Get>
    void stack(int64_t begin, int64_t apart, C* __restrict stacked, double* lines, const Get& get) const {
        constexpr int64_t wide = 16;
        const int64_t n = task.length;
        for (int64_t from = 0, c = 0; from < n; from += kSummed) {
            const int64_t to = std::min(n, from + kSummed);
            C sums[rows][wide] = {};
            for (; c + wide <= to; c += wide) {
#pragma omp simd
                for (int64_t lane = 0; lane < wide; ++lane) {
                    C squares = 0;
                    for (int64_t row = 0; row < rows; ++row) {
                        const C x = get(begin + row * apart * n + c + lane);
                        squares += x * x;
                        sums[row][lane] += x * x;
                    }
                    stacked[c + lane] += squares;
                }
            }
            for (; c < to; ++c)
                for (int64_t row = 0; row < rows; ++row) {
                    const C x = get(begin + row * apart * n + c);
                    stacked[c] += x * x;
                    sums[row][0] += x * x;
                }
            for (int64_t row = 0; row < rows; ++row) lines[row * apart] += double(sum_of_8(sums[row]) + sum_of_8(sums[row] + 8));
        }
    }

    // Second moments from the sums of all parts, one after the other; and what the update needs of them.
    [[gnu::noinline]] void finish(std::vector<Part>& parts, C* scales) const {
        Part& all = parts[0];
        for (size_t k = 1; k < parts.size(); ++k) {
            double* sums = all.columns.data();
            const double* more = parts[k].columns.data();
#pragma omp simd
            for (int64_t i = 0; i < task.columns; ++i) sums[i] += more[i];
            all.lines.insert(all.lines.end(), parts[k].lines.begin(), parts[k].lines.end());
        }
        if (task.kind == CROSSED) return finish_crossed(all, scales);
        mean.renew(step, all.columns, column, task.numel);
        for (int64_t i = 0; i < task.columns; ++i) scales[i] = step.scale(mean.values[column_block(i)]);
    }

    void finish_crossed(const Part& all, C* scales) const {
        const Mean<C>&lines = of_lines(), &columns = task.turned ? mean : other;
        lines.renew(step, all.lines, across ? nullptr : line, task.numel);
        columns.renew(step, all.columns, column, task.numel);
        // Divide by the mean that both average to: one for all, or one for each of the blocks that `common` tells.
        thread_local std::vector<double> sums, counts;
        thread_local std::vector<C> divisors;
        sums.assign(common ? other.blocks : 1, 0.0);
        counts.assign(sums.size(), 0.0);
        divisors.resize(sums.size());
        const int32_t* of_other = common ? common + mean.blocks : nullptr;
        for (int64_t b = 0; b < other.blocks; ++b) {
            sums[of_other ? of_other[b] : 0] += double(other.values[b]);
            counts[of_other ? of_other[b] : 0] += 1;
        }
        for (size_t k = 0; k < sums.size(); ++k) {
            const C both = C(sums[k] / counts[k]);
            divisors[k] = both == 0 ? C(INFINITY) : both <= std::numeric_limits<C>::max() ? both : C(NAN);  // loud, and not 0
        }
        const auto first = [this, of = divisors.data()](int64_t b) {
            return std::sqrt(mean.values[b] / of[common ? common[b] : 0]) * step.root2;
        };
        const auto second = [this](int64_t b) { return std::sqrt(other.values[b]); };
        if (task.turned) list_factors(scales, second, first);
        else list_factors(scales, first, second);
    }

    template <class Line, class Column>
    void list_factors(C* __restrict scales, const Line& of_line, const Column& of_column) const {
        const int64_t lines = of_lines().blocks;
        for (int64_t b = 0; b < lines; ++b) scales[b] = of_line(b);
        for (int64_t i = 0; i < task.columns; ++i) scales[lines + i] = of_column(column_block(i));
    }

    template <class M>
    void apply(int64_t begin, int64_t end, const C* scales, Momentum<M, C> momentum) const {
        momentum.each(begin, end, [this, scales](int64_t from, int64_t to, const auto& moments) {
            this->advance(from, to, moments, scales);
        });
    }
};

}  // namespace
