"""The projector on a GPU: its operators against float64, its certificates against the true error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bounds import assert_within, gamma
from projector_cases import (
    DTYPES,
    assert_directions,
    assert_facts,
    assert_pairs,
    bits,
    orthonormal,
    randn,
    spectra,
    symmetric,
)

from igm_fast.ops import projector as implementation
from igm_fast.projector import EnergyThreshold, FlatExponential, RidgeComplement, spectral_projectors
from igm_fast.sketch import Sketch, draw_test_matrix

pytestmark = pytest.mark.gpu
ops = torch.ops.igm_fast


# ---- operators -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 63, 64, 65, 200, 1000])
def test_inspect(size, dtype):
    matrices = randn(3, size, size, dtype=dtype)
    matrices[1] = matrices[1] + matrices[1].mT
    matrices[2, size // 2, 0] = float("nan")
    facts = ops.inspect_symmetric(matrices.cuda())
    assert facts.is_cuda
    assert_facts(matrices, facts.cpu())
    assert bits(ops.inspect_symmetric(matrices.cuda())) == bits(facts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("dim", "known", "columns"), [(1, 0, 1), (9, 4, 5), (129, 128, 1), (700, 48, 16), (700, 9, 150)]
)
def test_krylov_block(dim, known, columns, dtype):
    basis, block = orthonormal(dim, known, 1, dtype, count=2), randn(2, dim, columns, seed=2, dtype=dtype)
    if columns > 4:
        block[0, :, 3] = block[0, :, 1]
        block[1] = 0
    if known > 4 and columns > 4:
        block[0, :, 4] = basis[0, :, :3].sum(dim=1)
    C = randn(2, dim, dim, seed=3, dtype=dtype)
    Q, image = ops.krylov_block(C.cuda(), basis.cuda(), block.cuda())
    assert_directions(basis, block, Q)
    left, right = C.double().numpy(), Q.cpu().double().numpy()
    assert_within(image.cpu().double().numpy(), left @ right, 2 * gamma(dim, dtype) * (np.abs(left) @ np.abs(right)))
    assert bits(*ops.krylov_block(C.cuda(), basis.cuda(), block.cuda())) == bits(Q, image)


@pytest.mark.parametrize("size", [1, 2, 31, 64, 112, 113, 200])
def test_small_eigenproblems(size):
    matrices = torch.stack([symmetric(values, seed=7) for values in spectra(size).values()])
    eigenvalues, vectors = implementation._small_eigh(matrices.cuda())
    for A, values, columns in zip(matrices, eigenvalues.cpu(), vectors.cpu(), strict=True):
        assert_pairs(A, values, columns)
    assert bits(*implementation._small_eigh(matrices.cuda())) == bits(eigenvalues, vectors)


def test_nan_ends_and_stays_where_it_is():
    matrices = torch.eye(40, dtype=torch.float64).repeat(2, 1, 1)
    matrices[1, 3, 4] = float("nan")
    eigenvalues, vectors = implementation._small_eigh(matrices.cuda())
    assert eigenvalues[1].isnan().all()
    assert vectors[1].isnan().all()
    assert_pairs(matrices[0], eigenvalues[0].cpu(), vectors[0].cpu())


def test_products_stay_in_float32_whatever_the_program_chose():
    C, start = symmetric(np.logspace(0, -4, 500)).float()[None].cuda(), randn(1, 500, 16, dtype=torch.float32).cuda()
    expected = ops.truncated_eigh(C, start, 3)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert bits(*ops.truncated_eigh(C, start, 3)) == bits(*expected)
        error = (ops.tall_product(C, start).double() - C.double() @ start.double()).abs().max()
        assert error < 1e-5  # TF32 would leave 1e-3
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_graph_can_hold_them():
    C, start = symmetric(np.logspace(0, -4, 300)).float()[None].cuda(), randn(1, 300, 16, dtype=torch.float32).cuda()

    def work():
        return (*ops.truncated_eigh(C, start, 2), ops.inspect_symmetric(C))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    C.copy_(symmetric(np.logspace(0, -2, 300), seed=5).float()[None])
    graph.replay()
    torch.cuda.synchronize()
    for got, expected in zip(captured, work(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_opcheck():
    C, start = symmetric(np.linspace(0, 1, 10))[None].cuda(), randn(1, 10, 3).cuda()
    torch.library.opcheck(ops.truncated_eigh.default, (C, start, 2))
    torch.library.opcheck(ops.inspect_symmetric.default, (C,))


# ---- certificates ----------------------------------------------------------------------------------------------------

DIM = 320


def made_up(number: int) -> torch.Tensor:
    """Matrix `number` of 30, [DIM, DIM] float64."""
    kinds = {
        "fast": np.logspace(0, -1 - number % 9, DIM),
        "slow": 1.0 / np.arange(1, DIM + 1) ** (0.3 + 0.1 * (number % 10)),
        "clusters": np.repeat([1.0, 0.9, 0.3, 10.0 ** -(number % 8)], [3 + number, 5, 6, DIM - 14 - number]),
        "rank": np.pad(np.linspace(1, 0.01, 5 + 3 * number), (0, DIM - 5 - 3 * number)),
        "identity": np.ones(DIM),
        "zero": np.zeros(DIM),
    }
    return symmetric(list(kinds.values())[number % len(kinds)], seed=number)


def true_error(made, function, C: torch.Tensor, group: int) -> float:
    values, vectors = torch.linalg.eigh(C)
    values = values.clamp(min=0.0)
    if isinstance(function, EnergyThreshold):
        held = values.flip(0).cumsum(dim=0)
        count = int((held < function.share * held[-1]).sum()) + 1 if held[-1] > 0 else 0
        f = (torch.arange(DIM, 0, -1) > count).double()
    else:
        f = function.values(values, values[:1], values[-1:])
    exact = (vectors * f) @ vectors.mT
    return float(torch.linalg.matrix_norm(made.dense().double().cpu()[group] - exact, ord=2))


@pytest.mark.parametrize("function", [FlatExponential(0.4), FlatExponential(4.0), RidgeComplement(0.1)])
@pytest.mark.parametrize("route", ["eigh", "polynomial", "truncated", "auto"])
def test_no_bound_is_violated(route, function):
    """30 matrices, as the groups of one layer and, by themselves, in float64."""
    spread = [number for number in range(30) if number % 6 not in (4, 5)]  # λmax = λmin is a case of its own
    C = torch.stack([made_up(number) for number in spread])
    single = C.float()
    layers = {f"{n}": single[i].cuda() for i, n in enumerate(spread)} | {"double": C[3].cuda()}
    made = spectral_projectors(layers, function, route)
    for i, n in enumerate(spread):
        projector = made[f"{n}"]
        assert projector.dense().is_cuda
        assert projector.eigenvalues.is_cuda
        error = true_error(_Grouped(projector), function, single[i].double(), 0)
        assert error <= projector.error_bound, (n, projector.route)
    assert true_error(_Grouped(made["double"]), function, C[3], 0) <= made["double"].error_bound
    again = spectral_projectors(layers, function, route)
    assert all(bits(made[name].dense()) == bits(again[name].dense()) for name in layers)


class _Grouped:  # dense() with a leading dimension, whatever the number of groups
    def __init__(self, projector) -> None:
        self._projector = projector

    def dense(self) -> torch.Tensor:
        matrix = self._projector.dense()
        return matrix if matrix.dim() == 3 else matrix[None]


@pytest.mark.parametrize("route", ["eigh", "truncated", "auto"])
def test_thresholds_and_groups(route):
    function = EnergyThreshold(0.95)
    C = torch.stack([made_up(0), made_up(6)]).float()
    projector = spectral_projectors({"layer": C.cuda()}, function, route)["layer"]
    assert projector.groups == 2
    for group in range(2):
        assert true_error(projector, function, C[group].double(), group) <= projector.error_bound


@pytest.mark.parametrize("route", ["eigh", "polynomial", "truncated", "auto"])
@pytest.mark.parametrize("number", [4, 5])
def test_equal_eigenvalues_give_the_identity(route, number):
    C = made_up(number).float()
    projector = spectral_projectors({"layer": C.cuda()}, FlatExponential(4.0), route)["layer"]
    error = torch.linalg.matrix_norm(projector.dense().double().cpu() - torch.eye(DIM), ord=2)
    assert error <= projector.error_bound + 1e-12


@pytest.mark.parametrize("tau", [0.4, 4.0])
def test_sketches(tau):
    function = FlatExponential(tau)
    for number in range(0, 30, 3):
        C = made_up(number)
        omega = draw_test_matrix(f"{number}", 1, DIM, 1)
        sketch = Sketch(omega.cuda(), (C @ omega.double()).float().cuda(), C.trace()[None].float().cuda(), 16)
        projector = spectral_projectors(_Statistics({"layer": sketch}), function)["layer"]
        assert projector.dense().is_cuda
        if number % 6 not in (4, 5):
            assert true_error(_Grouped(projector), function, C, 0) <= projector.error_bound


class _Statistics:
    weight_shapes: dict[str, tuple[int, ...]] = {}  # noqa: RUF012

    def __init__(self, sketches) -> None:
        self._sketches = sketches

    def statistics(self):
        return self._sketches


def test_same_start_and_like_results_as_on_the_cpu():
    C = made_up(1).float()
    on_gpu = spectral_projectors({"layer": C.cuda()}, FlatExponential(0.4), "truncated")["layer"]
    on_cpu = spectral_projectors({"layer": C}, FlatExponential(0.4), "truncated")["layer"]
    assert on_gpu.rank == on_cpu.rank
    torch.testing.assert_close(on_gpu.dense().cpu(), on_cpu.dense(), rtol=0, atol=1e-4)
    grad = randn(7, DIM, dtype=torch.float32)
    torch.testing.assert_close(on_gpu.apply(grad.cuda()).cpu(), on_cpu.apply(grad), rtol=0, atol=1e-3)
    warm = spectral_projectors({"layer": C.cuda()}, FlatExponential(0.4), "truncated", start={"layer": on_gpu})["layer"]
    assert warm.error_bound <= 5e-3


def test_slips_are_named_on_a_gpu_too():
    C = torch.eye(5)
    C[2, 3] = float("nan")
    with pytest.raises(ValueError, match=r"layer 'head': .*1 non-finite covariance entries \(first at \[2, 3\]\)"):
        spectral_projectors({"head": C.cuda()}, FlatExponential(0.4))
    with pytest.raises(ValueError, match="panel is on cpu, expected cuda:0"):
        ops.krylov_block(torch.eye(5)[None].cuda(), torch.eye(5)[None, :, :1], torch.eye(5)[None, :, 1:3].cuda())
