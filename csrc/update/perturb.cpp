#include "update/perturb.hpp"

#include <cmath>
#include <cstring>

#include "common/isa.hpp"
#include "common/parallel.hpp"
#include "update/multi_tensor.hpp"
#include "update/perturb_rule.hpp"

namespace igm {

namespace {

// 128 KiB of float32: three arrays of a chunk fit into L2, and a chunk takes some 10 µs, far above the cost of handing
// it out.
constexpr int64_t kChunkElements = 32768;

// Independent sums hide the latency of the addition; added pairwise at the end. Fixed: vector width changes no bit.
constexpr int kLanes = 32;

template <bool kAdaptive, class T>
IGM_INLINE double sum_of_squares(const T* weight, const T* grad, int64_t count) {
    double lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        for (int lane = 0; lane < kLanes; ++lane) {
            lanes[lane] += norm_term<kAdaptive>(weight[i + lane], grad[i + lane]);
        }
    }
    for (int lane = 0; i < count; ++i, ++lane) {
        lanes[lane] += norm_term<kAdaptive>(weight[i], grad[i]);
    }
    for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) {
            lanes[lane] += lanes[lane + half];
        }
    }
    return lanes[0];
}

template <bool kAdaptive, class T>
IGM_INLINE void perturb_chunk(T* __restrict weight, T* __restrict backup, const T* __restrict grad, Compute<T> scale,
                              int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        const T old = weight[i];
        backup[i] = old;
        weight[i] = perturbed<kAdaptive>(old, grad[i], scale);
    }
}

template <class T>
T* at(const std::vector<uintptr_t>& addresses, const Chunk& chunk) {
    return reinterpret_cast<T*>(addresses[chunk.tensor]) + chunk.begin;
}

template <bool kAdaptive, class T>
void run(const PerturbTensors& tensors, const PerturbOptions& options, float* norm, int threads) {
    const std::vector<Chunk> chunks = make_chunks(tensors.sizes, kChunkElements);
    const int64_t count = static_cast<int64_t>(chunks.size());

    std::vector<double> partial(chunks.size());
    parallel_for(count, threads, [&](int64_t index) {
        const Chunk& chunk = chunks[index];
        with_best_isa([&](auto) __attribute__((always_inline)) {
            partial[index] = sum_of_squares<kAdaptive>(at<const T>(tensors.params, chunk),
                                                       at<const T>(tensors.grads, chunk), chunk.count);
        });
    });

    const bool global = options.scope == NormScope::kGlobal;
    std::vector<double> sums(global ? 1 : tensors.sizes.size());
    for (int64_t index = 0; index < count; ++index) {
        sums[global ? 0 : chunks[index].tensor] += partial[index];
    }
    std::vector<double> scales(sums.size());
    for (size_t index = 0; index < sums.size(); ++index) {
        norm[index] = static_cast<float>(std::sqrt(sums[index]));
        scales[index] =
            perturb_scale(options.rho, options.total == nullptr ? std::sqrt(sums[index]) : double{*options.total});
    }

    // Last chunk first: the end of the gradient is what the caches still hold from the sum above.
    parallel_for(count, threads, [&](int64_t item) {
        const Chunk& chunk = chunks[count - 1 - item];
        const double scale = scales[global ? 0 : chunk.tensor];
        T* weight = at<T>(tensors.params, chunk);
        T* backup = at<T>(tensors.backups, chunk);
        if (scale == 0.0) {  // not w + 0·g: a NaN in g must not reach w, and -0 must stay -0
            std::memcpy(backup, weight, chunk.count * sizeof(T));
            return;
        }
        with_best_isa([&](auto) __attribute__((always_inline)) {
            perturb_chunk<kAdaptive>(weight, backup, at<const T>(tensors.grads, chunk), static_cast<Compute<T>>(scale),
                                     chunk.count);
        });
    });
}

}  // namespace

void perturb(const PerturbTensors& tensors, DType dtype, const PerturbOptions& options, float* norm, int threads) {
    dispatch_parameter(dtype, [&](auto tag) {
        using T = typename decltype(tag)::Type;
        if (options.adaptive) {
            run<true, T>(tensors, options, norm, threads);
        } else {
            run<false, T>(tensors, options, norm, threads);
        }
    });
}

void restore(const std::vector<uintptr_t>& params, const std::vector<uintptr_t>& backups,
             const std::vector<int64_t>& bytes, int threads) {
    const std::vector<Chunk> chunks = make_chunks(bytes, 4 * kChunkElements);
    parallel_for(static_cast<int64_t>(chunks.size()), threads, [&](int64_t index) {
        const Chunk& chunk = chunks[index];
        std::memcpy(at<char>(params, chunk), at<const char>(backups, chunk), chunk.count);
    });
}

}  // namespace igm
