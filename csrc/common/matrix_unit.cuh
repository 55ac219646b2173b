#pragma once

// How a warp multiplies a tile of 16 rows by a tile of 16 columns out of shared memory: one policy per arithmetic.
//
//     policy        elements in shared memory   arithmetic                               needs
//     UnitHalf<T>   BFloat16 or Float16         exact products, float32 sums             8.0
//     UnitTf32      float                       both operands rounded to 11 bits         8.0
//     UnitTf32x3    float                       a = big + small: three products          8.0
//     UnitTf32x2    float, rows that are halves the same without a's small part: two     8.0
//     UnitPlain<T>  float or double             fused multiply-add in T                  any
//
// Both tiles lie [depth][row or column], rows of `stride` elements: the layout in which patches and activations come
// from memory, with no transposition on the way. With stride % 32 == 8 (4-byte elements) or stride % 64 == 8 (2-byte
// elements) no two lanes meet in a bank. Left tiles of float can also lie [row][depth] (load_a_by_rows), with
// stride % 8 == 4.
//
// A tile of 16 columns is loaded at once (load_b) and multiplied in halves of 8 (columns); load_columns loads a half.
//
// The sums of a 16×16 tile, sums[half][i]: row g + 8·(i / 2), column 8·half + 2t + i % 2, with g = lane / 4 and
// t = lane % 4.

#include "common/tensor_core.cuh"

namespace igm {

IGM_DEVICE int sum_row(int i) { return lane_index() / 4 + 8 * (i / 2); }
IGM_DEVICE int sum_column(int half, int i) { return 8 * half + 2 * (lane_index() % 4) + i % 2; }

template <class T>
struct UnitHalf {
    using Element = T;
    using Sum = float;
    static constexpr int kDepth = 16;
    struct A {
        unsigned words[4];
    };
    struct B {
        unsigned words[4];  // two fragments of 8 columns
    };
    struct Columns {
        unsigned words[2];
    };

    // `tile` is the element at depth 0 and row (or column) 0.
    static IGM_DEVICE A load_a(const T* tile, int stride) {
        const int depth = lane_index() / 16 * 8 + lane_index() % 8, row = lane_index() / 8 % 2 * 8;
        A a;
        load_matrices_transposed(a.words, tile + depth * stride + row);
        return a;
    }
    static IGM_DEVICE B load_b(const T* tile, int stride) {
        const int depth = lane_index() / 8 % 2 * 8 + lane_index() % 8, column = lane_index() / 16 * 8;
        B b;
        load_matrices_transposed(b.words, tile + depth * stride + column);
        return b;
    }
    static IGM_DEVICE Columns columns(const B& b, int half) { return {{b.words[2 * half], b.words[2 * half + 1]}}; }
    static IGM_DEVICE void multiply(float (&sums)[4], const A& a, const Columns& b) {
        mma(T{}, sums, a.words, b.words);
    }
};

namespace detail {
// What lane (g, t) holds of 16 rows and of 16 columns at depths 0 … 7.
IGM_DEVICE void load_rows(float (&values)[4], const float* tile, int stride) {
    const float* first = tile + lane_index() % 4 * stride + lane_index() / 4;
    values[0] = first[0];
    values[1] = first[8];
    values[2] = first[4 * stride];
    values[3] = first[4 * stride + 8];
}
// The same of a tile that lies [row][depth].
IGM_DEVICE void load_rows_by_rows(float (&values)[4], const float* tile, int stride) {
    const float* first = tile + lane_index() / 4 * stride + lane_index() % 4;
    values[0] = first[0];
    values[1] = first[8 * stride];
    values[2] = first[4];
    values[3] = first[8 * stride + 4];
}
IGM_DEVICE void load_columns(float (&values)[4], const float* tile, int stride) {
    const float* first = tile + lane_index() % 4 * stride + lane_index() / 4;
    values[0] = first[0];
    values[1] = first[4 * stride];
    values[2] = first[8];
    values[3] = first[4 * stride + 8];
}
}  // namespace detail

struct UnitTf32 {
    using Element = float;
    using Sum = float;
    static constexpr int kDepth = 8;
    struct A {
        unsigned words[4];
    };
    using B = A;
    struct Columns {
        unsigned words[2];
    };

    static IGM_DEVICE A load_a(const float* tile, int stride) {
        float values[4];
        detail::load_rows(values, tile, stride);
        return round(values);
    }
    static IGM_DEVICE A load_a_by_rows(const float* tile, int stride) {
        float values[4];
        detail::load_rows_by_rows(values, tile, stride);
        return round(values);
    }
    static IGM_DEVICE B load_b(const float* tile, int stride) {
        float values[4];
        detail::load_columns(values, tile, stride);
        return round(values);
    }
    static IGM_DEVICE Columns columns(const B& b, int half) { return {{b.words[2 * half], b.words[2 * half + 1]}}; }
    static IGM_DEVICE Columns load_columns(const float* tile, int stride) {
        const float* first = tile + lane_index() % 4 * stride + lane_index() / 4;
        return {{to_tf32(first[0]).bits, to_tf32(first[4 * stride]).bits}};
    }
    static IGM_DEVICE void multiply(float (&sums)[4], const A& a, const Columns& b) {
        mma(Tf32{}, sums, a.words, b.words);
    }

