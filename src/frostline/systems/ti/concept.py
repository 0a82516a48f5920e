"""A concept: a few vectors in the place of a word, and the optimizer that trains them and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from frostline.errors import AuditError, ConfigError, ShapeError
from frostline.regions import freeze_, unfreeze_
from frostline.systems.ti.prompts import Slot, Space

RELATIVE_LEARNING_RATE = 0.03
_LEAST_TRAVEL = 0.3  # of a coordinate's size: below it, Adam cannot leave the carrier's neighbourhood


class Concept(nn.Module):
    """Textual inversion's trainable part (Gal et al. 2022, arXiv 2208.01618): vectors that stand for a placeholder.

    Behind T5 the model's first operation is RMSNorm, so a vector's length changes nothing in the image, but the
    longer it is, the less a step turns it: `renormalise_` keeps the length, and the loss.

    Args:
        name: The placeholder in prompts, such as ``<s>``.
        rows: Initial values (k, C): the carrier's rows in the same space.
        carrier: The word that the text encoder reads in its place, such as ``dog``.
        space: ``t5-output``: its rows replace T5's last hidden states, T5 runs once a prompt and is not
            differentiated. ``t5-input``: they replace input embeddings, and T5 is part of every step.
        fixed_norm: Whether `renormalise_` does anything; by default behind T5 alone, where it is free.

    Attributes:
        vectors: Float32 (k, C).
        rms: Root mean square of each initial vector, (k,).

    Raises:
        ConfigError: A name that is no placeholder, no carrier, or a row that is not finite or zero: there RMSNorm's
            slope is a thousand times the usual.
        ShapeError: Rows of another shape than (k, C).
    """

    rms: Tensor

    def __init__(
        self,
        name: str,
        rows: Tensor,
        *,
        carrier: str,
        space: Space = "t5-output",
        fixed_norm: bool | None = None,
    ) -> None:
        super().__init__()
        if rows.dim() != 2:
            raise ShapeError(f"the vectors of {name}", expected=("k", "width"), actual=tuple(rows.shape))
        self._slot = Slot(name, carrier, len(rows), space)
        self.fixed_norm = space == "t5-output" if fixed_norm is None else fixed_norm
        rms = _rms(rows.detach().float())
        if not bool((rms.isfinite() & (rms > 0)).all()):
            raise ConfigError(f"an initial vector of {name} is zero or not finite", do="start from the carrier's rows")
        self.vectors = nn.Parameter(rows.detach().float().clone())
        self.register_buffer("rms", rms)

    @property
    def slot(self) -> Slot:
        """What rewriting a prompt needs to know."""
        return self._slot

    @property
    def name(self) -> str:
        """The placeholder."""
        return self._slot.name

    @property
    def carrier(self) -> str:
        """The word that the text encoder reads in its place."""
        return self._slot.carrier

    @property
    def space(self) -> Space:
        """Where the vectors live."""
        return self._slot.space

    @property
    def num_vectors(self) -> int:
        """Positions it fills."""
        return self._slot.num_vectors

    @torch.no_grad()
    def renormalise_(self) -> None:
        """Bring every vector back to its initial length; call it behind every update."""
        if self.fixed_norm:
            self.vectors.mul_((self.rms / _rms(self.vectors).clamp_min(torch.finfo(torch.float32).tiny))[:, None])

    def extra_repr(self) -> str:
        """For printing."""
        return f"{self.name} ({self.carrier}), {tuple(self.vectors.shape)} in {self.space}"


def concept_optimizer(
    concepts: Sequence[Concept],
    models: nn.Module | Sequence[nn.Module] = (),
    *,
    relative_lr: float = RELATIVE_LEARNING_RATE,
    ti_lr: float | None = None,
    num_steps: int | None = None,
    betas: tuple[float, float] = (0.9, 0.99),
) -> AdamW:
    """Freeze everything else, and make an AdamW over exactly the concepts, without weight decay.

    Adam moves a coordinate by at most about the learning rate a step, whatever the gradient. What that means depends
    on the coordinate's size, so the rate is given relative to it.

    Args:
        concepts: What trains.
        models: Frozen for good, modes included (see `frostline.regions.freeze_`); concepts inside stay trainable.
        relative_lr: Learning rate by the vectors' root mean square.
        ti_lr: An absolute learning rate instead, as published scripts have it.
        num_steps: Updates to come; with it, a rate that cannot take the vectors anywhere is noticed.
        betas: Of Adam.

    Returns:
        A parameter group a concept.

    Warns:
        UserWarning: rate x steps is less than 0.3 of the vectors' size: nothing will be learned.

    Raises:
        ConfigError: There is no concept, or no rate.
    """
    if not concepts:
        raise ConfigError("there is no concept to train")
    if (ti_lr if ti_lr is not None else relative_lr) <= 0:
        raise ConfigError(
            f"the learning rate is {ti_lr if ti_lr is not None else relative_lr:g}", do="take more than 0"
        )
    models = [models] if isinstance(models, nn.Module) else list(models)
    for model in models:
        freeze_(model)
    for concept in concepts:
        unfreeze_(concept)
    groups = []
    for concept in concepts:
        size = float(concept.rms.mean())
        rate = relative_lr * size if ti_lr is None else ti_lr
        if num_steps is not None:
            _warn_if_idle(concept, rate * num_steps / size, rate, num_steps)
        groups.append({"params": [concept.vectors], "lr": rate})
    optimizer = AdamW(groups, betas=betas, weight_decay=0.0)
    check_trainable(optimizer, concepts, models)
    return optimizer


def check_trainable(optimizer: Optimizer, concepts: Sequence[Concept], models: Iterable[nn.Module] = ()) -> None:
    """Refuse a step that trains more than the concepts, or less.

    Raises:
        AuditError: The optimizer holds other tensors, lacks one or decays them; or a parameter of the models requires
            gradients.
    """
    wanted = {id(concept.vectors): concept.name for concept in concepts}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strangers = [parameter for parameter in held if id(parameter) not in wanted]
    if strangers:
        shapes = ", ".join(str(tuple(parameter.shape)) for parameter in strangers[:3])
        raise AuditError(
            f"the optimizer holds {len(strangers)} tensors that are no concept: {shapes}",
            do="build it with concept_optimizer",
        )
    missing = wanted.keys() - {id(parameter) for parameter in held}
    if missing:
        names = ", ".join(sorted(wanted[key] for key in missing))
        raise AuditError(f"the optimizer does not hold {names}", do="build it with concept_optimizer")
    if any(group.get("weight_decay", 0) for group in optimizer.param_groups):
        raise AuditError("the optimizer decays the concepts", do="set weight_decay to 0")
    idle = [concept.name for concept in concepts if not concept.vectors.requires_grad]
    if idle:
        raise AuditError(f"{', '.join(idle)} requires no gradient", do="freeze models first, then build the optimizer")
    live = [
        name
        for model in models
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in wanted
    ]
    if live:
        raise AuditError(
            f"{len(live)} parameters beside the concepts require gradients: {', '.join(live[:3])}",
            do="freeze the model: their gradients would be kept, and nobody zeroes them",
        )


def _warn_if_idle(concept: Concept, travel: float, rate: float, num_steps: int) -> None:
    if travel < _LEAST_TRAVEL:
        size = float(concept.rms.mean())
        relative = max(RELATIVE_LEARNING_RATE, _LEAST_TRAVEL / num_steps)
        warnings.warn(
            f"{concept.name} will learn nothing: {num_steps} steps of learning rate {rate:g} move a coordinate by "
            f"{travel:.2g} of its size at most (root mean square {size:.3g}). Take more steps, or a relative rate of "
            f"{relative:.2g}, which is ti_lr {relative * size:.2g} here",
            UserWarning,
            stacklevel=3,
        )


def _rms(rows: Tensor) -> Tensor:
    return rows.square().mean(dim=-1).sqrt()
