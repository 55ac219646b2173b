// Kernels of one warp that show what matrix units, matrix loads and asynchronous copies do
// (test_matrix_unit_emulation.py).

#include "common/instances.cuh"
#include "common/matrix_unit.cuh"

namespace igm {

// out (16×16) = Σ over depth of a[depth][row] · b[depth][column]; both lie in memory with `stride` elements per depth.
template <class Unit>
struct UnitProduct {
    const typename Unit::Element* a;
    const typename Unit::Element* b;
    typename Unit::Sum* out;
    int depth;
    int stride;
};

template <class Unit>
IGM_KERNEL IGM_BLOCKS(kWarp, 1) unit_product_kernel(const UnitProduct<Unit> params) {
    using Element = typename Unit::Element;
    const int tile = params.depth * params.stride;
    Element* a = reinterpret_cast<Element*>(dynamic_shared());
    Element* b = a + tile;
    for (int i = thread_index(); i < tile; i += kWarp) {
        a[i] = params.a[i];
        b[i] = params.b[i];
    }
    barrier();
    typename Unit::Sum sums[2][4] = {};
    for (int depth = 0; depth < params.depth; depth += Unit::kDepth) {
        const auto rows = Unit::load_a(a + depth * params.stride, params.stride);
        const auto columns = Unit::load_b(b + depth * params.stride, params.stride);
        for (int half = 0; half < 2; ++half) {
            Unit::multiply(sums[half], rows, Unit::columns(columns, half));
        }
    }
    for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i) {
            params.out[sum_row(i) * 16 + sum_column(half, i)] = sums[half][i];
        }
    }
}

// The same with a[row][depth] and four elements behind each row, and columns eight at a time.
template <class Unit>
IGM_KERNEL IGM_BLOCKS(kWarp, 1) rows_product_kernel(const UnitProduct<Unit> params) {
    const int a_stride = params.depth + 4, a_elements = 16 * a_stride, b_elements = params.depth * params.stride;
    float* a = reinterpret_cast<float*>(dynamic_shared());
    float* b = a + a_elements;
    for (int i = thread_index(); i < a_elements; i += kWarp) {
        a[i] = params.a[i];
    }
    for (int i = thread_index(); i < b_elements; i += kWarp) {
        b[i] = params.b[i];
    }
    barrier();
    float sums[2][4] = {};
    for (int depth = 0; depth < params.depth; depth += Unit::kDepth) {
        const auto rows = Unit::load_a_by_rows(a + depth, a_stride);
        for (int half = 0; half < 2; ++half) {
            Unit::multiply(sums[half], rows, Unit::load_columns(b + depth * params.stride + 8 * half, params.stride));
        }
    }
    for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i) {
            params.out[sum_row(i) * 16 + sum_column(half, i)] = sums[half][i];
        }
    }
}

// One instruction on the words that the lanes are given.
struct Fragments {
    const unsigned* a;  // [32][4]
    const unsigned* b;  // [32][2]
    float* d;           // [32][4], read and written
};

template <class T>
IGM_KERNEL IGM_BLOCKS(kWarp, 1) fragments_kernel(const Fragments params) {
    unsigned a[4], b[2];
    float d[4];
    for (int i = 0; i < 4; ++i) {
        a[i] = params.a[lane_index() * 4 + i];
        d[i] = params.d[lane_index() * 4 + i];
    }
    for (int i = 0; i < 2; ++i) {
        b[i] = params.b[lane_index() * 2 + i];
    }
    mma(T{}, d, a, b);
    for (int i = 0; i < 4; ++i) {
        params.d[lane_index() * 4 + i] = d[i];
    }
}

struct MatrixLoad {
    const unsigned short* elements;  // 1024, which go to shared memory
    const int* first;                // [32] the element where the row that a lane names begins
    unsigned* words;                 // [32][4]
};

