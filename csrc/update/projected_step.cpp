#include "update/projected_step.hpp"

#include <algorithm>
#include <vector>

#include "common/isa.hpp"
#include "common/parallel.hpp"
#include "update/base_options.hpp"
#include "update/multi_tensor.hpp"
#include "update/panel_product.hpp"

namespace igm {

namespace {

constexpr int64_t kChunkElements = 32768;
// 32 rows share each row of U that comes from the outer caches; a 32 × 256 panel of float32 is 32 KiB, one L1.
constexpr int64_t kBlockRows = 32;
constexpr int64_t kBlockColumns = 256;

// Either a plain run of elements (rows = 0) or a block of rows of a projected tensor.
struct Work {
    int64_t tensor;
    int64_t begin;  // first element
    int64_t count;  // elements of a plain run
    int64_t rows;   // rows of a block
    int64_t group;
};

std::vector<Work> make_work(const StepTensors& tensors) {
    std::vector<int64_t> plain(tensors.sizes);
    std::vector<Work> work;
    for (size_t tensor = 0; tensor < plain.size(); ++tensor) {
        const Projection& p = tensors.projections[tensor];
        if (p.rank == 0 || plain[tensor] == 0) {
            continue;
        }
        plain[tensor] = 0;
        const int64_t group_rows = p.rows / p.groups;
        for (int64_t group = 0; group < p.groups; ++group) {
            for (int64_t row = 0; row < group_rows; row += kBlockRows) {
                const int64_t first = (group * group_rows + row) * p.dim;
                work.push_back({static_cast<int64_t>(tensor), first, 0, std::min(kBlockRows, group_rows - row), group});
            }
        }
    }
    for (const Chunk& chunk : make_chunks(plain, kChunkElements)) {  // after the blocks: the long items start first
        work.push_back({chunk.tensor, chunk.begin, chunk.count, 0, 0});
    }
    return work;
}

template <class T>
T* at(const std::vector<uintptr_t>& addresses, int64_t tensor, int64_t element) {
    return addresses.empty() ? nullptr : reinterpret_cast<T*>(addresses[tensor]) + element;
}

template <class T>
struct Arrays {
    T* param;
    const T* source;
    const T* grad;
    Compute<T>* first;
    Compute<T>* second;

