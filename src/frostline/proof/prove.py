"""Run a plain and a treated step from the same state, and compare what reached the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from frostline.errors import StepError
from frostline.proof.compare import Gradients, compare_gradients, compare_states, noise_floor
from frostline.records import ProofReport
from frostline.regions import optimizers_of, rehearsal, trainable_parameters


def prove_step(
    plain: Callable[[], object],
    treated: Callable[[], object],
    model: nn.Module,
    *,
    optimizers: Iterable[torch.optim.Optimizer] | torch.optim.Optimizer = (),
    reference: Callable[[], Gradients] | None = None,
) -> ProofReport:
    """Prove, or refute, that a treated step gives the plain step's gradients.

    What else a step leaves behind for the next one, the buffers and the random state, is compared as well.
    Both start from the same parameters, buffers, optimizer and scaler state, modes and random numbers, without
    gradients, and leave no trace (`rehearsal` says what is put back). A parameter's gradient is recorded each time
    backward has added to it and the last record counts, so a step may be a whole training step, with several
    micro-batches, an update and `zero_grad` in it. Clipping and unscaling come after the record. The treatment may be
    installed inside `treated`, and taken away again before it returns.

    Args:
        plain: Does forward and backward, and returns the loss.
        treated: The same with less memory.
        model: Its trainable parameters are compared.
        optimizers: All that the steps step.
        reference: Runs the plain step in fp64, on a copy of the model, and returns that copy's gradients;
            it starts from the same random numbers, and gives the noise floor.

    Raises:
        StepError: A step does not return its loss.
    """
    optimizers = optimizers_of(optimizers)
    first, second = (_run(step, model, optimizers) for step in (plain, treated))
    floor = None
    if reference is not None:
        with rehearsal(model, optimizers):
            floor = noise_floor(first.gradients, reference())
    report = compare_gradients(
        first.gradients, second.gradients, floor=floor, loss_difference=abs(first.loss - second.loss)
    )
    same = all(map(torch.equal, first.random, second.random))
    return compare_states(report, first.buffers, second.buffers, same_random_state=same)


@dataclass(frozen=True)
class _Outcome:
    """What a step returned and left behind."""

    loss: float
    gradients: Gradients
    buffers: Gradients
    random: tuple[Tensor, ...]


def _run(step: Callable[[], object], model: nn.Module, optimizers: tuple[torch.optim.Optimizer, ...]) -> _Outcome:
    with rehearsal(model, optimizers), ExitStack() as hooks:
        gradients: dict[str, Tensor | None] = {}
        for name, parameter in trainable_parameters(model).items():
            parameter.grad = gradients[name] = None
            hook = partial(_record, gradients, name)
            handle = parameter.register_post_accumulate_grad_hook(hook)
            hooks.callback(handle.remove)
        loss = _loss(step())
        buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ()
        return _Outcome(loss, gradients, buffers, (torch.get_rng_state(), *on_gpus))


def _record(gradients: dict[str, Tensor | None], name: str, parameter: Tensor) -> None:
    # The hook also runs where the graph delivered no gradient at all.
    gradients[name] = None if parameter.grad is None else parameter.grad.detach().clone()


def _loss(returned: object) -> float:
    if isinstance(returned, Tensor) and returned.numel() == 1:
        return float(returned.detach())
    if isinstance(returned, (int, float)):
        return float(returned)
    raise StepError(
        f"the step returned {type(returned).__name__}, not its loss",
        do="return the loss, a tensor of one element",
    )
