"""What the documents say can be run, runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "docs/audit.md", "docs/memory.md", "docs/plan.md", "docs/semcom.md"]


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != "docs/memory.md"])  # it has its own test
def test_python_in_the_documents_runs(document, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, document, "exec"), {"__name__": "document"})
    assert capsys.readouterr().out


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_the_documents_parse(document, tmp_path, monkeypatch, capsys):
    from frostline.cli.main import main

    text = (ROOT / document).read_text().replace("\\\n", " ")
    verbs = r"frostline ((?:train|audit|measure|plan|prove|evaluate) [^`\n]*)"
    commands = re.findall(rf"(?:^|`|torchrun --nproc-per-node 2 -m ){verbs}", text, re.M)
    commands = [command for command in commands if ".py" not in command]  # a script is run, not resolved
    assert commands
    monkeypatch.chdir(tmp_path)
    for command in commands:
        words = [word for word in re.split("[#>]", command)[0].split() if word != "--help"]
        assert main([*words, "--print-config"]) == 0, command
    assert "name: semcom" in capsys.readouterr().out


def test_the_audit_in_the_readme_is_what_is_printed(monkeypatch, capsys):
    from frostline.cli.main import main

    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text()
    command = re.search(r"`frostline (audit tests/[^`]*)`", text)
    shown = re.search(r"```text\n(FL.*?)```", text, re.DOTALL)
    assert command and shown
    assert main(command[1].split()) == 1
    printed = re.sub(r"\([\d.]+ s\)", "", capsys.readouterr().out).splitlines()
    for line in re.sub(r"\([\d.]+ s\)", "", shown[1]).splitlines():
        assert line in printed


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md", "docs/advice.md"])
def test_links_in_the_documents_lead_somewhere(document):
    page = ROOT / document
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)\)", prose):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
