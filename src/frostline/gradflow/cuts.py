"""FL101-FL109, FL114-FL116: parameters that should learn from a loss and get no gradient, or a zero one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from frostline.gradflow.blame import Cut, Vanishing, VanishingKind, cause_of, find_cut, find_vanishing
from frostline.gradflow.names import describe
from frostline.gradflow.rule import Rule, place, place_of, write
from frostline.gradflow.step import Step
from frostline.records import Finding, Place
from frostline.tracing import Backward, Escape, Event, has_values
from frostline.where import Line

if TYPE_CHECKING:
    from frostline.gradflow.session import Session

_ORDER = ("FL107", "FL108", "FL101", "FL102", "FL103", "FL109", "FL104", "FL105", "FL106", "FL116", "FL114")
_MOST = 4


class Cuts(Rule):
    """Compares, for every parameter that should learn, what the loss depends on with what autograd reached."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.arrived = 0
        self._cut: dict[int, tuple[Cut, int]] = {}
        self._broken: dict[int, Vanishing] = {}
        self._silent: dict[int, int] = defaultdict(int)
        self._zero: dict[int, Vanishing] = {}
        self._nonzero = 0
        self._num_steps: dict[int, int] = defaultdict(int)
        self._moved_in: dict[int, int] = {}
        self._stale: dict[int, tuple[Place, ...]] = {}
        self._copies: dict[int, Line] = {}
        self.explained = 0

    def going_backward(self, backward: Backward, root: Tensor | None) -> None:
        """Look for copies of parameters the loss does not depend on, while the values are still the same."""
        missing = ~backward.influence & self._held_bits()
        for tensor, line in self.session.flow.notes.constants:
            for number in self.leaves.members(missing):
                leaf = self.session.leaf(number).tensor
                if number not in self._copies and tensor.shape == leaf.shape and _is_copy(tensor, leaf):
                    self._copies[number] = line

    def observe(self, step: Step) -> None:
        """Sort the parameters that should have learned in a step."""
        for number in self.leaves.members(self.session.intended(step)):
            if not step.backwards:
                continue
            self._num_steps[number] += 1
            if step.has_gradient(number):
                self.arrived |= 1 << number
                self._look_at_gradient(number, step)
            elif step.influence >> number & 1:
                self._look_at_flow(number, step)
            else:
                self._silent[number] += 1
        self._look_for_old_graphs(step)

    def _look_for_old_graphs(self, step: Step) -> None:
        """Find losses that go back, through a graph of an earlier step, to what a parameter was before its update."""
        stepped = {number for update in step.updates for number in update.gradients}
        for event in step.connected:
            if event.step == step.index:
                continue
            moved = [
                number
                for number in self.leaves.members(event.reach)
                if number in stepped and self._moved_in.get(number, -1) >= event.step
            ]
            if moved:
                places = [place_of("made", event), *(place_of("used", user) for user in _users(step, event))]
                for number in moved:
                    self._stale.setdefault(number, tuple(p for p in places if p is not None))
        for update in step.updates:
            for number, moved_now in update.moved.items():
                if moved_now:
                    self._moved_in[number] = step.index

    def _is_old(self, event: Event, step: int) -> bool:
        """Whether an event is older than one round of all phases: a GAN's fakes serve two."""
        return step - event.step >= max(1, len(self.session.phases))

    def _look_at_flow(self, number: int, step: Step) -> None:
        bit = 1 << number
        backwards = [b for b in step.backwards if b.targets is None or b.targets & bit]
        roots = [root for backward in backwards for root in backward.roots if root.influence & bit]
        if any(root.reach & bit for root in roots):
            backward = next(b for b in backwards if b.reach & bit)
            if backward.error is None:
                found = find_vanishing(backward, [root.event for root in backward.roots], number, "none")
                self._broken.setdefault(number, found)
        elif roots:
            cut = find_cut(roots, number)
            old = any(self._is_old(event, step.index) for event in cut.events)
            if number not in self._cut or old:
                self._cut[number] = cut, step.index

    def _look_at_gradient(self, number: int, step: Step) -> None:
        states = [update.gradients.get(number) for update in step.updates]
        if "zero" not in states:
            self._nonzero |= bool(set(states) - {None, "none"}) << number
        elif number not in self._zero:
            backward = next((b for b in reversed(step.backwards) if b.arrived >> number & 1), None)
            if backward is not None:
                roots = [root.event for root in backward.roots]
                self._zero[number] = find_vanishing(backward, roots, number, "zero")

    # --- conclusions

    def findings(self) -> Iterator[Finding]:
        """One finding for each place where the flow to some parameters ends."""
        groups: dict[tuple[str, tuple[Place, ...]], list[int]] = defaultdict(list)
        for number, (cut, step) in self._cut.items():
            if not self.arrived >> number & 1:
                groups[self._diagnose(cut, step)].append(number)
        for number, vanishing in self._broken.items():
            if not self.arrived >> number & 1:
                places = tuple(p for e in vanishing.events[:_MOST] if (p := place_of("returned", e)))
                groups["FL116", places].append(number)
        for number in self._silent:
            known = self._silent_places(number)
            if known is not None:
                groups[known].append(number)
        for code, places, numbers in _merged(groups):
            self.explained |= sum(1 << number for number in numbers)
            yield self._write(code, places, numbers)
        yield from self._zeros()
        stale: dict[tuple[Place, ...], list[int]] = defaultdict(list)
        for number, places in self._stale.items():
            stale[places].append(number)
        for places, numbers in stale.items():
            names = self.leaf_names(numbers)
            what = f"{describe(names)} is used as it was before its update: the loss depends on a copy of it"
            yield write("FL109", what, places, evidence="the copy was made in an earlier step", parameters=names)

    def _diagnose(self, cut: Cut, step: int) -> tuple[str, tuple[Place, ...]]:
        """The code of a cut, and its places: what cut, what switched gradients off, what hid it."""
        causes = {"FL109" if self._is_old(event, step) else cause_of(event) for event in cut.events} or {"FL103"}
        events = sorted(cut.events, key=lambda event: _ORDER.index(cause_of(event)))[:_MOST]
        places = [place_of("cut", event) for event in events]
        entered = [
            place("switched off", event.context.line, _SWITCHES[event.context.kind])
            for event in events
            if event.context is not None and not event.grad_enabled
        ]
        again = [] if cut.reattached is None else [place_of("re-attached", cut.reattached)]
        if cut.reattached is not None:
            causes.add("FL107")
        code = min(causes, key=_ORDER.index)
        return code, tuple(dict.fromkeys(p for p in (*again, *places, *entered) if p is not None))

    def _silent_places(self, number: int) -> tuple[str, tuple[Place, ...]] | None:
        """Why a parameter that no loss depends on may have been meant to be used: a copy, or values that left torch."""
        if (self.arrived >> number & 1) or number in self._cut:
            return None
        if number in self._copies:
            copied = place("used", self._copies[number], "a copy of it")
            return ("FL109", (copied,)) if copied else None
        escapes = [e for e in self.session.flow.notes.escapes.values() if e.influence >> number & 1]
        if not escapes:
            return None
        escapes.sort(key=_is_logging)
        places = [place("left torch", escape.line, escape.op) for escape in escapes[:_MOST]]
        return "FL106", tuple(p for p in places if p is not None)

    def _write(self, code: str, places: tuple[Place, ...], numbers: list[int]) -> Finding:
        names = self.leaf_names(numbers)
        steps = max(self._num_steps[number] for number in numbers)
        what = {
            "FL106": "learns nothing: its values leave torch before the loss",
            "FL109": "learns nothing: the loss depends on a copy of it",
            "FL114": "learns nothing: an operator without derivative stands between it and the loss",
            "FL116": "learns nothing: a backward returns no gradient for it",
        }.get(code, "learns nothing: its gradient is cut")
        cut = "the loss depends on it; " if code not in ("FL106", "FL109") else ""
        return write(
            code,
            f"{describe(names)} {what}",
            places,
            evidence=f"{cut}grad None in {_steps(steps)}",
            parameters=names,
        )

    def _zeros(self) -> Iterator[Finding]:
        groups: dict[tuple[str, tuple[Place, ...]], list[int]] = defaultdict(list)
        for number, vanishing in self._zero.items():
            code = _ZEROS[vanishing.kind]
            if self._nonzero >> number & 1 or not code or (code == "FL211" and number not in self._moved_in):
                continue
            places = tuple(p for e in vanishing.events[:_MOST] if (p := place_of("vanishes", e)))
            groups[code, places].append(number)
        for (code, places), numbers in groups.items():
            self.explained |= sum(1 << number for number in numbers)
            names = self.leaf_names(numbers)
            saturated = all(self._zero[number].kind == "saturated" for number in numbers)
            why = {
                "FL114": "gets a gradient of exactly 0: an operator without derivative",
                "FL115": "gets a gradient of exactly 0: its paths cancel",
                "FL211": "gets a gradient of exactly 0, and moves all the same",
            }[code]
            why = "gets a gradient of exactly 0: every element lies where the operator is flat" if saturated else why
            noted = saturated or (code == "FL211" and self._is_weighted_by_zero(numbers))
            steps = (place("step", use.steps_at) for use in self.session.procedure.optimizers.values())
            yield write(
                code,
                f"{describe(names)} {why}",
                [*places, *(steps if code == "FL211" else ())],
                evidence=f"grad 0 in {_steps(max(self._num_steps[n] for n in numbers))}",
                parameters=names,
                level="note" if noted else None,
            )

    def _is_weighted_by_zero(self, numbers: list[int]) -> bool:
        """Whether the program multiplies by a plain 0, as a schedule does before a term begins to count."""
        return all(event.factor == 0 for number in numbers for event in self._zero[number].events)

    def _held_bits(self) -> int:
        return sum(1 << number for number in self.session.held())


