"""What each module is to the gradient: trainable, upstream, downstream or beside the way."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from frostline.gradflow.rule import Rule
from frostline.gradflow.step import Step
from frostline.records import ModuleRole, Role

if TYPE_CHECKING:
    from frostline.gradflow.session import Session


class Roles(Rule):
    """Sorts modules by what influences them and whether a loss depends on them."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._influenced: set[int] = set()
        self._called: set[int] = set()
        self._random: set[int] = set()
        self._on_path: set[int] = set()
        self._reached: set[int] = set()

    def observe(self, step: Step) -> None:
        """Note which modules ran, what influenced them, and which results a loss used."""
        ancestors = step.ancestors
        self._reached |= {id(leaf.tensor) for number, leaf in enumerate(self.leaves.all) if step.has_gradient(number)}
        for key, use in step.modules.items():
            self._called.add(key)
            if use.influence:
                self._influenced.add(key)
            if use.random:
                self._random.add(key)
            if any(event in ancestors for event in use.outputs):
                self._on_path.add(key)

    def table(self) -> tuple[ModuleRole, ...]:
        """The outermost modules whose whole inside plays one role."""
        held = {id(self.leaves.all[number].tensor) for number in self.session.held()}
        rows: list[ModuleRole] = []
        for name, root in self.names.roots.items():
            rows += self._rows(name, root, held)
        return tuple(rows)

    def _rows(self, name: str, module: nn.Module, held: set[int]) -> list[ModuleRole]:
        """A module's role where all inside plays it, else those of what is inside."""
        trains = any(p.requires_grad or id(p) in held for p in module.parameters())
        frozen = any(not p.requires_grad and id(p) not in held for p in module.parameters())
        if not trains and not frozen:
            return []
        rows: list[ModuleRole] = []
        for child, inner in module.named_children():
            rows += self._rows(f"{name}.{child}" if name else child, inner, held)
        own = self._row(name or type(module).__name__, module, trains)
        direct = list(module.parameters(recurse=False))
        if rows and direct:
            rows.append(self._row(own.module, module, any(p.requires_grad or id(p) in held for p in direct)))
        same = all((row.role, row.cacheable) == (rows[0].role, rows[0].cacheable) for row in rows)
        if rows and same and trains != frozen:
            return [replace(rows[0], module=own.module)]
        return rows or [own]

    def _row(self, name: str, module: nn.Module, trains: bool) -> ModuleRole:
        key = id(module)
        role: Role = "upstream"
        if key not in self._called:
            role = "trainable" if trains else "not called"
        elif trains:
            role = "trainable"
        elif key in self._influenced:
            role = "downstream" if key in self._on_path else "side"
        moving = any(inner.training and getattr(inner, "track_running_stats", False) for inner in module.modules())
        why = {
            "trainable": "it trains",
            "downstream": "what comes in changes with every update",
            "side": "what comes in changes with every update",
            "not called": "it was not called",
            "upstream": "the same inputs give the same outputs in every step",
        }[role]
        if role == "upstream" and key in self._random:
            why = "it draws random numbers"
        elif role == "upstream" and moving:
            why = "it moves running statistics"
        if role == "trainable":
            why = self._why_trainable(module)
        elif any(id(p) in self.session.flow.notes.writes for p in module.parameters()):
            moving, why = True, "the program itself moves its weights"
        cacheable = role == "upstream" and key not in self._random and not moving
        return ModuleRole(module=name, role=role, cacheable=cacheable, why=why)

    def _why_trainable(self, module: nn.Module) -> str:
        held = {id(self.leaves.all[number].tensor) for number in self.session.held()}
        trained = [p for p in module.parameters() if id(p) in held]
        if not trained:
            return "it requires gradients, and no optimizer holds it"
        return "it trains" if any(id(p) in self._reached for p in trained) else "it is to train, and gets no gradient"
