from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from torch import nn

from frostline.systems.ti.infinity.schedule import square_schedule
from frostline.systems.ti.infinity.transformer import Infinity
from frostline.systems.ti.infinity.treatment import Treatment
from frostline.systems.ti.peak_table import ROWS, Row, Setting, peak_table
from ti_infinity_parts import tiny_config

SETTING = Setting(
    model="tiny",
    transformer=tiny_config(width=128, mlp_ratio=4.0),
    schedule=square_schedule(1, 8, 20),
    text_tokens=5,
    min_offload_bytes=2**12,
    num_rounds=1,
)
TINY = replace(SETTING, schedule=square_schedule(1, 2, 4), batch_size=2, min_offload_bytes=1)
BOUNDARIES = 2 * SETTING.schedule.num_tokens * 128 * 4


@pytest.fixture(scope="module")
def table():
    return peak_table(SETTING, TINY)


def test_the_rows(table):
    rows = {row.name: row for row in table.rows}
    names = ["trainable", "frozen", "checkpointed", "bf16-weights", "frostline", "frostline-offload"]
    assert list(rows) == [row.name for row in ROWS] == names
    peaks = [row.peak_bytes for row in table.rows]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)
    assert all(row.resident_bytes < row.peak_bytes < row.allocator.peak_reserved_bytes for row in table.rows)
    assert [row.trains for row in table.rows] == ["everything", *["concept"] * 5]
    assert {row.proof_class for row in table.rows} == {"EXACT"}
    assert {row.max_rel_grad_diff for row in table.rows} == {0.0}
    assert all(row.step_seconds_ratio > 0 for row in table.rows)
    assert "fake tensors for cuda" in table.setting and "465 tokens" in table.setting and "bf16-mixed" in table.setting
    assert json.loads(json.dumps(asdict(table)))["system"] == "ti"


def test_what_is_offloaded_is_counted_on_the_host(table):
    rows = {row.name: row for row in table.rows}
    *others, offloaded = table.rows
    assert {row.host_bytes for row in others} == {0}
    assert BOUNDARIES <= offloaded.host_bytes <= 1.3 * BOUNDARIES
    saved = rows["frostline"].peak_bytes - offloaded.peak_bytes
    assert 0.4 * BOUNDARIES < saved < BOUNDARIES, "all but the block's own at the peak"


def test_what_is_resident(table):
    rows = {row.name: row for row in table.rows}
    layers = [layer for layer in Infinity(SETTING.transformer).block_list.modules() if isinstance(layer, nn.Linear)]
    num_stored = sum(parameter.numel() for layer in layers for parameter in layer.parameters(recurse=False))
    assert rows["frozen"].resident_bytes == rows["checkpointed"].resident_bytes
    assert rows["checkpointed"].resident_bytes - rows["bf16-weights"].resident_bytes == 2 * num_stored
    assert rows["trainable"].resident_bytes > 2.9 * rows["frozen"].resident_bytes, "AdamW's two moments"


def test_fake_bytes_are_the_real_ones_on_the_cpu():
    fake, real = (peak_table(SETTING, TINY, ROWS[-1:], fake=fake, device="cpu") for fake in (True, False))
    (predicted,), (measured,) = fake.rows, real.rows
    assert predicted.peak_bytes == measured.peak_bytes
    assert predicted.resident_bytes == measured.resident_bytes
    assert predicted.host_bytes == measured.host_bytes
    assert measured.allocator is None
    assert "real tensors on cpu" in real.setting


def test_a_runs_own_row_in_float32():
    own = Row(name="frostline, this run", treatment=Treatment(checkpoint_blocks=True))
    setting = replace(SETTING, precision="32-true")
    single = replace(TINY, precision="32-true")
    frozen, mine = peak_table(setting, single, [Row(name="frozen"), own], fake=False, device="cpu").rows
    assert mine.peak_bytes < frozen.peak_bytes and mine.proof_class == "EXACT"


def test_spatial_patches():
    transformer = replace(SETTING.transformer, patchify=True)
    setting = replace(TINY, transformer=transformer)
    (row,) = peak_table(setting, setting, ROWS[-2:-1], fake=False, device="cpu").rows
    assert row.proof_class == "EXACT" and row.peak_bytes > row.resident_bytes
