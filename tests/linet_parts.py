"""Small multi-stream networks and samples for the tests of linet."""

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from frostline.systems.linet.network import LINet
from frostline.systems.linet.reference import plain_logits
from frostline.systems.linet.treatment import Treatment

TREATMENTS = {
    "compact": Treatment(),
    "fused stem": Treatment(stem_slices=2),
    "activations": Treatment(recompute="activations"),
    "outputs": Treatment(recompute="outputs", stem_slices=2),
    "blocks": Treatment(recompute="blocks", stem_slices=2),
    "mixed": Treatment(recompute="outputs", blocks={"layer1.0": "blocks", "layer4.1": "none"}, stem_slices=1),
}


def layers_of(settings: dict[str, object]) -> tuple[int, ...] | None:
    """Few blocks, unless a depth is asked for."""
    return None if "depth" in settings else (1, 1, 2, 2)


def small_net(dtype: torch.dtype = torch.float64, *, streams: tuple[int, ...] = (3, 1), **settings) -> LINet:
    """A network of eighth width with fixed initial values, none of them neutral."""
    torch.manual_seed(0)
    settings = {"num_classes": 5, "width_multiplier": 0.125, "layers": layers_of(settings)} | settings
    model = LINet(stream_channels=streams, **settings).to(dtype)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def samples(
    num: int = 6,
    *,
    streams: tuple[int, ...] = (3, 1),
    size: int = 32,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[list[Tensor], Tensor]:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(num, channels, size, size, generator=generator, dtype=dtype) for channels in streams)
    images = [image.contiguous(memory_format=torch.channels_last) for image in drawn]
    return images, torch.randint(5, (num,), generator=generator)


def missing(text: str) -> Tensor:
    """An availability from rows such as ``"11 01 10"``."""
    return torch.tensor([[mark == "1" for mark in row] for row in text.split()])


def twins(model: LINet, treatment: Treatment) -> tuple[LINet, LINet]:
    """A model and its copy, the latter treated."""
    treated = copy.deepcopy(model)
    treated.treatment = treatment
    return model, treated


def plain_step(model: LINet, streams: list[Tensor], labels: Tensor, availability: Tensor | None) -> Tensor:
    """Forward and backward as people write it."""
    loss = F.cross_entropy(plain_logits(model, streams, availability), labels)
    loss.backward()
    return loss.detach()


def step(model: LINet, streams: list[Tensor], labels: Tensor, availability: Tensor | None) -> Tensor:
    """Forward and backward of the network itself."""
    loss = F.cross_entropy(model(streams, availability), labels)
    loss.backward()
    return loss.detach()


def worst_gradient(actual: LINet, expected: LINet) -> float:
    """Largest relative difference; a missing gradient is one of zeros."""
    worst = 0.0
    for mine, other in zip(actual.parameters(), expected.parameters(), strict=True):
        a, b = (torch.zeros_like(p) if p.grad is None else p.grad.double() for p in (mine, other))
        worst = max(
            worst, float((a - b).abs().max() / b.abs().max().clamp(min=1e-300)) if b.any() else float(a.abs().max())
        )
    return worst


def different_buffers(actual: LINet, expected: LINet) -> list[str]:
    """Names of buffers that are not bit by bit equal."""
    pairs = zip(actual.named_buffers(), expected.buffers(), strict=True)
    return [name for (name, mine), other in pairs if not torch.equal(mine, other)]