static IGM_KERNEL IGM_BLOCKS(kWarp, 1) matrix_load_kernel(const MatrixLoad params) {
    alignas(16) IGM_SHARED unsigned short elements[1024];
    for (int i = thread_index(); i < 1024; i += kWarp) {
        elements[i] = params.elements[i];
    }
    barrier();
    unsigned words[4];
    load_matrices_transposed(words, elements + params.first[lane_index()]);
    for (int i = 0; i < 4; ++i) {
        params.words[lane_index() * 4 + i] = words[i];
    }
}

// Two groups of copies per lane; what lies in shared memory after each wait.
struct CopyLanding {
    const unsigned* source;  // [32][8]: 16 bytes for group 0, 4 for group 1, the rest is for copies of nothing
    unsigned* seen;          // [2][32][8]: after group 0 has landed, after both
};

static IGM_KERNEL IGM_BLOCKS(kWarp, 1) copy_landing_kernel(const CopyLanding params) {
    alignas(16) IGM_SHARED unsigned words[kWarp * 8];
    unsigned* target = words + lane_index() * 8;
    const unsigned* source = params.source + lane_index() * 8;
    copy_async_16(target, source, true);
    copy_commit();
    copy_async_4(target + 4, source + 4, true);
    copy_async_4(target + 5, source + 5, false);
    copy_commit();
    copy_wait<1>();
    barrier();
    const unsigned* neighbour = words + (lane_index() + 1) % kWarp * 8;
    for (int i = 0; i < 4; ++i) {
        params.seen[lane_index() * 8 + i] = neighbour[i];
    }
    copy_wait<0>();
    barrier();
    for (int i = 0; i < 6; ++i) {
        params.seen[(kWarp + lane_index()) * 8 + i] = neighbour[i];
    }
}

struct Rounding {
    const float* values;
    unsigned* bits;
    int count;
};

static IGM_KERNEL IGM_BLOCKS(kWarp, 1) rounding_kernel(const Rounding params) {
    for (int i = thread_index(); i < params.count; i += kWarp) {
        params.bits[i] = to_tf32(params.values[i]).bits;
    }
}

// What lanes tell one another: [5][32] numbers.
struct Exchange {
    const float* values;
    float* told;
};

static IGM_KERNEL IGM_BLOCKS(64, 1) exchange_kernel(const Exchange params) {
    const float value = params.values[thread_index()];
    float* told = params.told + thread_index();
    told[0] = shuffle_xor(value, 5);
    told[64] = static_cast<float>(shuffle(static_cast<double>(value), lane_index() / 2));
    told[128] = any_lane(value > 60.0f) ? 1.0f : 0.0f;
    told[192] = any_thread(value > 60.0f) ? 1.0f : 0.0f;
    told[256] = any_thread(value > 1000.0f) ? 1.0f : 0.0f;
}

IGM_INSTANCE(unit_product_kernel<igm::UnitHalf<igm::BFloat16>>)
IGM_INSTANCE(unit_product_kernel<igm::UnitHalf<igm::Float16>>)
IGM_INSTANCE(unit_product_kernel<igm::UnitTf32>)
IGM_INSTANCE(unit_product_kernel<igm::UnitTf32x3>)
IGM_INSTANCE(unit_product_kernel<igm::UnitTf32x2>)
IGM_INSTANCE(rows_product_kernel<igm::UnitTf32>)
IGM_INSTANCE(rows_product_kernel<igm::UnitTf32x3>)
IGM_INSTANCE(rows_product_kernel<igm::UnitTf32x2>)
IGM_INSTANCE(unit_product_kernel<igm::UnitPlain<float>>)
IGM_INSTANCE(unit_product_kernel<igm::UnitPlain<double>>)
IGM_INSTANCE(fragments_kernel<igm::BFloat16>)
IGM_INSTANCE(fragments_kernel<igm::Float16>)
IGM_INSTANCE(fragments_kernel<igm::Tf32>)
IGM_INSTANCE(matrix_load_kernel)
IGM_INSTANCE(copy_landing_kernel)
IGM_INSTANCE(rounding_kernel)
IGM_INSTANCE(exchange_kernel)

}  // namespace igm
