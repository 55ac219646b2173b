"""Lightning Fabric set up from the configuration, and the two things that processes agree on beside gradients."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from igm_fast.training.config import TrainConfig


def make_fabric(config: TrainConfig, devices: int | None = None) -> Fabric:
    """Return Fabric for a run, not yet launched.

    Under torchrun the number of processes is torchrun's; otherwise Fabric starts ``devices`` processes itself.

    Args:
        config: settings.
        devices: instead of the configuration's.

    Raises:
        ValueError: cuda is asked for and not there.
    """
    if config.accelerator == "cuda" and not torch.cuda.is_available():
        raise ValueError("accelerator is cuda, but torch finds no CUDA device; use --accelerator cpu")
    nodes = 1
    if devices is None and "TORCHELASTIC_RUN_ID" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif devices is None:
        devices = config.devices
    several = devices * nodes > 1 or (config.strategy == "ddp" and devices == config.devices)
    if config.accelerator != "cpu":
        # A resumed run repeats the interrupted one: cuDNN may neither choose by timing nor add in any order.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    return Fabric(
        accelerator=config.accelerator,
        devices=devices,
        num_nodes=nodes,
        # Modalities whose turn it is not have no gradient: DDP must look for unused parameters.
        strategy="ddp_find_unused_parameters_true" if several else "auto",
        precision=config.precision,
    )


def is_first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is, or will be, rank 0; may be asked before Fabric is launched."""
    return environment.get("RANK", environment.get("LOCAL_RANK", "0")) == "0"


def mean_over_devices(fabric: Fabric, value: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes."""
    if fabric.world_size == 1:
        return value
    mean = fabric.all_reduce(value, reduce_op="mean")
    assert isinstance(mean, Tensor)
    return mean


def broadcast_buffers(fabric: Fabric, module: nn.Module) -> None:
    """Give every process the first one's buffers: running statistics of batch norm differ by the last batch."""
    if fabric.world_size > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


def broadcast_state(fabric: Fabric, module: nn.Module) -> None:
    """Give every process the first one's weights and buffers."""
    if fabric.world_size > 1:
        for tensor in module.state_dict().values():
            torch.distributed.broadcast(tensor, 0)
