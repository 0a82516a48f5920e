"""Frozen parts: which modules belong to a component that does not train."""

from __future__ import annotations

from torch import nn

from frostline.gradflow.rule import Rule


class Parts:
    """Answers, for one moment of an audit, whether a module belongs to a frozen part.

    A module without parameters of its own (a dropout) belongs to the nearest module around it that has some.

    Args:
        rule: Whose session's modules, optimizers and intent count.
        moved: Ids of parameters that moved in some other way than by an optimizer, as averaged weights do.
    """

    def __init__(self, rule: Rule, moved: set[int]) -> None:
        self._intent, self._moved = rule.intent, moved
        self._held = {id(rule.leaves.all[number].tensor) for number in rule.session.held()}
        self._modules = dict(rule.names.modules())
        self._names = {id(module): name for name, module in self._modules.items()}
        self._known: dict[int, bool] = {}

    def name(self, module: nn.Module) -> str:
        """The module's name."""
        return self._names.get(id(module), type(module).__name__)

    def is_frozen(self, module: nn.Module) -> bool:
        """Whether the part a module belongs to has parameters, and none of them trains or moves."""
        key = id(module)
        if key not in self._known:
            parameters = list(self._part(module).parameters())
            declared = self.was_declared(module)
            self._known[key] = bool(parameters) and not any(
                (parameter.requires_grad and not declared)
                or id(parameter) in self._held
                or id(parameter) in self._moved
                for parameter in parameters
            )
        return self._known[key]

    def was_declared(self, module: nn.Module) -> bool:
        """Whether the module, or what it belongs to, was declared to stay."""
        part = self._part(module)
        name = self.name(part)
        return any(self._intent.should_stay(f"{name}.{inner}") for inner, _ in part.named_parameters())

    def _part(self, module: nn.Module) -> nn.Module:
        name = self._names.get(id(module))
        while name is not None:
            candidate = self._modules.get(name)
            if candidate is not None and next(candidate.parameters(), None) is not None:
                return candidate
            if not name:
                break
            name = name.rpartition(".")[0]
        return module
