"""The rules' pages and programs under `frostline audit`: a fault is found at its line, and its look-alike passes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from frostline.cli.main import main
from frostline.gradflow.codes import CODES
from frostline.records import AuditReport, Finding, from_json

PAGES = Path(__file__).parents[2] / "docs" / "rules"
PROGRAMS = Path(__file__).parent / "programs"
NEEDS_CUDA = {"FL510": "without a CUDA device nothing is copied to one"}

# The programs are users' scripts: what torch tells users in a warning is theirs.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@dataclass(frozen=True, kw_only=True)
class Program:
    """A training script and what its author tells the audit."""

    source: str
    options: tuple[str, ...] = ()

    def lines_marked(self, code: str) -> set[int]:
        """The lines that a finding must name, counted from 1."""
        return {number for number, line in enumerate(self.source.splitlines(), 1) if line.endswith(f"  # <- {code}")}


def page_of(code: str) -> str:
    return (PAGES / f"{code}.md").read_text()


def example(code: str, section: str) -> Program:
    """The program below a heading of a page; the line above it may carry options."""
    text = page_of(code).partition(f"\n## {section}\n")[2]
    found = re.match(r"\n(?:Audited with `([^`\n]+)`\.\n\n)?```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found, f"{code}.md: no program under '{section}'"
    return Program(source=found[2], options=tuple(shlex.split(found[1] or "")))


def program(name: str) -> Program:
    """A program of the folder; its first line may carry options."""
    source = (PROGRAMS / f"{name}.py").read_text()
    found = re.match(r"# options: (.*)\n", source)
    return Program(source=source, options=tuple(shlex.split(found[1] if found else "")))


def programs(pattern: str) -> list[str]:
    return sorted(path.stem for path in PROGRAMS.glob(pattern))


@pytest.fixture
def audit_script(capsys):
    def audit(path: Path, options: tuple[str, ...]) -> AuditReport:
        """The record of `frostline audit`; its exit code must agree with it."""
        exit_code = main(["audit", str(path), *options, "--json"])
        out, err = capsys.readouterr()
        assert exit_code in (0, 1), err
        report = from_json(out)
        assert isinstance(report, AuditReport)
        assert exit_code == bool(report.faults)
        return report

    return audit


@pytest.fixture
def audited(audit_script, tmp_path):
    def audit(script: Program) -> AuditReport:
        path = tmp_path / "train.py"
        path.write_text(script.source)
        return audit_script(path, script.options)

    return audit


@pytest.fixture(autouse=True)
def _anomaly_mode_as_before() -> Iterator[None]:
    before = torch.is_anomaly_enabled()
    yield
    after = torch.is_anomaly_enabled()
    torch.autograd.set_detect_anomaly(before)
    assert after == before, "the audit leaves anomaly mode switched on"


def told(findings: tuple[Finding, ...]) -> str:
    return "\n\n".join(map(str, findings)) or "nothing was found"


def assert_found(report: AuditReport, script: Program, code: str) -> None:
    """A finding has the code, with the table's slug and level, and names a marked line of the script."""
    marked = script.lines_marked(code)
    assert marked, "the program marks no line"
    found = [finding for finding in report.findings if finding.code == code]
    assert found, f"no {code}:\n{told(report.findings)}"
    assert {(finding.slug, finding.level) for finding in found} == {(CODES[code].slug, CODES[code].level)}
    named = {place.line for finding in found for place in finding.places if place.file == "train.py"}
    assert named & marked, f"line {sorted(marked)} expected:\n{told(tuple(found))}"


def assert_healthy(report: AuditReport, code: str = "") -> None:
    """Neither a fault nor a cost, nor this very code at any level."""
    assert report.num_steps >= 1
    wrong = tuple(f for f in report.findings if f.level in ("fault", "cost") or f.code == code)
    assert not wrong, told(wrong)


@pytest.mark.parametrize("code", CODES)
def test_the_failing_example_of_a_page_is_found(code, audited):
    if code in NEEDS_CUDA and not torch.cuda.is_available():
        pytest.skip(NEEDS_CUDA[code])
    script = example(code, "Failing")
    assert_found(audited(script), script, code)


@pytest.mark.parametrize("code", CODES)
def test_the_healthy_example_of_a_page_passes(code, audited):
    assert_healthy(audited(example(code, "Healthy")), code)


@pytest.mark.parametrize("name", programs("*_bad.py"))
def test_a_second_failing_program_is_found(name, audited):
    script = program(name)
    assert_found(audited(script), script, name.removesuffix("_bad"))


@pytest.mark.parametrize("name", programs("*_good.py"))
def test_a_second_healthy_program_passes(name, audited):
    assert_healthy(audited(program(name)), name.removesuffix("_good"))


@pytest.mark.parametrize("name", programs("healthy_*.py"))
def test_a_program_that_looks_wrong_and_is_right_passes(name, audited):
    assert_healthy(audited(program(name)))


@pytest.mark.parametrize("code", ["FL101", "FL204", "FL301", "FL504"])
def test_a_comment_at_the_line_accepts_the_finding(code, audited):
    script = example(code, "Failing")
    comment = f"# frostline: accept {code} because a test wants it"
    report = audited(Program(source=script.source.replace(f"# <- {code}", comment), options=script.options))
    found = [finding for finding in report.findings if finding.code == code]
    assert found
    assert {finding.accepted for finding in found} == {"a test wants it"}


def test_every_code_has_a_page_and_every_page_a_code():
    assert sorted(path.stem for path in PAGES.glob("FL*.md")) == sorted(CODES)


@pytest.mark.parametrize("code", CODES)
def test_a_page_agrees_with_the_table(code):
    title, level, *_ = page_of(code).split("\n\n")
    assert title == f"# {code} `{CODES[code].slug}`"
    assert re.fullmatch(rf"\*\*{CODES[code].level}\*\* · \S.*\.", level)


@pytest.mark.parametrize("code", CODES)
def test_the_examples_of_a_page_are_marked(code):
    assert example(code, "Failing").lines_marked(code)
    assert " # <- " not in example(code, "Healthy").source


def test_every_fault_has_a_second_pair_of_programs():
    faults = sorted(code for code, row in CODES.items() if row.level == "fault")
    assert programs("*_bad.py") == [f"{code}_bad" for code in faults]
    assert programs("*_good.py") == [f"{code}_good" for code in faults]
    assert all(program(f"{code}_bad").lines_marked(code) for code in faults)
    assert not [path.name for path in PROGRAMS.glob("*.py") if "_bad" not in path.name and "# <- " in path.read_text()]


def test_the_index_lists_every_page():
    rows = re.findall(
        r"^\| \[(FL\d+)\]\((FL\d+)\.md\) \| `(\S+)` \| (\w+) \| (.*) \|$", (PAGES / "README.md").read_text(), re.M
    )
    summaries = {code: page_of(code).split("\n\n")[1].partition(" · ")[2] for code in CODES}
    assert rows == [(code, code, row.slug, row.level, summaries[code]) for code, row in sorted(CODES.items())]
