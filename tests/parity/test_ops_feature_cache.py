from __future__ import annotations

import copy
import shutil

import pytest
import torch
from safetensors import safe_open
from torch import nn

from frostline.errors import CheckpointError, ConfigError, DataError, ShapeError, StepError
from frostline.ops import FeatureCache, cache_key

NUM_SAMPLES, SHAPE = 10, (3, 5)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8]


def features(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(NUM_SAMPLES, *SHAPE, generator=generator).mul(50).to(dtype)


class Upstream:
    """Computes features, and remembers for which samples it was asked."""

    def __init__(self, table):
        self.table, self.asked = table, []

    def fetch(self, cache, samples):
        indices = torch.tensor(samples)

        def compute(positions):
            self.asked += indices[positions].tolist()
            return self.table[indices[positions]]

        return cache.fetch(indices, compute)


def make(path, dtype=torch.float32, *, key="k1", shape=SHAPE):
    return FeatureCache(NUM_SAMPLES, shape, dtype=dtype, key=key, path=path)


@pytest.fixture(params=["memory", "disk"])
def path(request, tmp_path):
    return tmp_path / "run" / "features.safetensors" if request.param == "disk" else None


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_come_back_bit_for_bit_in_order_and_are_computed_once(path, dtype):
    table = features(dtype)
    cache, upstream = make(path, dtype), Upstream(table)
    for samples in ([7, 2, 5], [2, 9, 7], [9, 5, 2, 7]):
        rows = upstream.fetch(cache, samples)
        assert rows.dtype == dtype
        assert torch.equal(rows, table[samples])
        rows.zero_()  # the caller's own copy
    assert upstream.asked == [7, 2, 5, 9]


def test_nan_and_infinity_are_kept(path):
    table = features()
    table[0, 0, :3] = torch.tensor([torch.nan, torch.inf, -0.0])
    cache, upstream = make(path), Upstream(table)
    for _ in range(2):
        rows = upstream.fetch(cache, [0])
        assert torch.equal(rows.view(torch.int32), table[[0]].view(torch.int32))


def test_a_downstream_gradient_is_exact(path):
    torch.manual_seed(0)
    upstream, images = nn.Linear(4, 15).requires_grad_(False), torch.randn(NUM_SAMPLES, 4)
    head, cache, samples = nn.Linear(5, 2), make(path), torch.tensor([3, 1, 8])

    def gradient(rows):
        head.zero_grad()
        head(rows).square().sum().backward()
        return head.weight.grad.clone()

    def compute(positions):
        return upstream(images[samples[positions]]).unflatten(1, SHAPE)

    plain = gradient(compute(torch.arange(3)))
    assert torch.equal(gradient(cache.fetch(samples, compute)), plain)
    assert torch.equal(gradient(cache.fetch(samples, compute)), plain)


def test_scalar_rows(path):
    cache, table = make(path, shape=()), torch.randn(NUM_SAMPLES)
    for _ in range(2):
        assert torch.equal(Upstream(table).fetch(cache, [4, 0]), table[[4, 0]])


def test_planned_size_is_the_size_and_nothing_is_written_before_it_is_needed(tmp_path):
    path = tmp_path / "features.safetensors"
    cache = make(path)
    assert not path.exists()
    Upstream(features()).fetch(cache, [0])
    assert path.stat().st_size == cache.nbytes
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert make(None).nbytes == NUM_SAMPLES * (15 * 4 + 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_file_is_plain_safetensors(tmp_path, dtype):
    path, table = tmp_path / "features.safetensors", features(dtype)
    Upstream(table).fetch(make(path, dtype), [6, 1])
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"frostline_key": "k1"}
        assert file.get_tensor("features").dtype == dtype
        assert torch.equal(file.get_tensor("features")[[6, 1]], table[[6, 1]])
        assert file.get_tensor("marks").ne(0).nonzero().flatten().tolist() == [1, 6]


def test_a_later_run_goes_on_where_the_first_one_stopped(tmp_path):
    path, table = tmp_path / "features.safetensors", features()

    def crash(positions):
        raise KeyboardInterrupt

    first = make(path)
    Upstream(table).fetch(first, [0, 1, 2])
    with pytest.raises(KeyboardInterrupt):
        first.fetch(torch.tensor([2, 3]), crash)
    second, upstream = make(path), Upstream(table)
    assert torch.equal(upstream.fetch(second, [3, 1, 0]), table[[3, 1, 0]])
    assert upstream.asked == [3]


def test_a_damaged_row_is_computed_again(tmp_path):
    path, table = tmp_path / "features.safetensors", features()
    cache = make(path)
    Upstream(table).fetch(cache, list(range(NUM_SAMPLES)))
    with path.open("r+b") as file:
        file.seek(cache.nbytes - 1)  # the last byte of the last row
        byte = file.read(1)[0]
        file.seek(cache.nbytes - 1)
        file.write(bytes([byte ^ 1]))
    later, upstream = make(path), Upstream(table)
    for _ in range(2):
        assert torch.equal(upstream.fetch(later, list(range(NUM_SAMPLES))), table)
    assert upstream.asked == [NUM_SAMPLES - 1]
    assert later.num_damaged == 1


def test_another_model_preprocessing_or_sample_is_never_answered_from_the_file(tmp_path):
    path, images = tmp_path / "features.safetensors", torch.randn(NUM_SAMPLES, 4)
    torch.manual_seed(0)
    upstream = nn.Linear(4, 15).requires_grad_(False)

    def fetch(upstream, preprocessing, images):
        key = cache_key(upstream, preprocessing, images)
        cache = FeatureCache(NUM_SAMPLES, SHAPE, dtype=torch.float32, key=key, path=path)
        return cache.fetch(torch.arange(NUM_SAMPLES), lambda positions: upstream(images[positions]).unflatten(1, SHAPE))

    first = fetch(upstream, "mean=0.5", images)
    assert torch.equal(fetch(upstream, "mean=0.5", images), first)
    other_image, other_upstream = images.clone(), copy.deepcopy(upstream)
    other_image[7, 2] += 1e-6
    other_upstream.bias[3] += 1e-6
    for changed in (
        (upstream, "mean=0.5", other_image),
        (upstream, "mean=0", images),
        (other_upstream, "mean=0.5", images),
    ):
        with pytest.raises(CheckpointError, match="this run's key is"):
            fetch(*changed)


def test_every_sample_of_a_run_is_computed_once_over_three_interrupted_runs(tmp_path):
    path, table, asked = tmp_path / "features.safetensors", features(), []
    for samples in ([0, 1, 2], [2, 3, 4, 5], list(range(NUM_SAMPLES))):
        cache, upstream = make(path), Upstream(table)
        assert torch.equal(upstream.fetch(cache, samples), table[samples])
        asked += upstream.asked
    assert sorted(asked) == list(range(NUM_SAMPLES))


def test_another_key_shape_or_type_is_refused_with_both(tmp_path):
    path = tmp_path / "features.safetensors"
    Upstream(features()).fetch(make(path), [0])
    with pytest.raises(CheckpointError, match=r"key k1, this run's key is k2(.|\n)*delete the file"):
        make(path, key="k2")
    with pytest.raises(CheckpointError, match=r"holds F32 \[10, 3, 5\], this run needs F16 \[10, 3, 5\]"):
        make(path, torch.float16)
    with pytest.raises(CheckpointError, match=r"holds F32 \[10, 3, 5\], this run needs F32 \[10, 5, 3\]"):
        make(path, shape=(5, 3))
    make(path)


def test_a_truncated_or_foreign_file_is_refused(tmp_path):
    path = tmp_path / "features.safetensors"
    cache = make(path)
    Upstream(features()).fetch(cache, [0])
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=f"is {cache.nbytes - 1} bytes long, not {cache.nbytes}"):
        make(path)
    for foreign in (b"", b"\xff" * 400, b"no cache at all", content[:20]):
        path.write_bytes(foreign)
        with pytest.raises(CheckpointError, match="is not a feature cache"):
            make(path)
        assert path.read_bytes() == foreign


