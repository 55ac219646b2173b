"""A run brought back is the run that was trained, and its losses are those of its equations."""

from __future__ import annotations

import argparse
import shutil

import numpy as np
import pytest
import run_cases
import torch

from igm_fast.analyses.loaded_run import (
    branch_logits,
    branch_loss,
    fixed_samples,
    load_run,
    load_runs,
    mla_projector,
    positive,
    positive_numbers,
)
from igm_fast.reports.record import read_run
from igm_fast.training import evaluation


@pytest.mark.parametrize("method", ["igm", "mla", "joint", "unimodal"])
def test_the_loaded_model_predicts_what_training_wrote(trained, method):
    loaded = load_run(trained[method])
    outputs = evaluation.predict(loaded.model, loaded.method, loaded.data.test, loaded.device)
    written = read_run(trained[method]).probabilities
    assert sorted(outputs) == sorted(written) == sorted(loaded.branches)
    for name, probabilities in outputs.items():
        np.testing.assert_array_equal(probabilities.numpy(), written[name])
    assert not any(module.training for module in loaded.model.modules())


def test_the_copy_in_float64_leaves_the_model_alone(trained):
    loaded = load_run(trained["igm"])
    double = loaded.double()
    with torch.no_grad():
        next(double.model.parameters()).zero_()
    assert {p.dtype for p in double.model.parameters()} == {torch.float64}
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert next(loaded.model.parameters()).any()


def test_runs_are_looked_at_with_the_same_samples_and_batches_only_divide_them(trained):
    igm, joint = load_runs([trained["igm"], trained["joint"]])
    one, other = fixed_samples(igm, "train", 40), fixed_samples(joint, "train", 40, batch_size=16)
    assert [len(batch.labels) for batch in other] == [16, 16, 8]
    rows = torch.cat([batch.rows for batch in other])
    assert torch.equal(one[0].rows, rows)
    assert len(rows.unique()) == 40
    assert torch.equal(one[0].labels, igm.data.train.labels[rows])
    assert torch.equal(one[0].inputs["zernike"], igm.data.train.inputs["zernike"][rows])
    assert sum(len(b.labels) for b in fixed_samples(igm, "test", 10**6)) == len(igm.data.test)


@pytest.mark.parametrize("method", ["igm", "mla"])
def test_loss_of_a_modality_is_the_cross_entropy_of_its_logits(trained, method):
    loaded = load_run(trained[method]).double()
    (batch,) = fixed_samples(loaded, "test", 30)
    x, labels = batch.inputs["fourier"].numpy(), batch.labels.numpy()
    expected = run_cases.loss(run_cases.weights(loaded, "fourier"), x, labels)
    assert float(branch_loss(loaded, batch, "fourier").detach()) == pytest.approx(expected, rel=1e-12)


def test_fused_loss_is_that_of_the_mean_probability(trained):
    loaded = load_run(trained["igm"]).double()
    (batch,) = fixed_samples(loaded, "test", 30)
    z = [run_cases.forward(run_cases.weights(loaded, m), x.numpy())[2] for m, x in batch.inputs.items()]
    fused = np.mean([run_cases.softmax(logits) for logits in z], axis=0)
    expected = -np.log(fused[np.arange(30), batch.labels.numpy()]).mean()
    assert float(branch_loss(loaded, batch, "fused").detach()) == pytest.approx(expected, rel=1e-12)


def test_a_modality_of_a_joint_head_is_its_block_and_the_whole_bias_and_reaches_its_encoder(trained):
    loaded = load_run(trained["joint"]).double()
    (batch,) = fixed_samples(loaded, "test", 8)
    logits = branch_logits(loaded.model, batch.inputs, "zernike")
    features = loaded.model.features(batch.inputs)["zernike"]
    head = loaded.model.joint_head
    torch.testing.assert_close(logits, features @ head.weight[:, 8:16].T + head.bias, rtol=1e-12, atol=1e-12)
    logits.sum().backward()
    assert loaded.model.branch("zernike").encoder.fc1.weight.grad.abs().sum() > 0
    assert loaded.model.branch("fourier").encoder.fc1.weight.grad is None


def test_projector_of_mla_is_that_of_the_last_checkpoint(trained):
    P = mla_projector(trained["mla"])
    assert torch.equal(P, load_run(trained["mla"], "last").method.projector)
    assert mla_projector(trained["igm"]) is None


def test_what_cannot_stand_side_by_side_is_refused(trained, tmp_path):
    with pytest.raises(ValueError, match="given twice"):
        load_runs([trained["igm"], trained["igm"].parent / "igm"])
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        load_run(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(trained["igm"], other)
    settings = (other / "config.yaml").read_text().replace("data: digits3", "data: emoji")
    (other / "config.yaml").write_text(settings)
    with pytest.raises(ValueError, match="fingerprints differ"):
        load_run(other)
    loaded = load_run(trained["igm"])
    with pytest.raises(ValueError, match=r"unknown branch 'fusd'.*fused"):
        branch_loss(loaded, fixed_samples(loaded, "test", 2)[0], "fusd")


def test_numbers_of_the_command_line():
    assert positive("3") == 3
    assert positive_numbers("0.5,2") == [0.5, 2.0]
    with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
        positive("0")
    for text in ("", "a", "1,-1", "inf"):
        with pytest.raises(argparse.ArgumentTypeError, match="numbers > 0"):
            positive_numbers(text)
