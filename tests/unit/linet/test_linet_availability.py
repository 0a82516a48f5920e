import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.errors import ConfigError, DataError, ShapeError
from frostline.systems.linet.availability import ModalityDropout, draw_availability, merge_availability
from linet_parts import missing

SAMPLERS = ("one_of_n", "independent", "subsets", "fixed_count")
MANY = 40_000


def draw(sampler, num, streams, rate, seed=0):
    return draw_availability(sampler, num, streams, rate, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SAMPLERS),
    st.integers(0, 40),
    st.integers(1, 5),
    st.floats(0, 1),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_a_sample_always_keeps_a_stream(sampler, num, streams, rate, seed, some_are_missing):
    drawn = draw(sampler, num, streams, rate, seed)
    assert drawn.shape == (num, streams) and drawn.dtype == torch.bool and bool(drawn.any(1).all())
    real = draw("independent", num, streams, 0.5 * some_are_missing, seed + 1)
    merged = merge_availability(real, drawn)
    assert bool(merged.any(1).all()) and not (merged & ~real).any()
    kept = (real & drawn).any(1)
    assert torch.equal(merged[kept], (real & drawn)[kept])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rate_0_takes_nothing_and_a_single_stream_is_never_lost(sampler):
    assert bool(draw(sampler, 50, 3, 0.0).all())
    assert bool(draw(sampler, 50, 1, 1.0).all())


def test_one_of_n_takes_exactly_one_of_the_share():
    lost = ~draw("one_of_n", MANY, 3, 0.3)
    assert lost.sum(1).max() == 1
    assert lost.any(1).double().mean() == pytest.approx(0.3, abs=0.01)
    assert (lost.double().mean(0) - 0.1).abs().max() < 0.01
    assert (~draw("one_of_n", 50, 3, 1.0)).sum(1).tolist() == [1] * 50


def test_independent_streams_are_lost_by_themselves():
    available = draw("independent", MANY, 2, 0.3)
    both, depth_lost = available.all(1).double().mean(), (available[:, 0] & ~available[:, 1]).double().mean()
    assert both == pytest.approx(0.49, abs=0.01)
    assert depth_lost == pytest.approx(0.21 + 0.09 / 2, abs=0.01)  # and half of those that would have lost both


def test_subsets_are_uniform():
    available = draw("subsets", MANY, 3, 1.0)
    numbers = (available * torch.tensor([1, 2, 4])).sum(1)
    counts = torch.bincount(numbers, minlength=8).double() / MANY
    assert counts[0] == 0 and (counts[1:] - 1 / 7).abs().max() < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_a_fixed_count_is_the_same_in_every_batch(seed):
    assert (~draw("fixed_count", 32, 3, 0.2, seed)).sum(0).tolist() == [2, 2, 2]
    assert (~draw("fixed_count", 32, 2, 1.0, seed)).sum(0).tolist() == [16, 16]
    assert not torch.equal(draw("fixed_count", 32, 3, 0.2, seed), draw("fixed_count", 32, 3, 0.2, seed + 1))


def test_one_seed_gives_one_draw():
    for sampler in SAMPLERS:
        assert torch.equal(draw(sampler, 64, 3, 0.4), draw(sampler, 64, 3, 0.4))


def test_ramp_up_and_down():
    up = ModalityDropout(rate=0.2, start=2, ramp=4)
    assert [up.rate_at(epoch) for epoch in range(8)] == pytest.approx([0, 0, 0.05, 0.1, 0.15, 0.2, 0.2, 0.2])
    down = ModalityDropout(rate=0.2, start=1, ramp=2, schedule="down")
    assert [down.rate_at(epoch) for epoch in range(4)] == pytest.approx([1, 0.6, 0.2, 0.2])
    assert ModalityDropout(rate=0.3, ramp=0, start=1).rate_at(1) == 0.3
    assert bool(up.draw(16, 2, 0).all())
    assert int((~ModalityDropout(sampler="fixed_count", rate=0.5, ramp=0).draw(16, 2, 0)).sum()) == 8


def test_what_is_missing_stays_missing():
    real, drawn = missing("10 11 11 01"), missing("01 01 10 11")
    merged = merge_availability(real, drawn)
    assert torch.equal(merged, missing("10 01 10 01"))


def test_errors():
    with pytest.raises(ConfigError, match="a modality dropout rate of"):
        ModalityDropout(rate=1.5)
    with pytest.raises(ConfigError, match="no modality dropout of kind 'some'"):
        ModalityDropout(sampler="some")
    with pytest.raises(ShapeError, match=r"drawn availability must have shape \(2, 2\), got \(1, 2\)"):
        merge_availability(missing("11 11"), missing("11"))
    with pytest.raises(DataError, match="sample 1 of the batch has no stream at all"):
        merge_availability(missing("11 00"), missing("11 11"))
