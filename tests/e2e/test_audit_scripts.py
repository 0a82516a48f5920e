"""Whole training scripts under `frostline audit`: the healthy ones pass, published mistakes are found at their line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from frostline.cli.main import main
from frostline.records import AuditReport, from_json

SCRIPTS = Path(__file__).parents[1] / "audit_scripts"
PUBLISHED = SCRIPTS / "published"


@dataclass(frozen=True, kw_only=True)
class Healthy:
    """What is asked of a script, and what may be found.

    Attributes:
        options: For `frostline audit`.
        arguments: The script's own.
        costs: Slugs of the cost findings that are true of it.
        num_phases: At least so many pairs of a loss and its optimizers.
    """

    options: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    costs: frozenset[str] = frozenset()
    num_phases: int = 1


HEALTHY = {
    "amp.py": Healthy(arguments=("--epochs", "2")),
    "byol.py": Healthy(),
    "ddp.py": Healthy(),
    "ddpg.py": Healthy(num_phases=2),
    "distillation.py": Healthy(options=("--steps", "8"), num_phases=2),  # the teacher's 6 updates come first
    "gan.py": Healthy(num_phases=2),
    "gan_r1.py": Healthy(num_phases=2),
    "hf_trainer.py": Healthy(arguments=("--max-steps", "4")),
    "lbfgs.py": Healthy(),
    "maml.py": Healthy(),
    "nerf.py": Healthy(),
    "ppo.py": Healthy(),
    "reentrant_checkpoint.py": Healthy(),
    "rnn_tbptt.py": Healthy(arguments=("--epochs", "1")),
    "textual_inversion.py": Healthy(arguments=("--steps", "6")),
    "vqvae.py": Healthy(),
}

MISTAKES = {
    "forgotten_vector.py": {"unregistered", "not-in-optimizer"},
    "reattached.py": {"grad-cut/reattach"},
    "semcom_no_grad.py": {"grad-cut/no_grad"},
}


def audit(path: Path, capsys, options: tuple[str, ...] = (), arguments: tuple[str, ...] = ()):
    """The exit code and the record of `frostline audit`."""
    code = main(["audit", str(path), *options, "--json", "--", *arguments])
    out, err = capsys.readouterr()
    assert code in (0, 1), err
    report = from_json(out)
    assert isinstance(report, AuditReport)
    return code, report


def lines_marked(path: Path, mark: str) -> set[int]:
    return {number for number, line in enumerate(path.read_text().splitlines(), 1) if line.endswith(mark)}


def test_every_script_is_listed():
    assert {path.name for path in SCRIPTS.glob("*.py")} == set(HEALTHY)
    assert {path.name for path in PUBLISHED.glob("*.py")} == set(MISTAKES)


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_script_passes(name, capsys):
    case = HEALTHY[name]
    code, report = audit(SCRIPTS / name, capsys, case.options, case.arguments)
    assert [finding for finding in report.findings if finding.level == "fault"] == []
    assert {finding.slug for finding in report.findings if finding.level == "cost"} == case.costs
    assert code == 0
    assert len(report.phases) >= case.num_phases
    assert all(phase.num_steps >= 1 for phase in report.phases)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_published_mistake_is_found_at_its_line(name, capsys):
    path = PUBLISHED / name
    marked, harmless = lines_marked(path, "# <- here"), lines_marked(path, "# harmless")
    assert marked
    code, report = audit(path, capsys)
    assert code == 1
    faults = [finding for finding in report.findings if finding.level == "fault"]
    found = [finding for finding in faults if finding.slug in MISTAKES[name]]
    assert found, [finding.slug for finding in report.findings]
    named = {place.line for finding in found for place in finding.places if Path(place.path).name == name}
    assert named & marked, named
    everywhere = {place.line for finding in faults for place in finding.places if Path(place.path).name == name}
    assert not everywhere & harmless
