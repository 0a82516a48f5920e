"""docs/ti.md: the sample runs, the commands parse, links lead somewhere."""

import re
import shlex
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ti.md").read_text(encoding="utf-8")


def test_the_sample_on_the_page_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    with torch.random.fork_rng():
        exec(compile(block, "docs/ti.md", "exec"), {"__name__": "document"})
    lines = re.findall(r"bits (\S+) ([\d.]+) -> ([\d.]+)", capsys.readouterr().out)
    assert [name for name, _, _ in lines] == ["1x1", "2x2", "4x4", "8x8"]


def test_the_commands_on_the_page_parse(tmp_path, monkeypatch, capsys):
    from frostline.cli.main import main

    text = PAGE.replace("\\\n", " ")
    verbs = r"frostline ((?:train|measure|plan|prove|evaluate|audit|generate) ti[^#`\n]*)"
    commands = re.findall(rf"(?:^|torchrun --nproc-per-node 2 -m ){verbs}", text, re.M)
    assert len(commands) >= 9
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert main([*shlex.split(command), "--print-config"]) == 0, command
    assert "name: ti" in capsys.readouterr().out


def test_links_on_the_page_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))
    assert targets
    assert all((ROOT / "docs" / target).exists() for target in targets)
