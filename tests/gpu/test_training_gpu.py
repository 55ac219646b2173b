"""Training on a GPU: short runs of three methods, their first steps beside those of the CPU, resume.

Without the command line, whose parser may be missing where a GPU is lent for a few minutes.
"""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest
import torch

try:
    import lightning_fabric
except ModuleNotFoundError:  # the umbrella package holds the same
    lightning_fabric = pytest.importorskip("lightning.fabric", reason="training needs Lightning Fabric")
    sys.modules["lightning_fabric"] = lightning_fabric
for _needed in ("rich", "safetensors", "tensorboard", "torchmetrics", "yaml"):
    pytest.importorskip(_needed, reason=f"training needs {_needed}")

from rich.console import Console  # noqa: E402

from igm_fast.data import MultimodalData, from_tensors, load_dataset  # noqa: E402
from igm_fast.methods import METHODS  # noqa: E402
from igm_fast.training.config import TrainConfig, flat  # noqa: E402
from igm_fast.training.devices import make_fabric  # noqa: E402
from igm_fast.training.loop import Trainer  # noqa: E402
from igm_fast.training.progress import TrainingProgress  # noqa: E402
from igm_fast.training.run_folder import RunFolder  # noqa: E402

pytestmark = pytest.mark.gpu

CASES = {
    "igm": {},
    "igm full": {"estimator": "full", "tau": 4.0},
    "igm-no-sam": {},
    "late": {},
    "late sam": {"rho": 0.05},
    "mla": {},
}


class _Stopped(Exception):  # noqa: N818 - asked for
    pass


def data(samples: int = 60) -> MultimodalData:
    """Some samples of each part of digits3, of every class."""
    whole = load_dataset("digits3")
    chosen = {name: torch.linspace(0, len(part) - 1, samples).long() for name, part in whole.parts.items()}
    parts = [part.__getitems__(chosen[name]) for name, part in whole.parts.items()]
    return from_tensors(*parts, name="digits3", classes=whole.classes, standardize=False)


def train(
    folder: Path, case: str, device: str, *, epochs: int = 2, batch_size: int = 16, stop_after: int = 0, resume=False
) -> tuple[Trainer, dict]:
    name = case.split()[0]
    method = METHODS[name](**CASES[case])
    config = TrainConfig(
        method=name, data="digits3", epochs=epochs, stages=min(epochs, 2), batch_size=batch_size, accelerator=device
    )
    lightning_fabric.seed_everything(config.seed, verbose=False)
    fabric = make_fabric(config)
    fabric.launch()
    run = RunFolder(folder)
    saved = None
    if resume:
        saved = run.load_last()
        place = saved["position"]
        run.reopen(place["rows"], place["stage"], place["epoch"], place["global_epoch"], {})
    else:
        run.create(flat(config, method), {})
    with TrainingProgress(Console(), quiet=True) as progress:
        trainer = Trainer(config, method, data(), fabric, run, progress, saved)
        if stop_after:
            save, left = trainer._save, [stop_after]

            def save_and_stop(*arguments) -> None:
                save(*arguments)
                left[0] -= 1
                if left[0] == 0:
                    raise _Stopped

            trainer._save = save_and_stop  # type: ignore[method-assign]
        try:
            return trainer, trainer.train()
        except _Stopped:
            return trainer, {}
        finally:
            run.close()


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("case", list(CASES))
def test_short_run(case, tmp_path):
    trainer, result = train(tmp_path / "run", case, "cuda")
    assert all(parameter.is_cuda for parameter in trainer.model.parameters())
    assert 0 <= result["test"]["fused"]["accuracy"] <= 1
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["value"]) for row in rows if row["metric"] == "loss"]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)


@pytest.fixture
def _without_tf32():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False  # convolutions in full float32, as on the CPU
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("_without_tf32")
@pytest.mark.parametrize("case", list(CASES))
def test_one_step_per_stage_agrees_with_the_cpu(case, tmp_path):
    """The second modality's step goes through the first one's statistics and projectors."""
    on_gpu, _ = train(tmp_path / "gpu", case, "cuda", epochs=1, batch_size=64)
    on_cpu, _ = train(tmp_path / "cpu", case, "cpu", epochs=1, batch_size=64)
    expected = weights(on_cpu)
    assert any(name.endswith("weight") for name in expected)
    for name, value in weights(on_gpu).items():
        # Sums of some hundred terms in another order, through a forward and a backward pass of a few layers.
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("case", ["igm", "mla"])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_resume(case, stop_after, tmp_path):
    """What was interrupted goes on as if it had not been, also where projectors come from the checkpoint."""
    epochs = 4
    whole, expected = train(tmp_path / "whole", case, "cuda", epochs=epochs)
    train(tmp_path / "parts", case, "cuda", epochs=epochs, stop_after=stop_after)
    resumed, result = train(tmp_path / "parts", case, "cuda", epochs=epochs, resume=True)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=1e-4, atol=1e-5)
    assert result["selected_epoch"] == expected["selected_epoch"]
