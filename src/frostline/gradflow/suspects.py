"""Which findings a probe can prove or refute, and what they say afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from torch import Tensor

from frostline.gradflow.codes import CODES
from frostline.gradflow.names import describe
from frostline.gradflow.probe import Difference, Question
from frostline.gradflow.rule import Rule
from frostline.gradflow.step import Step
from frostline.gradflow.target import Target
from frostline.records import AuditReport, Finding
from frostline.tracing import Backward

if TYPE_CHECKING:
    from frostline.gradflow.session import Session

_CUTS = ("FL101", "FL102", "FL103", "FL104", "FL105", "FL106", "FL107", "FL108", "FL109", "FL114", "FL116", "FL207")
_LEVELS = ("fault", "cost", "note")


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A finding that says a gradient is missing, and the question that decides it.

    Attributes:
        finding: As the report has it.
        question: What to move and what to watch.
        declared: Whether its parameters were declared to learn.
    """

    finding: Finding
    question: Question
    declared: bool = False


class Suspects(Rule):
    """Remembers which backward passes each parameter should have learned from."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._places: dict[Backward, int] = {}
        self._watched: dict[int, tuple[tuple[int, ...], bool]] = {}
        self._learned = 0

    def going_backward(self, backward: Backward, root: Tensor | None) -> None:
        """Count it."""
        self._places[backward] = len(self._places)

    def observe(self, step: Step) -> None:
        """The first step in which a parameter's influence was seen decides; else the first it should learn from."""
        if not step.backwards:
            return
        for number in self.leaves.members(self.session.intended(step)):
            influences = bool(step.influence >> number & 1)
            known = self._watched.get(number)
            if known is None or (influences and not known[1]):
                places = tuple(self._places[b] for b in step.backwards if b in self._places)
                self._watched[number] = places, influences
        for update in step.updates:
            for number, state in update.gradients.items():
                self._learned |= (state in ("finite", "nonfinite")) << number

    def of(self, report: AuditReport) -> tuple[Suspect, ...]:
        """The findings that a finite difference can decide: gradients that are absent, never the values of others."""
        return () if self.session.is_fake else tuple(self._suspects(report))  # fake tensors have no values to move

    def learners(self) -> tuple[Target, ...]:
        """All that the optimizers hold."""
        return tuple(self._target(number) for number in sorted(self.session.held()))

    def _suspects(self, report: AuditReport) -> Iterator[Suspect]:
        numbers: dict[str, list[int]] = {}
        for number in self._watched:
            numbers.setdefault(self.names.leaf(self.leaves.all[number]), []).append(number)
        for finding in report.findings:
            about = list(chain.from_iterable(numbers.get(name, ()) for name in finding.parameters))
            term = next((place.text for place in finding.places if place.role == "term"), "")
            if finding.code == "FL111":
                if not term:
                    continue
            elif finding.code not in _CUTS or term or any(self._learned >> number & 1 for number in about):
                continue
            if about:
                backwards = sorted(set(chain.from_iterable(self._watched[number][0] for number in about)))
                yield Suspect(
                    finding=finding,
                    question=Question(
                        targets=tuple(self._target(number) for number in about), backwards=tuple(backwards), term=term
                    ),
                    declared=any(self.intent.should_learn(name) for name in finding.parameters),
                )

    def _target(self, number: int) -> Target:
        tensor = self.leaves.all[number].tensor
        return Target(self.names.tensor(tensor), self._holder(tensor), tensor)

    def _holder(self, tensor: Tensor) -> tuple[int, int] | None:
        for place, use in enumerate(self.session.procedure.optimizers.values()):
            held = [other for group in use.optimizer.param_groups for other in group["params"]]
            for inner, other in enumerate(held):
                if other is tensor:
                    return place, inner
        return None


def with_evidence(report: AuditReport, suspects: Sequence[Suspect], differences: Sequence[Difference]) -> AuditReport:
    """The report with what finite differences say of its findings.

    What is proved says so with numbers; what is refuted becomes a note; what could not be decided is listed.

    Args:
        report: Of the audit.
        suspects: Its findings that were asked about.
        differences: The answers, in the same order.
    """
    found = {id(s.finding): _judged(s, d) for s, d in zip(suspects, differences, strict=True) if not d.trouble}
    findings = [found.get(id(finding), finding) for finding in report.findings]
    findings.sort(key=lambda finding: (_LEVELS.index(finding.level), finding.code, finding.what))
    undecided = [
        f"{suspect.finding.code} of {describe(suspect.finding.parameters)} by finite differences: {difference.trouble}"
        for suspect, difference in zip(suspects, differences, strict=True)
        if difference.trouble
    ]
    return replace(report, findings=tuple(findings), not_examined=(*report.not_examined, *dict.fromkeys(undecided)))


def _judged(suspect: Suspect, difference: Difference) -> Finding:
    finding = suspect.finding
    what = f"loss term {suspect.question.term!r}" if suspect.question.term else "the loss"
    if difference.numeric:
        autograd = f"{difference.analytic:.1e}" if difference.analytic else "0"
        text = f"{what} changes by {abs(difference.numeric):.1e} per unit, autograd says {autograd}"
        return _escaped(finding, text) if finding.code == "FL207" else _add(finding, text)
    if difference.far:
        text = f"0 here; elsewhere, moving it by its own size changes {what} by {difference.far:.1e}"
        return _escaped(finding, text) if finding.code == "FL207" else _add(finding, text)
    if finding.code in ("FL207", "FL109"):
        return _add(finding, "0, however far it moves")
    text = f"0: {what} does not change, however far it moves"
    if suspect.declared:
        return replace(_add(finding, text), so="it has no influence to learn by", do=CODES["FL207"].do)
    return replace(_add(finding, text), level="note", so="no gradient is lost: no loss follows it")


def _escaped(finding: Finding, text: str) -> Finding:
    """A parameter that looked unused, and is not: its values take a way that is not torch's."""
    code = CODES["FL106"]
    what = f"{describe(finding.parameters)} learns nothing: its values leave torch before the loss"
    escaped = replace(finding, code=code.code, slug=code.slug, level=code.level, what=what, so=code.so, do=code.do)
    return _add(replace(escaped, evidence="no operator of torch leads from it to a loss"), text)


def _add(finding: Finding, text: str) -> Finding:
    evidence = f"{finding.evidence}; " if finding.evidence else ""
    return replace(finding, evidence=f"{evidence}finite difference: {text}")
