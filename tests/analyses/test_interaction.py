"""Interaction: what is switched off, what stands at the end of each stage, what is forgotten."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from grid_cases import constant, sentence, table

from igm_fast import analyze
from igm_fast.analyses import interaction
from igm_fast.analyses.finding import NotApplicable
from igm_fast.analyses.interaction import Course
from igm_fast.evaluate import evaluate, rebuild
from igm_fast.training.building import build_model
from igm_fast.training.checkpoint import CheckpointError
from igm_fast.training.evaluation import predict


def test_each_variant_switches_off_one_projector():
    """The projector of a modality acts on the modality after it; the last one's acts on the first."""
    rows = interaction.variants(["audio", "video"])
    assert list(rows) == ["IGM", "without audio-GM", "without video-GM"]
    assert rows["without audio-GM"].flags[-2:] == ("--projected_targets", "audio")  # video trains without T
    assert rows["without video-GM"].flags[-2:] == ("--projected_targets", "video")
    three = interaction.variants(["a", "b", "c"])
    assert three["without a-GM"].flags[-1] == "a,c"
    assert three["without c-GM"].flags[-1] == "b,c"


def test_one_modality_has_nobody_to_interact_with():
    with pytest.raises(NotApplicable, match="one modality, audio"):
        interaction.variants(["audio"])


def test_forgetting_is_the_change_in_stages_of_others():
    course = Course(("a", "b", "a"), {"a": [0.1, 0.5, 0.4, 0.6], "b": [0.2, 0.2, 0.7, 0.75], "fused": [0, 1, 0, 1]})
    forgetting = course.forgetting()
    assert list(forgetting) == ["a", "b"]
    np.testing.assert_allclose(forgetting["a"], [math.nan, -0.1, math.nan])
    np.testing.assert_allclose(forgetting["b"], [0.0, math.nan, 0.05], atol=1e-15)
    assert interaction.most_forgotten({0: course}) == pytest.approx(0.1)


def test_a_course_is_measured_on_test(igm_run):
    course = interaction.measure(igm_run)
    last = evaluate(igm_run, "test", "last")["scores"]
    assert {branch: values[-1] for branch, values in course.accuracy.items()} == {
        branch: scores["accuracy"] for branch, scores in last.items()
    }
    again = rebuild(igm_run, "last")
    untrained = build_model(again.method, again.data, again.config)
    probabilities = predict(untrained, again.method, again.data.test, torch.device("cpu"))
    right = (probabilities["fused"].argmax(dim=1) == again.data.test.labels).double().mean()
    assert course.accuracy["fused"][0] == pytest.approx(float(right), abs=1e-6)  # float32 mean of 0 and 1
    assert course.trained == ("fourier", "zernike", "morphological") * 2
    assert interaction.most_forgotten({0: course}) == 0.0  # other modalities keep every bit


def test_weights_of_a_stage_that_are_missing_are_named(igm_run):
    path = igm_run / "checkpoints" / "stage-3.safetensors"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(CheckpointError, match=r"stage-3\.safetensors.*give the same command again"):
        interaction.measure(igm_run)
    path.write_bytes(content)


def test_the_whole_analysis(stand_in, monkeypatch, tmp_path):
    trained = stand_in(constant)

    def measured(folder):
        seed, full = int(folder.name[-1]), folder.parent.name == "igm-stages"
        end = 0.8 + 0.01 * seed - (0.0 if full else 0.05 + 0.001 * seed)
        single = {"fourier": [0.1, 0.6, 0.6, 0.6], "zernike": [0.1, 0.1, 0.7, 0.7]}
        single["morphological"] = [0.1, 0.1, 0.1, 0.5]
        return Course(("fourier", "zernike", "morphological"), single | {"fused": [0.2, 0.5, 0.6, end]})

    monkeypatch.setattr(interaction, "measure", measured)
    assert analyze.main(["interaction", "--data", "digits3", "--seeds", "3", "--out", str(tmp_path)]) == 0
    assert len(trained) == 4 * 3
    lines = table(tmp_path / "interaction.csv")
    assert len(lines) == 4 * 4 * 4
    last = {line["variant"]: line for line in lines if (line["stage"], line["branch"]) == ("3", "fused")}
    assert float(last["IGM"]["accuracy_mean"]) == pytest.approx(0.81)
    said = sentence(tmp_path / "interaction.json")
    assert "from 0.200 ± 0.000 untrained (chance: 0.250)" in said
    assert "without fourier-GM 0.759 ± 0.009, -0.051 (p" in said
    assert "No modality changes in a stage that does not train it." in said
    assert (tmp_path / "interaction.png").stat().st_size < 200_000
