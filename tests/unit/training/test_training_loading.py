from itertools import chain, islice

import pytest
import torch
from training_toy import Sentences, collate

from frostline.config import DataConfig
from frostline.errors import ConfigError, DataError
from frostline.training import BatchStream, Group


def stream(num_rows=20, *, batch_size=6, parts=1, seed=3, rank=0, world_size=1, **data):
    return BatchStream(
        Sentences(num_rows),
        collate,
        data=DataConfig(**data),
        batch_size=batch_size,
        gradient_accumulation_steps=parts,
        seed=seed,
        group=Group(torch.device("cpu"), rank, world_size),
    )


def steps(source, count, start=0):
    return list(islice(source.samples(start), count))


def test_an_epoch_visits_rows_once_and_drops_what_fills_no_batch():
    epoch = list(chain(*steps(stream(), 3)))
    assert len({sample.index for sample in epoch}) == len(epoch) == 18
    assert {sample.epoch for sample in epoch} == {0}
    assert {sample.epoch for sample in steps(stream(), 4)[3]} == {1}
    assert stream().steps_per_epoch == 3


def test_the_order_depends_on_seed_and_epoch():
    first = steps(stream(), 6)
    assert first == steps(stream(), 6)
    assert [s.index for s in first[0]] != [s.index for s in first[3]]
    assert first != steps(stream(seed=4), 6)
    assert first != steps(stream(seed=3 + 2**32), 6)
    assert steps(stream(seed=-1), 1) != first[:1]


def test_any_step_can_be_the_first():
    whole = steps(stream(), 8)
    assert all(steps(stream(), 3, start)[0] == whole[start] for start in range(6))


def test_processes_share_each_step_between_them():
    whole = steps(stream(batch_size=7), 5)
    shares = [steps(stream(batch_size=7, rank=rank, world_size=3), 5) for rank in range(3)]
    for step, parts in zip(whole, zip(*shares, strict=True), strict=True):
        assert sorted(chain(*parts)) == sorted(step)
        assert [len(part) for part in parts] == [3, 2, 2]


def test_micro_batches_hold_a_process_s_rows_once():
    whole, cut = next(stream().iterate(2)), next(stream(parts=4).iterate(2))
    assert [len(batch.x) for batch in cut] == [2, 2, 1, 1]
    rows = torch.cat([batch.x for batch in cut]).flatten(1)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, whole[0].x.flatten(1).tolist()))


def test_a_small_data_set_is_one_batch():
    small = stream(4, batch_size=64)
    assert small.steps_per_epoch == 1
    assert sorted(sample.index for sample in steps(small, 2)[1]) == [0, 1, 2, 3]


def test_batches_do_not_depend_on_workers_nor_draw_from_the_global_generator():
    state = torch.get_rng_state()
    batches = []
    for num_workers in (0, 2):
        iterator = stream(parts=2, num_workers=num_workers, prefetch_factor=1).iterate(1)
        batches.append(list(islice(iterator, 5)))
        iterator.close()
    assert torch.equal(state, torch.get_rng_state())
    for left, right in zip(*batches, strict=True):
        for a, b in zip(left, right, strict=True):
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.mask, b.mask)


def test_an_empty_data_set_is_refused():
    with pytest.raises(DataError, match="the data set is empty"):
        stream(0)


def test_a_batch_that_cannot_be_shared_is_refused():
    message = "a batch of 2 cannot be cut into 1 micro-batches on each of 3 processes"
    with pytest.raises(ConfigError, match=message):
        stream(batch_size=2, world_size=3)
    with pytest.raises(ConfigError, match=r"a batch of 5 cannot[^@]*the data set has 5 examples[^@]*at least 6"):
        stream(5, batch_size=64, parts=3, world_size=2)


def test_many_workers_need_force():
    with pytest.raises(ConfigError, match=r"data\.num_workers is 5: more than 4 seldom load faster"):
        stream(num_workers=5)
    stream(num_workers=5, force_num_workers=True)
