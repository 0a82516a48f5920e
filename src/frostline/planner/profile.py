"""What the units of a model hold and need over a step, read off one run of each kind of treatment."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from frostline.planner.running import Run
from frostline.planner.trace import Mark, MarkKind

_Place = tuple[MarkKind, int, int]


@dataclass(frozen=True)
class Segment:
    """A stretch of the step between two marks.

    Attributes:
        owner: The unit that runs in it, forward or backward; -1 where none does.
        peak_bytes: The most that is alive in it.
        holding: For each other unit, which of its calls hold what they keep for backward.
    """

    owner: int
    peak_bytes: int
    holding: frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Profile:
    """One run, cut at its marks.

    Attributes:
        shape: Kind, unit and call of each mark: profiles of one shape can be combined.
        segments: In order; the first begins with the step.
        kept: Bytes that a call of a unit leaves behind for backward, by unit and call.
        work: By unit, in its forward and its backward.
    """

    shape: tuple[_Place, ...]
    segments: tuple[Segment, ...]
    kept: dict[tuple[int, int], int]
    work: Counter[int]

    def held(self, segment: Segment) -> int:
        """What other units hold in a segment."""
        return sum(self.kept[call] for call in segment.holding)

    def needs(self, unit: int) -> tuple[list[int], list[int]]:
        """What a unit itself needs while it runs, and what its calls keep."""
        running = [segment.peak_bytes - self.held(segment) for segment in self.segments if segment.owner == unit]
        return running, [num_bytes for (owner, _), num_bytes in self.kept.items() if owner == unit]

    def alike(self, other: Profile, unit: int) -> bool:
        """Whether a unit needs the same bytes and the same work in both."""
        return self.needs(unit) == other.needs(unit) and self.work[unit] == other.work[unit]


def profile(run: Run) -> Profile:
    """Cut a run at its marks."""
    marks = sorted(run.marks, key=lambda mark: mark.event)
    start = run.log.step_start
    ends = [*(mark.event for mark in marks), len(run.live) - 1 + start]
    begins = [start, *(mark.event for mark in marks)]
    places: dict[_Place, int] = {(mark.kind, mark.unit, mark.call): place for place, mark in enumerate(marks)}
    kept, windows = _kept(marks, places, run, start)
    segments: list[Segment] = []
    work: Counter[int] = Counter()
    for place, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        mark = marks[place - 1] if place else None
        owner = mark.unit if mark is not None and mark.kind in ("forward", "backward") else -1
        holding = frozenset(
            call for call, (first, last) in windows.items() if first < place <= last and call[0] != owner
        )
        segments.append(Segment(owner, max(run.live[begin - start : end - start + 1]), holding))
        if owner >= 0 and mark is not None:
            work[owner] += (marks[place].work if place < len(marks) else run.work) - mark.work
    shape = tuple((mark.kind, mark.unit, mark.call) for mark in marks)
    return Profile(shape, tuple(segments), kept, work)


def _kept(
    marks: list[Mark], places: dict[_Place, int], run: Run, start: int
) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], tuple[int, int]]]:
    """Bytes that each call with a backward leaves behind, and from which mark to which it holds them."""
    kept: dict[tuple[int, int], int] = {}
    windows: dict[tuple[int, int], tuple[int, int]] = {}
    for place, mark in enumerate(marks):
        call = mark.unit, mark.call
        if mark.kind == "returned" and ("backward", *call) in places:
            begun = marks[places["forward", *call]]
            kept[call] = run.live[mark.event - start] - run.live[begun.event - start]
            windows[call] = place, places["backward", *call]
    return kept, windows
