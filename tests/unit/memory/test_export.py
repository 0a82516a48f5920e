import copy
import json
import pickle
import pickletools
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.cuda import _memory_viz

from frostline.memory import chrome_trace, measure, memory_snapshot, recording
from frostline.memory.analysis import CATEGORIES
from frostline.tracing import Allocation, AllocationLog

VIEWER_OPCODES = set(  # those that pytorch.org/memory_viz understands
    "PROTO FRAME STOP MARK MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET APPEND APPENDS LIST TUPLE EMPTY_TUPLE TUPLE1 "
    "TUPLE2 TUPLE3 NEWFALSE NEWTRUE NONE BININT BININT1 BININT2 LONG1 BINFLOAT EMPTY_DICT EMPTY_LIST DICT SETITEM "
    "SETITEMS SHORT_BINUNICODE BINUNICODE".split()
)


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)), torch.randn(100, 64)
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    with recording(stacks=True) as kept:
        report = measure(step, model, optimizers=[optimizer], inputs=x)
    ((log, device),) = kept.logs
    return report, log, device


def replay(trace):
    """Bytes alive after each event of a snapshot's trace; every free must be of what is alive."""
    alive, live, curve = {}, 0, []
    for event in trace:
        if event["action"] == "alloc":
            for address, size in alive.items():
                assert event["addr"] + event["size"] <= address or address + size <= event["addr"], "they overlap"
            alive[event["addr"]] = event["size"]
            live += event["size"]
        elif event["action"] == "free_completed":
            assert alive.pop(event["addr"]) == event["size"]
            live -= event["size"]
        curve.append(live)
    return curve, alive


def test_a_snapshot_replays_to_the_report(measured):
    report, log, device = measured
    snapshot = memory_snapshot(log, device)
    (trace,) = snapshot["device_traces"]
    curve, alive = replay(trace)
    assert max(curve) == report.peak_bytes
    assert report.resident_bytes in curve
    assert curve[-1] == report.timeline[-1].live_bytes
    (segment,) = snapshot["segments"]
    blocks = [block for block in segment["blocks"] if block["state"] == "active_allocated"]
    assert {block["address"]: block["requested_size"] for block in blocks} == alive
    assert sum(block["size"] for block in segment["blocks"]) == segment["total_size"] >= report.peak_bytes
    assert {event.get("category") for event in trace} <= {*CATEGORIES, "unknown"}
    assert trace[0]["action"] == "segment_alloc" and trace[0]["category"] == "unknown"


def test_a_snapshot_is_what_torchs_own_viewer_reads(measured):
    _, log, device = measured
    content = pickle.dumps(memory_snapshot(log, device), protocol=4)
    assert {opcode.name for opcode, _, _ in pickletools.genops(content)} <= VIEWER_OPCODES
    snapshot = pickle.loads(content)
    torch_keys = {"address", "total_size", "allocated_size", "active_size", "stream", "device", "blocks", "frames"}
    assert torch_keys <= snapshot["segments"][0].keys()
    flat = _memory_viz.memory(copy.deepcopy(snapshot), format_flamegraph=str)
    assert "test_export.py" in flat and "active_allocated" in flat
    assert _memory_viz.segments(copy.deepcopy(snapshot), format_flamegraph=str)
    assert "segments: 1" in _memory_viz.segsum(snapshot)
    text = _memory_viz.trace(snapshot)
    assert "cudaMalloc" in text and "free completed" in text
    for plot in (_memory_viz.trace_plot, _memory_viz.segment_plot):
        assert "snapshot.pickle" in plot(copy.deepcopy(snapshot))
    assert "snapshot.pickle" in _memory_viz.trace_plot(copy.deepcopy(snapshot), filter_freed=True)


def test_frames_say_what_and_where(measured):
    _, log, device = measured
    (trace,) = memory_snapshot(log, device)["device_traces"]
    relu = next(event for event in trace if event.get("frames") and "aten.relu" in event["frames"][0]["name"])
    assert relu["frames"][0] == {"filename": "frostline", "line": 0, "name": "forward · 1 · aten.relu (100, 256)"}
    assert any(frame["filename"] == __file__ and frame["name"] == "step" for frame in relu["frames"])
    assert any("torch" in frame["filename"] for frame in relu["frames"])
    assert not any("/frostline/" in f["filename"] and "/src/" in f["filename"] for f in relu["frames"])


def test_stacks_are_only_kept_when_asked_for():
    with recording() as kept:
        measure(lambda: torch.ones(3) + 1, nn.Linear(2, 2))
    assert all(allocation.stack == () for allocation in kept.logs[0][0].allocations)


def test_a_chrome_trace_counts_the_report(measured):
    report, log, device = measured
    document = json.loads(json.dumps(chrome_trace(log, device)))
    events = document["traceEvents"]
    assert all({"ph", "pid", "name"} <= event.keys() for event in events)
    assert all(event["ts"] >= 0 for event in events if event["ph"] != "M")
    counters = [event["args"] for event in events if event["ph"] == "C"]
    assert max(sum(args.values()) for args in counters) == report.peak_bytes
    assert sum(counters[0].values()) == report.resident_bytes
    assert report.by_category in counters
    instants = [event for event in events if event["ph"] == "i"]
    sizes = [event["args"]["bytes"] for event in instants]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 100 * 256 * 4
    assert any(event["args"]["line"].startswith("test_export.py:") for event in instants)
    slices = [event for event in events if event["ph"] == "X"]
    assert [event["name"] for event in slices] == ["forward", "backward", "optimizer"]
    assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in pairwise(slices))


def log_of(events, sizes):
    allocations = [
        Allocation(num_bytes=n, device="cpu", op="", shape=(), phase="forward", module="", line="") for n in sizes
    ]
    return AllocationLog(allocations=allocations, events=events)


def test_holes_are_filled_again_and_growth_is_a_move():
    events = [(0, 1024), (1, 600), (2, 512), (1, -600), (0, -1024), (3, 1500), (2, 100), (2, -612), (3, -1500)]
    snapshot = memory_snapshot(log_of(events, [0, 0, 0, 0]), "cpu")
    curve, alive = replay(snapshot["device_traces"][0])
    assert max(curve) == 2136 and curve[-1] == 0 and not alive
    (segment,) = snapshot["segments"]
    # The two holes in front join for 1500; what is left of them, with its own old place, is enough for the grown one.
    assert segment["total_size"] == 1024 + 1024 + 512
    grown = [event for event in snapshot["device_traces"][0] if event["action"] == "alloc"][-1]
    assert (grown["addr"] - segment["address"], grown["size"]) == (1536, 612)
    assert [block["state"] for block in segment["blocks"]] == ["inactive"]


def test_a_step_that_allocates_nothing_is_an_empty_snapshot():
    snapshot = memory_snapshot(AllocationLog(), "cpu")
    assert (snapshot["segments"], snapshot["device_traces"]) == ([], [[]])
    assert "segments: 0" in _memory_viz.segsum(snapshot)
    assert chrome_trace(AllocationLog(), "cpu")["traceEvents"]
