from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from frostline.systems.graf.peak_table import PUBLISHED, ROWS, WHOLE_IMAGE_ROWS, Setting, peak_table

TINY = Setting(
    batch_size=2, image_size=6, num_samples=6, depth=2, width=32, channels=4, superres_width=4, num_rounds=1
)  # fmt: skip


def test_the_patch():
    assert [row.name for row in ROWS] == ["naive", "loop-chunks", "amp", "published-advice", "frostline"]
    amp, published, frostline = peak_table(TINY, TINY, ROWS[2:]).rows
    assert frostline.proof_class in ("EXACT", "ROUNDING") and frostline.fp64_rel_grad_diff <= 1e-12
    assert frostline.trains == amp.trains == "everything"
    assert frostline.peak_bytes > frostline.resident_bytes > 0
    assert amp.proof_class == "BOUNDED" and amp.fp64_rel_grad_diff is None and amp.num_still == 0
    assert (published.num_still, published.num_superres) == (9, 9)
    assert published.trains == "9 of 9 of superres stand still" and published.proof_class == "BOUNDED"
    assert all(row.step_seconds_ratio > 0 for row in (amp, published, frostline))


def test_whole_images_and_real_tensors():
    setting = Setting(**{**asdict(TINY), "batch_size": 1, "image_size": 4, "whole_image": True})
    assert [row.name for row in WHOLE_IMAGE_ROWS][:5] == [row.name for row in ROWS]
    chosen = [row for row in WHOLE_IMAGE_ROWS if row.name in ("published-advice", "frostline-with-discriminator")]
    fake = peak_table(setting, setting, chosen)
    real = peak_table(setting, setting, chosen[1:], fake=False)
    published, whole = fake.rows
    assert published.trains == "nothing" and published.proof_class == "none" and published.max_rel_grad_diff is None
    assert whole.trains == "everything" and whole.proof_class in ("EXACT", "ROUNDING")
    assert real.rows[0].peak_bytes == pytest.approx(whole.peak_bytes, rel=0.02)
    assert "fake tensors" in fake.setting and "real tensors" in real.setting and PUBLISHED in fake.setting
    assert json.loads(json.dumps(asdict(fake)))["system"] == "graf"
