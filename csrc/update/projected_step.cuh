#pragma once

// The descent step on a GPU (equations: projected_step.hpp). Two kernels, each over all tensors of a list in one
// launch:
//
//     step_chunks_kernel   tensors without a projector: a block per chunk of 4096 elements
//     step_tiles_kernel    tensors with one: a block per tile of 64 rows × 128 columns (float64: 64) of G as [out, d]
//
// Every element of the weights (or their backups), the gradient and the states is read once, those of the weights and
// states are written once, in accesses of 128 bits where the addresses allow: 20 bytes per element of float32 for SGD
// with momentum, 12 without, 28 for Adam. Arithmetic does not matter there: some 10 to 60 operations.
//
// A tile of G' = cG − A (cI − Σ) Uᵀ is made right before its step and never goes to memory. A = G U is the operand,
// made before by a matrix product that reads G once more; A and U are laid with the rank outermost, as the matrix units
// take them (matrix_unit.cuh), so both are copied to shared memory as they are, and A is scaled on the way. They come
// from L2: 4 k (1/64 + 1/128) bytes per element, 6 for k = 64, beside 2 k operations: 6.4 per byte of DRAM for SGD with
// momentum and k = 64, where an H100 does 20 in plain float32 and 50 in three products of tf32. The sums go through
// shared memory once, so that the step has whole rows before it and its accesses do not follow the units' layout.
//
// Sums run over k in order: same bits each time. Alignment changes no bit either.

#include "common/matrix_unit.cuh"
#include "common/pack.cuh"
#include "update/base_rule.hpp"
#include "update/projected_step_params.hpp"

