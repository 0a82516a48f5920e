"""ti's byte tables are those of bench/results, and keep what the issue asks of them."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ti.md"
RESULTS = ROOT / "bench" / "results"
MIB = 2**20
SIZES = [(model, pixels) for model in ("2b", "8b") for pixels in ("0.06M", "0.25M", "1M")]
measured = pytest.mark.skipif(
    not (RESULTS / "peak-ti.json").exists(), reason="bench/peak.py ti --json has not been kept"
)


def table(model="2b", pixels="1M"):
    """One kept table; the default size has the plain name."""
    name = "peak-ti.json" if (model, pixels) == ("2b", "1M") else f"peak-ti-{model}-{pixels}.json"
    return json.loads((RESULTS / name).read_text())


def rows_of(found):
    return {row["name"]: row for row in found["rows"]}


def line(*cells):
    return f"| {' | '.join(cells)} |"


def mib(num_bytes):
    return f"{num_bytes / MIB:,.0f}"


def default_lines():
    """The default size, in all columns."""
    lines = []
    for name, row in rows_of(table()).items():
        numbers = [row["peak_bytes"], row["resident_bytes"], row["host_bytes"], row["allocator"]["peak_reserved_bytes"]]
        time = f"{row['step_seconds_ratio']:.2f}x"
        lines.append(line(name, *map(mib, numbers), time, row["proof_class"]))
    return lines


def size_lines():
    """Peaks of all sizes."""
    tables = [rows_of(table(*size)) for size in SIZES]
    return [line(name, *(mib(found[name]["peak_bytes"]) for found in tables)) for name in tables[0]]


@measured
@pytest.mark.parametrize(("mark", "lines"), [("bytes", default_lines), ("sizes", size_lines)])
def test_the_numbers_are_the_counted_ones(mark, lines):
    shown = re.search(rf"<!-- {mark} -->\n(.*?)<!-- end -->", PAGE.read_text(), re.DOTALL)[1]
    assert [line for line in shown.splitlines() if re.match(r"\| [\w-]+ \| [\d,]+ \|", line)] == lines()


@measured
def test_the_counted_numbers_keep_the_promise():
    rows = rows_of(table())
    assert "infinity-2b (32 blocks of width 2048), batch 1, 10,521 tokens" in table()["setting"]
    assert rows["frostline"]["peak_bytes"] <= 8100 * MIB
    assert rows["frostline-offload"]["peak_bytes"] <= 5800 * MIB
    assert 2600 * MIB <= rows["frostline-offload"]["host_bytes"] <= 2700 * MIB


@measured
@pytest.mark.parametrize("size", SIZES, ids="-".join)
def test_every_row_is_exact_and_less_than_the_one_before(size):
    rows = table(*size)["rows"]
    assert {row["proof_class"] for row in rows} == {"EXACT"} and {row["max_rel_grad_diff"] for row in rows} == {0.0}
    peaks = [row["peak_bytes"] for row in rows]
    assert peaks == sorted(peaks, reverse=True)
    assert [row["host_bytes"] > 0 for row in rows] == [False] * 5 + [True]
