"""LINet as people run it: every stream on every sample, masks by multiplication, nothing traded for memory.

frostline's network is proven against this one, gradient by gradient and buffer by buffer, and the byte table starts
from it. The published rows of that table are its masking operators in our words.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from frostline.systems.linet.blocks import LIBlock
from frostline.systems.linet.layers import LIBatchNorm2d, LIConv2d, Pathways
from frostline.systems.linet.network import LINet

Masking = Literal["before", "masks", "writes", "after"]
"""How missing rows are taken out: the published ways before and after the optimisation that was to save memory.

Before, convolutions are multiplied by the mask out of place, and normalised rows are written by an index into zeros.
After, they are multiplied in place, and the rows are written by `Tensor.index_copy_`, which keeps all it writes.
With ``masks`` or ``writes`` only that half is as after.
"""


def plain_logits(
    model: LINet,
    streams: Sequence[Tensor],
    availability: Tensor | None = None,
    *,
    masking: Masking = "before",
    checkpointed: bool = False,
) -> Tensor:
    """Logits ``(B, K)`` of the network's parameters, updating its buffers; all maskings have the same values.

    Args:
        model: Its parameters and buffers, in its mode.
        streams: ``(B, C_i, H, W)`` each; missing ones are computed with, and must be finite.
        availability: ``(B, N)`` bool; None if all samples have all streams.
        masking: How missing rows are taken out.
        checkpointed: Run each block under torch's checkpointing, which runs it again in backward and so updates the
            running statistics twice.
    """
    masks = None
    if availability is not None and not bool(availability.all()):
        masks = [availability[:, index] for index in range(model.num_streams)]
    plain = _Plain(masks, masking)
    pathways = plain.convolve(model.conv1, list(streams), None)
    if model.missing_embeddings is not None and availability is not None:
        fill = (~availability).to(model.missing_embeddings.dtype) @ model.missing_embeddings
        pathways = pathways[0], pathways[1] + fill[:, :, None, None]
    pathways = plain.normalise(model.bn1, *pathways)
    maps = [F.max_pool2d(F.relu_(x), 3, 2, 1) for x in (*pathways[0], pathways[1])]
    pathways = maps[:-1], maps[-1]
    for _, block in model.blocks():
        run = partial(checkpoint, plain.block, use_reentrant=False) if checkpointed else plain.block
        pathways = run(block, *pathways)
    logits: Tensor = model.fc(model.dropout(model.avgpool(pathways[1]).flatten(1)))
    return logits


class _Plain:
    def __init__(self, masks: list[Tensor] | None, masking: Masking) -> None:
        self.masks, self.masking = masks, masking

    def block(self, block: LIBlock, streams: list[Tensor], integrated: Tensor) -> Pathways:
        pathways: Pathways = streams, integrated
        for number in range(1, block.num_layers + 1):
            conv, norm = block.get_submodule(f"conv{number}"), block.get_submodule(f"bn{number}")
            assert isinstance(conv, LIConv2d) and isinstance(norm, LIBatchNorm2d)
            pathways = self.normalise(norm, *self.convolve(conv, *pathways))
            if number < block.num_layers:
                pathways = [F.relu_(x) for x in pathways[0]], F.relu_(pathways[1])
        if block.downsample is not None:
            conv, norm = block.downsample
            assert isinstance(conv, LIConv2d) and isinstance(norm, LIBatchNorm2d)
            streams, integrated = self.normalise(norm, *self.convolve(conv, streams, integrated))
        outs = [x.add_(y) for x, y in zip((*pathways[0], pathways[1]), (*streams, integrated), strict=True)]
        outs = [F.relu_(x) for x in outs]
        return outs[:-1], outs[-1]

    def convolve(self, conv: LIConv2d, streams: list[Tensor], integrated: Tensor | None) -> Pathways:
        total = None
        if integrated is not None:
            total = F.conv2d(integrated, conv.integrated_weight, None, conv.stride, 0, 1, conv.groups)
        convolved = []
        for index, (stream, weight) in enumerate(zip(streams, conv.stream_weights, strict=True)):
            result = self._mask(conv.convolve(stream, weight), index)
            part = F.conv2d(result, conv.integration_from_streams[index])
            total = part if total is None else total.add_(part)
            convolved.append(result)
        assert total is not None
        return convolved, total

    def normalise(self, norm: LIBatchNorm2d, streams: list[Tensor], integrated: Tensor) -> Pathways:
        momentum = 0.0 if norm.momentum is None else norm.momentum
        if norm.training:
            norm.num_batches_tracked.add_(1)
            momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        outs = []
        for index, stream in enumerate(streams):
            mask = None if self.masks is None else self.masks[index]
            if mask is not None and not mask.any():
                outs.append(stream.clone())  # zeros already; no statistics
                continue
            rows = None if mask is None or bool(mask.all()) else mask.nonzero().flatten()
            active = stream if rows is None else stream[rows]
            weight, bias = norm.stream_weights[index], norm.stream_biases[index]
            mean, var = norm.running_statistics(index)
            training = norm.training and index not in norm.frozen_streams
            normalised = F.batch_norm(active, mean, var, weight, bias, training, momentum, norm.eps)
            outs.append(normalised if rows is None else self._write(stream, rows, normalised))
        mean, var = norm.running_statistics(None)
        weight, bias = norm.integrated_weight, norm.integrated_bias
        return outs, F.batch_norm(integrated, mean, var, weight, bias, norm.training, momentum, norm.eps)

    def _mask(self, stream: Tensor, index: int) -> Tensor:
        if self.masks is None:
            return stream
        factor = self.masks[index].to(stream.dtype).view(-1, 1, 1, 1)
        return stream.mul_(factor) if self.masking in ("masks", "after") else stream * factor

    def _write(self, stream: Tensor, rows: Tensor, normalised: Tensor) -> Tensor:
        if self.masking in ("writes", "after"):
            return stream.new_zeros(stream.shape).index_copy_(0, rows, normalised)
        out = torch.zeros_like(stream)
        out[rows] = normalised
        return out
