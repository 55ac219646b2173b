"""What does the optimizer's share of a SAM step cost: perturb and descend, with gradients given?

"projected" adds projectors of rank 32 on every convolution.
Forward and backward passes are the same for everyone and left out. Everyone has parameters, gradients and states of its
own, so that nobody finds another's data in the caches. Compulsory traffic per float32 parameter, in bytes: the norm
reads g (4); the perturbation reads ω and g and writes ω + ε and the old ω (16); the step reads ω, g and the states and
writes ω and the states (SGD with momentum 20, AdamW 28).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.agreement import Agree, Facts, relative_error, require
from benchmarks.plain_sam import ForeachSAM, TextbookSAM
from benchmarks.timing import Effort, Function, Record, compare
from igm_fast.models import ResNet18
from igm_fast.projector import FlatExponential, Projector
from igm_fast.sam import SAM

QUESTION = "perturb and step of SAM over SGD and AdamW, with and without projectors, against plain torch versions"

RHO = 0.05
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 1e-2, "momentum": 0.9, "weight_decay": 1e-4},
    "adamw": {"lr": 1e-3, "weight_decay": 1e-2},
}
BASES: dict[str, type[torch.optim.Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
BYTES_PER_PARAMETER = {"sgd": 4 + 16 + 20, "adamw": 4 + 16 + 28}
PROJECTOR_RANK = 32
TAU = 0.4
# Relative to the change of the weights, which several roundings of products enter; …
STEP_TOLERANCE = 1e-5
# … ε is so small beside ω that ω + ε keeps about three of its digits.
PERTURBATION_TOLERANCE = 1e-3


class TwoPass(Protocol):
    """What all contestants can do."""

    def perturb(self) -> None:
        """Move to ω + ε."""

    def step(self) -> None:
        """Descend from ω."""


@dataclass(frozen=True)
class Contestant:
    """An optimizer with the parameters that it alone updates."""

    params: list[nn.Parameter]
    optimizer: TwoPass

    def __call__(self) -> Contestant:
        """Make one whole step; this is what is timed."""
        self.optimizer.perturb()
        self.optimizer.step()
        return self


Build = Callable[[list[nn.Parameter]], TwoPass]


def run(effort: Effort) -> Iterator[Record]:
    """Measure both bases on all sets of shapes, then SGD with projectors on every convolution."""
    quick = effort.scale == "quick"
    resnet = _weights(ResNet18(width=64 if quick else 512))
    mlp = _weights(nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 64), nn.Linear(64, 10)))
    sets = {
        "two ResNet-18": resnet + [tensor.clone() for tensor in resnet],
        "BERT-base's shapes": _drawn(_bert_shapes(2 if quick else 12, 64 if quick else 768)),
        "MLP": mlp,
        "a thousand tensors": _drawn([(64,)] * (50 if quick else 1000)),
    }
    for base in BASES:
        if base == "adamw":  # six contestants with two states each would not fit into 24 GB
            del sets["BERT-base's shapes"]
        for name, start in sets.items():
            yield from _without_projectors(f"{name}, {_count(start)} parameters", start, base, effort)
    both = sets["two ResNet-18"]
    yield from _with_projectors(f"two ResNet-18, {_count(both)} parameters", both, effort)


def _bert_shapes(layers: int, width: int) -> list[tuple[int, ...]]:
    """Embeddings, layers and pooler of BERT-base-uncased, 110 million numbers at full width."""
    inner, vocabulary = 4 * width, 30522 * width // 768
    layer: list[tuple[int, ...]] = [(width, width), (width,)] * 4 + [(width,)] * 2
    layer += [(inner, width), (inner,), (width, inner), (width,), (width,), (width,)]
    return [
        (vocabulary, width),
        (512, width),
        (2, width),
        (width,),
        (width,),
        *layer * layers,
        (width, width),
        (width,),
    ]


def _drawn(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.02 * torch.randn(shape, generator=generator) for shape in shapes]


def _without_projectors(case: str, start: list[Tensor], base: str, effort: Effort) -> list[Record]:
    options, unavailable = OPTIONS[base], {}

    def torch_base(params: list[nn.Parameter], **kind: Any) -> torch.optim.Optimizer:
        return BASES[base](params, **options, **kind)

    builds: dict[str, Build] = {
        "textbook SAM": lambda params: TextbookSAM(params, torch_base(params, foreach=True), RHO),
        "foreach SAM": lambda params: ForeachSAM(params, torch_base(params, foreach=True), RHO),
        "foreach SAM, fused base": lambda params: ForeachSAM(params, torch_base(params, fused=True), RHO),
    }
    if importlib.util.find_spec("pytorch_optimizer"):
        builds["pytorch_optimizer SAM"] = lambda params: _PytorchOptimizerSAM(params, base)
    else:
        unavailable["pytorch_optimizer SAM"] = "not installed: pip install igm_fast[bench]"
    peers = {name: contestant(start, build) for name, build in builds.items()}
    alone = torch_base(parameters_of(start), fused=True)
    bytes_moved = BYTES_PER_PARAMETER[base] * sum(tensor.numel() for tensor in start)
    return compare(
        case,
        ours={f"optimizer SAM {base}": contestant(start, lambda params: SAM(params, base, rho=RHO, **options))},
        peers=peers,
        references={f"torch {base} alone, fused": alone.step, "copy of as many bytes": _copy_of(bytes_moved)},
        agree=same_updates(start, "textbook SAM"),
        effort=effort,
        unavailable=unavailable,
        bytes_moved=bytes_moved,
    )


def _with_projectors(case: str, start: list[Tensor], effort: Effort) -> list[Record]:
    options = OPTIONS["sgd"]
    projectors = [projector_of_rank(tensor[0].numel()) if tensor.dim() == 4 else None for tensor in start]
    dense = [None if projector is None else projector.dense() for projector in projectors]

    def ours(params: list[nn.Parameter]) -> SAM:
        optimizer = SAM(params, "sgd", rho=RHO, **options)
        pairs = zip(params, projectors, strict=True)
        optimizer.set_projectors([(param, projector) for param, projector in pairs if projector is not None])
        return optimizer

    def textbook(params: list[nn.Parameter], projections: Mapping[nn.Parameter, Any]) -> TextbookSAM:
        return TextbookSAM(params, torch.optim.SGD(params, **options, foreach=True), RHO, projections)

    def with_dense(params: list[nn.Parameter]) -> TextbookSAM:
        def product(T: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda grad: (grad.flatten(1) @ T).view_as(grad)

        return textbook(params, {p: product(T) for p, T in zip(params, dense, strict=True) if T is not None})

    def with_low_rank(params: list[nn.Parameter]) -> TextbookSAM:
        return textbook(params, {p: T.apply for p, T in zip(params, projectors, strict=True) if T is not None})

    return compare(
        case,
        ours={"optimizer SAM sgd, projected": contestant(start, ours)},
        peers={
            "textbook SAM, dense T": contestant(start, with_dense),
            "textbook SAM, low-rank T in torch": contestant(start, with_low_rank),
        },
        references={
            "ours without projectors": contestant(start, lambda params: SAM(params, "sgd", rho=RHO, **options)),
            "textbook SAM without projectors": contestant(start, lambda params: textbook(params, {})),
        },
        agree=same_updates(start, "textbook SAM, dense T"),
        effort=effort,
        bytes_moved=BYTES_PER_PARAMETER["sgd"] * sum(tensor.numel() for tensor in start),
    )


class _PytorchOptimizerSAM:
    """pytorch_optimizer's SAM with its defaults, under our names."""

    def __init__(self, params: list[nn.Parameter], base: str) -> None:
        import pytorch_optimizer  # loads a hundred optimizers: only where it is measured

        self.optimizer = pytorch_optimizer.SAM(params, BASES[base], rho=RHO, **OPTIONS[base])

    def perturb(self) -> None:
        """Move to ω + ε."""
        self.optimizer.first_step()

    def step(self) -> None:
        """Descend from ω."""
        self.optimizer.second_step()


