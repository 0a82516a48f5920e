"""What an audit found: findings, roles of modules, what each loss term trains, and what was not looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Level = Literal["fault", "cost", "note"]
"""A *fault* makes training wrong, a *cost* is memory or work paid for nothing, a *note* informs."""
Role = Literal["trainable", "upstream", "downstream", "side", "not called"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A line of the user's program that a finding names.

    Attributes:
        role: What happened there: ``"cut"``, ``"entered"``, ``"made"``, ``"frozen"``, ``"optimizer"``, ...
        path: The source file.
        line: Counted from 1.
        text: What stands or runs there.
    """

    role: str
    path: str
    line: int
    text: str = ""

    @property
    def file(self) -> str:
        """The file's name, without its folder."""
        return self.path.replace("\\", "/").rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, costs memory, or is good to know.

    Attributes:
        code: ``"FL101"``; its page is ``docs/rules/FL101.md``.
        slug: The same as ``family/cause``.
        level: How much it matters.
        what: What is the matter, with the value.
        places: Where, the most telling line first.
        evidence: What was seen.
        so: What follows from it.
        do: What to do.
        parameters: The parameters it is about.
        num_bytes: Memory paid for nothing, where that is what it is about.
        accepted: Why the author accepts it; empty where nobody did.
    """

    code: str
    slug: str
    level: Level
    what: str
    places: tuple[Place, ...] = ()
    evidence: str = ""
    so: str = ""
    do: str = ""
    parameters: tuple[str, ...] = ()
    num_bytes: int = 0
    accepted: str = ""

    def __str__(self) -> str:
        """The text people read: what, where, evidence, consequence, remedy."""
        width = max([len("evidence"), *(len(place.role) for place in self.places)])
        rows = [(place.role, f"{place.file}:{place.line}  {place.text}".rstrip()) for place in self.places]
        rows += [("evidence", self.evidence), ("so", self.so), ("do", self.do), ("accepted", self.accepted)]
        return "\n".join([f"{self.code} {self.what}", *(f"  {role:<{width}}  {text}" for role, text in rows if text)])


@dataclass(frozen=True, kw_only=True)
class ModuleRole:
    """What a module is to the gradient.

    Attributes:
        module: Its name.
        role: ``upstream``: frozen, and nothing trainable influences it. ``downstream``: frozen, and the gradient passes
            through it. ``side``: frozen, influenced, but no loss depends on it.
        cacheable: Whether its outputs are the same for the same inputs in every step.
        why: Why it is, or is not.
    """

    module: str
    role: Role
    cacheable: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class TermFlow:
    """What one term of a loss trains.

    Attributes:
        term: The name the program gives it, or what computes it.
        line: Where it is computed, as ``file.py:12``.
        modules: By module with trainable parameters: how many of them the term's gradient reaches.
    """

    term: str
    line: str
    modules: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class AuditedPhase:
    """One loss and the optimizers it feeds.

    Attributes:
        name: The optimizers that step, and where the loss goes backward.
        num_steps: Steps that were seen.
        num_backwards: Backward passes in them.
        num_skipped: Updates a gradient scaler skipped.
        num_parameters: Trainable parameters its optimizers hold.
        num_reached: How many of them a gradient arrived at.
    """

    name: str
    num_steps: int
    num_backwards: int
    num_skipped: int
    num_parameters: int
    num_reached: int


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """Everything an audit has to say.

    Attributes:
        findings: Faults first, then costs, then notes; accepted ones among them.
        phases: One for each loss and the optimizers it feeds.
        roles: Of the modules, outermost where all inside play the same.
        terms: Which loss term trains what; empty where the loss is one term.
        not_examined: What the audit could not, or did not, look at.
        num_steps: Steps that were audited, of all phases.
        wall_seconds: How long the audited program ran.
        method: ``"real"`` tensors, or ``"fake"`` ones without values.
        unused_comments: Comments of the program that accept a finding, where none was found.
    """

    findings: tuple[Finding, ...]
    phases: tuple[AuditedPhase, ...]
    roles: tuple[ModuleRole, ...]
    terms: tuple[TermFlow, ...]
    not_examined: tuple[str, ...]
    num_steps: int
    wall_seconds: float
    method: Literal["real", "fake"] = "real"
    unused_comments: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The findings and the verdict, as text."""
        return "\n\n".join([*map(str, self.findings), self.verdict])

    @property
    def verdict(self) -> str:
        """One line: how many of each that nobody has accepted, in how many steps."""
        if not self.num_steps and not self.faults:
            return "nothing was audited: no optimizer stepped"
        open_ = [finding.level for finding in self.findings if not finding.accepted]
        found = [_counted(open_.count(level), level) for level in get_args(Level) if level in open_ or level == "fault"]
        if len(open_) < len(self.findings):
            found.append(f"{len(self.findings) - len(open_)} accepted")
        phases = f" of {len(self.phases)} phases" if len(self.phases) > 1 else ""
        seen = f" in {_counted(self.num_steps, 'step')}{phases}" if self.num_steps else "; no optimizer stepped"
        return ", ".join(found) + seen

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The faults that nobody has accepted."""
        return tuple(finding for finding in self.findings if finding.level == "fault" and not finding.accepted)


def _counted(number: int, name: str) -> str:
    return f"{number or 'no'} {name}{'' if number == 1 else 's'}"
