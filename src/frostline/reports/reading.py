"""Record files and the directories of runs, read back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from frostline.errors import DataError, FrostlineError
from frostline.records import Record, from_json

_FILES = (
    "audit.json",
    "memory.json",
    "plan.json",
    "proof.json",
    "run.json",
    "log.jsonl",
    "table.json",
    "evaluation.json",
)
"""What a run's directory may hold."""
_CONFIGURATION = "config.yaml"
_KINDS = {kind.__name__ for kind in get_args(Record)}
_FROM = "name a file that --json wrote, or the directory of a run"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was read.

    Attributes:
        records: In the order of the files.
        names: The file of each record.
        configuration: The YAML of a run; empty where there is none.
        warnings: What the run's log warns of.
    """

    records: tuple[Record, ...]
    names: tuple[str, ...]
    configuration: str = ""
    warnings: tuple[str, ...] = ()


def read_records(path: Path) -> Reading:
    """Read a record's file, or the files in a run's directory.

    A file holds one record, a list of them, or an object of them by name, as ``--json`` writes them; or one a line
    where its name ends in ``.jsonl``.

    Raises:
        DataError: There is nothing, no record, or one of another version.
    """
    if not path.is_dir():
        return _reading(path, (path,))
    files = tuple(path / name for name in _FILES if (path / name).is_file())
    if not files:
        raise DataError(
            "the directory holds no records", where=str(path), do=f"{_FROM}: it has one of {', '.join(_FILES)}"
        )
    return _reading(path, files)


def _reading(path: Path, files: tuple[Path, ...]) -> Reading:
    records: list[Record] = []
    names: list[str] = []
    warnings: list[str] = []
    for file in files:
        for document in _documents(file):
            if file.suffix == ".jsonl" and "warning" in document:
                warnings.append(f"{file.name}, step {document.get('step')}: {document['warning']}")
            else:
                records.append(_record(document, file))
                names.append(str(file))
    if not records:
        raise DataError("it holds no records", where=str(path), do=_FROM)
    configuration = path / _CONFIGURATION
    return Reading(
        records=tuple(records),
        names=tuple(names),
        configuration=_text(configuration) if path.is_dir() and configuration.is_file() else "",
        warnings=tuple(warnings),
    )


def _documents(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file that shall be records; the line of a log that a crash cut short is none."""
    text = _text(file)
    if file.suffix == ".jsonl":
        lines = [line for line in text.splitlines() if line.strip()]
        for at, line in enumerate(lines, 1):
            whole = at < len(lines) or text.endswith("\n")
            if whole or line.endswith("}"):
                yield _object(_parsed(line, file), file)
        return
    document = _parsed(text, file)
    if isinstance(document, dict) and "record" not in document and document:
        parts = list(document.values())
        document = parts if all(isinstance(part, dict) and "record" in part for part in parts) else document
    for part in document if isinstance(document, list) else [document]:
        yield _object(part, file)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", where=str(file), do=_FROM) from None
    except UnicodeDecodeError:
        raise DataError("not a record: it is no text", where=str(file), do=_FROM) from None


def _parsed(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"not a record, for it is not JSON: {error}", where=str(file), do=_FROM) from None


def _object(document: Any, file: Path) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise DataError(f"not a record: it is a JSON {type(document).__name__}", where=str(file), do=_FROM)
    return document


def _record(document: dict[str, Any], file: Path) -> Record:
    kind = document.get("record")
    try:
        return from_json(json.dumps(document))
    except FrostlineError as error:
        do = _FROM
        if isinstance(kind, str) and kind in _KINDS:
            do = "another version of frostline wrote it: read it with that one, or make it again"
        raise DataError(error.what, where=str(file), do=do) from None
