// One step of Adam with a second moment per block, for all parameters at once (Adam-mini, arXiv 2406.16793, Algorithm 1).
//
// A tensor lies in memory as segments: runs of `length` elements. In kind ROWS a segment is a block, whose gradient is read once and
// stays in cache; in kind SEGMENTS segment s belongs to block segment[s]; in kind EACH every element is a block. In kind COLUMNS element c
// of segment s is of column segment[s] + c, and column i belongs to block column[i]. In kind CROSSED there are two means whose product
// counts: that of the columns, and that of the lines, of which segment s is line[s], or its element c line[s] + across[c].
// `lightning_adam_mini/optim/segments.py` makes these tables.
//
// For momentum in 8 bits and for random rounding a tensor is also rows of `row` elements, one after another in memory, as in the order of
// its indices. Within a row the element at place c in memory is the one at place order[c] by its indices, so that the runs of codes and
// the random bits do not depend on the memory format.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <exception>
#include <thread>
#include <vector>

#include "momentum.h"
#include "numbers.h"
#include "tensors.h"

namespace {

// A large tensor whose blocks are split over pieces of work: sums first, then the rest.
struct Split {
    std::vector<Part> parts;
    std::vector<double> scales;  // they hold C
    std::atomic<int64_t> unsummed{0};
    std::atomic<bool> ready{false};
};

// A stretch of a tensor: to be stepped, or of a split one to be summed up (part >= 0) or updated.
struct Item {
    int64_t task, begin, end;
    Split* split;
    int64_t part;
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

// How many numbers the update of a tensor needs.
int64_t count_scales(const Task& task) {
    return task.columns + (task.kind != CROSSED ? 0 : task.turned ? task.other_blocks : task.blocks);
}

// Elements of a part of a tensor: whole segments where these have columns, of which sums are worth writing down.
int64_t part_of(const Task& task) {
    if (task.across) return task.numel;
    const bool stacked = task.kind == COLUMNS || task.kind == CROSSED;
    const int64_t unit = stacked ? task.length : 16, least = stacked ? std::max(16 * unit, kItem) : unit;
    return (std::max(least, (task.numel + kParts - 1) / kParts) + unit - 1) / unit * unit;
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
    std::vector<Item> items, later;
    std::deque<Split> splits;
    int64_t total = 0;
    for (int64_t i = 0; i < n; ++i) {
        *reinterpret_cast<float*>(tasks[i].step) += 1;
        total += tasks[i].numel;
    }
    threads = std::max<int64_t>(1, std::min(threads, total / kItem));
    const auto flush = [&items, &later] {
        items.insert(items.end(), later.begin(), later.end());
        later.clear();
    };
    for (int64_t i = 0; i < n; ++i) {
        const Task& t = tasks[i];
        if (t.numel == 0) continue;
        if (t.numel <= kSmall) {
            items.push_back({i, 0, t.numel, nullptr, -1});
        } else if (steps_alone(t)) {
            cut(t, [&](int64_t begin, int64_t end) { items.push_back({i, begin, end, nullptr, -1}); });
        } else {
            Split* split = &splits.emplace_back();
            const int64_t by = part_of(t);
            for (int64_t a = 0; a < t.numel; a += by) items.push_back({i, a, std::min(t.numel, a + by), split, split->unsummed++});
            split->parts.resize(split->unsummed);
            // One thread updates a tensor while its gradient is in cache. Several first sum up the next one, so that none waits.
            if (threads > 1) flush();
            cut(t, [&](int64_t begin, int64_t end) { later.push_back({i, begin, end, split, -1}); });
            if (threads == 1) flush();
        }
    }
    flush();
    in_parallel(int64_t(items.size()), threads, [&](int64_t i) {
        const auto& [at, begin, end, split, part] = items[i];
        const Task& task = tasks[at];
        with_types(task, groups[task.group], [&, begin = begin, end = end, split = split, part = part](const auto& t, auto m, auto c) {
            using M = decltype(m);
            using C = decltype(c);
            if (split && part >= 0) {
                t.reduce(begin, end, split->parts[part]);
                if (--split->unsummed) return;
                split->scales.resize(count_scales(task));
                t.finish(split->parts, reinterpret_cast<C*>(split->scales.data()));
                split->parts.clear();
                split->ready = true;
            } else if (split) {
                while (!split->ready) std::this_thread::yield();  // others are at work on its last parts
                t.apply(begin, end, reinterpret_cast<const C*>(split->scales.data()), Momentum<M, C>(task, begin));
            } else if (steps_alone(task)) {
                t.alone(begin, end, Momentum<M, C>(task, begin));
            } else {
                thread_local std::vector<Part> parts(1);
                thread_local std::vector<double> scales;
                scales.resize(count_scales(task));
                t.reduce(begin, end, parts[0]);
                t.finish(parts, reinterpret_cast<C*>(scales.data()));
                t.apply(begin, end, reinterpret_cast<const C*>(scales.data()), Momentum<M, C>(task, begin));
            }
        });
    });
}
