"""Spectra of a trained network's activations: train a ResNet-18, measure its layers, keep the eigenvalues of each C.

    python -m benchmarks.trained        about six minutes on two cores; writes benchmarks/spectra/resnet18.npz

The network is ``igm_fast.models.ResNet18`` (width 512: twenty convolutions, d from 64 to 4608) with a linear head on
the pictures of the embedded emoji set, 32×32, enlarged so that the last maps are still 4×4. It is trained by SGD, first
on smaller pictures. C is the second moment of every layer's input over the training pictures (``estimator="full"``, not
centred), in evaluation mode. Only the eigenvalues are kept, 124 kB: what a projector costs and how well a low rank
approximates it depend on these alone, so that a benchmark may pair them with any eigenvectors.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from igm_fast import ActivationCovariance
from igm_fast.data.dataset import MultimodalData, MultimodalDataset
from igm_fast.data.sets import emoji
from igm_fast.models import ResNet18

FILE = Path(__file__).parent / "spectra" / "resnet18.npz"
ABOUT = "about"  # the file's entry that says how it was made
# Height and width of the pictures, and epochs with them: the last maps are 2×2 and 4×4.
PHASES = ((64, 6), (100, 2))
BATCH = 32
LEARNING_RATE = 0.05


def spectra() -> dict[str, Tensor]:
    """Return layer → eigenvalues of its C, descending, ``[d]`` float64 (stored as float32)."""
    with np.load(FILE) as file:
        return {name: torch.from_numpy(file[name]).double() for name in file.files if name != ABOUT}


def about() -> dict[str, object]:
    """Return how the stored spectra were made: set, training, accuracy, torch version."""
    with np.load(FILE) as file:
        said: dict[str, object] = json.loads(str(file[ABOUT]))
    return said


def train(data: MultimodalData, phases: tuple[tuple[int, int], ...] = PHASES, seed: int = 0) -> nn.Module:
    """Return the trained network, in evaluation mode; phases: size of the pictures, epochs with them."""
    torch.manual_seed(seed)
    network = nn.Sequential(ResNet18(channels=3, width=512), nn.Linear(512, len(data.classes)))
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
    steps = sum(epochs for _, epochs in phases) * (len(data.train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for size, epochs in phases:
        for epoch in range(epochs):
            losses = []
            for pictures, labels in batches(data.train, size, torch.randperm(len(data.train))):
                if len(labels) < BATCH:
                    continue
                loss = functional.cross_entropy(network(pictures), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
            print(f"{size}×{size}, epoch {epoch + 1}: loss {np.mean(losses):.3f}", flush=True)
    return network.eval()


def accuracy(network: nn.Module, part: MultimodalDataset) -> float:
    """Return the share of pictures whose class is found."""
    size = PHASES[-1][0]
    with torch.no_grad():
        found = [(network(pictures).argmax(1) == labels).sum() for pictures, labels in batches(part, size)]
    return float(sum(found)) / len(part)


def measure(network: nn.Module, part: MultimodalDataset) -> dict[str, Tensor]:
    """Return layer → eigenvalues of the second moment of its input, descending, float64."""
    encoder = network[0]
    with torch.no_grad(), ActivationCovariance(encoder, estimator="full") as covariance:
        for pictures, _ in batches(part, PHASES[-1][0]):
            encoder(pictures)
    eigenvalues = {}
    for name in covariance:
        eigenvalues[name] = torch.linalg.eigvalsh(covariance[name].double()).flip(0)
        print(f"{name}: d={len(eigenvalues[name])}, {covariance.count(name):.0f} inputs", flush=True)
    return eigenvalues


def batches(part: MultimodalDataset, size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield enlarged pictures and their labels."""
    pictures = part.inputs["picture"]
    for chosen in (torch.arange(len(part)) if order is None else order).split(BATCH):
        enlarged = functional.interpolate(pictures[chosen], size=(size, size), mode="bilinear", antialias=True)
        yield enlarged, part.labels[chosen]


def main() -> None:
    """Train, measure and write the file."""
    argparse.ArgumentParser(prog="python -m benchmarks.trained", description=__doc__.partition("\n")[0]).parse_args()
    data = emoji.load(seed=0)
    network = train(data)
    facts = {
        "set": "emoji",
        "phases": PHASES,
        "test_accuracy": round(accuracy(network, data.test), 3),
        "samples": len(data.train),
        "torch": torch.__version__,
        "command": "python -m benchmarks.trained",
    }
    print(facts)
    arrays = {name: values.numpy().astype(np.float32) for name, values in measure(network, data.train).items()}
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **arrays, **{ABOUT: np.array(json.dumps(facts))})
    print(f"Written: {FILE}, {FILE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
