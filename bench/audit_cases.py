"""The audit's score on programs with a known fault: ``python bench/audit_cases.py DIR [--json] [--case ID]``.

DIR holds cases: ``NNN.py`` with META, ``build(fixed=False)`` and ``step(s)``; ``build(fixed=True)`` is the healthy twin
of a fault. A fault is *right* when the audit reports one of its codes (the family before the ``/`` is enough) and
no fault in its twin; it is *located* when a reported line is within 1 of a line that is marked ``# FAULT``, or listed
as ``fault_lines`` in ``cases.jsonl``. A control, and a twin, must be reported healthy.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import io
import json
import random
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from frostline.errors import ConfigError
from frostline.gradflow import Audit, Intent
from frostline.records import AuditReport, Finding

_MARK = re.compile(r"#\s*FAULT\b")
_NEAR = 1
"""How many lines off a reported line may be."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One program.

    Attributes:
        path: Its source.
        meta: Its META: what it is, and what its author declares.
        fault_lines: Where the fault stands; empty where that is not known, and for a control.
    """

    path: Path
    meta: dict[str, Any]
    fault_lines: tuple[int, ...]

    @property
    def id(self) -> str:
        """Its name."""
        return str(self.meta.get("id", self.path.stem))

    @property
    def is_fault(self) -> bool:
        """Whether it has a fault, and a healthy twin; else it is a control."""
        return bool(self.meta["kind"] == "fault")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The score of one case.

    Attributes:
        case: The case.
        reported: Codes and slugs that were reported of the control, or of the faulty program.
        hit: Whether one of the right codes is among them; of a control, False.
        located: Whether a reported line is near the fault; None where the fault's lines are not known.
        alarms: What was reported of the twin, or of the control, though it is healthy.
        errors: What the program and its twin raised.
    """

    case: Case
    reported: tuple[str, ...]
    hit: bool
    located: bool | None
    alarms: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether the fault, and the health of its twin, were seen; of a control, whether its health was."""
        return (self.hit or not self.case.is_fault) and not self.alarms


def find_cases(folder: Path) -> list[Case]:
    """The cases of a folder, by name.

    Raises:
        ConfigError: The folder is not there or holds no case, or a program has no META.
    """
    paths = sorted(path for path in folder.glob("*.py") if re.fullmatch(r"\d{3}", path.stem))
    if not paths:
        raise ConfigError(f"no case in {str(folder)!r}", do="name a folder with programs 001.py, 002.py, ...")
    index = folder / "cases.jsonl"
    text = index.read_text(encoding="utf-8") if index.exists() else ""
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    listed = {row["id"]: tuple(row["fault_lines"]) for row in rows if "fault_lines" in row}
    cases = []
    for path in paths:
        meta = _read_meta(path)
        lines = listed.get(meta.get("id", path.stem)) or _marked(path)
        cases.append(Case(path=path, meta=meta, fault_lines=lines))
    return cases


def _marked(path: Path) -> tuple[int, ...]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(number for number, line in enumerate(lines, 1) if _MARK.search(line))


def _read_meta(path: Path) -> dict[str, Any]:
    """META comes before the audit, for it holds what the author declares."""
    with _isolated(path.parent):
        try:
            meta = dict(_load(path, "meta").META)
            if meta["kind"] not in ("fault", "control"):
                raise ValueError(f"kind {meta['kind']!r}")
        except Exception as error:
            raise ConfigError(f"no META can be read: {_text(error)}", where=str(path)) from error
    return meta


def audit_case(case: Case, *, fixed: bool) -> tuple[AuditReport, str]:
    """Audit one program from its import to its last step; the report, and what the program raised.

    Args:
        case: The program.
        fixed: Whether its healthy twin is audited.
    """
    meta, raised = case.meta, ""
    audit = Audit(Intent.of(meta.get("learn", ()), meta.get("stay", ()), meta.get("flow")))
    with _isolated(case.path.parent):
        try:
            with audit.running():
                _run(_load(case.path, "twin" if fixed else "case"), audit, fixed=fixed)
        except Exception as error:  # part of the experiment
            raised = ("its twin" if fixed else "it") + f" raised {_text(error)}"
        return audit.report(), raised


def _run(module: ModuleType, audit: Audit, *, fixed: bool) -> None:
    torch.manual_seed(0)
    state = module.build(fixed=fixed)
    if isinstance(getattr(state, "model", None), torch.nn.Module):
        audit.watch(state.model)
    for name, tensor in (getattr(state, "extra", None) or {}).items():
        audit.watch_tensor(tensor, name)
    torch.manual_seed(1)
    for _ in range(module.META.get("steps", 1)):
        module.step(state)


def _load(path: Path, role: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"audit_{role}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path.name} is not a Python program")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _isolated(folder: Path) -> Iterator[None]:
    """Put back whatever a case may change: modes, defaults, random numbers, threads, imports, what it prints."""
    enabled, dtype, num_threads = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    anomaly, deterministic = torch.is_anomaly_enabled(), torch.get_deterministic_debug_mode()
    device, path, modules = torch.get_default_device(), list(sys.path), set(sys.modules)
    python, legacy_numpy = random.getstate(), np.random.get_state()
    autocast = torch.is_autocast_enabled("cpu")
    random.seed(0)
    np.random.seed(0)
    sys.path.insert(0, str(folder))
    try:
        with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.collect()  # a suspended generator puts its own grad mode back when it goes
        torch.set_grad_enabled(enabled)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)
        torch.set_anomaly_enabled(anomaly)
        torch.set_deterministic_debug_mode(deterministic)
        torch.set_autocast_enabled("cpu", autocast)
        random.setstate(python)
        np.random.set_state(legacy_numpy)
        sys.path[:] = path
        for name in set(sys.modules) - modules:  # what a case imports from its own folder is not the next one's
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]


def _text(error: BaseException) -> str:
    return traceback.format_exception_only(error)[0].strip().splitlines()[0]


def score(case: Case) -> Verdict:
    """Audit a case, and its twin where it has one, and compare with what is known of them."""
    report, error = audit_case(case, fixed=False)
    errors = [error] if error else []
    if case.is_fault:
        twin, error = audit_case(case, fixed=True)
        errors += [error] if error else []
        alarms = [finding for finding in twin.findings if finding.level == "fault"]
    else:
        alarms = [finding for finding in report.findings if finding.level != "note"]
    families = {code.partition("/")[0] for code in case.meta.get("codes", ())}
    return Verdict(
        case=case,
        reported=tuple(dict.fromkeys(f"{finding.code} {finding.slug}" for finding in report.findings)),
        hit=any(finding.slug.partition("/")[0] in families for finding in report.findings),
        located=_is_located(report.findings, case) if case.is_fault and case.fault_lines else None,
        alarms=tuple(f"{finding.code} {finding.what}" for finding in alarms),
        errors=tuple(errors),
    )


def _is_located(findings: Sequence[Finding], case: Case) -> bool:
    """Whether a reported line of the program itself is near a faulty one."""
    lines = {place.line for f in findings for place in f.places if Path(place.path).resolve() == case.path.resolve()}
    return any(abs(line - fault) <= _NEAR for line in lines for fault in case.fault_lines)


def summarise(verdicts: Sequence[Verdict], seconds: float) -> dict[str, Any]:
    """The numbers of a run.

    Args:
        verdicts: Of all cases.
        seconds: How long the run took.
    """
    faults = [verdict for verdict in verdicts if verdict.case.is_fault]
    locatable = [verdict for verdict in faults if verdict.located is not None]
    return {
        "num_faults": len(faults),
        "num_right": sum(verdict.right for verdict in faults),
        "num_locatable": len(locatable),
        "num_located": sum(bool(verdict.located) for verdict in locatable),
        "false_alarms": [verdict.case.id for verdict in verdicts if verdict.alarms],
        "missed": [verdict.case.id for verdict in faults if not verdict.hit],
        "seconds": round(seconds, 1),
    }


def render(verdicts: Sequence[Verdict], summary: dict[str, Any]) -> Iterator[Table | str]:
    """A table of all cases, what went wrong in words, and the sums."""
    table = Table("case", "what is wrong", "reported", "right", "located")
    for verdict in verdicts:
        located = "" if verdict.located is None else "yes" if verdict.located else "NO"
        table.add_row(
            verdict.case.id,
            ", ".join(verdict.case.meta.get("codes", ())) or "nothing",
            ", ".join(text.partition(" ")[0] for text in verdict.reported),
            "yes" if verdict.right else "NO",
            located,
        )
    yield table
    for verdict in verdicts:
        who = "its healthy twin" if verdict.case.is_fault else "a healthy program"
        yield from (f"{verdict.case.id}: false alarm, in {who}: {text}" for text in verdict.alarms)
        if verdict.case.is_fault and not verdict.hit:
            yield f"{verdict.case.id}: missed; reported instead: {', '.join(verdict.reported) or 'nothing'}"
        for error in verdict.errors:
            if not verdict.right or error.startswith("its twin"):  # many faults are loud
                yield f"{verdict.case.id}: {error}"
    num_controls = sum(not verdict.case.is_fault for verdict in verdicts)
    yield (
        f"{summary['num_right']} of {summary['num_faults']} faults right, "
        f"{summary['num_located']} of {summary['num_locatable']} located, "
        f"{len(summary['false_alarms'])} false alarms in {summary['num_faults'] + num_controls} healthy programs, "
        f"{summary['seconds']} s"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, score every case, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder of the cases")
    parser.add_argument("--json", action="store_true", help="print the sums as one JSON object")
    parser.add_argument("--case", metavar="ID", action="append", default=[], help="only this case; can be repeated")
    asked = parser.parse_args(arguments)
    try:
        cases = find_cases(asked.folder)
        unknown = set(asked.case) - {case.id for case in cases}
        if unknown:
            raise ConfigError(f"no case {sorted(unknown)[0]!r} in {str(asked.folder)!r}")
    except ConfigError as error:
        print(f"audit_cases.py: {error}", file=sys.stderr)
        return 2
    gc.freeze()  # what torch brings is not looked through after every case
    start = time.perf_counter()
    verdicts = [score(case) for case in cases if not asked.case or case.id in asked.case]
    summary = summarise(verdicts, time.perf_counter() - start)
    gc.unfreeze()
    if asked.json:
        print(json.dumps(summary))
        return 0
    console = Console()
    for part in render(verdicts, summary):
        console.print(part, highlight=False, markup=False, soft_wrap=isinstance(part, str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
