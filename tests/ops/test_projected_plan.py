"""The launch plan of the projected steps' CUDA kernels, checked without a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import igm_fast.ops  # noqa: F401  registers torch.ops.igm_fast
from igm_fast.ops import native

FLOAT32, FLOAT64, BFLOAT16 = 0, 1, 3
CHUNK, TENSORS, TILES, TILE_ROWS, MAX_GRID = 4096, 72, 40, 64, 2**31 - 1
PLAIN = (1, 0, 0, 0, 0, 0, 0, 1.0)
SGD = (0.1, 0.9, 0.0, 0.0, False, False, False)  # lr, momentum, dampening, weight_decay, nesterov, maximize, first_step


def ceil(a: int, b: int) -> int:
    return -(-a // b)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[list[int], list[tuple]]:
    """Sizes and projections; some without, some empty."""
    sizes, projections = [], []
    for _ in range(draw(st.integers(0, 120))):
        if draw(st.booleans()):
            sizes.append(draw(st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK])))
            projections.append(PLAIN)
        else:
            groups, rows = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 64, 65, 200]))
            dim, rank = draw(st.sampled_from([1, 63, 64, 65, 128, 129, 600])), draw(st.sampled_from([1, 40]))
            sizes.append(groups * rows * dim)
            projections.append((groups, groups * rows, dim, rank, 0, 0, 0, 0.9))
    return sizes, projections


@given(problem=tensors(), dtype=st.sampled_from([FLOAT32, FLOAT64, BFLOAT16]))
def test_plan_covers_every_tensor_once(problem, dtype):
    sizes, projections = problem
    columns = 64 if dtype == FLOAT64 else 128
    batches = native.module().step_plan(sizes, projections, dtype, MAX_GRID)
    seen = [tensor for batch in batches for tensor in batch["tensors"]]
    assert sorted(seen) == [i for i, size in enumerate(sizes) if size]
    for batch in batches:
        assert 0 < len(batch["tensors"]) <= (TILES if batch["projected"] else TENSORS)
        assert batch["first"][0] == 0
        assert batch["grid"] == batch["first"][-1]
        assert batch["block"] == 256
        assert batch["shared_bytes"] == (32768 if batch["projected"] else 0)
        for tensor, count in zip(batch["tensors"], np.diff(batch["first"]), strict=True):
            groups, rows, dim, rank = projections[tensor][:4]
            assert batch["projected"] == (rank > 0)
            if rank:
                assert count == groups * ceil(rows // groups, TILE_ROWS) * ceil(dim, columns)
            else:
                assert count == ceil(sizes[tensor], CHUNK)


def test_huge_tensors_need_64_bits():
    """2³⁹ elements: each of rows, columns and blocks is below 2³¹, their products are not."""
    (tiles,) = native.module().step_plan([2**39], [(1, 2**20, 2**19, 8, 0, 0, 0, 1.0)], FLOAT32, MAX_GRID)
    assert tiles["grid"] == 2**39 // (64 * 128)
    (chunks,) = native.module().step_plan([2**39], [PLAIN], FLOAT32, MAX_GRID)
    assert chunks["grid"] == 2**39 // CHUNK


def test_plan_beyond_the_device_is_refused():
    with pytest.raises(ValueError, match=r"step_chunks_kernel: grid 3, .* expected at most 2 blocks.*Split the list"):
        native.module().step_plan([CHUNK, CHUNK, 1], [PLAIN] * 3, FLOAT32, 2)
    with pytest.raises(ValueError, match=r"step_tiles_kernel: grid 4, .* expected at most 3 blocks"):
        native.module().step_plan([65 * 129], [(1, 65, 129, 1, 0, 0, 0, 1.0)], FLOAT32, 3)
    with pytest.raises(ValueError, match=r"a matrix of 2147483648 × 1 with rank 1, expected at most 2147483647"):
        native.module().step_plan([2**31], [(1, 2**31, 1, 1, 0, 0, 0, 1.0)], FLOAT32, MAX_GRID)


@pytest.mark.parametrize(
    ("dtype", "tensor_cores", "element", "unit"),
    [
        (FLOAT32, True, "float", "igm::UnitTf32x3"),
        (FLOAT32, False, "float", "igm::UnitPlain<float>"),
        (BFLOAT16, True, "igm::BFloat16", "igm::UnitTf32x3"),
        (FLOAT64, True, "double", "igm::UnitPlain<double>"),
    ],
)
def test_kernels_follow_dtype_rule_and_device(dtype, tensor_cores, element, unit):
    sizes, projections = [12, 5], [(1, 3, 4, 2, 16, 16, 16, 0.9), PLAIN]
    lists = [[16, 16]] * 3
    state = "double" if dtype == FLOAT64 else "float"
    launches = native.module().projected_sgd_launches(
        *lists, [16, 16], sizes, projections, dtype, *SGD, tensor_cores
    )  # fmt: skip
    assert [launch.kernel for launch in launches] == [
        f"igm::step_tiles_kernel<{element}, igm::Sgd<{state}, true>, {unit}>",
        f"igm::step_chunks_kernel<{element}, igm::Sgd<{state}, true>>",
    ]
    plain = (0.1, 0.0, *SGD[2:])
    launches = native.module().projected_sgd_launches(*lists, [], sizes, projections, dtype, *plain, tensor_cores)
    assert launches[1].kernel == f"igm::step_chunks_kernel<{element}, igm::Sgd<{state}, false>>"
    launches = native.module().projected_adamw_launches(
        *lists, [16, 16], [16, 16], sizes, projections, dtype, 1, 0.1, 0.9, 0.99, 1e-8, 0.0, True, False, tensor_cores
    )  # fmt: skip
    assert launches[0].kernel == f"igm::step_tiles_kernel<{element}, igm::Adam<{state}>, {unit}>"
    assert all(len(launch.params) <= 4096 for launch in launches)