def test_too_small_a_disk_is_refused_before_anything_is_written(tmp_path):
    free_bytes = shutil.disk_usage(tmp_path).free
    with pytest.raises(ConfigError, match=r"needs .*(GiB), the disk has .* free"):
        FeatureCache(free_bytes // 1024, (513,), dtype=torch.float32, key="k", path=tmp_path / "new" / "features")
    assert not list(tmp_path.iterdir())


def test_what_compute_returns_is_checked(path):
    cache, samples = make(path), torch.tensor([1, 2])
    with pytest.raises(ShapeError, match=r"computed features must have shape \(2, 3, 5\), got \(2, 15\)"):
        cache.fetch(samples, lambda positions: torch.zeros(2, 15))
    with pytest.raises(ConfigError, match=r"features are torch\.float64, the cache keeps torch\.float32"):
        cache.fetch(samples, lambda positions: torch.zeros(2, *SHAPE, dtype=torch.float64))
    with pytest.raises(StepError, match="a cached copy gets no gradient"):
        cache.fetch(samples, lambda positions: torch.zeros(2, *SHAPE, requires_grad=True))
    with pytest.raises(DataError, match="sample -1 is outside a feature cache of 10 samples"):
        cache.fetch(torch.tensor([-1]), lambda positions: torch.zeros(1, *SHAPE))


def test_the_key_changes_with_everything_it_is_made_of():
    def net(width=4, seed=0):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU())

    moved = net()
    moved[1].running_mean += 1e-7
    keys = [
        cache_key(net(), "size=64", b"data"),
        cache_key(net(seed=1), "size=64", b"data"),
        cache_key(net(5), "size=64", b"data"),
        cache_key(net().double(), "size=64", b"data"),
        cache_key(nn.Sequential(*net()[:2], nn.GELU()), "size=64", b"data"),
        cache_key(moved, "size=64", b"data"),
        cache_key(net(), "size=65", b"data"),
        cache_key(net(), "size=64", "data"),
        cache_key(net(), "size=64b", b"ata"),
        cache_key(net(), "size=64", torch.zeros(2, 3)),
        cache_key(net(), "size=64", torch.zeros(3, 2)),
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key(net(), "size=64", b"data") == keys[0]
    assert len(keys[0]) == 64
