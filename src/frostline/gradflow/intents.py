"""FL213-FL215: what was declared, or meant, to learn or to stay, against what it does."""

from __future__ import annotations

import linecache
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from frostline.gradflow.names import describe
from frostline.gradflow.rule import Rule, place, write
from frostline.gradflow.step import Step
from frostline.records import Finding, Place
from frostline.where import Line

if TYPE_CHECKING:
    from frostline.gradflow.session import Session

_MISSPELT = ("require_grad", "requires_grads", "require_grads", "trainable", "requires_grad_")


class Intents(Rule):
    """Compares declared intent with what requires gradients and what moves."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._touched = 0

    def observe(self, step: Step) -> None:
        """Note what optimizers moved with a gradient that was not zero."""
        for update in step.updates:
            for number, state in update.gradients.items():
                if state in ("finite", "nonfinite", "unread"):
                    self._touched |= bool(update.moved.get(number, not update.skipped)) << number

    def findings(self) -> Iterator[Finding]:
        """Learn but frozen, stay but trained, and attributes that freeze nothing."""
        yield from self._frozen()
        yield from self._trained()
        yield from self._attributes()

    def _frozen(self) -> Iterator[Finding]:
        frozen: dict[tuple[Place, ...], list[str]] = defaultdict(list)
        for name, parameter in self.names.parameters():
            if not parameter.requires_grad and self.intent.should_learn(name) and not self.intent.should_stay(name):
                if self.leaves.number(parameter) < 0 or not self._touched >> self.leaves.number(parameter) & 1:
                    frozen[self._history(parameter)].append(name)
        for places, names in frozen.items():
            what = f"{describe(names)} is declared to learn, and frozen"
            yield write("FL214", what, places, evidence="requires_grad is False", parameters=sorted(names))

    def _trained(self) -> Iterator[Finding]:
        held = self.session.held()
        groups: dict[tuple[Place, ...], list[str]] = defaultdict(list)
        for name, parameter in self.names.parameters():
            number = self.leaves.number(parameter)
            if number < 0 or not self.intent.should_stay(name) or not parameter.requires_grad:
                continue
            if number in held and self._touched >> number & 1:
                use = self.session.procedure.use_of(held[number][0])
                stepped = place("optimizer", use.made_at or use.steps_at, "holds it")
                groups[tuple(p for p in (*self._history(parameter), stepped) if p is not None)].append(name)
        for places, names in groups.items():
            what = f"{describe(names)} is declared to stay, and trains"
            yield write(
                "FL215", what, places, evidence="an optimizer steps it with its gradient", parameters=sorted(names)
            )

    def _attributes(self) -> Iterator[Finding]:
        known: dict[tuple[str, str, Line | None], str] = {}
        for name, module in self.names.modules():
            if "requires_grad" in vars(module) or "require_grad" in vars(module):
                attribute = "requires_grad" if "requires_grad" in vars(module) else "require_grad"
                line = self.session.procedure.attributes.get(id(module), (module, "", None))[2]
                if any(parameter.requires_grad for parameter in module.parameters()):
                    known[name, attribute, line or self._written(attribute)] = type(module).__name__
        for name, parameter in self.names.parameters():
            for attribute in _MISSPELT:
                if attribute in vars(parameter) and parameter.requires_grad:
                    known.setdefault((name.rpartition(".")[0], attribute, self._written(attribute)), "parameter")
        groups: dict[tuple[str, Line | None], list[str]] = defaultdict(list)
        for (name, attribute, line), kind in known.items():
            groups[attribute, line].append(name or kind)
        for (attribute, line), names in groups.items():
            yield write(
                "FL213",
                f".{attribute} was set on {describe(names).replace('parameters', 'places')}: it freezes nothing",
                [place("set", line, f".{attribute} =")],
                evidence="the parameters still require gradients",
                parameters=sorted(names),
                do="p.requires_grad = False on every parameter, or module.requires_grad_(False)",
            )

    def _history(self, parameter: Tensor) -> tuple[Place, ...]:
        """Where a parameter was registered, and where its requires_grad was set last."""
        made = self.session.procedure.made_at.get(id(parameter))
        line, to = self.session.flow.notes.frozen_at.get(id(parameter), (None, False))
        places = (
            place("unfrozen" if to else "frozen", line),
            place("made", made[1] if made and made[0]() is parameter else None),
        )
        return tuple(p for p in places if p is not None)

    def _written(self, attribute: str) -> Line | None:
        """The line of the program that assigns an attribute of this name."""
        files = {line.path for _, line in self.session.procedure.made_at.values() if line is not None}
        files |= {use.made_at.path for use in self.session.procedure.optimizers.values() if use.made_at is not None}
        pattern = re.compile(rf"\.{attribute}\s*=[^=]")
        for path in sorted(files):
            for number, text in enumerate(linecache.getlines(path), 1):
                if pattern.search(text):
                    return Line(path, number, "")
        return None
