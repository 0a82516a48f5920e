"""Bytes, counts and seconds, to text and back."""

from __future__ import annotations

import re

from frostline.errors import ConfigError

KIB, MIB, GIB = 2**10, 2**20, 2**30
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": KIB, "MIB": MIB, "GIB": GIB}


def parse_bytes(text: str) -> int:
    """Read a size such as ``6GiB``, ``750 MB`` or ``1048576``.

    Raises:
        ConfigError: The text is not a size.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    factor = _BYTES.get((match[2] or "B").upper()) if match else None
    if match is None or factor is None:
        raise ConfigError(f"{text!r} is not a size", do="write a number and a unit, such as 6GiB or 750MB")
    return round(float(match[1]) * factor)


def format_bytes(num_bytes: float) -> str:
    """Bytes in the binary unit that leaves one to four digits before the point: ``1318.2 MiB``."""
    for unit, factor in (("GiB", 10_000 * MIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(num_bytes) >= factor:
            return f"{num_bytes / _BYTES[unit.upper()]:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def format_mib(num_bytes: float) -> str:
    """Bytes as a bare number of MiB, for tables whose heading names the unit."""
    mib = num_bytes / MIB
    return f"{mib:,.0f}" if mib >= 100 else f"{mib:.1f}" if mib >= 1 else f"{mib:.3f}"


def format_count(count: float) -> str:
    """A count with thousands marked up to a million, in millions above: ``35,720``, ``231.4 M``."""
    for letter, factor in (("B", 10**9), ("M", 10**6)):
        if abs(count) >= factor:
            return f"{count / factor:.1f} {letter}"
    return f"{count:,.0f}"


def format_seconds(seconds: float) -> str:
    """A duration: ``0.31 s``, ``42 s``, ``3:05``, ``2:13:40``."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
