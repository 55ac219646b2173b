"""Projectors: every route against a float64 eigendecomposition, and its certificate against the true error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracles import igm_projector
from torch import nn

from igm_fast.covariance import ActivationCovariance
from igm_fast.projector import Projector, flat_projectors
from igm_fast.sketch import norm_bound

MATRIX_ROUTES = ("auto", "eigh", "polynomial", "truncated")


def spectrum(kind: str, dim: int, rng: np.random.Generator) -> np.ndarray:
    return {
        "fast decay": lambda: np.maximum(0.7 ** np.arange(dim), 1e-8),
        "slow decay": lambda: 1.0 / np.arange(1, dim + 1),
        "uniform": lambda: rng.uniform(0.2, 1.0, dim),
        "clusters": lambda: rng.choice([1.0, 0.1, 1e-3], dim) * (1 + 1e-6 * rng.normal(size=dim)),
        "rank-deficient": lambda: np.where(np.arange(dim) < max(1, dim // 10), rng.uniform(0.5, 1, dim), 0.0),
        "one huge": lambda: np.where(np.arange(dim) == 0, 1e4, rng.uniform(0.5, 1.0, dim)),
        "spiked": lambda: np.where(np.arange(dim) < 5, 1.0, 0.01),
        "tiny": lambda: 1e-12 * np.logspace(0, -3, dim),
    }[kind]()


KINDS = ("fast decay", "slow decay", "uniform", "clusters", "rank-deficient", "one huge", "spiked", "tiny")


def matrix(eigenvalues: np.ndarray, rng: np.random.Generator, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    Q = np.linalg.qr(rng.normal(size=(len(eigenvalues), len(eigenvalues))))[0]
    C = (Q * eigenvalues) @ Q.T
    return torch.from_numpy((C + C.T) / 2).to(dtype)


def true_error(projector: Projector, C: torch.Tensor) -> float:
    return float(
        np.linalg.norm(projector.dense().double().numpy() - igm_projector(C.double().numpy(), projector.tau), 2)
    )


# ---- certificates ----------------------------------------------------------------------------------------------------


@given(
    kind=st.sampled_from(KINDS),
    dim=st.sampled_from([2, 9, 150, 300]),
    tau=st.sampled_from([0.4, 4.0, 16.0]),
    route=st.sampled_from(MATRIX_ROUTES),
    tol=st.sampled_from([2e-2, 5e-3, 1e-4]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2),
)
def test_the_certificate_holds_and_is_what_was_asked(kind, dim, tau, route, tol, dtype, seed):
    rng = np.random.default_rng(seed)
    eigenvalues = spectrum(kind, dim, rng)
    # Where the spread is what rounding makes of equal eigenvalues, T is I by definition; a test of its own.
    assume(np.ptp(eigenvalues) > 1e-3 * eigenvalues.max())
    C = matrix(eigenvalues, rng, dtype)
    projector = flat_projectors({"layer": C}, tau, route, tol)["layer"]
    assert true_error(projector, C) <= projector.error_bound <= max(tol, 1e-4)
    if route == "eigh":
        assert projector.route == "eigh"
    # T damps: eigenvalues in [e^−τ, 1] up to the bound.
    values = np.linalg.eigvalsh(projector.dense().double().numpy())
    assert np.exp(-tau) - projector.error_bound <= values[0]
    assert values[-1] <= 1 + projector.error_bound


def test_each_route_is_taken_where_it_should_be():
    rng = np.random.default_rng(0)
    fast = {"layer": matrix(spectrum("fast decay", 300, rng), rng)}
    slow = {"layer": matrix(spectrum("uniform", 300, rng), rng)}
    small = {"layer": matrix(spectrum("fast decay", 60, rng), rng)}
    assert flat_projectors(small)["layer"].route == "eigh"
    low_rank = flat_projectors(fast)["layer"]
    assert (low_rank.route, low_rank.dense_matrix) == ("truncated", None)
    assert low_rank.rank <= 37
    assert flat_projectors(slow)["layer"].route == "polynomial"
    assert flat_projectors(fast, tol=1e-7)["layer"].route == "eigh"


def test_bounds_are_not_idle():
    """Within a factor of ten of the truth where the tail decays: a bound of 1 would hold too, and say nothing."""
    rng = np.random.default_rng(0)
    C = matrix(spectrum("fast decay", 400, rng), rng)
    for tau in (0.4, 4.0):
        projector = flat_projectors({"layer": C}, tau, "truncated", 2e-2)["layer"]
        assert projector.route == "truncated"
        assert projector.error_bound < 10 * true_error(projector, C)


def test_a_bound_notices_a_missing_direction():
    rng = np.random.default_rng(0)
    C = matrix(spectrum("fast decay", 300, rng), rng)
    projector = flat_projectors({"layer": C})["layer"]
    less = Projector(
        300, 1, projector.function, "truncated", projector.eigenvalues[1:], projector.sigma[1:], projector.complement,
        projector.error_bound, basis=projector.basis[:, 1:],
    )  # fmt: skip
    assert true_error(less, C) > less.error_bound


def activations(dim: int, decay: float, count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0] * torch.logspace(0, -decay, dim)
    return torch.relu(torch.randn(count, dim, generator=generator) @ mixing.T)


@pytest.mark.parametrize("tau", [0.4, 4.0, 16.0])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(("decay", "count"), [(0.5, 1000), (2.0, 1000), (4.0, 1000), (3.0, 40)])
def test_sketch_certificate_on_activations(decay, count, centered, tau):
    """C was never formed; here it is, in float64, of the same data. With 40 samples its rank is 40: nothing is lost."""
    x = activations(300, decay, count, seed=int(decay * 10))
    layer = nn.Linear(300, 2)
    with torch.no_grad(), ActivationCovariance(layer, centered=centered) as covariance:
        for batch in x.split(128):
            layer(batch)
    C = x.double().T @ x.double() / count
    if centered:
        C = C - torch.outer(x.double().mean(0), x.double().mean(0))
    projector = flat_projectors(covariance, tau)[""]
    assert projector.route == "sketch"
    assert projector.rank == 64
    assert projector.weight_shape == (2, 300)
    error = true_error(projector, C)
    assert error <= projector.error_bound
    if count == 40:
        assert projector.error_bound < 1e-3 * (1 + tau)


def test_probe_bound_fails_no_more_often_than_it_says():
    """10⁴ draws at 2 %: 200 ± 14 failures at worst (σmax(EG) is larger than the one direction that the proof uses)."""
    generator = torch.Generator().manual_seed(0)
    E = torch.diag(torch.cat([torch.ones(1), torch.full((29,), 0.05)])).double()
    probes = torch.randn(10_000, 30, 4, generator=generator, dtype=torch.float64)
    failures = int((norm_bound(E @ probes, 0.02) < 1.0).sum())
    assert 0 < failures <= 200 + 4 * 14


# ---- special matrices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", MATRIX_ROUTES)
@pytest.mark.parametrize("dim", [1, 5, 150])
def test_no_direction_is_sharper_than_another(dim, route):
    for C in (torch.eye(dim), 3 * torch.eye(dim), torch.zeros(dim, dim)):
        projector = flat_projectors({"layer": C}, 4.0, route)["layer"]
        torch.testing.assert_close(projector.dense(), torch.eye(dim), rtol=0, atol=1e-6)
        assert projector.error_bound < 1e-4


@pytest.mark.parametrize("route", MATRIX_ROUTES)
def test_one_sample(route):
    x = torch.randn(200)
    C = torch.outer(x, x)
    projector = flat_projectors({"layer": C}, 0.4, route, 1e-3)["layer"]
    damped = projector.apply(x[None])[0]
    torch.testing.assert_close(damped, x * np.exp(-0.4), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("route", MATRIX_ROUTES)
@pytest.mark.parametrize("dim", [20, 160])
def test_groups_are_matrices_of_their_own(dim, route):
    rng = np.random.default_rng(1)
    C = torch.stack([matrix(np.logspace(0, -power, dim), rng) * scale for power, scale in ((3, 1.0), (8, 50.0))])
    projector = flat_projectors({"layer": C}, 4.0, route, 2e-2)["layer"]
    assert (projector.groups, projector.dim) == (2, dim)
    assert projector.dense().shape == (2, dim, dim)
    for mine, one in zip(projector.dense(), C, strict=True):
        error = np.linalg.norm(mine.double().numpy() - igm_projector(one.double().numpy(), 4.0), 2)
        assert error <= projector.error_bound
    assert projector.eigenvalues.shape == projector.sigma.shape
    assert projector.eigenvalues.shape[0] == 2


# ---- the object ------------------------------------------------------------------------------------------------------


def three_projectors():
    rng = np.random.default_rng(2)
    C = matrix(spectrum("fast decay", 150, rng), rng, torch.float64)
    grouped = torch.stack([matrix(spectrum("fast decay", 27, rng), rng, torch.float64) for _ in range(2)])
    projectors = flat_projectors({"low rank": C, "grouped": grouped}, 4.0)
    return projectors | {"dense": flat_projectors({"dense": C}, 4.0, "eigh")["dense"]}


@pytest.mark.parametrize(("name", "shape"), [("low rank", (6, 150)), ("dense", (6, 150)), ("grouped", (4, 3, 3, 3))])
def test_apply_is_the_product_with_t(name, shape):
    projector = three_projectors()[name]
    grad = torch.randn(*shape, dtype=torch.float64)
    T = projector.dense().reshape(projector.groups, projector.dim, projector.dim)
    expected = (grad.reshape(projector.groups, -1, projector.dim) @ T).reshape(shape)
    torch.testing.assert_close(projector.apply(grad), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(projector.apply(grad.float()), expected.float(), rtol=1e-5, atol=1e-5)
    assert torch.autograd.gradcheck(projector.apply, grad.requires_grad_(), fast_mode=True)
    assert projector.spectrum is projector.sigma
    with pytest.raises(ValueError, match=r"grad has shape \(3, 7\), expected"):
        projector.apply(torch.zeros(3, 7))


@pytest.mark.parametrize("name", ["low rank", "dense", "grouped"])
def test_state_round_trip_and_conversion(name):
    projector = three_projectors()[name]
    again = Projector.from_state_dict(projector.state_dict())
    assert torch.equal(again.dense(), projector.dense())
    assert (again.rank, again.route, again.error_bound) == (projector.rank, projector.route, projector.error_bound)
    half = projector.to(dtype=torch.float32)
    assert half.dense().dtype == torch.float32
    assert half.sigma.dtype == torch.float64
    torch.testing.assert_close(half.dense(), projector.dense().float(), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="Projector: state has keys"):
        Projector.from_state_dict({"dim": 3})


def test_a_start_saves_ranks_not_truth():
    """From the last directions the same certificate is reached; one that does not fit is left alone."""
    rng = np.random.default_rng(3)
    C = matrix(spectrum("fast decay", 300, rng), rng)
    moved = C + 1e-3 * matrix(spectrum("uniform", 300, rng), rng)
    first = flat_projectors({"layer": C}, tol=1e-2)
    second = flat_projectors({"layer": moved}, tol=1e-2, start=first)["layer"]
    assert second.route == "truncated"
    assert true_error(second, moved) <= second.error_bound <= 1e-2
    other = flat_projectors({"layer": matrix(np.logspace(0, -3, 200), rng)}, start=first)["layer"]
    assert other.dim == 200


# ---- refusals --------------------------------------------------------------------------------------------------------


def spoilt(row: int, column: int, value: float) -> torch.Tensor:
    C = torch.eye(100)
    C[row, column] = value
    return C


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"covariance": {"conv": torch.zeros(3, 4)}}, r"layer 'conv': matrix of shape \(3, 4\), expected \[d, d\]"),
        ({"covariance": {"conv": torch.zeros(3)}}, r"layer 'conv': matrix of shape \(3,\)"),
        ({"covariance": {"conv": torch.zeros(0, 0)}}, r"layer 'conv': matrix of shape \(0, 0\)"),
        ({"covariance": {"conv": torch.eye(3).half()}}, "layer 'conv': matrix is torch.float16"),
        (
            {"covariance": {"conv": spoilt(12, 40, float("nan"))}},
            r"layer 'conv' has 1 non-finite covariance entries \(first at \[12, 40\]\)",
        ),
        ({"covariance": {"conv": spoilt(3, 4, float("inf"))}}, r"first at \[3, 4\]"),
        ({"covariance": {"conv": spoilt(3, 4, 0.5)}}, "layer 'conv': .* expected a symmetric matrix"),
        ({"tau": 0.0}, "tau=0.0, expected a number > 0"),
        ({"tau": float("nan")}, "tau=nan"),
        ({"tol": -1.0}, "tol=-1.0, expected a number > 0"),
        ({"method": "truncate"}, "unknown method 'truncate'. Did you mean 'truncated'"),
        (
            {"method": "sketch", "covariance": {"conv": torch.eye(300)}},
            "method='sketch' for layer 'conv', of which there is a matrix with d=300",
        ),
    ],
)
def test_slips_are_named(arguments, said):
    with pytest.raises(ValueError, match=said):
        flat_projectors(**({"covariance": {"conv": torch.eye(100)}} | arguments))


def test_routes_that_need_a_matrix_refuse_a_sketch():
    layer = nn.Linear(300, 2)
    with torch.no_grad(), ActivationCovariance(layer) as covariance:
        layer(torch.randn(10, 300))
    for method in ("eigh", "polynomial", "truncated"):
        with pytest.raises(ValueError, match="of which there is a sketch and no matrix, expected 'auto' or 'sketch'"):
            flat_projectors(covariance, method=method)
    assert flat_projectors(covariance, method="sketch")[""].route == "sketch"
    small = nn.Linear(10, 2)
    with torch.no_grad(), ActivationCovariance(small) as covariance:
        small(torch.randn(10, 10))
    assert flat_projectors(covariance, method="sketch")[""].route == "eigh"


def test_projectors_of_a_convolution_with_groups_from_a_sketch():
    layer = nn.Conv2d(64, 6, 3, groups=2)
    x = torch.randn(3, 64, 6, 6)
    with torch.no_grad(), ActivationCovariance(layer) as covariance:
        layer(x)
    projector = flat_projectors(covariance, 4.0)[""]
    assert (projector.groups, projector.dim, projector.rank) == (2, 288, 64)
    u = nn.functional.unfold(x.double(), 3).reshape(3, 2, 288, 16).permute(1, 2, 0, 3).reshape(2, 288, 48)
    for T, group in zip(projector.dense(), u, strict=True):
        expected = igm_projector((group @ group.T / 48).numpy(), 4.0)
        assert np.linalg.norm(T.double().numpy() - expected, 2) <= projector.error_bound


@pytest.mark.parametrize("seed", range(8))
def test_dead_channels_do_not_stop_eigh(seed):
    """MKL's eigensolver gives up on about every second of these: most rows and columns are zero."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(400, 512, generator=generator, dtype=torch.float64).relu()
    X[:, torch.randperm(512, generator=generator)[32:]] = 0
    C = X.T @ X / 400
    projector = flat_projectors({"layer": C}, tau=4.0, method="eigh")["layer"]
    values, vectors = np.linalg.eigh(C.numpy())
    expected = (vectors * np.exp(-4 * (values - values[0]) / (values[-1] - values[0]))) @ vectors.T
    assert np.linalg.norm(projector.dense().numpy() - expected, 2) <= projector.error_bound


def test_arrays_that_speak_dlpack():
    X = np.random.default_rng(0).standard_normal((50, 8))
    C = X.T @ X / 50
    ours = flat_projectors({"layer": C})["layer"]
    assert torch.equal(ours.dense(), flat_projectors({"layer": torch.from_numpy(C)})["layer"].dense())
