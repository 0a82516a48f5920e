"""What training minimises: a classification loss, and a term that keeps the streams in balance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.errors import ConfigError
from frostline.systems.linet.layers import LIConv2d
from frostline.systems.linet.network import LINet

Objective = Literal["cross_entropy", "focal"]


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    kind: Objective = "cross_entropy",
    label_smoothing: float = 0.0,
    focal_gamma: float = 2.0,
) -> Tensor:
    """The mean loss over samples, a scalar in float32 or wider.

    Args:
        logits: ``(B, K)``.
        labels: ``(B,)``.
        kind: ``focal`` weighs each sample's cross-entropy by ``(1 - p) ** gamma``, p being its class's probability.
        label_smoothing: Share of the target that all classes have in common.
        focal_gamma: The exponent.

    Source: Lin et al., Focal Loss for Dense Object Detection (2017), equation 4, without class weights.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if kind == "cross_entropy":
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    losses = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    missed = -torch.expm1(-F.cross_entropy(logits, labels, reduction="none"))
    # At 0 the power has no finite slope for exponents below 1, and the clamp has none at all.
    return (missed.clamp(min=torch.finfo(missed.dtype).tiny) ** focal_gamma * losses).mean()


class BalanceLoss:
    """How differently loud the streams are where they are integrated.

    The mean over a stage's convolutions of the variance over streams of ``log(rms of what the stream adds)``. Only
    samples that have a stream count for it, and a stream that no sample of the batch has does not count at all, so
    dropout does not look like imbalance. Where nothing is missing it is the published term.

    Args:
        model: The network.
        layer: Name of the stage.

    Raises:
        ConfigError: No such stage.
    """

    def __init__(self, model: LINet, layer: str = "layer4") -> None:
        stage = dict(model.named_children()).get(layer)
        if not isinstance(stage, nn.ModuleList):
            raise ConfigError(f"the network has no stage {layer!r}", do="name layer1, layer2, layer3 or layer4")
        self._convolutions = [module for module in stage.modules() if isinstance(module, LIConv2d)]
        self._terms: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[BalanceLoss]:
        """Note what streams add in every forward inside."""
        handles = [conv.register_forward_hook(self._note) for conv in self._convolutions]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self._terms = []

    def take(self, like: Tensor) -> Tensor:
        """The term of the last forward, a scalar; 0 where fewer than two streams had a sample."""
        terms, self._terms = self._terms, []
        return torch.stack(terms).mean() if terms else like.new_zeros((), dtype=torch.float32)

    def _note(self, conv: nn.Module, inputs: tuple[Any, ...], output: tuple[Sequence[Tensor], Tensor]) -> None:
        assert isinstance(conv, LIConv2d)
        if not torch.is_grad_enabled():
            return
        loudness = [
            _log_rms(F.conv2d(stream, weight))
            for stream, weight in zip(output[0], conv.integration_from_streams, strict=True)
            if len(stream)
        ]
        if len(loudness) > 1:
            self._terms.append(torch.stack(loudness).var())


def _log_rms(part: Tensor) -> Tensor:
    part = part.to(torch.promote_types(part.dtype, torch.float32))
    return 0.5 * (part.square().mean() + 1e-16).log()