namespace igm {

// The last of `count` intervals that starts at or before `block`.
IGM_DEVICE int find_tensor(const int* first, int count, long long block) {
    int low = 0;
    for (int high = count; high - low > 1;) {
        const int middle = (low + high) / 2;
        if (first[middle] <= block) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

// The arrays of one tensor from some element on; null for states that the rule does not have.
template <class T, class Rule>
struct StepArrays {
    T* params;
    const T* sources;
    const T* grads;
    Compute<T>* first = nullptr;
    Compute<T>* second = nullptr;

    template <class List>
    IGM_DEVICE StepArrays(const List& list, int tensor, long long begin)
        : params(list.params[tensor] + begin),
          sources(list.sources[tensor] + begin),
          grads(list.grads[tensor] + begin) {
        if constexpr (Rule::kStates > 0) {
            first = list.first_states[tensor] + begin;
        }
        if constexpr (Rule::kStates > 1) {
            second = list.second_states[tensor] + begin;
        }
    }

    // Whether step_elements() may be used; null counts as aligned.
    IGM_DEVICE bool aligned() const {
        constexpr unsigned long long kBytes = sizeof(T) * Pack<Compute<T>>::kElements;
        const auto weights = reinterpret_cast<unsigned long long>(params) |
                             reinterpret_cast<unsigned long long>(sources) |
                             reinterpret_cast<unsigned long long>(grads);
        return weights % kBytes == 0 && is_aligned(first) && is_aligned(second);
    }
};

// What a thread takes at a time: 128 bits of the compute type, so that states go in whole accesses. Weights and
// gradients of 16 bits take 64: twice as many elements would leave every second sector of the states to another access.
template <class T>
constexpr int kStepElements = Pack<Compute<T>>::kElements;

template <class T>
struct Elements {
    T elements[kStepElements<T>];
};

template <class T>
IGM_DEVICE Elements<T> load_elements(const T* address) {
    if constexpr (sizeof(Elements<T>) == 16) {
        return bit_cast<Elements<T>>(load_128(address));
    } else {
        return bit_cast<Elements<T>>(*reinterpret_cast<const unsigned long long*>(address));
    }
}

template <class T>
IGM_DEVICE void store_elements(T* address, const Elements<T>& value) {
    if constexpr (sizeof(Elements<T>) == 16) {
        store_128(address, bit_cast<Vector128>(value));
    } else {
        *reinterpret_cast<unsigned long long*>(address) = bit_cast<unsigned long long>(value);
    }
}

// What a step of kStepElements elements reads, all addresses aligned. Apart from the step, so that a thread can have
// the reads of several under way: the compiler must not move them over the writes of the last.
template <class T, class Rule>
struct StepInput {
    Elements<T> source, grad;
    Elements<Compute<T>> first{}, second{};

    IGM_DEVICE void load(const StepArrays<T, Rule>& arrays, long long at) {
        source = load_elements(arrays.sources + at);
        grad = load_elements(arrays.grads + at);
        if constexpr (Rule::kStates > 0) {
            first = load_elements(arrays.first + at);
        }
        if constexpr (Rule::kStates > 1) {
            second = load_elements(arrays.second + at);
        }
    }
};

// Their step. project(i, g): G' of the i-th of them.
template <class T, class Rule, class Project>
IGM_DEVICE void step_elements(const Rule& rule, const StepArrays<T, Rule>& arrays, long long at,
                              StepInput<T, Rule>& input, const Project& project) {
    using Real = Compute<T>;
    Elements<T> param;
    for (int i = 0; i < kStepElements<T>; ++i) {
        const Real projected = project(i, static_cast<Real>(to_float(input.grad.elements[i])));
        param.elements[i] = from_float<T>(rule.template apply<true>(to_float(input.source.elements[i]), projected,
                                                                    input.first.elements[i], input.second.elements[i]));
    }
    store_elements(arrays.params + at, param);
    if constexpr (Rule::kStates > 0) {
        store_elements(arrays.first + at, input.first);
    }
    if constexpr (Rule::kStates > 1) {
        store_elements(arrays.second + at, input.second);
    }
}

// The same for one element.
template <class T, class Rule, class Project>
IGM_DEVICE void step_element(const Rule& rule, const StepArrays<T, Rule>& arrays, long long at,
                             const Project& project) {
    Compute<T> first = 0, second = 0;
    if constexpr (Rule::kStates > 0) {
        first = arrays.first[at];
    }
    if constexpr (Rule::kStates > 1) {
        second = arrays.second[at];
    }
    const Compute<T> projected = project(0, static_cast<Compute<T>>(to_float(arrays.grads[at])));
    const Compute<T> weight = to_float(arrays.sources[at]);
    arrays.params[at] = from_float<T>(rule.template apply<true>(weight, projected, first, second));
    if constexpr (Rule::kStates > 0) {
        arrays.first[at] = first;
    }
    if constexpr (Rule::kStates > 1) {
        arrays.second[at] = second;
    }
}

// ---- without a projector
// ---------------------------------------------------------------------------------------------

template <class T, class Rule>
IGM_KERNEL IGM_BLOCKS(kStepThreads, kStepResident) step_chunks_kernel(const ChunkStep<T, Rule> params) {
    const StepList<T>& list = params.list;
    const int tensor = find_tensor(list.first_chunk, list.count, block_index());
    const long long begin = (block_index() - list.first_chunk[tensor]) * kStepChunk;
    const long long left = list.sizes[tensor] - begin;
    const int count = static_cast<int>(left < kStepChunk ? left : kStepChunk);
    const StepArrays<T, Rule> arrays(list, tensor, begin);
    const auto plain = [](int, Compute<T> grad) { return grad; };
    // Where the addresses do not allow packs, neighbours take neighbouring elements: the sectors stay whole.
    constexpr int kElements = kStepElements<T>;
    const int packed = arrays.aligned() ? count / kElements * kElements : 0;
    for (int at = thread_index() * kElements; at < packed; at += kStepThreads * kElements) {
        StepInput<T, Rule> input;
        input.load(arrays, at);
        step_elements(params.rule, arrays, at, input, plain);
    }
    for (int at = packed + thread_index(); at < count; at += kStepThreads) {
        step_element(params.rule, arrays, at, plain);
    }
}

// ---- with one
// --------------------------------------------------------------------------------------------------------

// The tile of this block.
template <class T>
struct StepTile {
    using Real = Compute<T>;
    int tensor, dim, group_rows, rank;
    int rows, columns;      // of this tile, at most kTileRows and kTileColumns
    long long begin;        // its first element
    const Real* product;    // its first row's column of (G U)ᵀ, rows of group_rows
    const Real* transpose;  // its first column of Uᵀ, rows of dim
    const Real* sigma;

    IGM_DEVICE StepTile(const TileList<T>& list, long long block) {
        tensor = find_tensor(list.first_tile, list.count, block);
        dim = list.dims[tensor];
        group_rows = list.group_rows[tensor];
        rank = list.ranks[tensor];
        const int across = (dim - 1) / kTileColumns<Real> + 1;
        const int down = (group_rows - 1) / kTileRows + 1;
        const int tile = static_cast<int>(block) - list.first_tile[tensor];
        const int strip = tile / across;
        const int column = (tile - strip * across) * kTileColumns<Real>;
        const int group = strip / down;
        const int row = (strip - group * down) * kTileRows;
        rows = group_rows - row < kTileRows ? group_rows - row : kTileRows;
        columns = dim - column < kTileColumns<Real> ? dim - column : kTileColumns<Real>;
        begin = (static_cast<long long>(group) * group_rows + row) * dim + column;
        product = list.products[tensor] + static_cast<long long>(group) * rank * group_rows + row;
        transpose = list.transposes[tensor] + static_cast<long long>(group) * rank * dim + column;
        sigma = list.sigmas[tensor] + static_cast<long long>(group) * rank;
    }
};

// Copies `depth` rows of `width` elements, times factor(row), to rows of kWidth + kTilePadding in shared memory, with
// zeros up to kTileDepth and kWidth: 0 · NaN in what lies beyond would reach the sums.
template <int kWidth, bool kAligned, class Real, class Factor>
IGM_DEVICE void stage(Real* shared, const Real* rows, int stride, int depth, int width, const Factor& factor) {
    constexpr int kElements = kAligned ? Pack<Real>::kElements : 1;
    constexpr int kAcross = kWidth / kElements;
    for (int i = thread_index(); i < kTileDepth<Real> * kAcross; i += kStepThreads) {
        const int row = i / kAcross, column = i % kAcross * kElements;
        const bool present = row < depth && column < width;
        const Real* from = rows + static_cast<long long>(row) * stride + column;
        Real* to = shared + row * (kWidth + kTilePadding) + column;
        if constexpr (kAligned) {
            Pack<Real> pack{};
            if (present) {
                pack = load_pack<true>(from);
                const Real times = factor(row);
                for (int j = 0; j < kElements; ++j) {
                    pack.elements[j] *= times;
                }
            }
            *reinterpret_cast<Pack<Real>*>(to) = pack;
        } else {
            *to = present ? *from * factor(row) : Real(0);
        }
    }
}

template <int kWidth, class Real, class Factor>
IGM_DEVICE void stage(Real* shared, const Real* rows, int stride, int depth, int width, const Factor& factor) {
    if (stride % Pack<Real>::kElements == 0 && is_aligned(rows)) {  // then width is a multiple, too
        stage<kWidth, true>(shared, rows, stride, depth, width, factor);
    } else {
        stage<kWidth, false>(shared, rows, stride, depth, width, factor);
    }
}

IGM_DEVICE void store_pair(float* address, float left, float right) {
    struct Pair {
        float left, right;
    };
    // As one number, since nvcc 13 splits half of the stores of a pair in two: each would meet itself in its banks.
    *reinterpret_cast<unsigned long long*>(address) = bit_cast<unsigned long long>(Pair{left, right});
}
IGM_DEVICE void store_pair(double* address, double left, double right) {
    *reinterpret_cast<Pack<double>*>(address) = {{left, right}};
}

// Where an entry of the tile lies in shared memory. Exchanging runs of eight columns keeps packs whole and the eight
// rows that a warp writes at a time out of each other's banks.
template <class Real>
IGM_DEVICE int tile_index(int row, int column) {
    return row * kTileColumns<Real> + (column ^ row % 4 * 8);
}

// A (cI − Σ) Uᵀ of the tile → shared memory; every thread has arrived when it returns.
template <class Unit, class T>
IGM_DEVICE void make_removed(const StepTile<T>& tile, Compute<T> complement, Compute<T>* shared) {
    using Real = Compute<T>;
    constexpr int kWarpColumns = kTileColumns<Real> / 4;
    constexpr int kAcross = kWarpColumns / 16;
    constexpr int kProductStride = kTileRows + kTilePadding, kTransposeStride = kTileColumns<Real> + kTilePadding;
    static_assert(kTileDepth<Real> * (kProductStride + kTransposeStride) * sizeof(Real) <= kTileBytes, "operands fit");
    Real* product = shared;
    Real* transpose = shared + kTileDepth<Real> * kProductStride;
    const int warp_row = warp_index() % 2 * 32, warp_column = warp_index() / 2 * kWarpColumns;

    Real sums[2][kAcross][2][4] = {};
    for (int first = 0; first < tile.rank; first += kTileDepth<Real>) {
        const int depth = tile.rank - first < kTileDepth<Real> ? tile.rank - first : kTileDepth<Real>;
        const Real* sigma = tile.sigma + first;
        stage<kTileRows>(product, tile.product + static_cast<long long>(first) * tile.group_rows, tile.group_rows,
                         depth, tile.rows, [=](int row) { return complement - sigma[row]; });
        stage<kTileColumns<Real>>(transpose, tile.transpose + static_cast<long long>(first) * tile.dim, tile.dim, depth,
                                  tile.columns, [](int) { return Real(1); });
        barrier();
        for (int at = 0; at < depth; at += Unit::kDepth) {
            typename Unit::Columns columns[kAcross][2];
            for (int j = 0; j < kAcross; ++j) {
                const typename Unit::B loaded =
                    Unit::load_b(transpose + at * kTransposeStride + warp_column + 16 * j, kTransposeStride);
                for (int half = 0; half < 2; ++half) {
                    columns[j][half] = Unit::columns(loaded, half);
                }
            }
            for (int i = 0; i < 2; ++i) {
                const typename Unit::A rows =
                    Unit::load_a(product + at * kProductStride + warp_row + 16 * i, kProductStride);
                for (int j = 0; j < kAcross; ++j) {
                    for (int half = 0; half < 2; ++half) {
                        Unit::multiply(sums[i][j][half], rows, columns[j][half]);
                    }
                }
            }
        }
        barrier();
    }
    for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < kAcross; ++j) {
            for (int half = 0; half < 2; ++half) {
                for (int entry = 0; entry < 4; entry += 2) {
                    const int row = warp_row + 16 * i + sum_row(entry);
                    const int column = warp_column + 16 * j + sum_column(half, entry);
                    store_pair(shared + tile_index<Real>(row, column), sums[i][j][half][entry],
                               sums[i][j][half][entry + 1]);
                }
            }
        }
    }
    barrier();
}

template <class T, class Rule, class Unit>
IGM_KERNEL IGM_BLOCKS(kStepThreads, kTileResident) step_tiles_kernel(const TileStep<T, Rule> params) {
    using Real = Compute<T>;
    const StepTile<T> tile(params.list, block_index());
    const Real complement = params.list.complements[tile.tensor];
    Real* removed = reinterpret_cast<Real*>(dynamic_shared());
    make_removed<Unit>(tile, complement, removed);

    const StepArrays<T, Rule> arrays(params.list, tile.tensor, tile.begin);
    constexpr int kElements = kStepElements<T>;
    if (tile.dim % kElements == 0 && arrays.aligned()) {
        constexpr int kAcross = kTileColumns<Real> / kElements, kDown = kStepThreads / kAcross,
                      kBatch = kTileBatch<Rule>;
        const int column = thread_index() % kAcross * kElements;
        for (int top = thread_index() / kAcross; top < tile.rows && column < tile.columns; top += kBatch * kDown) {
            StepInput<T, Rule> inputs[kBatch];
            for (int i = 0; i < kBatch; ++i) {
                const int row = top + i * kDown;
                if (row < tile.rows) {
                    inputs[i].load(arrays, static_cast<long long>(row) * tile.dim + column);
                }
            }
            for (int i = 0; i < kBatch; ++i) {
                const int row = top + i * kDown;
                if (row < tile.rows) {
                    const auto less = *reinterpret_cast<const Pack<Real>*>(removed + tile_index<Real>(row, column));
                    step_elements(
                        params.rule, arrays, static_cast<long long>(row) * tile.dim + column, inputs[i],
                        [&](int at, Real grad) { return multiply_add<true>(complement, grad, -less.elements[at]); });
                }
            }
        }
    } else {
        for (int i = thread_index(); i < tile.rows * kTileColumns<Real>; i += kStepThreads) {
            const int row = i / kTileColumns<Real>, column = i % kTileColumns<Real>;
            if (column < tile.columns) {
                const Real less = removed[tile_index<Real>(row, column)];
                step_element(params.rule, arrays, static_cast<long long>(row) * tile.dim + column,
                             [&](int, Real grad) { return multiply_add<true>(complement, grad, -less); });
            }
        }
    }
}

}  // namespace igm
