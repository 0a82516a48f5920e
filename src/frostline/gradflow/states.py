"""FL301-FL306: values, statistics and modes that should stand still and move, or the reverse."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from frostline.gradflow.names import describe
from frostline.gradflow.parts import Parts
from frostline.gradflow.rule import Rule, place, write
from frostline.gradflow.step import Step
from frostline.records import Finding, Level, Place
from frostline.tracing import Draw, Update, fingerprint
from frostline.where import Line

if TYPE_CHECKING:
    from frostline.gradflow.session import Session


class States(Rule):
    """Compares the values of buffers and frozen parameters before and after every step."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._values: dict[int, tuple[Tensor, int | None]] = {}
        self._moving: dict[tuple[Place, ...], set[str]] = defaultdict(set)
        self._dropping: dict[tuple[Level, tuple[Place, ...]], set[str]] = defaultdict(set)
        self._polluted: dict[tuple[Place, ...], set[str]] = defaultdict(set)
        self._num_polluted: dict[str, int] = defaultdict(int)
        self._masked: dict[tuple[Place, ...], set[str]] = defaultdict(set)
        self._num_masked: dict[str, int] = defaultdict(int)
        self._stale: dict[tuple[Place, ...], set[str]] = defaultdict(set)
        self._drifting: dict[tuple[str, tuple[Place, ...]], set[int]] = defaultdict(set)
        self._num_steps = 0
        self._by_hand: set[int] = set()
        self._stirred: dict[Line | None, set[str]] = defaultdict(set)

    def began(self) -> None:
        """Remember the values of what was not known before."""
        for tensor in self._watched():
            if id(tensor) not in self._values:
                self._values[id(tensor)] = tensor, fingerprint(tensor)

    def updated(self, update: Update) -> None:
        """Look for frozen parameters that an optimizer moved."""
        decays = any(group.get("weight_decay") for group in update.use.optimizer.param_groups)
        for number, moved in update.moved.items():
            tensor = self.leaves.all[number].tensor
            declared = self.intent.should_stay(self.names.leaf(self.leaves.all[number]))
            if not moved or (tensor.requires_grad and not (declared and update.gradients[number] == "zero")):
                continue
            code = "FL304" if tensor.requires_grad and decays else "FL303"
            frozen = self.session.flow.notes.frozen_at.get(id(tensor), (None, False))[0]
            places = (
                place("frozen", frozen, "its .grad stays"),
                place("step", update.line, type(update.use.optimizer).__name__),
                place("optimizer", update.use.made_at, "holds it"),
            )
            self._drifting[code, tuple(p for p in places if p is not None)].add(number)

    def observe(self, step: Step) -> None:
        """Compare every value with what it was."""
        changed = self._changed()
        held = {id(self.leaves.all[number].tensor) for number in self.session.held()}
        by_hand = {key for key in changed if isinstance(self._values[key][0], nn.Parameter) and key not in held}
        self._by_hand |= by_hand
        parts = Parts(self, self._by_hand)
        norms = [(name, m) for name, m in self.names.modules() if isinstance(m, _NormBase) and m.track_running_stats]
        for name, norm in norms:
            if _statistics(norm) & changed and parts.is_frozen(norm):
                self._moving[self._mode_places(norm, step)].add(name)
        normalized = self.session.flow.notes.normalized
        for name, module in self.names.modules():
            own = {id(buffer) for buffer in module.buffers(recurse=False)} & changed & normalized.keys()
            if own and not isinstance(module, _NormBase) and parts.is_frozen(module):
                line = place("forward", normalized[min(own)], "batch_norm(training=True)")
                self._moving[(line,) if line else ()].add(name)
        known = {id(self.leaves.all[n].tensor) for update in step.updates for n in update.moved}
        statistics = {key for _, norm in norms for key in _statistics(norm)} | normalized.keys()
        for key in changed - known - statistics:
            name = self.names.tensor(self._values[key][0])
            if name and self.intent.should_stay(name) and self._values[key][0].is_floating_point():
                self._stirred[self.session.flow.notes.writes.get(key)].add(name)
        self._look_at_dropout(step, parts)
        self._num_steps += bool(step.backwards)
        if step.error is None:  # else its backward never came
            self._look_for_pollution(step, norms, changed, parts)
            self._look_for_masked_samples(norms, parts)
        self._look_at_averages(norms, changed, by_hand)

    def _look_at_dropout(self, step: Step, parts: Parts) -> None:
        for draw in step.draws:
            module = draw.module
            if module is None or draw.recomputing or not _drops(draw):
                continue
            if not parts.is_frozen(module):
                continue
            apart = not draw.influence and (parts.was_declared(module) or not draw.grad_enabled)
            level: Level = "fault" if not draw.training or apart else "note"
            places = [place("drops", draw.line, draw.op.rpartition(".")[2])]
            if draw.training:
                places.insert(0, place("training mode", self.session.procedure.mode_line(module), ".train()"))
            self._dropping[level, tuple(p for p in places if p is not None)].add(parts.name(module))

    def _look_for_pollution(
        self, step: Step, norms: list[tuple[str, _NormBase]], changed: set[int], parts: Parts
    ) -> None:
        ancestors = step.ancestors
        for name, norm in norms:
            use = step.modules.get(id(norm))
            if use is None or not _statistics(norm) & changed or parts.is_frozen(norm):
                continue
            lost = [c for c in use.calls if c.outputs and not c.recomputing and ancestors.isdisjoint(c.outputs)]
            for call in lost[:1]:
                root = call.root or call.line
                places = (place("forward", root, "feeds no loss, in training mode"), place("in", call.line))
                self._polluted[tuple(p for p in places if p is not None)].add(name)
            self._num_polluted[name] += bool(lost)

    def _look_for_masked_samples(self, norms: list[tuple[str, _NormBase]], parts: Parts) -> None:
        found = self.session.flow.notes.masking.found
        for name, norm in norms:
            own = next((empty for empty in found if empty.statistics & _statistics(norm)), None)
            if own is None or parts.is_frozen(norm):
                continue
            places = (
                place("masked", own.mask, f"{own.num_empty} of {own.num_samples} samples here"),
                place("counted", own.line, type(norm).__name__),
            )
            self._masked[tuple(p for p in places if p is not None)].add(name)
            self._num_masked[name] += 1

    def _look_at_averages(self, norms: list[tuple[str, _NormBase]], changed: set[int], by_hand: set[int]) -> None:
        live = [norm for _, norm in norms if _statistics(norm) & changed]
        for name, norm in norms:
            if norm.weight is None or id(norm.weight) not in by_hand or _statistics(norm) & changed:
                continue
            if any(other.num_features == norm.num_features for other in live):
                line = place("averaged", self.session.flow.notes.writes.get(id(norm.weight)), "parameters only")
                self._stale[(line,) if line else ()].add(name)

    # --- conclusions

    def findings(self) -> Iterator[Finding]:
        """What moved though it should not have, and what stood still though it should have moved."""
        parts = Parts(self, self._by_hand)
        still = {name for name, module in self.names.modules() if parts.is_frozen(module)}
        for places, moving in self._moving.items():
            names = moving & still
            if not names:
                continue  # averaged weights, which move every few steps
            what = f"running statistics of {_parts(names)} move, though the part is frozen"
            yield write(
                "FL301",
                what,
                places,
                evidence=f"in {self._num_steps} steps, in training mode",
                parameters=sorted(names),
            )
        for (level, places), names in self._dropping.items():
            what = f"dropout is active in {_parts(names)}, which is frozen"
            yield write("FL302", what, places, parameters=sorted(names), level=level)
        for (code, places), numbers in self._drifting.items():
            names_of = self.leaf_names(numbers)
            why = "by weight decay" if code == "FL304" else "by its optimizer"
            yield write(code, f"{describe(names_of)} should stay, and is moved {why}", places, parameters=names_of)
        for line, names in self._stirred.items():
            what = f"{describe(names)} is declared to stay, and is written to outside optimizers"
            so, do = "the frozen part computes something else after every step", "leave it out of this update"
            yield write("FL303", what, [place("written", line)], parameters=sorted(names), so=so, do=do)
        for places, names in self._polluted.items():
            often = max(self._num_polluted[name] for name in names)
            level = "fault" if often * 2 > self._num_steps else "note"
            what = f"running statistics of {_parts(names)} follow a forward that feeds no loss"
            yield write(
                "FL305",
                what,
                places,
                evidence=f"in {often} of {self._num_steps} steps",
                parameters=sorted(names),
                level=level,
            )
        yield from self._of_masked_samples()
        for places, names in self._stale.items():
            what = f"{_parts(names)} has averaged weights and old running statistics"
            yield write(
                "FL306",
                what,
                places,
                evidence="weights moved outside optimizers, buffers did not",
                parameters=sorted(names),
            )

    def _of_masked_samples(self) -> Iterator[Finding]:
        seen: set[str] = set()
        for places, names in self._masked.items():
            fresh = names - seen  # a step with another number of masked samples says nothing new
            seen |= names
            if fresh:
                often = max(self._num_masked[name] for name in fresh)
                yield write(
                    "FL305",
                    f"running statistics of {_parts(fresh)} count samples that a mask has emptied",
                    places,
                    evidence=f"in {often} of {self._num_steps} steps",
                    parameters=sorted(fresh),
                    level="fault" if often * 2 > self._num_steps else "note",
                    so="mean and variance follow how many samples are missing",
                    do="normalise the samples that are there: frostline.ops.masked_batch_norm, or index them",
                )

    def _watched(self) -> Iterator[Tensor]:
        held = {id(self.leaves.all[number].tensor) for number in self.session.held()}
        for _, parameter in self.names.parameters():
            if id(parameter) not in held:
                yield parameter
        for _, buffer in self.names.buffers():
            yield buffer

    def _changed(self) -> set[int]:
        changed = set()
        for key, (tensor, before) in list(self._values.items()):
            now = fingerprint(tensor)
            if now != before:
                changed.add(key)
                self._values[key] = tensor, now
        return changed

    def _mode_places(self, norm: nn.Module, step: Step) -> tuple[Place, ...]:
        use = step.modules.get(id(norm))
        forward = next((call.line for call in use.calls if call.line is not None), None) if use else None
        lines = (
            place("training mode", self.session.procedure.mode_line(norm), ".train()"),
            place("forward", forward, type(norm).__name__),
        )
        return tuple(line for line in lines if line is not None)


def _drops(draw: Draw) -> bool:
    """Whether it was a dropout, by the operator or by the module, as stochastic depth is."""
    by_operator = any(part in draw.op for part in ("dropout", "attention", "lstm", "gru", "rnn_"))
    return by_operator or "drop" in type(draw.module).__name__.lower()


def _statistics(norm: _NormBase) -> set[int]:
    return {id(buffer) for buffer in (norm.running_mean, norm.running_var) if buffer is not None}


def _parts(names: set[str]) -> str:
    return describe(names).replace("parameters", "modules")
