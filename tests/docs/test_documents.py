"""What the documents say can be run, runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "docs/semcom.md"]


@pytest.mark.parametrize("document", DOCUMENTS)
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
    verbs = r"frostline ((?:train|measure|evaluate) [^`\n]*)"
    commands = re.findall(rf"(?:^|`|torchrun --nproc-per-node 2 -m ){verbs}", text, re.M)
    assert commands
    monkeypatch.chdir(tmp_path)
    for command in commands:
        words = [word for word in command.partition("#")[0].split() if word != "--help"]
        assert main([*words, "--print-config"]) == 0, command
    assert "name: semcom" in capsys.readouterr().out


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md", "docs/advice.md"])
def test_links_in_the_documents_lead_somewhere(document):
    page = ROOT / document
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)\)", prose):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