def _merged(
    groups: dict[tuple[str, tuple[Place, ...]], list[int]],
) -> Iterator[tuple[str, tuple[Place, ...], list[int]]]:
    """One group for all that one line switched off, with the first few of the lines it cut."""
    merged: dict[tuple[str, tuple[Place, ...]], tuple[list[Place], list[int]]] = {}
    for (code, places), numbers in groups.items():
        switches = tuple(place for place in places if place.role == "switched off")
        known, every = merged.setdefault((code, switches or places), ([], []))
        known += [place for place in places if place not in known and place not in switches]
        every += numbers
    for (code, switches), (known, numbers) in merged.items():
        rest = [place for place in switches if place not in known]
        yield code, (*known[:_MOST], *rest), numbers


def _users(step: Step, event: Event) -> list[Event]:
    """The events of a step that read an older one."""
    users = (user for user in step.ancestors if user.step == step.index)
    return [user for user in users if any(source.event is event for source in user.sources)][:1]


_ZEROS: dict[VanishingKind, str] = {
    "no derivative": "FL114",
    "saturated": "FL114",
    "cancelled": "FL115",
    "one element": "FL115",
    "constant zero": "FL211",
    "other": "",
}

_SWITCHES = {
    "no_grad": "torch.no_grad()",
    "inference_mode": "torch.inference_mode()",
    "set_grad_enabled": "torch.set_grad_enabled(False)",
    "checkpoint": "checkpoint(use_reentrant=True)",
    "unknown": "gradients were off before",
}


def _is_copy(tensor: Tensor, parameter: Tensor) -> bool:
    if (tensor.is_leaf and tensor.requires_grad) or not has_values(tensor):
        return False
    if not parameter.numel() or tensor.data_ptr() == parameter.data_ptr():
        return False
    if bool((parameter == parameter.flatten()[0]).all()):
        return False  # itself, before it was made to learn; or zeros, which are equal to any other zeros
    return bool(
        torch.equal(tensor.detach().to(parameter.dtype), parameter.detach().to(tensor.dtype).to(parameter.dtype))
    )


def _is_logging(escape: Escape) -> bool:
    return escape.op in (".item()", "float()")


def _steps(num: int) -> str:
    return f"{num} step" if num == 1 else f"{num} steps"