  private:
    static IGM_DEVICE A round(const float (&values)[4]) {
        A rounded;
        for (int i = 0; i < 4; ++i) {
            rounded.words[i] = to_tf32(values[i]).bits;
        }
        return rounded;
    }
};

// float32 out of tf32: a = big + small with both in tf32 keeps 22 bits of 24, and small·small is below the last one
// (Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores", 2022). The matrix unit adds by
// truncation, which drifts over long sums: so each product starts from zero and is added by an ordinary addition. What
// is not finite stays so, but Inf becomes NaN: its small part is Inf − Inf.
struct UnitTf32x3 {
    using Element = float;
    using Sum = float;
    static constexpr int kDepth = 8;
    struct A {
        unsigned big[4], small[4];
    };
    struct B {
        float values[4];
    };
    struct Columns {
        unsigned big[2], small[2];
    };

    static IGM_DEVICE A load_a(const float* tile, int stride) {
        float values[4];
        detail::load_rows(values, tile, stride);
        return split(values);
    }
    static IGM_DEVICE A load_a_by_rows(const float* tile, int stride) {
        float values[4];
        detail::load_rows_by_rows(values, tile, stride);
        return split(values);
    }
    static IGM_DEVICE B load_b(const float* tile, int stride) {
        B b;
        detail::load_columns(b.values, tile, stride);
        return b;
    }
    static IGM_DEVICE Columns columns(const B& b, int half) {
        return split(b.values[2 * half], b.values[2 * half + 1]);
    }
    static IGM_DEVICE Columns load_columns(const float* tile, int stride) {
        const float* first = tile + lane_index() % 4 * stride + lane_index() / 4;
        return split(first[0], first[4 * stride]);
    }
    static IGM_DEVICE void multiply(float (&sums)[4], const A& a, const Columns& b) {
        float product[4];
        mma_from_zero(Tf32{}, product, a.small, b.big);
        mma(Tf32{}, product, a.big, b.small);
        mma(Tf32{}, product, a.big, b.big);
        for (int i = 0; i < 4; ++i) {
            sums[i] += product[i];
        }
    }

  private:
    static IGM_DEVICE A split(const float (&values)[4]) {
        A a;
        for (int i = 0; i < 4; ++i) {
            split_tf32(values[i], a.big[i], a.small[i]);
        }
        return a;
    }
    static IGM_DEVICE Columns split(float first, float second) {
        Columns columns;
        split_tf32(first, columns.big[0], columns.small[0]);
        split_tf32(second, columns.big[1], columns.small[1]);
        return columns;
    }
};

// The same where the rows were float16 or bfloat16 and have no small part: two products.
struct UnitTf32x2 {
    using Element = float;
    using Sum = float;
    static constexpr int kDepth = UnitTf32x3::kDepth;
    using A = UnitTf32::A;
    using B = UnitTf32x3::B;
    using Columns = UnitTf32x3::Columns;

    static IGM_DEVICE A load_a(const float* tile, int stride) { return UnitTf32::load_a(tile, stride); }
    static IGM_DEVICE A load_a_by_rows(const float* tile, int stride) { return UnitTf32::load_a_by_rows(tile, stride); }
    static IGM_DEVICE B load_b(const float* tile, int stride) { return UnitTf32x3::load_b(tile, stride); }
    static IGM_DEVICE Columns columns(const B& b, int half) { return UnitTf32x3::columns(b, half); }
    static IGM_DEVICE Columns load_columns(const float* tile, int stride) {
        return UnitTf32x3::load_columns(tile, stride);
    }
    static IGM_DEVICE void multiply(float (&sums)[4], const A& a, const Columns& b) {
        float product[4];
        mma_from_zero(Tf32{}, product, a.words, b.small);
        mma(Tf32{}, product, a.words, b.big);
        for (int i = 0; i < 4; ++i) {
            sums[i] += product[i];
        }
    }
};

template <class T>
struct UnitPlain {
    using Element = T;
    using Sum = T;
    static constexpr int kDepth = 4;
    struct A {
        T values[kDepth][2];
    };
    struct B {
        T values[kDepth][4];
    };
    struct Columns {
        T values[kDepth][2];
    };

    static IGM_DEVICE A load_a(const T* tile, int stride) {
        A a;
        for (int depth = 0; depth < kDepth; ++depth) {
            for (int i = 0; i < 2; ++i) {
                a.values[depth][i] = tile[depth * stride + sum_row(2 * i)];
            }
        }
        return a;
    }
    static IGM_DEVICE B load_b(const T* tile, int stride) {
        B b;
        for (int depth = 0; depth < kDepth; ++depth) {
            for (int i = 0; i < 4; ++i) {
                b.values[depth][i] = tile[depth * stride + sum_column(i / 2, i % 2)];
            }
        }
        return b;
    }
    static IGM_DEVICE Columns columns(const B& b, int half) {
        Columns columns;
        for (int depth = 0; depth < kDepth; ++depth) {
            for (int i = 0; i < 2; ++i) {
                columns.values[depth][i] = b.values[depth][2 * half + i];
            }
        }
        return columns;
    }
    static IGM_DEVICE Columns load_columns(const T* tile, int stride) {
        Columns columns;
        for (int depth = 0; depth < kDepth; ++depth) {
            for (int i = 0; i < 2; ++i) {
                columns.values[depth][i] = tile[depth * stride + sum_column(0, i)];
            }
        }
        return columns;
    }
    static IGM_DEVICE void multiply(T (&sums)[4], const A& a, const Columns& b) {
        for (int depth = 0; depth < kDepth; ++depth) {
            for (int i = 0; i < 4; ++i) {
                sums[i] += a.values[depth][i / 2] * b.values[depth][i % 2];
            }
        }
    }
};

}  // namespace igm
