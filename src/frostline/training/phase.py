"""A phase: one loss and the optimizers it feeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import CheckpointError, ConfigError, ShapeError, StepError
from frostline.training.schedule import Schedule

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
_AUTOCAST = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """The context that a forward pass of a precision runs in."""
    return torch.autocast(device.type, _AUTOCAST[precision], enabled=precision != "32-true")


@dataclass(frozen=True)
class Loss:
    """What a phase minimises on one micro-batch.

    Attributes:
        total: Scalar of float32 or wider, a mean over what the phase's `weight` counts.
        terms: Its terms or other scalars worth logging, means over the same count.

    Raises:
        ShapeError: One of them is not a scalar.
        StepError: The total is in half precision, which would round a micro-batch's share and overflow under
            the loss scale.
    """

    total: Tensor
    terms: dict[str, Tensor]

    def __post_init__(self) -> None:
        for name, value in {"total": self.total, **self.terms}.items():
            if value.dim():
                raise ShapeError(f"the loss's {name!r}", expected=(), actual=tuple(value.shape))
        if torch.finfo(self.total.dtype).bits < 32:
            raise StepError(f"the loss is {self.total.dtype}", do="compute it in float32: losses.float().mean()")


class Phase:
    """One loss, the optimizers it feeds, and the state that a resumed run needs of them.

    Every phase has its own gradient scaler: a non-finite gradient here never changes another phase's scale.

    Args:
        name: Unique among the system's phases.
        loss: Batch on `device` -> `Loss`; called under autocast.
        weight: Batch on the host -> what its loss is a mean over, such as the number of target tokens.
        optimizers: Not empty and with disjoint parameters; all of them make one update a step.
        schedule: Factor on each parameter group's initial learning rate.
        device: Where the loss is computed.
        clip_norm: Largest L2 norm over the gradients of all optimizers; 0 leaves them as they are.
        precision: Autocast type; ``16-mixed`` also scales the loss.
        on_update: Called behind every update that was made, with the number of steps before it; skipped ones have none.

    Attributes:
        step: Steps made so far, skipped ones included.
        num_skipped: Steps whose update the scaler skipped.

    Raises:
        ConfigError: No optimizer.
    """

    def __init__(
        self,
        name: str,
        loss: Callable[[Any], Loss],
        weight: Callable[[Any], float],
        optimizers: Sequence[Optimizer],
        *,
        schedule: Schedule,
        device: torch.device,
        clip_norm: float = 0.0,
        precision: Precision = "32-true",
        on_update: Callable[[int], None] | None = None,
    ) -> None:
        if not optimizers:
            raise ConfigError(f"phase {name!r} has no optimizer")
        self.name, self.loss, self.weight = name, loss, weight
        self.optimizers, self.schedule, self.device = tuple(optimizers), schedule, device
        self.clip_norm, self.precision, self.on_update = clip_norm, precision, on_update
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "16-mixed")
        self.scaler.scale(torch.zeros((), device=device))  # a process may have no loss in the first step
        self.step = self.num_skipped = 0
        for group in self._groups():
            group.setdefault("initial_lr", group["lr"])

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the phase trains, in the order of its optimizers."""
        return [parameter for group in self._groups() for parameter in group["params"]]

    def autocast(self) -> AbstractContextManager[None]:
        """The context a loss is computed in."""
        return autocast(self.precision, self.device)

    def set_learning_rate_(self) -> float:
        """Set every group's rate for the step to come; returns the first group's."""
        factor = self.schedule(self.step)
        for group in self._groups():
            group["lr"] = group["initial_lr"] * factor
        return float(self._groups()[0]["lr"])

    def zero_grad_(self) -> None:
        """Let go of every gradient of the phase."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as a dict that `torch.load` reads with ``weights_only=True``."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "num_skipped": self.num_skipped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            CheckpointError: The state has other optimizers, other parameter groups or another precision.
        """
        if bool(state["scaler"]) != self.scaler.is_enabled():
            raise CheckpointError(
                f"phase {self.name!r} was saved with another precision than {self.precision!r}",
                do="resume with the precision the run was started with",
            )
        try:
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except ValueError as error:
            raise CheckpointError(
                f"phase {self.name!r} was saved with other optimizers: {error}",
                do="resume with the configuration the run was started with",
            ) from None
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.num_skipped = state["step"], state["num_skipped"]

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]


def check_ownership(phases: Sequence[Phase], trainables: dict[str, nn.Parameter]) -> None:
    """Hold phases to one owner a parameter, and to parameters that a checkpoint saves.

    Args:
        phases: All phases of a system.
        trainables: The model's trainable parameters by qualified name.

    Raises:
        ConfigError: A phase's name twice; a parameter in the hands of two optimizers; a trainable parameter
            that is not the model's.
    """
    names = {id(parameter): name for name, parameter in trainables.items()}
    owners: dict[int, str] = {}
    for index, phase in enumerate(phases):
        if phase.name in [other.name for other in phases[:index]]:
            raise ConfigError(f"two phases are called {phase.name!r}")
        for parameter in filter(lambda p: p.requires_grad, phase.parameters):
            key = id(parameter)
            if key not in names:
                raise ConfigError(
                    f"phase {phase.name!r} trains a parameter that the model lacks, of shape {tuple(parameter.shape)}",
                    do="register it in the model: a checkpoint saves nothing else",
                )
            if key in owners:
                raise ConfigError(
                    f"{names[key]!r} is in the hands of two optimizers",
                    where=f"phase {owners[key]!r} and phase {phase.name!r}",
                    do="give each parameter to one optimizer; one loss may feed several",
                )
            owners[key] = phase.name
