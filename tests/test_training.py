"""The parts of the training layer: batches, metrics, checkpoints, run folder, configuration, clock, selection."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import average_precision, macro_f1
from rich.console import Console
from safetensors.torch import save_file
from torch import nn
from training_cases import digits, waves

from igm_fast.data import dataset_names
from igm_fast.methods import METHODS
from igm_fast.methods.base import Stage
from igm_fast.methods.late import Late
from igm_fast.training import batches, checkpoint, config, evaluation, loop, run_folder
from igm_fast.training.batches import Share
from igm_fast.training.clock import Clock
from igm_fast.training.config import TrainConfig
from igm_fast.training.devices import make_fabric
from igm_fast.training.progress import TrainingProgress

CPU = torch.device("cpu")

# ---- batches ---------------------------------------------------------------------------------------------------------


@given(size=st.integers(2, 60), batch_size=st.integers(4, 16), world=st.integers(1, 2))
@settings(max_examples=40)
def test_shares_make_up_the_batches(size, batch_size, world):
    data = waves(samples=60).train
    order = batches.shuffled(60, 0)[:size]
    shares = [list(batches.training_batches(data, order, batch_size, Share(r, world, CPU))) for r in range(world)]
    assert {len(share) for share in shares} == {batches.batches_per_epoch(size, batch_size, world)}
    for index, together in enumerate(zip(*shares, strict=True)):
        rows = order[index * batch_size : (index + 1) * batch_size]
        assert min(len(batch.labels) for batch in together) >= 2
        merged = torch.zeros_like(data.inputs["left"][rows])
        for rank, batch in enumerate(together):
            merged[rank::world] = batch.inputs["left"]
        assert torch.equal(merged, data.inputs["left"][rows])
        # The mean over ranks of weighted means is the mean over the batch.
        values = [batch.labels.double().mean() * batch.weight for batch in together]
        assert float(sum(values)) / world == pytest.approx(float(data.labels[rows].double().mean()), rel=1e-12)
    left = size - batch_size * (size // batch_size)
    assert batches.batches_per_epoch(size, batch_size, world) == size // batch_size + (left >= 2 * world)


def test_order_depends_on_seed_round_and_epoch_only():
    orders = {(s, r, e): tuple(batches.shuffled(50, s, r, e).tolist()) for s in (0, 1) for r in (0, 1) for e in (0, 1)}
    assert len(set(orders.values())) == 8
    torch.manual_seed(7)
    assert tuple(batches.shuffled(50, 0, 0, 0).tolist()) == orders[0, 0, 0]
    assert sorted(orders[0, 0, 0]) == list(range(50))


def test_ordered_batches_cover_everything_once():
    data = waves(samples=41).train
    seen = [batch.labels for rank in range(2) for batch in batches.ordered_batches(data, 8, Share(rank, 2, CPU))]
    assert torch.cat(seen).bincount().tolist() == data.labels.bincount().tolist()
    assert list(batches.ordered_batches(waves(samples=3).train, 8, Share(5, 6, CPU))) == []


# ---- metrics ---------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), absent=st.booleans())
@settings(max_examples=40)
def test_scores_against_their_definitions(seed, absent):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3 if absent else 4, 30)
    p = rng.dirichlet(np.ones(4), 30).astype(np.float32)
    found = evaluation.scores(torch.from_numpy(p), torch.from_numpy(labels))
    assert found["accuracy"] == pytest.approx(np.mean(p.argmax(axis=1) == labels), rel=1e-6)
    precisions = [average_precision(p[:, k], labels == k) for k in np.unique(labels)]
    assert found["map"] == pytest.approx(np.mean(precisions), rel=1e-5)
    assert found["macro_f1"] == pytest.approx(macro_f1(p.argmax(axis=1), labels), rel=1e-5)


def test_loss_is_cross_entropy_and_never_infinite():
    logits, labels = torch.randn(9, 4), torch.randint(4, (9,))
    expected = float(nn.functional.cross_entropy(logits, labels))
    assert evaluation.loss(logits.softmax(dim=1), labels) == pytest.approx(expected, rel=1e-5)
    assert evaluation.loss(torch.tensor([[1.0, 0.0]]), torch.tensor([1])) < 100


def test_evaluation_mode_restores_each_part():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    model[0].eval()
    with evaluation.evaluation_mode(model):
        assert not model[1].training
        assert not torch.is_grad_enabled()
    assert (model.training, model[0].training, model[1].training) == (True, False, True)
    assert torch.is_grad_enabled()


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def state() -> dict:
    shared = torch.randn(3, 2)
    return {
        "tensors": [shared, shared, shared.T, torch.tensor(3), torch.empty(0, 2), torch.randn(3).bfloat16()],
        "numbers": {0: 1, 1: float("inf"), "x": -0.1, (1, 2): None, "flag": True, "word": "ρ"},
        "nested": ({}, [], (), [{"tensor": "not one"}]),
    }


def assert_same_state(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same_state(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same_state(a, b)
    else:
        assert one == other


def test_checkpoint_round_trip(tmp_path):
    written = state()
    checkpoint.save(tmp_path / "x.safetensors", written)
    assert_same_state(checkpoint.load(tmp_path / "x.safetensors", ""), written)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_optimizer_state_survives(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = loop.build_optimizer(TrainConfig(optimizer="adamw"), Late(rho=0.05), model)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.perturb()
    optimizer.step()
    checkpoint.save(tmp_path / "x.safetensors", optimizer.state_dict())
    assert_same_state(checkpoint.load(tmp_path / "x.safetensors", ""), optimizer.state_dict())


def test_checkpoint_holds_plain_values_only(tmp_path):
    with pytest.raises(TypeError, match="cannot hold Linear"):
        checkpoint.save(tmp_path / "x.safetensors", {"model": nn.Linear(1, 1)})
    assert list(tmp_path.iterdir()) == []


def test_damage_is_noticed_wherever_it_is(tmp_path):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, state())
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(checkpoint.CheckpointError, match=r"x\.safetensors.*Do this\."):
            checkpoint.load(path, "Do this.")
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(checkpoint.CheckpointError, match=r"damaged or cut off.*Do this\."):
            checkpoint.load(path, "Do this.")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="there is no such checkpoint"):
        checkpoint.load(tmp_path / "none.safetensors", "")
    save_file({"w": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match="expected 'igm_fast checkpoint 1'"):
        checkpoint.load(tmp_path / "other.safetensors", "")


class Killed(BaseException):
    """Stands for the process ending here."""


@pytest.mark.parametrize("call", range(12))
def test_death_at_any_moment_of_writing_loses_nothing(tmp_path, monkeypatch, call):
    run = run_folder.RunFolder(tmp_path)
    run.last.parent.mkdir()
    for epoch in (1, 2):
        run.save_last({"epoch": epoch, "w": torch.full((4,), epoch)})
    count = 0

    def dying(real):
        def wrapper(*args, **kwargs):
            nonlocal count
            count += 1
            if count == call + 1:
                raise Killed
            return real(*args, **kwargs)

        return wrapper

    for owner, name in ((os, "link"), (os, "fsync"), (Path, "replace"), (Path, "unlink"), (checkpoint, "save_file")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    try:
        run.save_last({"epoch": 3, "w": torch.full((4,), 3)})
    except Killed:
        died = True
    else:
        died = False
    monkeypatch.undo()
    assert died == (call < count)
    assert run.load_last()["epoch"] in ((2, 3) if died else (3,))
    run.save_last({"epoch": 4})  # what the dead process left behind is in nobody's way
    assert run.load_last()["epoch"] == 4
    assert checkpoint.load(run.previous, "")["epoch"] in (2, 3)


def test_a_file_system_without_links_keeps_the_previous_one_too(tmp_path, monkeypatch):
    def refuse(*_args):
        raise OSError("Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    run = run_folder.RunFolder(tmp_path)
    run.last.parent.mkdir()
    run.save_last({"epoch": 1})
    run.save_last({"epoch": 2})
    assert (checkpoint.load(run.previous, "")["epoch"], run.load_last()["epoch"]) == (1, 2)
    run.last.write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match=r"mv .*previous\.safetensors .*last\.safetensors"):
        run.load_last()


def test_random_state_round_trip(tmp_path):
    checkpoint.save(tmp_path / "x.safetensors", checkpoint.random_state())

    def draw():
        return random.random(), float(np.random.rand()), float(np.random.normal()), float(torch.rand(()))  # noqa: NPY002

    np.random.normal()  # noqa: NPY002 - leaves half a pair in the generator
    first = draw()
    checkpoint.set_random_state(checkpoint.load(tmp_path / "x.safetensors", ""))
    np.random.normal()  # noqa: NPY002
    assert draw() == first


# ---- run folder ------------------------------------------------------------------------------------------------------


def begun(path: Path) -> run_folder.RunFolder:
    run = run_folder.RunFolder(path)
    run.create({"method": "igm"}, {"argv": []})
    return run


def test_reopen_takes_back_what_came_after_the_checkpoint(tmp_path):
    run = begun(tmp_path)
    for epoch in range(4):
        run.log([(epoch, epoch // 2, epoch % 2, "a", "train", "a", metric, 0.1) for metric in ("loss", "lr")])
    run.add_spectra([{"stage": 0, "layer": "head"}, {"stage": 1, "layer": "head"}])
    run.close()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,2,0,a,tr")  # half a line
    for stage, epoch, spectra in ((1, 1, 2), (1, 0, 1)):
        run.reopen(6, stage, epoch, 3, {"argv": ["again"]})
        run.close()
        assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 7
        assert len(json.loads((tmp_path / "spectra.json").read_text())) == spectra
    assert len(json.loads((tmp_path / "environment.json").read_text())["resumed"]) == 2
    with pytest.raises(ValueError, match="has 7 lines, expected at least 9"):
        run.reopen(8, 1, 0, 3, {})


def test_what_is_in_the_way_is_said(tmp_path):
    check = run_folder.check
    plain = {"resume": False, "overwrite": False}
    check(tmp_path / "new", **plain)
    check(tmp_path, **plain)  # empty
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        check(tmp_path / "file", **plain)
    with pytest.raises(ValueError, match="no run of this package"):
        check(tmp_path, resume=False, overwrite=True)
    run = begun(tmp_path / "run")
    run.close()
    with pytest.raises(ValueError, match=r"unfinished run\. Go on with --resume, or replace it with --overwrite"):
        check(run.path, **plain)
    check(run.path, resume=True, overwrite=False)
    run.write_json("result.json", {})
    with pytest.raises(ValueError, match=r"finished run.*--overwrite"):
        check(run.path, **plain)


def test_overwriting_removes_a_run_and_nothing_else(tmp_path):
    run = begun(tmp_path)
    run.write_json("result.json", {})
    run.close()
    (tmp_path / "notes.txt").write_text("mine")
    begun(tmp_path).close()
    assert not run.finished
    assert (tmp_path / "notes.txt").read_text() == "mine"


# ---- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_settings_round_trip(name, tmp_path):
    made = TrainConfig(method=name, lr=1e-5, out="runs/x"), METHODS[name]()
    path = tmp_path / "config.yaml"
    path.write_text(config.dump_yaml(config.flat(*made)))
    assert config.from_flat(config.read_yaml(path)) == made


@pytest.mark.parametrize("name", dataset_names())
def test_presets_favour_no_method(name):
    keys = config.preset(name)
    assert set(keys) <= set(config.config_keys())
    config.from_flat({**keys, "data": name})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"stages": 30}, "at most epochs, which is 24"),
        ({"batch_size": 3, "devices": 2}, "batch_size is 3, expected at least 4"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"threads": -1}, "threads is -1"),
        ({"resume": True, "overwrite": True}, "both given"),
        ({"method": "ignm"}, "unknown method 'ignm'. Did you mean 'igm'"),
        ({"method": "late", "tau": 1}, "unknown setting of method late 'tau'"),
    ],
)
def test_bad_settings(given, said):
    with pytest.raises(ValueError, match=said):
        config.from_flat(given)


@pytest.mark.parametrize(
    ("text", "said"), [("a: [1, 2]", "expected flat"), ("- a", "expected flat"), ("a: : b", "not readable YAML")]
)
def test_bad_yaml(tmp_path, text, said):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        config.read_yaml(path)
    path.write_text("")
    assert config.read_yaml(path) == {}


# ---- loop ------------------------------------------------------------------------------------------------------------


def trainer(data, run, method=None, **settings):
    made = TrainConfig(**{"data": "waves", "epochs": 2, "stages": 1, "batch_size": 16, "threads": 1, **settings})
    progress = TrainingProgress(Console(quiet=True), quiet=True)
    return loop.Trainer(made, method or Late(), data, make_fabric(made), run, progress)


def test_selection_takes_the_latest_of_the_best_fused_epochs(tmp_path, monkeypatch):
    """Candidates are epochs from the last modality's first stage on; the fused validation accuracy decides."""
    fused = iter([0.9, 0.9, 0.5, 0.7, 0.7, 0.6])  # stages: left 2 epochs, right 2, left 1, right 1
    monkeypatch.setattr(
        evaluation,
        "all_scores",
        lambda outputs, _labels: {
            b: dict.fromkeys(evaluation.METRICS, next(fused) if b == "fused" else 1.0) for b in outputs
        },
    )
    run = begun(tmp_path)
    training = trainer(waves(), run, epochs=3, stages=2)
    training._finish = dict
    training.train()
    run.close()
    assert run.load_best()["global_epoch"] == 4


