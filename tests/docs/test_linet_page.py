"""docs/linet.md: the sample runs, the commands parse, links lead somewhere, and numbers are the table's."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "linet.md").read_text()
TABLE = ROOT / "bench" / "results" / "peak-linet.json"
measured = pytest.mark.skipif(not TABLE.exists(), reason="bench/peak.py linet --json has not been kept")


def test_the_sample_on_linets_page_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(block, "docs/linet.md", "exec"), {"__name__": "document"})
    out = capsys.readouterr().out
    loss = float(re.search(r"loss ([\d.]+)", out)[1])
    assert loss < 1.0, "chance is 1.1"
    for name in ("accuracy, colour + depth", "accuracy, only colour", "accuracy, only depth"):
        assert name in out


def test_the_commands_on_linets_page_parse(tmp_path, monkeypatch, capsys):
    from frostline.cli.main import main

    commands = re.findall(r"^frostline ((?:train|measure|plan|prove|evaluate|demo) [^#\n]*)", PAGE, re.M)
    assert len(commands) == 8
    monkeypatch.chdir(tmp_path)
    for command in commands:
        if not command.startswith("demo"):
            assert main([*command.split(), "--print-config"]) == 0, command
    assert "name: linet" in capsys.readouterr().out


def test_links_on_linets_page_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))
    assert targets
    assert all((ROOT / "docs" / target).exists() for target in targets)


@measured
def test_the_numbers_on_linets_page_are_the_measured_ones():
    rows = {row["name"]: row for row in json.loads(TABLE.read_text())["rows"]}
    plain = rows["no-dropout"]
    expected = []
    for name, row in rows.items():
        peak = row["peak_bytes"] - row["resident_bytes"]
        seconds = row["cpu_seconds_ratio"]
        cells = [
            name,
            f"{peak / 2**20:,.0f}",
            f"{peak / (plain['peak_bytes'] - plain['resident_bytes']):.3f}x",
            f"{row['conv_flops'] / plain['conv_flops']:.3f}x",
            "" if seconds is None else f"{seconds:.2f}x",
            row["proof_class"],
        ]
        expected.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    shown = re.search(r"<!-- numbers -->\n(.*?)<!-- end -->", PAGE, re.DOTALL)[1]
    assert [line for line in shown.splitlines() if re.match(r"\| [\w-]+ \| [\d,]+ \|", line)] == expected


@measured
def test_the_measured_numbers_keep_the_promise():
    table = json.loads(TABLE.read_text())
    rows = {row["name"]: row for row in table["rows"]}
    assert "li_resnet18, 2 streams, batch 32, 224 px, one_of_n at 0.2" in table["setting"]
    plain = rows["no-dropout"]["peak_bytes"] - rows["no-dropout"]["resident_bytes"]
    bars = {"frostline": 0.37, "frostline-rate-0": 0.39, "frostline-rate-100": 0.40, "frostline-smallest": 0.32}
    for name, bar in bars.items():
        assert rows[name]["peak_bytes"] - rows[name]["resident_bytes"] <= bar * plain, name
    assert rows["frostline"]["conv_flops"] <= 0.93 * rows["no-dropout"]["conv_flops"]
    assert rows["frostline"]["cpu_seconds_ratio"] <= 1.05
    for row in rows.values():
        assert row["buffers_equal"] and row["max_rel_grad_diff"] <= 1e-13, row["name"]
        assert row["proof_class"] in ("EXACT", "ROUNDING")
