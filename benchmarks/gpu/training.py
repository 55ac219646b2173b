"""What does a training step cost on a GPU: plain SGD, SAM, IGM and MLA on an audio-video ResNet-18?

Made-up tensors of CREMA-D's shapes (a 257×188 spectrogram and a 224×224 picture, six classes), 64 samples, float32 with
tf32 products, as people train. A step updates both modalities, once each. Methods are those of ``igm_fast.methods``, in
the loop that the training layer runs; "SAM in torch" is the multi-tensor SAM of the optimizer benchmark. The results
differ by design, so that all others are references beside IGM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.gpu.device import Bench, precision
from benchmarks.gpu.optimizer import DeviceSAM
from benchmarks.networks import AUDIO, VIDEO, Source, batch
from benchmarks.timing import Function, Record
from igm_fast import ActivationCovariance, flat_projectors, frozen_batch_statistics, match_layers
from igm_fast.data import ModalitySpec
from igm_fast.methods import Batch, Context, Igm, Method, Mla, Stage
from igm_fast.models import MultimodalModel, build_resnet18
from igm_fast.sam import SAM

CLASSES, SAMPLES = 6, 64
OPTIONS = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}
RHO = 0.05


def run(bench: Bench) -> Iterator[list[Callable[[], list[Record]]]]:
    """Yield the one job."""
    yield [partial(_steps, bench)]


def _steps(bench: Bench) -> list[Record]:
    small = bench.quick
    sources = (Source("audio", 1, 32, 24), Source("video", 3, 32, 32)) if small else (AUDIO, VIDEO)
    samples, width = (4, 32) if small else (SAMPLES, 512)
    inputs = {source.name: batch(source, samples).to(bench.device) for source in sources}
    specs = [ModalitySpec(name, "image", tuple(x.shape[1:])) for name, x in inputs.items()]
    labels = torch.arange(samples, device=bench.device) % CLASSES
    given = Batch(inputs, labels)

    def model(method: type[Method]) -> MultimodalModel:
        torch.manual_seed(0)
        return MultimodalModel(specs, CLASSES, method.head, width, encoder=build_resnet18).to(bench.device)

    plain, with_sam = (_in_turns(model(Igm), given, Igm(rho=rho)) for rho in (0.0, RHO))
    with precision("tf32"):
        projected = model(Igm)
        igm = _in_turns(projected, given, Igm(rho=RHO), projectors=True)
        return bench.compare(
            f"two ResNet-18, {samples} samples",
            ours={"training IGM": igm},
            peers={},
            references={
                "SGD, torch": _plain_steps(model(Igm), given),
                "SGD": plain,
                "SAM": with_sam,
                "SAM in torch": _torch_sam(model(Igm), given),
                "MLA": _mla(model(Mla), given),
            },
            precision="tf32",
            agree=lambda _: {},
        )


def _context(model: MultimodalModel, optimizer: SAM) -> Context:
    """Return what a step needs; the rest, of which these methods' steps use nothing, is left out."""
    given: dict[str, Any] = {
        "model": model,
        "network": model,
        "optimizer": optimizer,
        "backward": lambda loss, _: loss.backward(),
        "mean_over_devices": lambda tensor: tensor,
        "measure": lambda _: nullcontext(),
    }
    return Context(**{field.name: given.get(field.name) for field in fields(Context)})


def _in_turns(model: MultimodalModel, given: Batch, method: Igm, *, projectors: bool = False) -> Function:
    """Steps of both modalities' stages; with projectors, each has those of the other."""
    parts: list[tuple[Stage, Context]] = []
    for index, name in enumerate(model.modalities):
        branch = model.branch(name)
        optimizer = SAM(branch.parameters(), "sgd", rho=method.rho, **OPTIONS)
        if projectors:
            (other,) = set(model.modalities) - {name}
            covariance = ActivationCovariance(model.branch(other))
            with torch.no_grad(), covariance:
                model.branch(other)(given.inputs[other])
            found = flat_projectors(covariance, method.tau, tol=method.tol)
            fitting = {layer: T for layer, T in found.items() if layer != "encoder.conv1"}  # other channels
            optimizer.set_projectors(match_layers(branch, fitting))
        parts.append((Stage(index, 0, (name,), 1), _context(model, optimizer)))

    def steps() -> None:
        for stage, context in parts:
            method.step(stage, given, 0.0, context)

    return steps


def _mla(model: MultimodalModel, given: Batch) -> Function:
    context, method = _context(model, SAM(model.parameters(), "sgd", rho=0.0, **OPTIONS)), Mla()
    stage = Stage(0, 0, tuple(model.modalities), 1)
    return lambda: method.step(stage, given, 0.0, context)


def _plain_steps(model: MultimodalModel, given: Batch) -> Function:
    parts = [(name, torch.optim.SGD(model.branch(name).parameters(), **OPTIONS, fused=True)) for name in given.inputs]

    def steps() -> None:
        for name, optimizer in parts:
            _loss(model.branch(name), given, name).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

    return steps


def _torch_sam(model: MultimodalModel, given: Batch) -> Function:
    parts = []
    for name in given.inputs:
        params = list(model.branch(name).parameters())
        parts.append((name, DeviceSAM(params, torch.optim.SGD(params, **OPTIONS, fused=True))))

    def steps() -> None:
        for name, optimizer in parts:
            branch = model.branch(name)
            _loss(branch, given, name).backward()  # type: ignore[no-untyped-call]
            optimizer.perturb()
            optimizer.base.zero_grad()
            with frozen_batch_statistics(branch):
                _loss(branch, given, name).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.base.zero_grad()

    return steps


def _loss(branch: nn.Module, given: Batch, name: str) -> Tensor:
    return functional.cross_entropy(branch(given.inputs[name]), given.labels)
