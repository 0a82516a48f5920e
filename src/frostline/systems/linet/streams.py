"""One stream of a network by itself: which tensors are its own, and how it stands still."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from frostline.errors import CheckpointError, ConfigError
from frostline.systems.linet.layers import LIBatchNorm2d
from frostline.systems.linet.network import LINet

_OWN = re.compile(r"(?:.*\.)?(?:stream_(?:weights|biases)\.(\d+)|stream(\d+)_running_(?:mean|var))")
_INTEGRATION = re.compile(r"(?:.*\.)?integration_from_streams\.(\d+)")


def stream_of(name: str) -> int | None:
    """The stream that a tensor of a network's `state_dict` belongs to; None for what all share."""
    match = _OWN.fullmatch(name)
    return None if match is None else int(match[1] or match[2])


def integrates(name: str) -> int | None:
    """The stream whose part in the integrated pathway a tensor weighs; None for every other tensor."""
    match = _INTEGRATION.fullmatch(name)
    return None if match is None else int(match[1])


def stream_parameters(model: LINet, stream: int) -> dict[str, nn.Parameter]:
    """A stream's own parameters by name: convolutions and normalisations, not the weights that integrate it."""
    return {name: parameter for name, parameter in model.named_parameters() if stream_of(name) == stream}


def stream_state(model: LINet, stream: int) -> dict[str, Tensor]:
    """A copy of a stream's own parameters and statistics, to be loaded again with `load_stream_`."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if stream_of(name) == stream}


@torch.no_grad()
def load_stream_(model: LINet, stream: int, state: Mapping[str, Tensor]) -> None:
    """Put back what `stream_state` returned; all of it, or nothing.

    Raises:
        CheckpointError: The state is of another stream or another network.
    """
    own = {name: tensor for name, tensor in model.state_dict().items() if stream_of(name) == stream}
    wrong = own.keys() ^ state.keys() or [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        raise CheckpointError(f"the state is not one of stream {stream} of this network: {min(wrong)}")
    for name, tensor in own.items():
        tensor.copy_(state[name])


def freeze_stream_(model: LINet, stream: int) -> None:
    """Let a stream stand still: its parameters get no gradient, its statistics no update, in training too.

    It still works, by its running statistics, and the weights that integrate it still train. Nothing that its own
    gradient would need is kept for backward. Twice is once.

    Raises:
        ConfigError: There is no such stream.
    """
    _switch(model, stream, frozen=True)


def unfreeze_stream_(model: LINet, stream: int) -> None:
    """Undo `freeze_stream_`."""
    _switch(model, stream, frozen=False)


def frozen_streams(model: LINet) -> tuple[int, ...]:
    """The streams that stand still."""
    return tuple(sorted(model.bn1.frozen_streams))


def _switch(model: LINet, stream: int, *, frozen: bool) -> None:
    if not 0 <= stream < model.num_streams:
        raise ConfigError(f"there is no stream {stream}", do=f"name one from 0 to {model.num_streams - 1}")
    for parameter in stream_parameters(model, stream).values():
        parameter.requires_grad_(not frozen)
        if frozen:
            parameter.grad = None
    for module in model.modules():
        if isinstance(module, LIBatchNorm2d):
            others = module.frozen_streams - {stream}
            module.frozen_streams = others | {stream} if frozen else others