def test_nan_ends_the_run_with_its_place(tmp_path):
    data = waves()
    data.train.inputs["right"][int(batches.shuffled(40, 0, 0, 1)[20]), 0, 0] = torch.nan
    run = begun(tmp_path)
    with pytest.raises(loop.TrainingError, match=r"right is nan in stage 2 \(right\), epoch [12], batch [123] of 3"):
        trainer(data, run).train()
    run.close()
    assert run.load_last()["position"]["stage"] == 1


def test_training_set_too_small(tmp_path):
    data = waves(samples=40)
    object.__setattr__(data.train, "labels", data.train.labels[:1])
    with pytest.raises(ValueError, match="1 training samples, expected at least 2"):
        trainer(data, begun(tmp_path))


def test_learning_rate_falls_along_a_cosine_in_every_stage(tmp_path, monkeypatch):
    seen = []
    step = Late.step

    def watched(self, stage, batch, progress, context):
        seen.append((stage.index, context.optimizer.param_groups[0]["lr"]))
        return step(self, stage, batch, progress, context)

    monkeypatch.setattr(Late, "step", watched)
    run = begun(tmp_path)
    trainer(waves(samples=32), run, lr=0.1).train()
    run.close()
    expected = [0.05 * (1 + np.cos(np.pi * t / 4)) for t in range(4)]
    assert [stage for stage, _ in seen] == [0] * 4 + [1] * 4
    assert [lr for _, lr in seen] == pytest.approx(expected * 2)