    Arrays(const StepTensors& tensors, int64_t tensor, int64_t begin)
        : param(at<T>(tensors.params, tensor, begin)),
          source(at<const T>(tensors.sources, tensor, begin)),
          grad(at<const T>(tensors.grads, tensor, begin)),
          first(at<Compute<T>>(tensors.first_states, tensor, begin)),
          second(at<Compute<T>>(tensors.second_states, tensor, begin)) {}
};

// The only loop that touches weights and states; `grad` is the gradient of element `begin` on.
template <bool kFused, class T, class Base, class Grad>
IGM_INLINE void apply(const Base base, const Arrays<T>& arrays, int64_t begin, int64_t count, const Grad grad) {
    T* param = arrays.param + begin;
    const T* source = arrays.source + begin;
    Compute<T>* first = arrays.first + (Base::kStates > 0 ? begin : 0);
    Compute<T>* second = arrays.second + (Base::kStates > 1 ? begin : 0);
#pragma GCC ivdep  // param and source are the same array or do not overlap
    for (int64_t i = 0; i < count; ++i) {
        Compute<T> unused = 0;
        Compute<T>& state1 = Base::kStates > 0 ? first[i] : unused;
        Compute<T>& state2 = Base::kStates > 1 ? second[i] : unused;
        param[i] = from_float<T>(base.template apply<kFused>(to_float(source[i]), grad(i), state1, state2));
    }
}

template <int kVectorBytes, class T, class Base>
IGM_INLINE void step_rows(const Base& base, const Arrays<T>& arrays, const Projection& p, const Work& work) {
    using Real = Compute<T>;
    constexpr int kRows = kPanelRows<kVectorBytes>;
    const int64_t padded_rank = divide_up(p.rank, kPanelColumns) * kPanelColumns;
    const int64_t padded_dim = divide_up(p.dim, kPanelColumns) * kPanelColumns;
    const Real* basis = reinterpret_cast<const Real*>(p.basis) + work.group * p.dim * padded_rank;
    const Real* transpose = reinterpret_cast<const Real*>(p.transpose) + work.group * p.rank * padded_dim;
    const Real* sigma = reinterpret_cast<const Real*>(p.sigma) + work.group * p.rank;
    const Real complement = static_cast<Real>(p.complement);

    alignas(64) Real panel[kBlockRows * kBlockColumns];
    std::vector<Real> product(kBlockRows * padded_rank);  // A = G U, then A (cI − Σ)
    for (int64_t column = 0; column < p.dim; column += kBlockColumns) {
        const int64_t columns = std::min(kBlockColumns, p.dim - column);
        for (int64_t row = 0; row < kBlockRows; ++row) {
            for (int64_t i = 0; i < columns; ++i) {
                panel[row * kBlockColumns + i] =
                    row < work.rows ? to_float(arrays.grad[row * p.dim + column + i]) : Real(0);
            }
        }
        for (int64_t l = 0; l < padded_rank; l += kPanelColumns) {
            for (int64_t row = 0; row < work.rows; row += kRows) {
                panel_product<kVectorBytes>(panel + row * kBlockColumns, kBlockColumns,
                                            basis + column * padded_rank + l, padded_rank, columns,
                                            product.data() + row * padded_rank + l, padded_rank);
            }
        }
    }
    for (int64_t row = 0; row < work.rows; ++row) {
        for (int64_t l = 0; l < p.rank; ++l) {
            product[row * padded_rank + l] *= complement - sigma[l];
        }
    }
    for (int64_t column = 0; column < p.dim; column += kBlockColumns) {
        const int64_t columns = std::min(kBlockColumns, p.dim - column);
        std::fill_n(panel, kBlockRows * kBlockColumns, Real(0));
        for (int64_t j = 0; j < columns; j += kPanelColumns) {
            for (int64_t row = 0; row < work.rows; row += kRows) {
                panel_product<kVectorBytes>(product.data() + row * padded_rank, padded_rank, transpose + column + j,
                                            padded_dim, p.rank, panel + row * kBlockColumns + j, kBlockColumns);
            }
        }
        for (int64_t row = 0; row < work.rows; ++row) {
            const int64_t begin = row * p.dim + column;
            const T* grad = arrays.grad + begin;
            const Real* removed = panel + row * kBlockColumns;
            apply<kHasFma<kVectorBytes>, T>(
                base, arrays, begin, columns,
                [=](int64_t i) __attribute__((always_inline)) { return complement * to_float(grad[i]) - removed[i]; });
        }
    }
}

template <class T, class Base>
void run(const StepTensors& tensors, const Base& base, int threads) {
    const std::vector<Work> work = make_work(tensors);
    parallel_for_uneven(static_cast<int64_t>(work.size()), threads, [&](int64_t index) {
        const Work& item = work[index];
        const Arrays<T> arrays(tensors, item.tensor, item.begin);
        with_best_isa([&](auto vector_bytes) __attribute__((always_inline)) {
            if (item.rows > 0) {
                step_rows<vector_bytes()>(base, arrays, tensors.projections[item.tensor], item);
            } else {
                const T* grad = arrays.grad;
                apply<kHasFma<vector_bytes()>, T>(base, arrays, 0, item.count,
                                                  [=](int64_t i)
                                                      __attribute__((always_inline)) { return to_float(grad[i]); });
            }
        });
    });
}

template <class Options>
void run_with(const StepTensors& tensors, DType dtype, const Options& options, int threads) {
    dispatch_parameter(dtype, [&](auto tag) {
        using T = typename decltype(tag)::Type;
        with_rule<Compute<T>>(options, [&](const auto& rule) { run<T>(tensors, rule, threads); });
    });
}

}  // namespace

void projected_step(const StepTensors& tensors, DType dtype, const SgdOptions& options, int threads) {
    run_with(tensors, dtype, options, threads);
}

void projected_step(const StepTensors& tensors, DType dtype, const AdamOptions& options, int threads) {
    run_with(tensors, dtype, options, threads);
}

}  // namespace igm
