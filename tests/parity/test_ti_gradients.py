"""The byte table's rows give a concept the same gradient, bit by bit, under bfloat16 autocast on real tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from frostline.ops import Offload
from frostline.systems.ti.infinity.schedule import square_schedule
from frostline.systems.ti.infinity.sizes import InfinityConfig
from frostline.systems.ti.peak_table import ROWS, Row, Setting, real_step

SETTING = Setting(
    model="small",
    transformer=InfinityConfig(depth=4, width=128, num_heads=4, text_width=128, code_bits=8, num_chunks=2),
    schedule=square_schedule(1, 2, 4, 8),
    batch_size=2,
    text_tokens=6,
    min_offload_bytes=2**12,
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return real_step(Row(name="frozen"), SETTING, tmp_path_factory.mktemp("plain")).gradient()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_rows_are_bit_equal(row, plain, tmp_path):
    step = real_step(row, SETTING, tmp_path)
    first, second = step.gradient().clone(), step.gradient()
    assert torch.equal(first, plain) and torch.equal(second, plain)
    assert plain.abs().max() > 0
    handles = step.treated.handles if step.treated else ()
    assert bool(handles) == (row.name not in ("trainable", "frozen"))
    moved = [handle for handle in handles if isinstance(handle, Offload)]
    assert bool(moved) == (row.name == "frostline-offload")
    boundaries = 4 * 2 * SETTING.schedule.num_tokens * 128 * 4
    assert step.host_bytes >= boundaries if moved else step.host_bytes == 0
    if step.treated:
        step.treated.remove()


@pytest.mark.parametrize("row", ROWS[1:], ids=lambda row: row.name)
def test_updates_are_bit_equal(row, tmp_path):
    """Some whole steps: the optimizer and the concept's norm see the same."""
    vectors = []
    for number, each in enumerate((ROWS[1], row)):
        folder = tmp_path / str(number)
        folder.mkdir()
        step = real_step(each, SETTING, folder)
        work, start = step.workload(), step.concept.vectors.detach().clone()
        for _ in range(3):
            work.step()
        vectors.append(step.concept.vectors.detach())
        assert not torch.equal(vectors[-1], start)
    assert torch.equal(*vectors)


def test_the_comparison_can_fail(plain, tmp_path):
    """Another precision, or another weight anywhere, is another gradient."""
    single = real_step(Row(name="frozen"), replace(SETTING, precision="32-true"), tmp_path)
    assert not torch.equal(single.gradient(), plain)
    assert torch.nn.functional.cosine_similarity(single.gradient(), plain).item() > 0.99
    step = real_step(Row(name="frozen"), SETTING, tmp_path)
    for block in step.model["transformer"].all_blocks:
        before = block.ffn.fc1.weight.detach().clone()
        block.ffn.fc1.weight.data[0] += 1
        assert not torch.equal(step.gradient(), plain)
        block.ffn.fc1.weight.data.copy_(before)
    assert torch.equal(step.gradient(), plain)
