"""The launch plan of sam_perturb's CUDA kernels, checked without a GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import igm_fast.ops  # noqa: F401  registers torch.ops.igm_fast
from igm_fast.ops import native

CHUNK, TENSORS, MAX_GRID = 16384, 96, 2**31 - 1


@given(sizes=st.lists(st.integers(0, 5 * CHUNK), max_size=300), per_tensor=st.booleans())
def test_plan_covers_every_chunk_once(sizes, per_tensor):
    plan = native.module().perturb_plan(sizes, per_tensor, MAX_GRID)
    chunks = [-(-size // CHUNK) for size in sizes]
    assert [batch["first_tensor"] for batch in plan["batches"]] == list(range(0, len(sizes), TENSORS))
    for batch in plan["batches"]:
        inside = slice(batch["first_tensor"], batch["first_tensor"] + batch["tensors"])
        assert 0 < batch["tensors"] <= TENSORS
        assert batch["grid"] == sum(chunks[inside])
        assert batch["first_chunk"] == sum(chunks[: inside.start])
        assert batch["block"] == 256
    assert plan["partials"] == sum(chunks)
    ranges = [range(begin, end) for norms in plan["norms"] for begin, end in zip(norms["begin"], norms["begin"][1:])]  # noqa: B905
    assert [len(part) for part in ranges] == (chunks if per_tensor else [sum(chunks)])
    assert sum(norms["grid"] for norms in plan["norms"]) == len(ranges)
    assert plan["workspace_doubles"] == plan["partials"] + len(ranges)
    assert plan["workspace_doubles"] == native.module().perturb_workspace(sizes, per_tensor)


def test_huge_tensors_need_64_bits():
    plan = native.module().perturb_plan([2**40], False, MAX_GRID)
    assert plan["batches"][0]["grid"] == 2**26


def test_plan_beyond_the_device_is_refused():
    with pytest.raises(ValueError, match=r"perturb_kernel: grid 3, .* expected at most 2 blocks.*Split the list"):
        native.module().perturb_plan([CHUNK, CHUNK, 1], False, 2)


def test_no_cuda_library_is_loaded_at_import(run_python):
    code = "import igm_fast.ops; print('libcuda' in open('/proc/self/maps').read())"
    if torch.version.cuda is None:  # a torch with CUDA brings its own libraries along
        assert run_python(code).strip() == "False"
