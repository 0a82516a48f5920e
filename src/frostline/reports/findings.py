"""Findings as text for people: what, where with the source line, evidence, consequence, remedy."""

from __future__ import annotations

import linecache
import os
import re
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from frostline.records import Finding, Place

_COLOURS = {"fault": "bold red", "cost": "bold yellow", "note": "bold cyan"}
_MAX_NOTES = 3


class Hanging:
    """A line of text that goes on below its own beginning where the terminal is too narrow.

    Args:
        head: What stands to the left.
        body: What is wrapped.
    """

    def __init__(self, head: Text, body: Text) -> None:
        self._head, self._body = head, body

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Wrap to the width there is."""
        indent = self._head.cell_len
        for number, line in enumerate(self._body.wrap(console, max(20, options.max_width - indent))):
            line.rstrip()
            yield Text.assemble(" " * indent if number else self._head, line)


def finding_lines(finding: Finding, *, source: bool) -> Iterator[Hanging | Text]:
    """A finding as `str(finding)` has it, with paths from the current directory.

    Args:
        finding: What was found.
        source: Whether each place shows its line of the program.
    """
    yield Hanging(Text(f"{finding.code} ", _COLOURS[finding.level]), Text(finding.what, "bold"))
    width = max([len("evidence"), *(len(place.role) for place in finding.places)])
    shown: set[tuple[str, int]] = set()
    for place in finding.places:
        at = Text.assemble((_where(place), "bold"), f"  {place.text}".rstrip())
        yield Hanging(Text(f"  {place.role:<{width}}  ", "dim"), at)
        line = linecache.getline(place.path, place.line).strip() if source else ""
        if line and (place.path, place.line) not in shown:
            shown.add((place.path, place.line))
            yield Hanging(Text(" " * (width + 4) + "| ", "dim"), Text(line, "green"))
    for role, text in (
        ("evidence", finding.evidence),
        ("so", finding.so),
        ("do", finding.do),
        ("accepted", finding.accepted),
    ):
        if text:
            yield Hanging(Text(f"  {role:<{width}}  ", "dim"), Text(text))


def finding_line(finding: Finding) -> Hanging:
    """A finding in one line: code, what, first place."""
    at = f"  {_where(finding.places[0])}" if finding.places else ""
    accepted = f"  accepted: {finding.accepted}" if finding.accepted else ""
    return Hanging(
        Text(f"{finding.code} ", _COLOURS[finding.level]), Text.assemble(finding.what, (at, "bold"), (accepted, "dim"))
    )


def findings_lines(findings: Sequence[Finding], *, source: bool) -> Iterator[Hanging | Text]:
    """Faults, then costs, then notes, which are a line each where there are many; accepted ones last, a line each."""
    rest = [finding for finding in findings if not finding.accepted]
    for level in ("fault", "cost", "note"):
        of_level = [finding for finding in rest if finding.level == level]
        short = level == "note" and len(of_level) > _MAX_NOTES
        for finding in of_level:
            yield from [finding_line(finding)] if short else finding_lines(finding, source=source)
            if not short:
                yield Text()
        if short:
            yield Text()
    accepted = [finding for finding in findings if finding.accepted]
    yield from map(finding_line, accepted)
    if accepted:
        yield Text()


def _where(place: Place) -> str:
    return f"{short_path(place.path)}:{place.line}"


def file_paths(findings: Sequence[Finding]) -> Callable[[str], str]:
    """Writes files, of which a text has only the names, as findings write them; two of one name are left as is."""
    paths: dict[str, set[str]] = {}
    for place in (place for finding in findings for place in finding.places):
        paths.setdefault(place.file, set()).add(short_path(place.path))

    def write(text: str) -> str:
        return re.sub(
            r"(?<![\w./\\-])[\w.-]+\.py(?=:\d)", lambda match: _only(paths.get(match[0], set()), match[0]), text
        )

    return write


def _only(paths: set[str], name: str) -> str:
    return next(iter(paths)) if len(paths) == 1 else name


def short_path(path: str) -> str:
    """A path from the current directory where that is shorter."""
    try:
        return min(path, os.path.relpath(path), key=len)
    except ValueError:  # another drive
        return path
