"""An audit's report as a person sees it."""

from pathlib import Path

import pytest
from rich.console import Console

from frostline.records import AuditedPhase, AuditReport, Finding, ModuleRole, Place, TermFlow
from frostline.reports.findings import short_path
from frostline.reports.terminal import audit_view


def finding(code="FL101", level="fault", **fields) -> Finding:
    return Finding(code=code, slug="family/cause", level=level, what=f"what {code} is", **fields)


def report(*findings: Finding, **fields) -> AuditReport:
    values = dict(phases=(), roles=(), terms=(), not_examined=(), num_steps=3, wall_seconds=0.5)
    return AuditReport(findings=findings, **{**values, **fields})


def shown(what: AuditReport, width: int = 200, *, source: bool = True, colour: bool = False) -> str:
    console = Console(width=width, force_terminal=colour, color_system="truecolor" if colour else None)
    with console.capture() as captured:
        console.print(audit_view(what, source=source))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def lines_of(what: AuditReport, **how) -> list[str]:
    return shown(what, **how).splitlines()


@pytest.fixture
def program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.py"
    path.write_text("import torch\n    with torch.no_grad():  # [odd] markup\nmodel(x)\n")
    return path


def test_a_finding_reads_as_its_text_does_with_the_source_between(program):
    places = (
        Place(role="cut", path=str(program), line=3, text="linear"),
        Place(role="switched off", path=str(program), line=2, text="torch.no_grad()"),
        Place(role="again", path=str(program), line=3, text="relu"),
    )
    found = finding(places=places, evidence="grad None", so="it stays", do="take it out")
    assert shown(report(found), source=False).startswith(str(found))
    lines = lines_of(report(found))
    assert lines[1:5] == [
        "  cut           train.py:3  linear",
        "                | model(x)",
        "  switched off  train.py:2  torch.no_grad()",
        "                | with torch.no_grad():  # [odd] markup",
    ]
    assert lines[5:] == [*str(found).splitlines()[3:], "", lines[-1]], "a line that was shown is not shown again"


def test_faults_come_first_and_many_notes_are_a_line_each(program):
    place = (Place(role="forward", path=str(program), line=3),)
    notes = [finding(f"FL50{n}", "note", so="so", places=place) for n in range(4)]
    found = [*notes, finding("FL506", "cost", so="so"), finding("FL101", so="so"), finding("FL102", accepted="a probe")]
    lines = [line for line in lines_of(report(*found)) if line]
    assert [line.partition(" ")[0] for line in lines if line.startswith("FL")] == [
        "FL101",
        "FL506",
        *(note.code for note in notes),
        "FL102",
    ]
    assert "FL500 what FL500 is  train.py:3" in lines
    assert "FL102 what FL102 is  accepted: a probe" in lines
    assert sum(line.startswith("  so") for line in lines) == 2
    assert sum(line.startswith("  so") for line in lines_of(report(*notes[:2]))) == 2


def test_the_verdict_counts_and_says_where_to_read_on():
    found = [finding("FL101"), finding("FL204"), finding("FL204"), finding("FL501", "cost")]
    assert lines_of(report(*found))[-1] == (
        "3 faults, 1 cost in 3 steps (0.50 s): see docs/rules/FL101.md, docs/rules/FL204.md"
    )
    assert lines_of(report(finding("FL501", "cost"), num_steps=1))[-1] == (
        "no faults, 1 cost in 1 step (0.50 s): see docs/rules/FL501.md"
    )
    assert lines_of(report(finding("FL503", "note"), num_steps=0))[-1] == "nothing was audited: no optimizer stepped"
    assert lines_of(report(finding(accepted="why")))[-1] == "no faults, 1 accepted in 3 steps (0.50 s)"


def test_phases_roles_and_what_was_not_examined():
    phase = AuditedPhase(
        name="Adam after a.py:3", num_steps=2, num_backwards=1, num_skipped=1, num_parameters=5, num_reached=4
    )
    roles = [
        *(
            ModuleRole(module=f"net.layers.{n}.norm", role="downstream", cacheable=False, why="it moves")
            for n in range(12)
        ),
        ModuleRole(module="net.tower", role="upstream", cacheable=True, why="the same"),
        ModuleRole(module="net.2d", role="trainable", cacheable=False, why="it trains"),
    ]
    text = shown(report(phases=(phase,), roles=tuple(roles), not_examined=("values",)))
    assert "phase  Adam after a.py:3; 2 steps, 1 backward, 1 update skipped; gradients reach 4 of 5" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("net.")]
    assert rows == [
        ["net.layers.*.norm", "(12)", "downstream", "no", "it", "moves"],
        ["net.tower", "upstream", "yes", "the", "same"],
        ["net.2d", "trainable", "no", "it", "trains"],
    ]
    assert "not examined  values" in text


def test_a_table_of_terms_names_as_many_parts_as_there_is_room_for():
    def flow(term, **modules):
        return TermFlow(term=term, line="a.py:1", modules={name.replace("_", "."): n for name, n in modules.items()})

    assert "loss term" not in shown(report(terms=(flow("only", head=1),)))
    text = shown(report(terms=(flow("fit", head=2, tail=0), flow("size", tail=1))))
    rows = [line.split() for line in text.splitlines() if "a.py:1" in line or "loss term" in line]
    assert rows == [
        ["loss", "term:", "tensors", "reached", "at", "head", "tail"],
        ["fit", "a.py:1", "2", "-"],
        ["size", "a.py:1", "-", "1"],
    ]
    many = {f"net_encoder_{n}": 2 for n in range(5)} | {f"net_decoder_{n}": 1 for n in range(4)}
    text = shown(report(terms=(flow("fit", **many), flow("size", net_encoder_0=2))))
    rows = [line.split() for line in text.splitlines() if "a.py:1" in line or "loss term" in line]
    assert rows == [
        ["loss", "term:", "tensors", "reached", "at", "net.encoder", "net.decoder"],
        ["fit", "a.py:1", "10", "4"],
        ["size", "a.py:1", "2", "-"],
    ]
    loose = {f"p{n}": 1 for n in range(12)}
    text = shown(report(terms=(flow("fit", **loose), flow("none", p0=0))))
    assert "p7 (1) and 4 more" in text
    assert "nothing" in text


def test_a_narrow_terminal_wraps_under_the_text_and_a_pipe_is_plain(program):
    place = Place(role="cut", path=str(program), line=3, text="linear")
    found = finding(places=(place,), so="it keeps its initial value for the whole run, while the loss may fall")
    lines = lines_of(report(found), width=50)
    assert max(map(len, lines)) <= 50
    assert "  so        it keeps its initial value for the" in lines
    assert "            whole run, while the loss may fall" in lines
    assert "\x1b" not in "\n".join(lines)
    assert "\x1b[1;31m" in shown(report(found), colour=True)


def test_paths_start_at_the_current_directory_where_that_is_shorter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert short_path(str(tmp_path / "a" / "b.py")) == str(Path("a") / "b.py")
    assert short_path("/x.py") == "/x.py"
