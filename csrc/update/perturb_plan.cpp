#include "update/perturb_plan.hpp"

#include <algorithm>

#include "common/parallel.hpp"
#include "update/perturb_list.hpp"

namespace igm {

PerturbPlan perturb_plan(const std::vector<int64_t>& sizes, NormScope scope, const DeviceLimits& limits) {
    PerturbPlan plan{};
    const int64_t count = static_cast<int64_t>(sizes.size());
    std::vector<int64_t> first_chunk{0};
    for (int64_t size : sizes) {
        first_chunk.push_back(first_chunk.back() + divide_up(size, kPerturbChunk));
    }
    for (int64_t first = 0; first < count; first += kPerturbTensors) {
        const int64_t last = std::min(count, first + kPerturbTensors);
        const LaunchPlan chunks{first_chunk[last] - first_chunk[first], kPerturbThreads, 0};
        check_plan("perturb_kernel", chunks, limits);
        plan.batches.push_back({first, last - first, first_chunk[first], chunks});
        if (scope == NormScope::kTensor) {
            plan.norms.push_back({first,
                                  {first_chunk.begin() + first, first_chunk.begin() + last + 1},
                                  {last - first, kPerturbThreads, 0}});
        }
    }
    if (scope == NormScope::kGlobal) {
        plan.norms.push_back({0, {0, first_chunk.back()}, {1, kPerturbThreads, 0}});
    }
    plan.partials = first_chunk.back();
    plan.workspace_doubles = plan.partials + (scope == NormScope::kGlobal ? 1 : count);
    return plan;
}

}  // namespace igm
