"""An audit: findings, what each loss term trains, the roles of the modules."""

from __future__ import annotations

import linecache
from dataclasses import dataclass

from frostline.records import AuditedPhase, AuditReport, Finding, TermFlow
from frostline.reports.findings import short_path
from frostline.reports.html.limits import Limits
from frostline.reports.html.section import Figure, Section, counted, joined, pattern_of, percent
from frostline.units import format_bytes, format_seconds

_LEVELS = ("fault", "cost", "note")
_ROLES = ("trainable", "downstream", "upstream", "side", "not called")
_NUM_NAMES = 12


@dataclass(frozen=True, kw_only=True)
class Line:
    """A place, and the line of the program that stands there."""

    role: str
    at: str
    text: str
    code: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """A finding as it is shown."""

    finding: Finding
    lines: tuple[Line, ...]
    num_more_lines: int
    parameters: tuple[str, ...]
    more: int
    wasted: str

    @property
    def style(self) -> str:
        """The level, as a CSS class."""
        return "accepted" if self.finding.accepted else self.finding.level


@dataclass(frozen=True, kw_only=True)
class FlowRow:
    """A module, or several numbered ones that are alike, with a number for each loss term; None where it has none."""

    name: str
    counts: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True)
class FlowTable:
    """Which loss term trains what."""

    terms: tuple[TermFlow, ...]
    num_more_terms: int
    idle: tuple[bool, ...]
    rows: tuple[FlowRow, ...]
    num_more: int


@dataclass(frozen=True, kw_only=True)
class RoleRow:
    """Modules that play one role for one reason."""

    role: str
    cacheable: bool
    why: str
    num_modules: int
    names: tuple[str, ...]
    num_more: int


@dataclass(frozen=True, kw_only=True)
class AuditView:
    """What the template of an audit reads."""

    report: AuditReport
    cards: tuple[Card, ...]
    short: tuple[Card, ...]
    num_more: int
    phases: tuple[tuple[AuditedPhase, str, float], ...]
    num_more_phases: int
    flow: FlowTable | None
    roles: tuple[RoleRow, ...]
    not_examined: tuple[str, ...]
    num_more_not_examined: int


def audit_section(report: AuditReport, limits: Limits, *, source: bool) -> Section:
    """What an audit found.

    Args:
        report: The record.
        limits: How much of it to show.
        source: Whether to show lines of the program, where its files can be read.
    """
    ordered = [f for level in _LEVELS for f in report.findings if f.level == level and not f.accepted]
    ordered += [f for f in report.findings if f.accepted]
    shown, short = ordered[: limits.num_cards], ordered[limits.num_cards :]
    view = AuditView(
        report=report,
        cards=tuple(_card(finding, source) for finding in shown),
        short=tuple(_card(finding, False) for finding in short[: limits.num_rows]),
        num_more=max(0, len(short) - limits.num_rows),
        phases=tuple(
            (phase, _seen(phase), percent(phase.num_reached, phase.num_parameters))
            for phase in report.phases[: limits.num_rows]
        ),
        num_more_phases=max(0, len(report.phases) - limits.num_rows),
        flow=_flow(report.terms, limits),
        roles=_roles(report, limits),
        not_examined=report.not_examined[: limits.num_rows],
        num_more_not_examined=max(0, len(report.not_examined) - limits.num_rows),
    )
    return Section(title="Gradient flow", template="gradients.html.j2", view=view, figure=_figure(report))


def _figure(report: AuditReport) -> Figure:
    num_faults = len(report.faults)
    num_costs = sum(finding.level == "cost" and not finding.accepted for finding in report.findings)
    num_accepted = sum(bool(finding.accepted) for finding in report.findings)
    others = (counted(num_costs, "cost") if num_costs else "", f"{num_accepted} accepted" if num_accepted else "")
    seen = f"{counted(report.num_steps, 'step')} in {format_seconds(report.wall_seconds)}"
    return Figure(
        label="audit",
        value=counted(num_faults, "fault"),
        note=joined((*others, seen, "fake tensors" if report.method == "fake" else "")),
        tone="bad" if num_faults else "warn" if num_costs else "good" if report.num_steps else "warn",
    )


def _seen(phase: AuditedPhase) -> str:
    skipped = f"{counted(phase.num_skipped, 'update')} skipped" if phase.num_skipped else ""
    return joined((counted(phase.num_steps, "step"), counted(phase.num_backwards, "backward"), skipped))


def _card(finding: Finding, source: bool) -> Card:
    lines, shown = [], set()
    for place in finding.places[:_NUM_NAMES]:
        code = ""
        if source and (place.path, place.line) not in shown:
            code = linecache.getline(place.path, place.line).strip()
            shown.add((place.path, place.line))
        lines.append(Line(role=place.role, at=f"{short_path(place.path)}:{place.line}", text=place.text, code=code))
    return Card(
        finding=finding,
        lines=tuple(lines),
        num_more_lines=max(0, len(finding.places) - _NUM_NAMES),
        parameters=finding.parameters[:_NUM_NAMES],
        more=max(0, len(finding.parameters) - _NUM_NAMES),
        wasted=format_bytes(finding.num_bytes) if finding.num_bytes else "",
    )


def _flow(terms: tuple[TermFlow, ...], limits: Limits) -> FlowTable | None:
    """A row a module, a column a term: names of modules are long, and there are few terms."""
    if not terms:
        return None
    shown = terms[:_NUM_NAMES]
    alike: dict[tuple[str, tuple[int | None, ...]], list[str]] = {}
    for module in dict.fromkeys(module for term in terms for module in term.modules):
        counts = tuple(term.modules.get(module) for term in shown)
        alike.setdefault((pattern_of(module), counts), []).append(module)
    rows = [
        FlowRow(
            name=_named(names, pattern),
            counts=tuple(None if count is None else count * len(names) for count in counts),
        )
        for (pattern, counts), names in alike.items()
    ]
    return FlowTable(
        terms=shown,
        num_more_terms=len(terms) - len(shown),
        idle=tuple(not any(term.modules.values()) for term in shown),
        rows=tuple(rows[: limits.num_rows]),
        num_more=max(0, len(rows) - limits.num_rows),
    )


def _roles(report: AuditReport, limits: Limits) -> tuple[RoleRow, ...]:
    """One row a role and its reason, with the modules that play it; numbered ones that do share a name."""
    alike: dict[tuple[str, bool, str], list[str]] = {}
    for row in report.roles:
        alike.setdefault((row.role, row.cacheable, row.why), []).append(row.module)
    rows = []
    for (role, cacheable, why), modules in list(alike.items())[: limits.num_rows]:
        patterns: dict[str, list[str]] = {}
        for module in modules:
            patterns.setdefault(pattern_of(module), []).append(module)
        names = [_named(members, pattern) for pattern, members in patterns.items()]
        rows.append(
            RoleRow(
                role=role,
                cacheable=cacheable,
                why=why,
                num_modules=len(modules),
                names=tuple(names[: limits.num_rows]),
                num_more=max(0, len(names) - limits.num_rows),
            )
        )
    return tuple(sorted(rows, key=lambda row: _ROLES.index(row.role) if row.role in _ROLES else len(_ROLES)))


def _named(names: list[str], pattern: str) -> str:
    return names[0] if len(names) == 1 else f"{pattern} ({len(names)})"
