"""What the loop asks a method: when, in which mode, with which samples, and what is kept of the answer."""

from __future__ import annotations

import copy

import pytest
import torch
from rich.console import Console
from training_cases import waves

from igm_fast.methods.base import Selection
from igm_fast.methods.joint import Joint
from igm_fast.training import loop, run_folder
from igm_fast.training.config import TrainConfig
from igm_fast.training.devices import make_fabric
from igm_fast.training.progress import TrainingProgress


class Watched(Joint):
    """Trains on some samples twice, with masks, and notes every call."""

    def __init__(self):
        super().__init__()
        self.calls, self.rows, self.orders = [], [], []

    def begin_epoch(self, _stage, epoch, context):
        assert not torch.is_grad_enabled()
        assert not context.model.training
        self.calls.append(("begin", epoch))

    def order(self, _stage, epoch, shuffled, _context):
        assert sorted(shuffled.tolist()) == list(range(40))
        rows = torch.cat([shuffled, shuffled[:5]])
        kept = torch.stack([rows % 2 == 0, rows % 3 == 0], dim=1)
        self.calls.append(("order", epoch))
        self.orders.append(rows)
        return Selection(rows, kept)

    def step(self, stage, batch, progress, context):
        assert torch.is_grad_enabled()
        assert context.model.training
        assert torch.equal(batch.kept, torch.stack([batch.rows % 2 == 0, batch.rows % 3 == 0], dim=1))
        data = waves().train
        assert torch.equal(batch.inputs["right"], data.inputs["right"][batch.rows])
        assert torch.equal(batch.labels, data.labels[batch.rows])
        self.calls.append(("step", progress))
        self.rows.append(batch.rows)
        return super().step(stage, batch, progress, context)

    def end_epoch(self, _stage, epoch, scores, context):
        assert list(scores) == ["left", "right", "fused"]
        assert all(list(values) == ["loss", "accuracy", "map", "macro_f1"] for values in scores.values())
        self.calls.append(("end", epoch))
        with torch.no_grad():
            context.model.joint_head.bias.fill_(7.0 + epoch)


def train(method, run, **settings):
    config = TrainConfig(**{"data": "waves", "epochs": 2, "stages": 1, "batch_size": 16, "threads": 1, **settings})
    progress = TrainingProgress(Console(quiet=True), quiet=True)
    return loop.Trainer(config, method, waves(), make_fabric(config), run, progress).train()


@pytest.fixture
def run(tmp_path):
    folder = run_folder.RunFolder(tmp_path)
    folder.create({}, {})
    yield folder
    folder.close()


def test_calls_of_an_epoch(run):
    method = Watched()
    train(method, run)
    thirds = [("step", 0.0), ("step", 1 / 3), ("step", 2 / 3)]
    first, second = ([("begin", epoch), ("order", epoch), *thirds, ("end", epoch)] for epoch in range(2))
    assert method.calls == first + second
    assert torch.equal(torch.cat(method.rows), torch.cat(method.orders))
    # What the end of an epoch changes is in the checkpoint to go on from, not in the weights that were measured.
    assert set(run.load_last()["model"]["joint_head.bias"].tolist()) == {8.0}
    assert 8.0 not in run.load_best()["model"]["joint_head.bias"].tolist()


def test_an_epoch_needs_samples(run):
    method = Watched()
    method.order = lambda _stage, _epoch, shuffled, _context: Selection(shuffled[:1])
    with pytest.raises(ValueError, match="1 training samples, expected at least 2"):
        train(method, run)


def test_probes_have_a_network_and_an_optimizer_of_their_own(run):
    """A twin trains without a trace in the model, on whatever samples are asked for."""

    class Probing(Joint):
        def begin_epoch(self, stage, _epoch, context):
            before = copy.deepcopy(context.model.state_dict())
            twin = context.twin(copy.deepcopy(context.model).train())
            rows = torch.arange(10)
            with torch.enable_grad():
                (batch,) = twin.batches(Selection(rows))
                assert torch.equal(batch.rows, rows)
                super().step(stage, batch, 0.0, twin)
            for name, value in twin.model.state_dict().items():
                if name.endswith("weight"):
                    assert not torch.equal(value, before[name]), name
            for name, value in context.model.state_dict().items():
                assert torch.equal(value, before[name]), name
            assert not {id(p) for p in context.model.parameters()} & {
                id(p) for group in twin.optimizer.param_groups for p in group["params"]
            }

    train(Probing(), run, epochs=1)