def parameters_of(start: list[Tensor]) -> list[nn.Parameter]:
    """Return fresh copies of all weights, with the same gradients for everyone."""
    generator = torch.Generator(start[0].device).manual_seed(0)
    params = [nn.Parameter(tensor.clone()) for tensor in start]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, device=param.device)
    return params


def contestant(start: list[Tensor], build: Build) -> Contestant:
    """Return an optimizer with weights of its own."""
    params = parameters_of(start)
    return Contestant(params, build(params))


def projector_of_rank(dim: int) -> Projector:
    """A projector of fixed rank whose spectrum falls as that of activations; no more than an eighth of d."""
    rank = min(PROJECTOR_RANK, dim // 8)
    generator = torch.Generator().manual_seed(dim)
    basis = torch.linalg.qr(torch.randn(dim, rank, generator=generator))[0].contiguous()
    eigenvalues = torch.arange(1, rank + 1, dtype=torch.float64).pow(-1.0)
    function = FlatExponential(TAU)
    return Projector(dim, 1, function, "truncated", eigenvalues, torch.exp(-TAU * eigenvalues), 0.99, 0.01, basis=basis)


def same_updates(start: list[Tensor], reference: str) -> Agree:
    """The first step's change of all weights, then ε and the change in the second step, against one of the peers."""
    begin = _flat(start)

    def second_step(contestant: Contestant) -> tuple[Tensor, Tensor, Tensor]:
        after = _flat(contestant.params)
        contestant.optimizer.perturb()
        perturbed = _flat(contestant.params)
        contestant.optimizer.step()
        return after - begin, perturbed - after, _flat(contestant.params) - after

    def agree(results: Mapping[str, Contestant]) -> dict[str, Facts]:
        updates = {name: second_step(contestant) for name, contestant in results.items()}
        expected = updates[reference]
        facts: dict[str, Facts] = {}
        for name, (first, epsilon, second) in updates.items():
            step = max(relative_error(first, expected[0]), relative_error(second, expected[2]))
            perturbation = relative_error(epsilon, expected[1])
            require(name, step, STEP_TOLERANCE, "relative error of the step")
            require(name, perturbation, PERTURBATION_TOLERANCE, "relative error of the perturbation")
            facts[name] = {"step_error": step, "perturbation_error": perturbation}
        return facts

    return agree


def _flat(tensors: list[Any]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _copy_of(bytes_moved: int) -> Function:
    """A copy that reads and writes as many bytes together."""
    source, target = torch.ones(bytes_moved // 8), torch.empty(bytes_moved // 8)
    return lambda: target.copy_(source)


def _weights(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def _count(tensors: list[Tensor]) -> str:
    parameters = sum(tensor.numel() for tensor in tensors)
    return f"{parameters / 1e6:.2f} M" if parameters >= 1e6 else f"{parameters / 1e3:.0f} k"