@pytest.mark.parametrize("name", METHODS)
def test_learns_above_chance_with_batch_norm(name, tmp_path):
    method = METHODS[name](modality="left") if name == "unimodal" else METHODS[name]()
    run = begun(tmp_path)
    result = trainer(waves(), run, method, epochs=4, stages=2, lr=0.05).train()
    run.close()
    branch = "left" if name == "unimodal" else "fused"
    assert result["test"][branch]["accuracy"] > 0.7  # three classes
    assert result["modalities"] == (["left"] if name == "unimodal" else ["left", "right"])


def test_bfloat16_arithmetic_runs(tmp_path):
    run = begun(tmp_path)
    result = trainer(waves(), run, METHODS["igm"](), precision="bf16-mixed", lr=0.05, epochs=4).train()
    run.close()
    assert result["test"]["fused"]["accuracy"] > 0.7


def test_clock_adds_up_over_interruptions():
    clock = Clock()
    clock.enter_stage(0, "a")
    with clock("train"):
        pass
    clock = Clock(clock.timing() | {"total": 100.0, "train": 40.0})
    clock.enter_stage(0, "a")
    clock.enter_stage(1, "b")
    with pytest.raises(KeyError), clock("statistics"):
        raise KeyError
    timing = clock.timing()
    assert [row["stage"] for row in timing["per_stage"]] == [0, 1]
    assert "statistics" in timing["per_stage"][1]
    assert timing["train"] == 40.0
    assert 100.0 < timing["total"] < 110.0


def test_progress_says_one_line_per_stage(capsys):
    console = Console(width=200, force_terminal=False)
    with TrainingProgress(console, quiet=False) as progress:
        stages = [Stage(0, 0, ("a",), 2), Stage(1, 0, ("b",), 1)]
        progress.begin(stages, 0)
        for stage, epoch in ((stages[0], 0), (stages[0], 1), (stages[1], 0)):
            progress.epoch(stage, epoch, {stage.trained: 0.5}, {"fused": {"accuracy": 0.75}})
    assert capsys.readouterr().out.splitlines() == [
        "stage 1/2 a: 2 epochs, loss 0.500; validation accuracy fused 0.750",
        "stage 2/2 b: 1 epochs, loss 0.500; validation accuracy fused 0.750",
    ]


def test_digits_case_has_every_class():
    assert digits(60).train.labels.unique().numel() == 10
