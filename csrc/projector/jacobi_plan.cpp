#include "projector/jacobi_plan.hpp"

#include <algorithm>

#include "common/parallel.hpp"
#include "projector/jacobi_params.hpp"

namespace igm {

namespace {

constexpr int64_t kWarpThreads = 32;

int64_t shared_bytes(int64_t size) { return size * (size + 1) * static_cast<int64_t>(sizeof(double)); }

}  // namespace

int64_t jacobi_most(int64_t max_shared_bytes) {
    constexpr int64_t kScratch = kJacobiWarps * static_cast<int64_t>(sizeof(double));  // static, of the same memory
    int64_t size = kJacobiMost;
    while (size > 0 && shared_bytes(size) + kScratch > max_shared_bytes) {
        --size;
    }
    return size;
}

LaunchPlan jacobi_plan(int64_t count, int64_t size, const DeviceLimits& limits) {
    IGM_EXPECT(size <= jacobi_most(limits.max_shared_bytes), text("jacobi_kernel: matrices of ", size, " × ", size),
               text("at most ", jacobi_most(limits.max_shared_bytes), " for ", limits.max_shared_bytes,
                    " bytes of shared memory"),
               "Use torch.linalg.eigh for larger ones.");
    const int64_t pairs = divide_up(size, 2);
    const LaunchPlan plan{count, kWarpThreads * std::clamp<int64_t>(pairs, 1, kJacobiWarps), shared_bytes(size)};
    check_plan("jacobi_kernel", plan, limits);
    return plan;
}

Launches jacobi_launches(const double* matrices, double* eigenvalues, double* vectors, int64_t count, int64_t size,
                         int64_t max_shared_bytes) {
    DeviceLimits limits;
    limits.max_shared_bytes = max_shared_bytes;
    const LaunchPlan plan = jacobi_plan(count, size, limits);
    if (count == 0 || size == 0) {
        return {};
    }
    return {make_launch("igm::jacobi_kernel", plan, Jacobi{matrices, eigenvalues, vectors, static_cast<int>(size)})};
}

}  // namespace igm
