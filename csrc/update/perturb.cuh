#pragma once

// SAM's ascent step on a GPU (equations: perturb.hpp). Three kernels, no atomics, no host in between:
//
//   1. norm_partials_kernel   a block per chunk of 16384 elements: Σ g² (or Σ (w g)²) in float64 → partials[chunk]
//   2. norm_final_kernel      a block per norm: partials in fixed order → norm and rho/norm, both stay on the device
//   3. perturb_kernel         a block per chunk: backup ← w, w ← w + ε
//
// Bytes moved: g twice, w once, w and backup written: the least possible without keeping g on chip. Arithmetic is far
// below that (2 float64 operations per element in 1). Accesses are 128 bits wide where the addresses allow; the order
// of summation is the same where they do not, so alignment changes no bit.

#include "common/pack.cuh"
#include "update/perturb_list.hpp"
#include "update/perturb_rule.hpp"

namespace igm {

// The chunk of this block.
template <class T>
struct PerturbChunk {
    T* params;
    T* backups;
    const T* grads;
    int count;  // at most kPerturbChunk: 64 bits are needed to find the chunk, not inside it
    int tensor;
    bool aligned;

    IGM_DEVICE PerturbChunk(const PerturbList<T>& list, long long block) {
        int low = 0;
        for (int high = list.count; high - low > 1;) {
            const int middle = (low + high) / 2;
            if (list.first_chunk[middle] <= block) {
                low = middle;
            } else {
                high = middle;
            }
        }
        const long long begin = (block - list.first_chunk[low]) * kPerturbChunk;
        const long long left = list.sizes[low] - begin;
        tensor = low;
        count = static_cast<int>(left < kPerturbChunk ? left : kPerturbChunk);
        params = list.params[low] + begin;
        backups = list.backups[low] + begin;
        grads = list.grads[low] + begin;
        aligned = is_aligned(params) && is_aligned(backups) && is_aligned(grads);
    }
};

// Sum over the block, in a fixed tree; thread 0 gets it, the others 0.
template <int kThreads>
IGM_DEVICE double block_sum(double value) {
    IGM_SHARED double sums[kThreads];
    sums[thread_index()] = value;
    for (int half = kThreads / 2; half > 0; half /= 2) {
        barrier();
        if (thread_index() < half) {
            sums[thread_index()] += sums[thread_index() + half];
        }
    }
    return thread_index() == 0 ? sums[0] : 0.0;
}

template <bool kAdaptive, bool kAligned, class T>
IGM_DEVICE double thread_sum(const PerturbChunk<T>& chunk) {
    constexpr int kElements = Pack<T>::kElements;
    const int packs = chunk.count / kElements;
    double sum = 0.0;
    for (int pack = thread_index(); pack < packs; pack += kPerturbThreads) {
        const Pack<T> grad = load_pack<kAligned>(chunk.grads + pack * kElements);
        const Pack<T> weight = kAdaptive ? load_pack<kAligned>(chunk.params + pack * kElements) : grad;
        for (int i = 0; i < kElements; ++i) {
            sum += norm_term<kAdaptive>(weight.elements[i], grad.elements[i]);
        }
    }
    for (int i = packs * kElements + thread_index(); i < chunk.count; i += kPerturbThreads) {
        sum += norm_term<kAdaptive>(chunk.params[i], chunk.grads[i]);
    }
    return sum;
}

template <bool kAdaptive, class T>
IGM_KERNEL IGM_BLOCKS(kPerturbThreads, kPerturbResident) norm_partials_kernel(const NormPartials<T> params) {
    const PerturbChunk<T> chunk(params.list, block_index());
    double sum = chunk.aligned ? thread_sum<kAdaptive, true>(chunk) : thread_sum<kAdaptive, false>(chunk);
    sum = block_sum<kPerturbThreads>(sum);
    if (thread_index() == 0) {
        params.partials[block_index()] = sum;
    }
}

static IGM_KERNEL IGM_BLOCKS(kPerturbThreads, kPerturbResident) norm_final_kernel(const NormFinal params) {
    const long long norm_index = block_index();
    double sum = 0.0;
    for (long long i = params.begin[norm_index] + thread_index(); i < params.begin[norm_index + 1];
         i += kPerturbThreads) {
        sum += params.partials[i];
    }
    sum = block_sum<kPerturbThreads>(sum);
    if (thread_index() == 0) {
        const double norm = sqrt(sum);
        params.norms[norm_index] = static_cast<float>(norm);
        params.scales[norm_index] =
            perturb_scale(params.rho, params.total == nullptr ? norm : static_cast<double>(*params.total));
    }
}

template <bool kAdaptive, bool kAligned, class T>
IGM_DEVICE void perturb_elements(const PerturbChunk<T>& chunk, Compute<T> scale) {
    constexpr int kElements = Pack<T>::kElements;
    const bool moves = scale != 0;  // not w + 0·g: a NaN in g must not reach w
    const int packs = chunk.count / kElements;
    for (int pack = thread_index(); pack < packs; pack += kPerturbThreads) {
        const int first = pack * kElements;
        Pack<T> weight = load_pack<kAligned>(chunk.params + first);
        store_pack<kAligned>(chunk.backups + first, weight);
        if (moves) {
            const Pack<T> grad = load_pack<kAligned>(chunk.grads + first);
            for (int i = 0; i < kElements; ++i) {
                weight.elements[i] = perturbed<kAdaptive>(weight.elements[i], grad.elements[i], scale);
            }
            store_pack<kAligned>(chunk.params + first, weight);
        }
    }
    for (int i = packs * kElements + thread_index(); i < chunk.count; i += kPerturbThreads) {
        const T weight = chunk.params[i];
        chunk.backups[i] = weight;
        if (moves) {
            chunk.params[i] = perturbed<kAdaptive>(weight, chunk.grads[i], scale);
        }
    }
}

template <bool kAdaptive, class T>
IGM_KERNEL IGM_BLOCKS(kPerturbThreads, kPerturbResident) perturb_kernel(const Perturbation<T> params) {
    const PerturbChunk<T> chunk(params.list, block_index());
    const Compute<T> scale = static_cast<Compute<T>>(params.scales[chunk.tensor * params.scale_stride]);
    if (chunk.aligned) {
        perturb_elements<kAdaptive, true>(chunk, scale);
    } else {
        perturb_elements<kAdaptive, false>(chunk, scale);
    }
}

}  // namespace igm
