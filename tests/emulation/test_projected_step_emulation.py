"""The CUDA path of the projected steps, host code and kernels, executed on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from update_cases import CASES, CHUNK, DTYPES, RULES, SGD, Problem, draw, same_bits

from igm_fast.ops import native, update

NONE = torch.empty(0)


@pytest.mark.parametrize("options", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_match_the_oracle(emulated, dtype, options):
    problem = Problem(dtype, options)
    written = problem.emulated_step()
    problem.assert_right()
    emulated.seed = 1  # another order of blocks and threads, from the parameters themselves
    again = Problem(dtype, options, restored=False)
    assert same_bits(written, again.emulated_step())
    if native.module().isa() != "portable":  # it has fused multiply-adds: without a projector the same operations
        plain = [i for i, case in enumerate(CASES) if case[2] == 0]
        theirs = Problem(dtype, options).step()
        chosen = [i + len(CASES) * j for j in range(1 + len(problem.states)) for i in plain]
        assert same_bits([written[i] for i in chosen], [theirs[i] for i in chosen])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [RULES[1], RULES[4]])
def test_without_matrix_units(emulated, dtype, options):
    emulated.capability = (7, 5)
    problem = Problem(dtype, options)
    problem.emulated_step()
    problem.assert_right()


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", DTYPES)
def test_alignment_changes_no_bit(dtype):
    options = SGD[1]
    aligned, shifted = Problem(dtype, options), Problem(dtype, options, skip=1)
    assert same_bits(aligned.emulated_step(), shifted.emulated_step())


@pytest.mark.usefixtures("emulated")
def test_more_tensors_than_one_launch_takes():
    plain = [((1 + i % 5,), 1, 0, 1.0) for i in range(150)]
    projected = [((2, 3), 1, 1 + i % 2, 0.9) for i in range(50)]
    mixed = [case for pair in zip(plain, projected + [((0, 3), 1, 0, 1.0)] * 100, strict=True) for case in pair]
    problem = Problem(torch.float32, SGD[1], cases=mixed)
    problem.emulated_step()
    problem.assert_right()


@pytest.mark.usefixtures("emulated")
def test_layouts_of_bases_and_gradients():
    """U as a slice, of another dtype, or with the memory of Uᵀ; a gradient with strides: the same bits."""
    want = Problem(torch.float32, {}, cases=CASES[:1])
    want.emulated_step()
    basis, sigma, grad = want.bases[0], want.sigmas[0], want.grads[0]
    wide = torch.zeros(basis.shape[0], 2 * basis.shape[1])
    wide[:, ::2] = basis
    for other in (wide[:, ::2], basis.double(), update.device_basis(basis)):
        given = Problem(torch.float32, {}, cases=CASES[:1])
        given.bases, given.sigmas = [other], [sigma.double()]
        given.grads = [grad.T.contiguous().T]
        assert same_bits(given.emulated_step(), want.written())
    assert update.device_basis(other).data_ptr() == other.data_ptr()


def test_nan_reaches_its_row_only(emulated):
    for capability in ((8, 0), (7, 5)):
        emulated.capability = capability
        problem = Problem(torch.float32, {}, cases=[((70, 200), 1, 9, 0.9)])
        problem.grads[0][66, 150] = float("nan")
        problem.grads[0][3, 1] = float("inf")
        (param,) = problem.emulated_step()
        bad = torch.zeros(70, dtype=torch.bool)
        bad[[3, 66]] = True
        assert param[bad].isfinite().sum() == 0
        assert param[~bad].isfinite().all()


@pytest.mark.usefixtures("emulated")
def test_nothing_outside_is_written():
    """Parameters between canaries, of widths that end inside a pack, a tile and a chunk."""
    store = torch.full((30_000,), 7.0)
    sizes = [(66, 131), (CHUNK + 3,), (5, 3)]
    params, outside, at = [], torch.ones(30_000, dtype=torch.bool), 12
    for shape in sizes:
        count = int(np.prod(shape))
        params.append(store[at : at + count].view(shape))
        outside[at : at + count] = False
        at += count + 13
    basis = update.device_basis(torch.linalg.qr(draw((131, 4), torch.float64, 1))[0].float())
    grads = [draw(shape, torch.float32, i) for i, shape in enumerate(sizes)]
    update._projected_sgd_step_cuda(
        params, [], [], grads, [basis, NONE, NONE], [torch.ones(4), NONE, NONE], [0.5, 1.0, 1.0], lr=0.1
    )
    assert (store[outside] == 7.0).all()
    assert (store[~outside] != 7.0).all()


@pytest.mark.usefixtures("emulated")
def test_empty_lists_and_tensors():
    update._projected_sgd_step_cuda([], [], [], [], [], [], [], lr=0.1)
    empty = torch.zeros(3, 0)
    update._projected_sgd_step_cuda([empty], [], [], [empty], [torch.zeros(0, 0)], [NONE], [1.0], lr=0.1)


@pytest.mark.usefixtures("emulated")
def test_slips_are_named_before_anything_is_written():
    param = torch.zeros(4, 6)
    with pytest.raises(ValueError, match=r"bases\[0\] has shape \(5, 2\)"):
        update._projected_sgd_step_cuda(
            [param], [], [], [param + 1], [torch.zeros(5, 2)], [torch.zeros(2)], [1.0], lr=1.0
        )
    with pytest.raises(ValueError, match="step=0"):
        update._projected_adamw_step_cuda(
            [], [], [], [], [], [], [], [], step=0, lr=0.1, beta1=0.9, beta2=0.9, eps=1e-8, weight_decay=0.0
        )
    assert torch.equal(param, torch.zeros(4, 6))
