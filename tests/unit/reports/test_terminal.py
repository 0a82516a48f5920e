"""Tables of a memory report."""

from dataclasses import replace

import pytest
from rich.console import Console

from frostline.records import AllocatorCounters, MemoryReport, PeakRow, PeakTable
from frostline.reports.terminal import memory_view, peak_table_view
from frostline.units import MIB

REPORT = MemoryReport(
    peak_bytes=30 * MIB,
    resident_bytes=10 * MIB,
    by_category={"parameters": 10 * MIB, "saved for backward": 20 * MIB},
    by_module={"net.0": 20 * MIB},
    peak_at="backward · aten.gelu",
    peak_line="",
    timeline=(),
    method="predicted",
    device="cuda",
    num_ops=3,
    not_seen=("the CUDA context",),
    assumes=("one stream",),
    allocator=AllocatorCounters(peak_allocated_bytes=31 * MIB, peak_reserved_bytes=40 * MIB),
    by_line={"": 30 * MIB},
    saved_by={"trainable parts": 5 * MIB, "frozen parts": 15 * MIB},
)


ROW = PeakRow(
    name="frozen",
    peak_bytes=300 * MIB,
    resident_bytes=100 * MIB,
    peak_at="forward",
    proof_class="EXACT",
    max_rel_grad_diff=0.0,
    trains="concept",
    step_seconds_ratio=1.0,
)


def shown(record):
    console = Console(width=120)
    with console.capture() as capture:
        console.print((peak_table_view if isinstance(record, PeakTable) else memory_view)(record))
    return capture.get()


def test_a_prediction_says_for_which_device_and_what_it_assumes():
    text = shown(REPORT)
    assert text.startswith("predicted peak 30.0 MiB on cuda\n")
    for line in (
        "CUDA's, simulated         31.0 MiB allocated, 40.0 MiB reserved",
        "by frozen parts",
        "assumes: one stream",
        "not seen: the CUDA context",
    ):
        assert line in text


@pytest.mark.parametrize(("by_line", "listed"), [({"": 30 * MIB}, False), ({"": MIB, "train.py:3": MIB}, True)])
def test_lines_are_listed_where_some_are_the_users(by_line, listed):
    text = shown(replace(REPORT, by_line=by_line))
    assert ("by your line" in text) is listed
    assert ("train.py:3" in text) is listed


def test_host_bytes_have_a_column_where_there_are_any():
    offloaded = replace(ROW, name="frostline-offload", peak_bytes=150 * MIB, host_bytes=150 * MIB)
    plain, both = (PeakTable(system="ti", setting="", rows=rows) for rows in ((ROW,), (ROW, offloaded)))
    assert "host" not in shown(plain)
    title, first, second = (line.split() for line in shown(both).splitlines()[:3])
    assert title[:5] == ["step", "peak", "MiB", "before", "host"]
    assert first[1:5] == ["300", "100", "-", "EXACT"]
    assert second[1:5] == ["150", "100", "150", "EXACT"]
