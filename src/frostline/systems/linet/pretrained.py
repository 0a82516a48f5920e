"""Weights of an ordinary ResNet, as torchvision names them, into one stream."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from frostline.errors import CheckpointError
from frostline.systems.linet.network import LINet
from frostline.systems.linet.streams import load_stream_, stream_of, stream_state

_NORM = {"weight": "stream_weights.{}", "bias": "stream_biases.{}", "running_mean": "stream{}_running_mean",
         "running_var": "stream{}_running_var"}  # fmt: skip
_UNUSED = re.compile(r"(?:fc\..*|.*num_batches_tracked)")


def load_resnet_(model: LINet, stream: int, state: Mapping[str, Tensor]) -> None:
    """Start a stream from a ResNet of the same depth and width; all of it, or nothing.

    For a stream with another number of input channels the first kernel is adapted; see `adapt_channels`.

    Args:
        model: Its integrated pathway, the weights that integrate streams and the classifier stay as they are.
        stream: Which.
        state: ``resnet18().state_dict()`` and the like; the classifier in it is not used.

    Raises:
        CheckpointError: A tensor is missing or left over, or has another shape.
    """
    own = stream_state(model, stream)
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not _UNUSED.fullmatch(name):
            found[_translated(name, stream)] = tensor
    missing, unknown = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which the network lacks"
        raise CheckpointError(
            f"the weights are of another network: in the stream's names, it {what}",
            do="give a ResNet of the same depth",
        )
    first = f"conv1.stream_weights.{stream}"
    found[first] = adapt_channels(found[first], own[first].shape[1])
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{name} is {tuple(tensor.shape)}, the network's is {tuple(own[name].shape)}",
                do="give a ResNet of the same width, or make the network with width_multiplier=1",
            )
    assert all(stream_of(name) == stream for name in found)
    load_stream_(model, stream, found)


def adapt_channels(weight: Tensor, num_channels: int) -> Tensor:
    """A first kernel ``(O, C, k, k)`` for another number of channels: summed for one, else repeated and scaled.

    Source: as timm adapts ``in_chans``.
    """
    num = weight.shape[1]
    if num == num_channels:
        return weight
    if num_channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(num_channels, device=weight.device) % num] * (num / num_channels)


def _translated(name: str, stream: int) -> str:
    place, _, leaf = name.rpartition(".")
    is_norm = "bn" in place.rpartition(".")[2] or place.endswith("downsample.1")
    if is_norm:
        return f"{place}.{_NORM.get(leaf, leaf).format(stream)}"
    return f"{place}.stream_weights.{stream}" if leaf == "weight" else name
