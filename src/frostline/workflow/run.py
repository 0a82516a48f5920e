"""Train a system from its configuration to a directory with checkpoint, configuration, log and record."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import yaml

from frostline.config import RunConfig, dump_config
from frostline.errors import AuditError, CheckpointError, ConfigError
from frostline.memory import measure
from frostline.records import AuditReport, MemoryReport, Plan, RunReport, to_json
from frostline.training import CheckpointStore, Group, RunLog, run
from frostline.units import format_bytes, format_seconds
from frostline.workflow.audit import audit_workload
from frostline.workflow.planning import PlanInForce, planned
from frostline.workflow.session import (
    SILENT,
    Device,
    OwnPlan,
    RunObserver,
    TrainableSystem,
    new_directory,
    open_group,
    verbs_of,
)

_RECORD = "run.json"
_MAY_CHANGE = {
    ("memory", "budget"),  # whatever its plan recomputes, the bits are the same
    ("data", "num_workers"),
    ("data", "force_num_workers"),
    ("data", "prefetch_factor"),
    ("training", "num_steps"),
    ("training", "log_every"),
    ("training", "checkpoint_every"),
    ("training", "tensorboard"),
}


def train(
    config: RunConfig,
    *,
    out: Path | str,
    observer: RunObserver = SILENT,
    resume: bool = False,
    device: Device = "auto",
    accept: Iterable[str] = (),
) -> RunReport:
    """Train, after the first step was audited.

    With `memory.budget`, a step that runs out of memory is undone, planned lower and made again: `plan.json` in `out`
    is the plan that was last in force. The planner's plans do not change the bits of what is trained; a system with
    treatments of its own is built by its own plan, which says its proof class, and ends where memory runs out.

    Args:
        config: Of any system.
        out: The run's directory.
        observer: Told how it goes.
        resume: Continue the run in `out`, started with this configuration; only how often it logs and saves, how data
            is loaded, and `num_steps` may differ. The schedule follows the new `num_steps`.
        device: ``auto`` takes a GPU where there is one.
        accept: Codes of faults in the first step that shall not stop the run.

    Raises:
        AuditError: The first step has a fault that is not accepted; `audit.json` in `out` holds all that was found.
        ConfigError: A value cannot be used, nothing is left to train, or `out` holds a run already.
        CheckpointError: There is nothing to resume, or it was started with another configuration.
        DataError: The data cannot be used.
        DeviceError: The device is not there.
        MissingExtraError: A package the system needs is not installed.

    Example:
        >>> from frostline.systems.semcom import SemcomConfig
        >>> report = train(SemcomConfig(), out="runs/a")  # doctest: +SKIP
    """
    out = Path(out)
    verbs = verbs_of(config)
    with ExitStack() as stack:
        group = open_group(device)
        stack.callback(group.close)
        store = CheckpointStore(out, verbs.TRAINABLES)
        text = dump_config(config)
        if resume:
            checkpoint = store.load()
            _check_same(checkpoint.config_text, text, out)
            if checkpoint.step >= config.training.num_steps and (out / _RECORD).exists():  # else it is still to write
                raise ConfigError(
                    f"the run has {checkpoint.step} steps already", where=str(out), do="raise --training.num-steps"
                )
        else:
            new_directory(out)
        group.barrier()
        system = verbs.build(config, group, out)
        if not system.phases:
            raise ConfigError(
                "the system has 0 trainable parameters: it can only be monitored",
                do=f"run `frostline evaluate {config.SYSTEM}` with the same keys",
            )
        found, report, in_force = _introduce(system, config, out, group, observer, accept, stack)
        if group.is_main:
            (out / "audit.json").write_text(to_json(found, indent=1), encoding="utf-8")
        _check_gradients(found, out)
        if group.is_main:
            (out / "config.yaml").write_text(text, encoding="utf-8")
            (out / "memory.json").write_text(to_json(report, indent=1), encoding="utf-8")
        record = run(
            system,
            config.training,
            group=group,
            store=store,
            config_text=text,
            log=RunLog(
                out / "log.jsonl",
                log_every=config.training.log_every,
                tensorboard=config.training.tensorboard,
            ),
            observer=observer,
            resume=resume,
            known_peak_bytes=report.peak_bytes,
            relieve=None if in_force is None else partial(_replan, in_force, out, observer),
        )
        if group.is_main:
            (out / _RECORD).write_text(to_json(record, indent=1), encoding="utf-8")
        return record


def _introduce(
    system: TrainableSystem,
    config: RunConfig,
    out: Path,
    group: Group,
    observer: RunObserver,
    accept: Iterable[str],
    stack: ExitStack,
) -> tuple[AuditReport, MemoryReport, PlanInForce | None]:
    """Say what trains, fill the cache, put the plan in force until `stack` ends, audit a step and measure it."""
    if group.is_main:
        observer.introduced(system.components(), system.notes())
    system.fill_cache(observer.filling if group.is_main else SILENT.filling)
    work = system.workload()
    system.release_upstream_()
    in_force = stack.enter_context(planned(config, work))
    found = audit_workload(work, system, accept=accept)
    report = measure(work.step, work.model, optimizers=work.optimizers, inputs=work.inputs)
    if group.is_main:
        plan = in_force.plan if in_force is not None else system.plan if isinstance(system, OwnPlan) else None
        if plan is not None:
            _tell_plan(plan, out, observer)
        observer.note(f"the first step was audited in {format_seconds(found.wall_seconds)}: {_told(found)}")
        peak, resident = format_bytes(report.peak_bytes), format_bytes(report.resident_bytes)
        observer.note(f"one step peaks at {peak}, {resident} of it there before: {report.peak_at}")
    return found, report, in_force


def _tell_plan(plan: Plan, out: Path, observer: RunObserver) -> None:
    observer.note(str(plan))
    (out / "plan.json").write_text(to_json(plan, indent=1), encoding="utf-8")


def _replan(in_force: PlanInForce, out: Path, observer: RunObserver, said: str) -> None:
    """Relieve a run whose step ran out of memory; the step is made again under a lower plan."""
    observer.note(f"out of memory: the step is undone, planned lower and made again ({said.partition(chr(10))[0]})")
    _tell_plan(in_force.lower_(), out, observer)


def _told(found: AuditReport) -> str:
    accepted = sum(finding.level == "fault" for finding in found.findings) - len(found.faults)
    others = f", {accepted} accepted" if accepted else ""
    return f"{len(found.faults) or 'no'} fault{'' if len(found.faults) == 1 else 's'}{others}"


def _check_gradients(found: AuditReport, out: Path) -> None:
    """Hold a run to a first step without faults."""
    if not found.faults:
        return
    texts = "\n\n".join(str(finding) for finding in found.faults)
    codes = " ".join(f"--accept {code}" for code in dict.fromkeys(finding.code for finding in found.faults))
    raise AuditError(
        f"nothing was trained: {_told(found)} in the first step\n\n{texts}\n",
        where=str(out / "audit.json"),
        do=f"mend the step, or accept what is meant: {codes}",
    )


def _check_same(saved: str, asked: str, out: Path) -> None:
    """Hold a resumed run to the configuration it was started with."""
    before, now = yaml.safe_load(saved), yaml.safe_load(asked)
    if before.get("name") != now.get("name"):
        raise CheckpointError(f"the run is of {before.get('name')!r}, not of {now.get('name')!r}", where=str(out))
    changed = [
        f"{section}.{key} was {before[section].get(key)!r}, is {value!r}"
        for section, keys in now.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
        if before[section].get(key) != value and (section, key) not in _MAY_CHANGE
    ]
    if changed:
        raise CheckpointError(
            "the run was started with another configuration: " + "; ".join(changed),
            where=str(out),
            do=f"resume with `frostline train {out / 'config.yaml'} --out {out} --resume`",
        )
