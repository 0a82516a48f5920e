"""Concepts in the published trainer and inference script of Infinity, with a few lines each.

The published code hands text over as ``(kv_compact, lens, cu_seqlens_k, max_len)``. Captions are rewritten before its
tokenizer and concepts substituted behind its encoder, by the same two functions that this system's own training and
generation call. ``docs/ti-bridge.md`` shows every line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from frostline import regions
from frostline.errors import ConfigError, StepError
from frostline.ops import checkpoint_
from frostline.systems.ti import prompts as rewriting
from frostline.systems.ti.concept import Concept, check_trainable
from frostline.systems.ti.infinity.text import CompactText, OfficialText
from frostline.systems.ti.prompts import MAX_TOKENS, Prompt


def rewrite(
    captions: Sequence[str],
    tokenizer: Any,
    concepts: Sequence[Concept],
    *,
    max_tokens: int = MAX_TOKENS,
    required: bool = True,
) -> tuple[list[str], list[Prompt]]:
    """Captions for the published script's tokenizer, and what `substitute` needs to know about them.

    Nothing may change the captions behind it: neither dynamic prompt lengths nor the positive prompt.

    Args:
        captions: With placeholders.
        tokenizer: The script's.
        concepts: Living behind T5; for those before it use `TextEncoder.encode_through`.
        max_tokens: The script's ``max_length``.
        required: Whether every caption must name a concept. True in training.

    Raises:
        DataError: See `prompts.rewrite`.
        ConfigError: A concept lives before T5.
    """
    for concept in concepts:
        if concept.space != "t5-output":
            raise ConfigError(
                f"{concept.name} lives in {concept.space}, the published scripts' T5 is closed to it",
                do="encode captions with TextEncoder.encode_through(...).official()",
            )
    found = [
        rewriting.rewrite(caption, tokenizer, concepts, max_tokens=max_tokens, required=required)
        for caption in captions
    ]
    return [prompt.text for prompt in found], found


def substitute(text_cond_tuple: OfficialText, prompts: Sequence[Prompt], concepts: Sequence[Concept]) -> OfficialText:
    """Concepts in the published text tuple: `prompts.substitute`, nothing else.

    The result's features are new, so the model's conditioning dropout, which writes into what it is given, never
    reaches a cache.

    Args:
        text_cond_tuple: ``(kv_compact, lens, cu_seqlens_k, max_len)`` of the rewritten captions.
        prompts: From `rewrite`.
        concepts: As given there.
    """
    return rewriting.substitute(CompactText.from_official(text_cond_tuple), prompts, concepts).official()


def freeze_(*models: nn.Module) -> None:
    """Freeze the published model, its image tokenizer and its text encoder, for a step that trains concepts alone.

    Parameters get no gradient and every module stays in eval mode, so drop-path is off. Two habits of the published
    transformer are put right: conditioning dropout, which eval mode does not stop, is set to 0 (a dropped sample
    teaches a concept nothing); full-block checkpointing, which eval mode silently ends, is done here instead.
    """
    for model in models:
        regions.freeze_(model)
        for parameter in model.parameters():
            parameter.grad = None
        for part in model.modules():
            if hasattr(part, "cond_drop_rate"):
                part.cond_drop_rate = 0.0  # type: ignore[assignment]
            if getattr(part, "checkpointing", None) == "full-block" and hasattr(part, "unregistered_blocks"):
                part.checkpointing = None  # type: ignore[assignment]
                checkpoint_(part, part.unregistered_blocks)  # type: ignore[arg-type]


class ConceptStep:
    """Backward and, when it is time, the update: what replaces ``gpt_opt.backward_clip_step``.

    The order is scale, backward, all-reduce, unscale, clip, step, update, zero, renormalise, and the scaler is updated
    once. Gradients are reduced before they are unscaled, as under DistributedDataParallel: all processes then see the
    same infinities and skip together. Scales are powers of two, so this changes no bit.

    Args:
        concepts: What trains.
        optimizer: From `concept_optimizer`.
        models: Looked through for parameters that still require gradients.
        scaler: For float16.
        num_accumulated: Micro-batches an update.
        clip_norm: Largest L2 norm over all concepts; 0 leaves gradients as they are.

    Raises:
        AuditError: The optimizer or the models train anything else.
        ConfigError: No micro-batches.
    """

    def __init__(
        self,
        concepts: Sequence[Concept],
        optimizer: Optimizer,
        models: Sequence[nn.Module] = (),
        *,
        scaler: torch.amp.GradScaler | None = None,
        num_accumulated: int = 1,
        clip_norm: float = 0.0,
    ) -> None:
        check_trainable(optimizer, concepts, models)
        if num_accumulated < 1:
            raise ConfigError(f"an update has {num_accumulated} micro-batches", do="take 1 or more")
        self._concepts, self._optimizer = tuple(concepts), optimizer
        self._scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
        self._num_accumulated, self._clip_norm = num_accumulated, clip_norm
        self._num_waiting = 0
        self._parameters = [concept.vectors for concept in concepts]
        if dist.is_available() and dist.is_initialized():
            with torch.no_grad():
                for tensor in (t for concept in concepts for t in (concept.vectors, concept.rms)):
                    dist.broadcast(tensor, src=0)

    def backward_step_(self, loss: Tensor) -> Tensor | None:
        """One micro-batch's backward, and the update behind the last one.

        Args:
            loss: Scalar, a mean over the micro-batch.

        Returns:
            The gradient's norm over all concepts before clipping, where an update was made or skipped for infinities;
            None where micro-batches are still to come.

        Raises:
            StepError: The loss depends on no concept, somebody else called backward, no gradient arrived on any
                process, or one that is not finite and that no scaler skips. The vectors are as they were.
        """
        if not loss.requires_grad:
            raise StepError(
                "the loss depends on no concept",
                do="call substitute on this batch's text, outside no_grad, and give the result to the model",
            )
        if self._num_waiting == 0 and any(parameter.grad is not None for parameter in self._parameters):
            raise StepError(
                "the concepts have a gradient that this step did not make",
                do="leave out loss.backward() and every other step: backward_step_ does both",
            )
        self._scaler.scale(loss / self._num_accumulated).backward()
        self._num_waiting += 1
        if self._num_waiting < self._num_accumulated:
            return None
        self._num_waiting = 0
        return self._update_()

    def _update_(self) -> Tensor:
        self._reduce_()
        self._scaler.unscale_(self._optimizer)
        limit = self._clip_norm if self._clip_norm > 0 else float("inf")
        norm = clip_grad_norm_(self._parameters, limit)
        if not self._scaler.is_enabled() and not bool(norm.isfinite()):
            self._optimizer.zero_grad(set_to_none=True)
            raise StepError("the gradient is not finite", do="look at this batch, or lower the learning rate")
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        for concept in self._concepts:
            concept.renormalise_()
        return norm

    def _reduce_(self) -> None:
        """The mean over processes, in one message; a concept that nobody's batch named keeps no gradient."""
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        device = self._parameters[0].device
        present = torch.tensor([float(p.grad is not None) for p in self._parameters], device=device)
        if world > 1:
            dist.all_reduce(present)
        live = [p for p, count in zip(self._parameters, present.tolist(), strict=True) if count]
        if not live:
            raise StepError("no gradient reached any concept", do="run `frostline audit`: it names the cut")
        if world == 1:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in live])
        dist.all_reduce(flat)
        for parameter, part in zip(live, (flat / world).split([p.numel() for p in live]), strict=True):
            parameter.grad = part.view_as(parameter)
