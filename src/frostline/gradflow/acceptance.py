"""Findings an author accepts: by code, or by a comment at the line."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterable
from dataclasses import replace

from frostline.errors import ConfigError
from frostline.gradflow.codes import CODES
from frostline.records import Finding, Place

_COMMENT = re.compile(r"#\s*frostline:\s*accept\s+(?P<codes>FL\d{3}(?:\s*,\s*FL\d{3})*)(?P<why>.*)", re.IGNORECASE)


def check_codes(codes: Iterable[str]) -> frozenset[str]:
    """Codes that exist.

    Raises:
        ConfigError: One does not.
    """
    found = frozenset(code.upper() for code in codes)
    for code in sorted(found - CODES.keys()):
        raise ConfigError(f"there is no finding {code!r}", do="see docs/rules for the codes, FL101 to FL512")
    return found


def accept(finding: Finding, codes: frozenset[str]) -> Finding:
    """The finding, marked as accepted where its code, or a comment at one of its lines, says so."""
    if finding.code in codes:
        return replace(finding, accepted="accepted by --accept")
    for place in finding.places:
        why = _comment(place, finding.code)
        if why:
            return replace(finding, accepted=why)
    return finding


def _comment(place: Place, code: str) -> str:
    """The reason a comment on the line, or alone on the line above, gives for accepting a code."""
    above = linecache.getline(place.path, place.line - 1).strip()
    for text in (linecache.getline(place.path, place.line), above if above.startswith("#") else ""):
        match = _COMMENT.search(text)
        if match and code in re.findall(r"FL\d{3}", match["codes"].upper()):
            return match["why"].strip().removeprefix("because").strip() or "accepted by a comment"
    return ""
