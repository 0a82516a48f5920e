"""Comments that accept a finding, where there was none to accept."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterable, Iterator

from frostline.gradflow.acceptance import accept
from frostline.records import AuditReport, Finding, Place


def unused_comments(report: AuditReport, paths: Iterable[str] = ()) -> Iterator[str]:
    """What a person should know of comments that accept nothing: they are at the wrong line, or no longer needed.

    Args:
        report: What was found.
        paths: Source files to look through, beside those that the findings name.
    """
    if not report.num_steps:
        return
    found = {(place.path, place.line, finding.code) for finding in report.findings for place in finding.places}
    for path in sorted({path for path, _, _ in found} | set(paths)):
        for number, text in enumerate(linecache.getlines(path), 1):
            accepted = [code for code in _codes(text) if _accepts(path, number, code)]
            for code in accepted:
                if not {(path, number, code), (path, number + 1, code)} & found:
                    file = Place(role="", path=path, line=number).file
                    yield f"the comment at {file}:{number} accepts {code}, and nothing was found there"


def _codes(text: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r"FL\d{3}", text.upper()))) if "frostline:" in text.lower() else []


def _accepts(path: str, line: int, code: str) -> bool:
    place = Place(role="", path=path, line=line)
    return bool(accept(Finding(code=code, slug="", level="fault", what="", places=(place,)), frozenset()).accepted)
