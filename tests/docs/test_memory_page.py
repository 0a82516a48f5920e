"""What docs/memory.md shows is what is printed, and its table is the bench's."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
SAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
RESULTS = json.loads((ROOT / "bench" / "results" / "estimate.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("sample", SAMPLES, ids=["step", "small batches"])
def test_a_sample_prints_what_the_page_shows(sample, capsys):
    code, shown = sample
    exec(compile(code, "docs/memory.md", "exec"), {"__name__": "document"})
    assert capsys.readouterr().out == shown


def percent(error):
    return f"{error:+.1%}".replace("%", " %") if abs(error) >= 0.0005 else "0"


def test_the_table_is_what_the_bench_found():
    rows = [
        f"| {row['model']} | {row['estimated_peak_bytes'] / 2**20:.1f} | {percent(row['relative_error'])} |"
        f" {percent(row['relative_error_to_allocator'])} |"
        for row in RESULTS["rows"]
    ]
    assert re.findall(r"^\| (?!model|-).*\|$", PAGE, re.MULTILINE) == rows


def test_the_large_step_is_as_large_as_the_page_says():
    large = RESULTS["large"]
    assert f"float32: {large['estimated_peak_bytes'] / 2**30:.1f} GiB" in PAGE
    told = re.search(r"predicted in (\d+) seconds by a process of\s+(\d+) MiB", PAGE)
    assert told
    assert large["estimate_seconds"] == pytest.approx(int(told[1]), abs=1)
    assert large["process_peak_bytes"] / 2**20 == pytest.approx(int(told[2]), rel=0.05)
