from __future__ import annotations

import pytest
import torch

from frostline.systems.graf import noise
from frostline.systems.graf.noise import normal, ray_seeds, uniform


def test_random_numbers_are_a_function_of_seed_ray_and_sample():
    whole = uniform(ray_seeds(torch.tensor([3, 4]), 100), 20, stream=0, dtype=torch.float64)
    alone = uniform(ray_seeds(torch.tensor([4]), 100)[:, 40:50], 20, stream=0, dtype=torch.float64)
    assert torch.equal(whole[1:, 40:50], alone)
    assert not torch.equal(whole[0], whole[1])
    assert torch.equal(whole.float(), uniform(ray_seeds(torch.tensor([3, 4]), 100), 20, stream=0, dtype=torch.float32))


def test_random_numbers_look_random():
    seeds = ray_seeds(torch.tensor([0, 1, 2**40, 2**40 + 1]), 500)
    numbers = uniform(seeds, 50, stream=0, dtype=torch.float64)
    other = uniform(seeds, 50, stream=1, dtype=torch.float64)
    assert 0 < numbers.min() and numbers.max() < 1
    counts = torch.histc(numbers, 20, 0, 1)
    assert float(((counts - 5000) ** 2 / 5000).sum()) < 45  # chi squared of 19 degrees: below 45 in 999 of 1000
    for left, right in [
        (numbers[..., 1:], numbers[..., :-1]),
        (numbers[:, 1:], numbers[:, :-1]),
        (numbers[1:], numbers[:-1]),
        (numbers, other),
    ]:
        correlation = torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1]
        assert abs(float(correlation)) < 0.015
    gauss = normal(seeds, 50, stream=2, dtype=torch.float64)
    assert abs(float(gauss.mean())) < 0.015 and abs(float(gauss.var()) - 1) < 0.02
    assert abs(float((gauss**4).mean()) - 3) < 0.15


@pytest.mark.parametrize("word", [0, 0xFFFFFFFF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_smallest_and_the_largest_word_are_inside(monkeypatch, word, dtype):
    """One word in 2^24 used to round to 1 in float32, and its normal number was infinite: a run died of it."""
    monkeypatch.setattr(noise, "_mix", lambda words: torch.full_like(words, word))
    number = uniform(torch.zeros(1, dtype=torch.int64), 1, stream=0, dtype=dtype)
    assert 0 < number < 1
    assert normal(torch.zeros(1, dtype=torch.int64), 1, stream=0, dtype=dtype).abs() < 5.4
