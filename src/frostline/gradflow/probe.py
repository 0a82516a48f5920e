"""Move a parameter, run the program again in float64, and see whether the loss follows: the proof of a cut.

A central difference does not ask autograd, so it also sees influence that goes through numpy or `.item()`.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.gradflow.rerun import Ended, Rerun, same_attributes
from frostline.gradflow.target import Movement, Target, seeking
from frostline.regions import preserved
from frostline.tracing import DoublePrecision, in_double

_STEP = 1e-5  # of a parameter's own size: in float64 truncation and rounding then both stay near 1e-10
_FAR = 1.0
_ELSEWHERE = 0.1
_ROUNDING = 1e-12  # relative change of a loss that may be rounding


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which parameters are to be moved, and what is to be watched.

    Attributes:
        targets: The parameters; they are moved together.
        backwards: The backward passes of the run, counted from 0, whose losses are watched.
        term: A scalar variable to watch in the loss's stead.
    """

    targets: tuple[Target, ...]
    backwards: tuple[int, ...]
    term: str = ""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How a loss follows parameters.

    Attributes:
        numeric: The change of the loss for a movement of length 1 in a random direction: a central difference.
        analytic: The same from autograd's gradients; 0 where none arrived.
        resolution: What a central difference cannot tell from 0, because the loss is rounded.
        far: The change of the loss when the parameters move by their own size, and all that learns stands elsewhere;
            only asked where the central difference is 0.
        trouble: Why nothing can be said; empty where something can.
    """

    numeric: float = math.nan
    analytic: float = math.nan
    resolution: float = math.nan
    far: float = math.nan
    trouble: str = ""

    @property
    def has_influence(self) -> bool:
        """Whether the loss follows at all."""
        return not self.trouble and (self.numeric != 0 or self.far > 0)


def probe_step(
    step: Callable[[], object],
    questions: Sequence[Question],
    *,
    modules: Iterable[nn.Module],
    optimizers: Iterable[Optimizer] = (),
    learners: Iterable[Tensor] = (),
) -> tuple[Difference, ...]:
    """Answer by running a step again, from the same state, and ending each run at the backward pass in question.

    Parameters, buffers, gradients, modes, optimizer state, attributes of modules, random states and the default dtype
    are afterwards what they were, bit for bit. Updates before the backward pass are undone at once, so that the loss
    follows the parameters by the forward alone.

    Args:
        step: What was audited. A step that draws other data each time has no answer, and that is said.
        questions: Their targets hold their tensors.
        modules: All that the step uses.
        optimizers: All that it steps.
        learners: All that learns, to look from another point where a loss stands still.
    """
    if not questions:
        return ()
    root, optimizers, learners = nn.ModuleList(modules), tuple(optimizers), list(learners)
    asked = [target.tensor for question in questions for target in question.targets if target.tensor is not None]
    with in_double() as mode:
        for tensor in (*root.parameters(), *root.buffers(), *asked, *learners):
            mode.raise_(tensor, isolate=True)

        def run(rerun: Rerun) -> None:
            grad_enabled = torch.is_grad_enabled()
            try:
                with preserved(root, optimizers), same_attributes(root.modules()):
                    rerun.move()
                    step()
            finally:
                torch.set_grad_enabled(grad_enabled)
                mode.reset()

        return _Probe(mode, run, [Target("", None, tensor) for tensor in learners]).answer(questions)


def probe_script(
    run_once: Callable[[], object],
    questions: Sequence[Question],
    *,
    learners: Sequence[Target] = (),
    end: type[BaseException] = Ended,
) -> tuple[Difference, ...]:
    """Answer by running a whole script again, from the same random states, silenced.

    Its tensors are made anew in each run: they are found by the names their modules give them, or by their place in
    the optimizers, in the order these are made.

    Args:
        run_once: Runs the script.
        questions: Their targets need no tensors.
        learners: All that learns.
        end: Raised in the script to end it; `run_once` may catch it.
    """
    if not questions:
        return ()
    with in_double() as mode, preserved(nn.Module()):  # an empty module: random states alone

        def run(rerun: Rerun) -> None:
            errors = io.StringIO()
            torch.manual_seed(0)
            np.random.seed(0)
            random.seed(0)
            grad_enabled = torch.is_grad_enabled()
            try:
                with redirect_stdout(io.StringIO()), redirect_stderr(errors):
                    run_once()
                rerun.trouble = "" if rerun.has_ended else _last_line(errors.getvalue())
            finally:
                torch.set_grad_enabled(grad_enabled)
                mode.lower()

        return _Probe(mode, run, _unfound(learners), end=end, seeks=True).answer(
            [replace(question, targets=_unfound(question.targets)) for question in questions]
        )


class _Probe:
    """The runs that answer questions.

    Args:
        mode: The precision.
        run: Runs the program once.
        learners: All that learns.
        end: Raised in the program to end it.
        seeks: Whether targets must be found in each run.
    """

    def __init__(
        self,
        mode: DoublePrecision,
        run: Callable[[Rerun], None],
        learners: Sequence[Target],
        *,
        end: type[BaseException] = Ended,
        seeks: bool = False,
    ) -> None:
        self._mode, self._run, self._learners, self._end, self._seeks = mode, run, learners, end, seeks

    def answer(self, questions: Sequence[Question]) -> tuple[Difference, ...]:
        """One difference for each question."""
        movements = [Movement(question.targets, seed=seed) for seed, question in enumerate(questions)]
        base = self._rerun(questions, movements, differentiate=True)
        again = self._rerun(questions, [Movement(q.targets, seed=seed) for seed, q in enumerate(questions)])
        return tuple(self._ask(seed, question, base, again) for seed, question in enumerate(questions))

    def _ask(self, seed: int, question: Question, base: Rerun, again: Rerun) -> Difference:
        losses = base.losses[seed]
        if not losses:
            return Difference(trouble=base.trouble or _not_read(question, base.movements[seed]))
        if not all(map(math.isfinite, losses.values())):
            return Difference(trouble="the loss is not finite")
        if losses != again.losses[seed]:
            return Difference(trouble="two runs from the same state do not give the same loss")
        length = base.movements[seed].length()
        runs = []
        for by in (_STEP, -_STEP):
            run = self._rerun([question], [Movement(question.targets, seed=seed, by=by)])
            position, start = run.positions[0], base.positions[seed]
            if position is None or start is None:
                return Difference(trouble=run.trouble or "the run takes another course when it is moved")
            if abs((position - start) / length**2 - by) > _STEP / 1000:
                return Difference(trouble="the program writes over it before the backward pass")
            runs.append(run.losses[0])
        changes = _changes(*runs)
        where = max(changes, key=lambda number: abs(changes[number]), default=None)
        if where is None:
            return Difference(trouble="the run takes another course when it is moved")
        numeric, resolution = (
            value / (2 * _STEP * length) for value in (changes[where], _ROUNDING * abs(losses[where]))
        )
        analytic = base.slopes[seed].get(where, 0.0) / length
        found = Difference(numeric=numeric, analytic=analytic, resolution=resolution)
        return found if numeric else self._look_far(seed, question, found)

    def _look_far(self, seed: int, question: Question, found: Difference) -> Difference:
        """Ask again from another point, with a long movement: what is flat or multiplied by zero here shows there."""
        losses = []
        for by in (0.0, _FAR):
            others = Movement(self._learners, seed=-1, by=_ELSEWHERE)
            run = self._rerun([question], [Movement(question.targets, seed=seed, by=by), others])
            if not run.losses[0] or not all(map(math.isfinite, run.losses[0].values())):
                return Difference(trouble=run.trouble or "the loss is not finite where all else stands elsewhere")
            losses.append(run.losses[0])
        return replace(found, far=max(map(abs, _changes(*losses).values()), default=0.0))

    def _rerun(
        self, questions: Sequence[Question], movements: Sequence[Movement], *, differentiate: bool = False
    ) -> Rerun:
        """One run, to the last backward pass that a question is about."""
        watches = [(question.backwards, question.term) for question in questions]
        rerun = Rerun(self._mode, movements, watches, self._end, differentiate=differentiate)
        with rerun.reading(), seeking(movements, rerun.move) if self._seeks else nullcontext():
            try:
                self._run(rerun)
            except (Ended, self._end):
                pass
            except Exception as error:
                rerun.trouble = f"in float64 the program raised {type(error).__name__}: {error}"
        return rerun


def _changes(one: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """By backward pass: how much larger one run's loss is than the other's; rounding counts as 0."""
    changes = {number: one[number] - other[number] for number in one.keys() & other.keys()}
    return {
        number: 0.0 if abs(change) <= _ROUNDING * max(abs(one[number]), abs(other[number])) else change
        for number, change in changes.items()
    }


def _not_read(question: Question, movement: Movement) -> str:
    if not movement.is_complete:
        return "not all of it was found again when the program ran again"
    if question.term:
        return f"no variable {question.term!r} was found at the backward pass"
    return "the program did not come to the same backward pass again"


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return f"in float64 the script ended by itself: {lines[-1]}" if lines else ""


def _unfound(targets: Sequence[Target]) -> tuple[Target, ...]:
    return tuple(target._replace(tensor=None) for target in targets)
