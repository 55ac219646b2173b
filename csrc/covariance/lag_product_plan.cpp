#include "covariance/lag_product_plan.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <queue>
#include <utility>

#include "common/parallel.hpp"

namespace igm {

namespace {

// Quotients of positions are made in float32 (small_quotient).
constexpr int64_t kMostExtent = 1 << 19;
constexpr int64_t kMostInt = std::numeric_limits<int>::max();

// Costs of a block, in products of 16 × 8 × 16 by one of its warps: for every row that it copies, and for the partial
// sums of a lag that it leaves behind.
constexpr double kCopiedRow = 0.3;
constexpr double kStoredLag = 180;

using Shift = std::array<int, 3>;

// Terms with the same operands.
struct Group {
    std::array<int, 3> left;
    std::array<int, 3> right;
    std::vector<std::pair<Shift, int>> lags;  // and their terms; in the order of the shifts
};

// Pairs of tiles, in all groups.
int64_t pairs_of(const LagProblem& problem) {
    const int64_t side = divide_up(problem.channels, kLagTile);
    return problem.groups * side * side;
}

// Of the rows of products, whose entries are written in fours.
int64_t pitch_of(const LagProblem& problem) { return divide_up(problem.channels, 4) * 4; }

int element_bytes(const LagProblem& problem) { return problem.dtype == DType::kFloat32 ? 4 : 2; }

std::vector<Group> group_terms(const LagProblem& problem) {
    std::map<std::pair<std::array<int, 3>, std::array<int, 3>>, std::vector<std::pair<Shift, int>>> by_operands;
    for (size_t term = 0; term < problem.terms.size(); ++term) {
        const LagTerm& t = problem.terms[term];
        by_operands[{t.left, t.right}].emplace_back(t.shift, static_cast<int>(term));
    }
    std::vector<Group> groups;
    for (auto& [operands, lags] : by_operands) {
        std::sort(lags.begin(), lags.end());
        const bool with_zero = operands.first == operands.second && lags.front().first == Shift{0, 0, 0};
        if (with_zero && lags.size() % kMostLags == 1 && lags.size() > 1) {
            // Twelve of thirteen fill a block's registers; the symmetric one has half the tiles and is cheap alone.
            groups.push_back({operands.first, operands.second, {lags.front()}});
            lags.erase(lags.begin());
        }
        groups.push_back({operands.first, operands.second, lags});
    }
    return groups;
}

int64_t whole_shift(const Shift& shift, const int (&extent)[3]) {
    return (static_cast<int64_t>(shift[0]) * extent[1] + shift[1]) * extent[2] + shift[2];
}

// An item of the lags first … last - 1 of a group, without its blocks.
LagItem make_item(const LagProblem& problem, const Group& group, size_t first, size_t last, int64_t chunk) {
    LagItem item{};
    item.lags = static_cast<int>(last - first);
    for (int axis = 0; axis < 3; ++axis) {
        int gap = 0;
        for (size_t lag = first; lag < last; ++lag) {
            gap = std::max(gap, std::abs(group.lags[lag].first[axis]));
        }
        const bool held = group.left[axis] >= 0;
        item.inside[axis] = held ? 1 : static_cast<int>(problem.sizes[axis]);
        item.extent[axis] = held ? 1 : item.inside[axis] + gap;
        item.one_per_extent[axis] = 1.0f / static_cast<float>(item.extent[axis]);
        if (held) {
            const int64_t step = problem.strides[axis + 1] / 16;
            item.left_base += static_cast<int>(group.left[axis] * step);
            item.right_base += static_cast<int>(group.right[axis] * step);
        }
    }
    int64_t least = std::numeric_limits<int64_t>::max(), most = std::numeric_limits<int64_t>::min();
    for (size_t lag = first; lag < last; ++lag) {
        const int64_t shift = whole_shift(group.lags[lag].first, item.extent);
        least = std::min(least, shift);
        most = std::max(most, shift);
    }
    for (size_t lag = first; lag < last; ++lag) {
        item.shift[lag - first] = static_cast<int>(whole_shift(group.lags[lag].first, item.extent) - least);
        item.term[lag - first] = group.lags[lag].second;
    }
    int64_t rest = least;
    for (int axis = 2; axis >= 0; --axis) {  // digits, rounded down
        const int64_t extent = item.extent[axis], up = rest >= 0 ? rest / extent : -divide_up(-rest, extent);
        item.window[axis + 1] = static_cast<int>(rest - up * extent);
        rest = up;
    }
    item.window[0] = static_cast<int>(rest);
    item.rows = static_cast<int>(std::min(chunk + most - least, kMostInt));
    item.only_lower = item.lags == 1 && group.left == group.right && group.lags[first].first == Shift{0, 0, 0};

    // Planes as runs of their own leave out the zeros between them, but end in chunks that are not full.
    const int64_t lines = static_cast<int64_t>(item.extent[1]) * item.extent[2];
    const int64_t all = problem.samples * item.extent[0] * lines;
    const int64_t plane = static_cast<int64_t>(item.inside[1] - 1) * item.extent[2] + item.inside[2];
    const int64_t runs = problem.samples * item.inside[0];
    const int64_t steps_all = divide_up(all, 16) + divide_up(all, chunk);
    const int64_t steps_planes = runs * (divide_up(plane, 16) + divide_up(plane, chunk));
    const bool by_planes = steps_planes < steps_all;
    IGM_EXPECT(all + chunk <= kMostInt && lines <= kMostInt, text("lag products over ", all, " positions"),
               text("at most ", kMostInt), "Feed fewer samples at a time.");
    item.planes = by_planes ? item.inside[0] : 1;
    item.run_length = static_cast<int>(by_planes ? plane : all);
    item.run_chunks = static_cast<int>(divide_up(item.run_length, chunk));
    item.chunks = static_cast<int>((by_planes ? runs : 1) * item.run_chunks);
    // What warps that share positions have to add up is not worth it for a few chunks.
    const int free_roles = item.chunks < kLagRoles ? 1 : kLagRoles / item.lags;
    item.parts = free_roles >= 4 ? 4 : free_roles >= 2 ? 2 : 1;
    item.lags_per_warp = static_cast<int>(divide_up(item.lags, kLagRoles / item.parts));
    return item;
}

int64_t stage_elements(int64_t chunk, int64_t rows) { return (chunk + rows) * kLagStride; }

// The dynamic shared memory of lag_product_kernel: two stages, two tables, four starts; and the exchange of sums.
int64_t shared_bytes(const LagProblem& problem, int64_t chunk, int64_t rows) {
    constexpr int64_t kStarts = 4 * 7 * sizeof(int);
    return 2 * stage_elements(chunk, rows) * element_bytes(problem) + 2 * (chunk + rows) * 4 + kStarts;
}

int64_t exchange_bytes(const LagItem& item) {
    return item.parts > 1 ? int64_t{item.lags} * kLagTile * kLagTile * 4 : 0;
}

double chunk_cost(const LagItem& item, int64_t chunk) {
    return static_cast<double>(chunk) * item.lags_per_warp / item.parts +
           kCopiedRow * static_cast<double>(chunk + item.rows);
}

// Into how many blocks each item is cut, for every pair of tiles: of several ways, the one after which a device that
// gives the next block to the first multiprocessor that is free ends first.
void choose_splits(std::vector<LagItem>& items, int64_t pairs, int64_t chunk, int64_t multiprocessors) {
    constexpr int64_t kMostBlocks = 4096;  // of the schedule that is made up
    double cost = 0;
    for (const LagItem& item : items) {
        cost += item.chunks * chunk_cost(item, chunk);
    }
    const double fair = cost * static_cast<double>(pairs) / static_cast<double>(multiprocessors);
    double least = std::numeric_limits<double>::infinity();
    std::vector<int> best(items.size()), splits(items.size());
    for (const double share : {1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.33, 0.25}) {
        std::vector<std::pair<double, int64_t>> blocks;  // costs, and how many cost that
        int64_t count = 0;
        double stored = 0;
        for (size_t i = 0; i < items.size(); ++i) {
            const double whole = items[i].chunks * chunk_cost(items[i], chunk);
            splits[i] = static_cast<int>(
                std::clamp<int64_t>(static_cast<int64_t>(std::ceil(whole / (share * fair))), 1, items[i].chunks));
            blocks.emplace_back(whole / splits[i] + kStoredLag * items[i].lags, pairs * splits[i]);
            stored += kStoredLag * items[i].lags * static_cast<double>(pairs * splits[i]);
            count += pairs * splits[i];
        }
        double end = fair + stored / static_cast<double>(multiprocessors);
        if (count <= kMostBlocks) {
            std::priority_queue<double, std::vector<double>, std::greater<double>> free;
            for (int64_t i = 0; i < multiprocessors; ++i) {
                free.push(0.0);
            }
            for (const auto& [length, times] : blocks) {
                for (int64_t i = 0; i < times; ++i) {
                    const double from = free.top();
                    free.pop();
                    free.push(from + length);
                    end = std::max(end, from + length);
                }
            }
        }
        if (end < least) {
            least = end;
            best = splits;
        }
    }
    for (size_t i = 0; i < items.size(); ++i) {
        items[i].splits = best[i];
    }
}

// The largest power of two of channels whose entries fit a block of lag_assemble_kernel, up to a thread for each pair.
int log2_assembled(const LagProblem& problem) {
    int log2_tile = 0;
    while (log2_tile < 4 && (problem.taps << (log2_tile + 1)) <= kLagAssembleTile) {
        ++log2_tile;
    }
    return log2_tile;
}

std::vector<LagItem> make_items(const LagProblem& problem, int64_t chunk) {
    std::vector<LagItem> items;
    for (const Group& group : group_terms(problem)) {
        for (size_t first = 0; first < group.lags.size();) {
            size_t last = first + 1;
            while (last < group.lags.size() && last - first < kMostLags) {
                const LagItem longer = make_item(problem, group, first, last + 1, chunk);
                if (shared_bytes(problem, chunk, longer.rows) > problem.shared_bytes) {
                    break;
                }
                ++last;
            }
            items.push_back(make_item(problem, group, first, last, chunk));
            first = last;
        }
    }
    // The longest first: what is short fills the gaps at the end.
    std::stable_sort(items.begin(), items.end(), [&](const LagItem& a, const LagItem& b) {
        return a.chunks * chunk_cost(a, chunk) > b.chunks * chunk_cost(b, chunk);
    });
    return items;
}

void check(const LagProblem& problem) {
    const int64_t bytes = element_bytes(problem);
    IGM_EXPECT(problem.dtype != DType::kFloat64, "lag products of float64", "float32, float16 or bfloat16",
               "Use the form that multiplies patches.");
    int64_t reach = problem.groups * problem.group_stride;
    bool whole = problem.group_stride % 16 == 0;
    for (int axis = 0; axis < 4; ++axis) {
        const int64_t size = axis == 0 ? problem.samples : problem.sizes[axis - 1];
        reach += (size - 1) * problem.strides[axis];
        whole = whole && problem.strides[axis] % 16 == 0;
        IGM_EXPECT(axis == 0 || size < kMostExtent, text("an axis of ", size), text("less than ", kMostExtent),
                   "Use the form that multiplies patches.");
    }
    IGM_EXPECT(problem.taps <= kLagMostTaps, text("a kernel of ", problem.taps, " taps"),
               text("at most ", kLagMostTaps), "Use the form that multiplies patches.");
    const int64_t numbers = static_cast<int64_t>(problem.terms.size()) * problem.channels * pitch_of(problem);
    IGM_EXPECT(numbers <= kMostInt, text("products of ", numbers, " numbers"), text("at most ", kMostInt),
               "Use the form that multiplies patches.");
    IGM_EXPECT(whole, "strides that are no multiples of 16 bytes", "channels-last, padded to 16 bytes",
               "Copy the input (igm_fast/ops/lags.py does).");
    IGM_EXPECT(reach / 16 <= kMostInt, text("an input of ", reach, " bytes"), text("at most ", kMostInt * 16),
               "Feed fewer samples at a time.");
    IGM_EXPECT(problem.channels * problem.taps <= kMostInt / 2 && problem.channels * bytes <= kMostInt / 2,
               text(problem.channels, " channels and ", problem.taps, " taps"), text("at most ", kMostInt / 2),
               "A covariance of that size fits no memory.");
}

}  // namespace

LagProductPlan lag_product_plan(const LagProblem& problem, const DeviceLimits& limits) {
    check(problem);
    LagProductPlan plan{};
    const int64_t pairs = pairs_of(problem);
    // The most positions for which twice as many right rows fit: with fewer, what lags reach beyond a chunk is most of
    // the copies.
    plan.chunk = 128;
    while (plan.chunk > 32 && shared_bytes(problem, plan.chunk, 2 * plan.chunk) > problem.shared_bytes) {
        plan.chunk /= 2;
    }
    std::vector<LagItem> items = make_items(problem, plan.chunk);
    IGM_EXPECT(shared_bytes(problem, plan.chunk, plan.chunk) <= problem.shared_bytes,
               text(problem.shared_bytes, " bytes of shared memory"),
               text("at least ", shared_bytes(problem, plan.chunk, plan.chunk)),
               "Use the form that multiplies patches.");
    choose_splits(items, pairs, plan.chunk, kLagResident * problem.multiprocessors);
    int64_t first_quarter = 0;
    for (size_t first = 0; first < items.size(); first += kLagItems) {
        LagProductPlan::Batch batch{};
        const size_t last = std::min(items.size(), first + kLagItems);
        int64_t blocks = 0, units = 0, rows = 0, exchange = 0;
        for (size_t i = first; i < last; ++i) {
            LagItem item = items[i];
            IGM_EXPECT(blocks <= kMostInt && units <= kMostInt / kLagReduceBlocks, text(units, " tiles of products"),
                       text("at most ", kMostInt / kLagReduceBlocks), "Use the form that multiplies patches.");
            item.first_block = static_cast<int>(blocks);
            item.first_unit = static_cast<int>(units);
            item.first_quarter = first_quarter;
            blocks += pairs * item.splits;
            units += pairs * 4 * item.lags;
            first_quarter += pairs * item.splits * 4 * item.lags;
            rows = std::max<int64_t>(rows, item.rows);
            exchange = std::max(exchange, exchange_bytes(item));
            batch.items.push_back(item);
        }
        batch.stage_elements = static_cast<int>(stage_elements(plan.chunk, rows));
        batch.stage_rows = static_cast<int>(plan.chunk + rows);
        batch.products = {blocks, kLagThreads, std::max(shared_bytes(problem, plan.chunk, rows), exchange)};
        batch.reduction = {units * kLagReduceBlocks, kLagReduceThreads, 0};
        DeviceLimits shared = limits;
        shared.max_shared_bytes = std::max(limits.max_shared_bytes, problem.shared_bytes);
        check_plan("lag_product_kernel", batch.products, shared);
        check_plan("lag_reduce_kernel", batch.reduction, limits);
        plan.batches.push_back(batch);
    }
    const int64_t tile = int64_t{1} << log2_assembled(problem), side = divide_up(problem.channels, tile);
    plan.assembly = {problem.groups * (side + 1) * ((side + 1) / 2), kLagAssembleThreads,
                     tile * problem.taps * (tile * problem.taps | 1) * 4};
    check_plan("lag_assemble_kernel", plan.assembly, limits);
    plan.partial_floats = first_quarter * kLagQuarterEntries;
    plan.workspace_floats = plan.partial_floats + problem.groups * static_cast<int64_t>(problem.terms.size()) *
                                                      problem.channels * pitch_of(problem);
    return plan;
}

Launches lag_product_launches(const LagProblem& problem, const LagBuffers& buffers, double alpha, bool mirror,
                              const DeviceLimits& limits) {
    const LagProductPlan plan = lag_product_plan(problem, limits);
    std::string unit = text("igm::UnitHalf<", type_name<Float16>(), ">");
    if (problem.dtype == DType::kFloat32) {
        unit = problem.tf32 ? "igm::UnitTf32" : "igm::UnitTf32x3";
    } else if (problem.dtype == DType::kBFloat16) {
        unit = text("igm::UnitHalf<", type_name<BFloat16>(), ">");
    }
    float* const products = buffers.workspace + plan.partial_floats;
    Launches launches;
    for (const LagProductPlan::Batch& batch : plan.batches) {
        LagProduct params{};
        std::copy(batch.items.begin(), batch.items.end(), params.items);
        params.count = static_cast<int>(batch.items.size());
        params.terms = static_cast<int>(problem.terms.size());
        params.input = buffers.input;
        params.partials = buffers.workspace;
        params.products = products;
        for (int axis = 0; axis < 4; ++axis) {
            params.stride[axis] = static_cast<int>(problem.strides[axis] / 16);
        }
        params.group_stride = static_cast<int>(problem.group_stride / 16);
        params.samples = static_cast<int>(problem.samples);
        params.groups = static_cast<int>(problem.groups);
        params.channels = static_cast<int>(problem.channels);
        params.pitch = static_cast<int>(pitch_of(problem));
        params.chunk = plan.chunk;
        params.stage_elements = batch.stage_elements;
        params.stage_rows = batch.stage_rows;
        launches.push_back(make_launch(text("igm::lag_product_kernel<", unit, ">"), batch.products, params));
        launches.push_back(make_launch("igm::lag_reduce_kernel", batch.reduction, params));
    }
    const int log2_tile = log2_assembled(problem);
    const LagAssembly assembly{products,
                               buffers.out,
                               buffers.first,
                               buffers.sources,
                               static_cast<float>(alpha),
                               1.0f / static_cast<float>(problem.taps),
                               static_cast<int>(problem.terms.size()),
                               static_cast<int>(problem.channels),
                               static_cast<int>(pitch_of(problem)),
                               static_cast<int>(problem.taps),
                               log2_tile,
                               static_cast<int>(divide_up(problem.channels, 1 << log2_tile)),
                               mirror};
    launches.push_back(make_launch("igm::lag_assemble_kernel", plan.assembly, assembly));
    return launches;
}

}  // namespace igm
