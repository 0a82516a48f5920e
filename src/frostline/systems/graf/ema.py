"""An average of the generator over its training."""

from __future__ import annotations

import copy

import torch
from torch import nn

from frostline.systems.graf.config import AverageConfig


def average_of(module: nn.Module) -> nn.Module:
    """A copy that holds its parameters as buffers: no optimizer finds them, and a checkpoint of a run saves them."""
    average = copy.deepcopy(module)
    for part in average.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach().clone())
    return average.eval()


@torch.no_grad()
def update_average_(average: nn.Module, module: nn.Module, config: AverageConfig, *, step: int) -> None:
    """Move an average towards its module: by 1 - `decay`, and by more in the first steps, when there is less to keep.

    Args:
        average: From `average_of`.
        module: What trains.
        config: The decay.
        step: Updates made before this one.
    """
    share = 1 - min(config.decay, (1 + step) / (10 + step))
    current = module.state_dict(keep_vars=True)
    for name, value in average.state_dict(keep_vars=True).items():
        if value.is_floating_point():
            value.lerp_(current[name].to(value.dtype), share)
        else:
            value.copy_(current[name])
