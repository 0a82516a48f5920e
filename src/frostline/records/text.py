"""Records to JSON and back, through the dataclasses' own annotations."""

from __future__ import annotations

import json
import math
import types
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from frostline.errors import FrostlineError
from frostline.records.audit import AuditReport
from frostline.records.evaluation import EvaluationReport
from frostline.records.memory import MemoryReport
from frostline.records.peak import PeakTable
from frostline.records.plan import Plan
from frostline.records.proof import ProofReport
from frostline.records.run import RunReport, StepRecord

Record = AuditReport | MemoryReport | PeakTable | Plan | ProofReport | RunReport | StepRecord | EvaluationReport
_KINDS: dict[str, type[Record]] = {kind.__name__: kind for kind in get_args(Record)}


def to_json(record: Record, *, indent: int | None = None) -> str:
    """A record as JSON with its class under ``"record"``; infinities and nan become strings."""
    return json.dumps({"record": type(record).__name__, **_plain(record)}, indent=indent, allow_nan=False)


def from_json(text: str) -> Record:
    """The record that `to_json` wrote.

    Raises:
        FrostlineError: The text is not JSON, or not one of our records.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise FrostlineError(f"not JSON: {error}") from None
    kind = document.pop("record", None) if isinstance(document, dict) else None
    kinds = sorted(_KINDS)
    if kind not in kinds:
        raise FrostlineError(f"not a frostline record: 'record' is {kind!r}, not one of {kinds}")
    try:
        record: Record = _build(_KINDS[kind], document, kind)
    except FrostlineError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise FrostlineError(f"{kind} does not fit: {error}") from None
    return record


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _build(kind: Any, value: Any, at: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        present = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _build(present, value, at)
    if origin is tuple:
        return tuple(_build(arguments[0], item, at) for item in value)
    if origin is dict:
        return {key: _build(arguments[1], item, f"{at}.{key}") for key, item in value.items()}
    if origin is Literal:
        return value
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        unknown, missing = set(value) - set(hints), _required(kind) - set(value)
        if unknown or missing:
            raise FrostlineError(f"{at} does not fit: unknown {sorted(unknown)}, missing {sorted(missing)}")
        return kind(**{name: _build(hints[name], item, f"{at}.{name}") for name, item in value.items()})
    return float(value) if kind is float else value


def _required(kind: Any) -> set[str]:
    return {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
