"""SMV: Shapley values over permutations, what comes again and without what, and that a missing feature is zero."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_cases import assert_moved, autograd_gradients, batch_of, double_inputs, snapshot, workshop
from training_cases import digits

from igm_fast.methods.base import Batch, Stage
from igm_fast.methods.contributions import shapley, subsets
from igm_fast.methods.smv import Smv, repeated
from igm_fast.training.evaluation import evaluation_mode

NAMES = ("fourier", "zernike", "morphological")
STAGE = Stage(0, 0, NAMES, 24)


@given(modalities=st.integers(2, 4), seed=st.integers(0, 1000))
def test_values_are_mean_gains_over_all_orders_of_joining(modalities, seed):
    names = "abcd"[:modalities]
    rng = np.random.default_rng(seed)
    worth = {chosen: torch.from_numpy(rng.normal(size=7)) for chosen in subsets(names)}
    assert len(worth) == 2**modalities
    found = shapley(worth, names)
    orders = list(permutations(names))
    for name in names:
        expected = 0
        for order in orders:
            before = frozenset(order[: order.index(name)])
            expected = expected + (worth[before | {name}] - worth[before]) / len(orders)
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-12)


def test_copies_of_two_modalities_as_in_the_paper():
    """1, 2, 3 copies for a value of ½, 0, −½, none from 1 on."""
    values = torch.tensor([[1.5, 0.5], [0.0, 1.0], [-0.5, 0.5], [1.0, 1.0]]).double()
    again, alone = repeated(values)
    assert list(zip(again.tolist(), alone.tolist(), strict=True)) == [(0, 1), *[(1, 0)] * 2, *[(2, 0)] * 3, (2, 1)]


def test_valuation_asks_the_joint_head_with_features_set_to_zero():
    data, method = digits(60), Smv(warmup_share=0.0)
    model, context = workshop(method, data, STAGE)
    with torch.no_grad():
        model.joint_head.weight.mul_(5)
    with evaluation_mode(model):
        method.begin_epoch(STAGE, 0, context)
    h = {name: value.detach().double().numpy() for name, value in model.eval().features(data.train.inputs).items()}
    W, b = (p.detach().double().numpy() for p in model.joint_head.parameters())
    worth = {}
    for chosen in subsets(NAMES):
        z = b + sum(h[name] @ W[:, 64 * m : 64 * m + 64].T for m, name in enumerate(NAMES) if name in chosen)
        right = np.broadcast_to(z, (60, 10)).argmax(axis=1) == data.train.labels.numpy()
        worth[chosen] = torch.from_numpy(len(chosen) * right.astype(float))
    expected = torch.stack(list(shapley(worth, NAMES).values()), dim=1)
    assert len(torch.unique(expected)) > 5
    torch.testing.assert_close(method.values, expected)


@pytest.mark.parametrize("level", ["sample", "modality"])
def test_an_epoch_is_all_samples_and_those_that_come_again(level):
    method, samples = Smv(level=level, warmup_share=0.0, strength=0.9), 40
    rng = np.random.default_rng(0)
    method.values = torch.from_numpy(rng.integers(-1, 4, (samples, 3)) / 2 + [0.0, 0.5, 0.0])
    shuffled = torch.randperm(samples)
    selection, again = (method.order(STAGE, 0, shuffled, None) for _ in range(2))
    assert torch.equal(selection.rows, again.rows)
    assert torch.equal(selection.kept, again.kept)
    whole = selection.kept.all(dim=1)
    assert sorted(selection.rows[whole].tolist()) == list(range(samples))
    assert not torch.equal(selection.rows[whole], shuffled)  # mixed with the others
    added, kept = selection.rows[~whole], selection.kept[~whole]
    assert (kept.sum(dim=1) == 1).all()
    if level == "sample":
        for sample in range(samples):
            for m in range(3):
                copies = max(0, int(np.floor(2 * (1 - float(method.values[sample, m])) + 0.5)))
                assert int(((added == sample) & kept[:, m]).sum()) == copies
    else:
        means = method.values.mean(dim=0).numpy()
        expected = np.floor(2 / 3 * (means.max() - means) * 0.9 * samples)
        assert kept.sum(dim=0).tolist() == expected.tolist()
        assert expected.max() > 0
        assert len(set(added.tolist())) > 5


def test_a_modality_left_out_gets_no_gradient_and_no_say():
    """A step against autograd in float64, on a batch of which each sample has its own modalities."""
    data, method = digits(), Smv()
    model, context = workshop(method, data, STAGE)
    whole, before = batch_of(data), snapshot(model)
    kept = torch.rand(32, 3) < 0.5
    kept[:, 2] = False

    def loss(network):
        features = network.features(double_inputs(whole))
        masked = [torch.where(kept[:, m, None], features[name], 0.0) for m, name in enumerate(NAMES)]
        z = network.joint_head(torch.cat(masked, dim=1))
        return -z.log_softmax(dim=1)[torch.arange(32), whole.labels].mean()

    gradients = autograd_gradients(model, loss)
    expected = {name: 0.1 * g for name, g in gradients.items() if "morphological" not in name}
    method.step(STAGE, Batch(whole.inputs, whole.labels, kept=kept), 0.0, context)
    assert_moved(model, before, expected)
    assert not model.joint_head._forward_pre_hooks


def test_warm_up_is_joint_training():
    data, method = digits(60), Smv(warmup_share=0.09)  # 2 of 24 epochs
    model, context = workshop(method, data, STAGE)
    shuffled, lengths = torch.randperm(60), []
    for epoch in range(3):
        with evaluation_mode(model):
            method.begin_epoch(STAGE, epoch, context)
        selection = method.order(STAGE, epoch, shuffled, context)
        lengths.append(len(selection.rows))
        assert (selection.kept is None) == (epoch < 2)
    assert lengths[:2] == [60, 60]
    assert lengths[2] > 60


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Smv(level="samples"), "unknown level 'samples'. Did you mean 'sample'"),
        (lambda: Smv(strength=-1.0), "smv: strength is -1.0, expected a number ≥ 0"),
        (lambda: Smv(warmup_share=1.5), "smv: warmup_share is 1.5, expected a share"),
        (lambda: Smv().modalities(["sound"]), "one modality, sound; expected at least two to value against"),
    ],
)
def test_bad_options(make, said):
    with pytest.raises(ValueError, match=said):
        make()
