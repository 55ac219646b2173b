"""Model and optimizer as the configuration asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from igm_fast.data import ModalitySpec, MultimodalData
from igm_fast.data.seeds import derived_seed
from igm_fast.methods.base import Method
from igm_fast.models import Loaded, MultimodalModel, branch_state, build_encoder, load_pretrained
from igm_fast.sam import SAM
from igm_fast.training import checkpoint
from igm_fast.training.config import TrainConfig


def build_model(method: Method, data: MultimodalData, config: TrainConfig) -> MultimodalModel:
    """Return the model that a method trains, with first weights that depend on the seed.

    Each modality has a seed of its own: its first weights are the same in every method and beside any other modality,
    so that methods compared on one seed start from the same point.

    Raises:
        ValueError: the method cannot use the data's modalities, or an encoder cannot read its modality.
    """
    specs = {spec.name: spec for spec in data.modalities}
    used = [specs[name] for name in method.modalities(list(specs))]
    sources = config.sources()

    def seeded_encoder(spec: ModalitySpec, width: int) -> nn.Module:
        torch.manual_seed(derived_seed("weights", config.seed, spec.name))  # also for the branch's head
        return build_encoder(spec, width, sources.get(spec.name))

    widths = config.widths_of_head
    heads = method.heads()
    model = MultimodalModel(used, data.num_classes, heads, config.width, encoder=seeded_encoder, head_widths=widths)
    torch.manual_seed(config.seed)
    return model


def load_sources(model: MultimodalModel, config: TrainConfig) -> dict[str, Loaded]:
    """Load the pretrained weights that are asked for into the encoders; return what fitted, by modality.

    Raises:
        ValueError: weights that cannot be read, or of which nothing fits.
        CheckpointError: a run folder whose checkpoint is missing or damaged.
    """
    loaded: dict[str, Loaded] = {}
    for name, source in config.sources().items():
        if name not in model.modalities:  # a unimodal run is given what all runs of a comparison are given
            continue
        encoder, best = model.branch(name).encoder, source / "checkpoints" / "best.safetensors"
        if best.exists():
            state = checkpoint.load(best, f"Give another source: --pretrained {name}=PATH.")
            loaded[name] = load_pretrained(encoder, branch_state(state["model"], name), str(source))
        else:
            loaded[name] = load_pretrained(encoder, source)
    return loaded


def build_optimizer(config: TrainConfig, method: Method, model: nn.Module, apart: Iterable[str] = ()) -> SAM:
    """Return a fresh optimizer over the parameters that train now.

    Args:
        config: learning rate, rule and decay.
        method: whose radius of SAM it has.
        model: what trains.
        apart: modalities whose parameters make a group of their own, with the modality's name under ``"modality"``.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = []
    for name in apart:
        assert isinstance(model, MultimodalModel)
        own = set(model.branch(name).parameters())
        groups.append({"params": [parameter for parameter in parameters if parameter in own], "modality": name})
        parameters = [parameter for parameter in parameters if parameter not in own]
    if parameters or not groups:
        groups.append({"params": parameters})
    rule: dict[str, Any] = {"base": "sgd", "momentum": config.momentum}
    if config.optimizer != "sgd":
        rule = {"base": "adamw", "betas": config.both_betas, "decoupled": config.optimizer == "adamw"}
    return SAM(groups, lr=config.lr, rho=method.rho, weight_decay=config.weight_decay, **rule, **method.sam_options())


def freeze_all_but(model: MultimodalModel, modalities: Sequence[str]) -> None:
    """Let some branches train; the others keep every bit: no gradients, and batch norm in evaluation mode."""
    model.train()
    for name in model.modalities:
        branch = model.branch(name)
        branch.requires_grad_(name in modalities)
        branch.train(name in modalities)
