from dataclasses import replace

import pytest
import torch

from frostline.errors import ConfigError, ShapeError
from frostline.systems.linet import LinetSystemConfig, build_network
from frostline.systems.linet.build import build_modality_dropout
from frostline.systems.linet.compact import Rows
from frostline.systems.linet.network import LINet, li_resnet18, li_resnet34, li_resnet50, li_resnet101, li_resnet152
from frostline.systems.linet.peak_table import ROWS, Setting, peak_table
from frostline.systems.linet.treatment import Treatment
from linet_parts import missing, samples, small_net, step


def published_names(layers, convolutions, num_streams=2):
    """Every name of a published checkpoint, with the leading size of what it holds."""
    streams = range(num_streams)

    def convolution(prefix):
        yield f"{prefix}.integrated_weight"
        for kind in ("stream_weights", "integration_from_streams"):
            yield from (f"{prefix}.{kind}.{i}" for i in streams)

    def normalisation(prefix):
        yield from (f"{prefix}.{name}" for name in ("integrated_weight", "integrated_bias", "num_batches_tracked"))
        yield from (f"{prefix}.{kind}.{i}" for kind in ("stream_weights", "stream_biases") for i in streams)
        for pathway in (*(f"stream{i}" for i in streams), "integrated"):
            yield from (f"{prefix}.{pathway}_running_{name}" for name in ("mean", "var"))

    yield from (*convolution("conv1"), *normalisation("bn1"), "fc.weight", "fc.bias")
    for stage, num_blocks in enumerate(layers, 1):
        for index in range(num_blocks):
            block = f"layer{stage}.{index}"
            for number in range(1, convolutions + 1):
                yield from (*convolution(f"{block}.conv{number}"), *normalisation(f"{block}.bn{number}"))
            if index == 0 and (stage > 1 or convolutions == 3):
                yield from (*convolution(f"{block}.downsample.0"), *normalisation(f"{block}.downsample.1"))


@pytest.mark.parametrize(("build", "layers", "convolutions"), [
    (li_resnet18, (2, 2, 2, 2), 2),
    (li_resnet34, (3, 4, 6, 3), 2),
    (li_resnet50, (3, 4, 6, 3), 3),
    (li_resnet101, (3, 4, 23, 3), 3),
    (li_resnet152, (3, 8, 36, 3), 3),
])  # fmt: skip
@pytest.mark.parametrize("streams", [(3, 1), (3, 1, 1)])
def test_names_are_the_published_ones(build, layers, convolutions, streams):
    with torch.device("meta"):
        model = build(19, streams)
    names = list(published_names(layers, convolutions, len(streams)))
    assert sorted(model.state_dict()) == sorted(names)


@pytest.mark.parametrize(("build", "published"), [(li_resnet18, 27_240_339), (li_resnet50, 116_905_875)])
def test_sizes_are_the_published_ones(build, published):
    with torch.device("meta"):
        model = build()
    trained = sum(parameter.numel() for parameter in model.parameters())
    ends = [model.layer4[-1].last_norm]
    buffers = sum(
        p.numel() for norm in ends for kind in ("stream_weights", "stream_biases") for p in getattr(norm, kind)
    )
    assert trained + buffers == published
    assert all(parameter.numel() for parameter in model.parameters())


def test_a_published_checkpoint_loads_strictly_and_into_the_right_places():
    model = small_net(torch.float32, depth=18)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(5)
    checkpoint = {
        name: torch.rand(shapes[name], generator=generator) if "num_batches" not in name else torch.tensor(7)
        for name in published_names((2, 2, 2, 2), 2)
    }
    assert checkpoint["conv1.integrated_weight"].shape == (8, 0, 1, 1)
    model.load_state_dict(checkpoint, strict=True)
    assert all(torch.equal(value, checkpoint[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.layer4[1].bn2.stream_weights[1], checkpoint["layer4.1.bn2.stream_weights.1"])


def effective_rank(features):
    values = torch.linalg.svdvals(features - features.mean(0))
    shares = values / values.sum()
    return float(torch.exp(-(shares * shares.clamp(min=1e-30).log()).sum()))


@pytest.mark.parametrize(("initialisation", "low", "high"), [("published", 0.99, 1.01), ("kaiming", 4, 64)])
def test_the_rank_of_the_integrated_pathway_behind_the_stem(initialisation, low, high):
    torch.manual_seed(0)
    model = LINet(initialisation=initialisation, layers=(1, 1, 1, 1)).eval()
    images, _ = samples(8, dtype=torch.float32)
    found = []
    kept = model.bn1.register_forward_pre_hook(lambda module, args: found.append(args[1]))
    with torch.no_grad():
        model(images)
    kept.remove()
    features = found[0].permute(0, 2, 3, 1).reshape(-1, 64).double()
    assert low <= effective_rank(features) <= high


def test_the_published_initial_values():
    model = LINet(stream_channels=(3, 1, 1), width_multiplier=0.125, initialisation="published")
    conv = model.layer2[0].conv2
    assert all(torch.equal(weight, torch.full_like(weight, 1 / 3)) for weight in conv.integration_from_streams)
    own = conv.integrated_weight.detach().flatten(1)
    torch.testing.assert_close(own @ own.T, torch.eye(len(own)), rtol=0, atol=1e-5)


def test_zero_init_residual():
    model = LINet(width_multiplier=0.125, zero_init_residual=True)
    for _, block in model.blocks():
        norm = block.last_norm
        assert not norm.integrated_weight.any() and not any(norm.stream_weights[index].any() for index in range(2))
    assert bool(model.layer1[0].bn1.integrated_weight.all())


def test_the_tail_that_nobody_reads_keeps_its_statistics_and_trains_nothing():
    model = small_net(torch.float32)
    before = {name: value.clone() for name, value in model.named_buffers()}
    images, labels = samples(dtype=torch.float32)
    step(model, images, labels, None)
    last = "layer4.1.bn2.stream0"
    assert not torch.equal(model.get_buffer(f"{last}_running_mean"), before[f"{last}_running_mean"])
    assert not [name for name, _ in model.named_parameters() if name.startswith("layer4.1.bn2.stream")]


def test_a_learned_fill_is_learned_where_something_is_missing():
    model = small_net(torch.float32, fill="learned")
    images, labels = samples(dtype=torch.float32)
    step(model, images, labels, missing("11 10 11 11 10 11"))
    assert model.missing_embeddings.grad[1].any() and not model.missing_embeddings.grad[0].any()
    step(model, images, labels, None)


def test_momentum_none_is_the_mean_over_batches():
    model = small_net()
    model.bn1.momentum = None
    means = []
    for seed in range(3):
        images, labels = samples(seed=seed)
        step(model, images, labels, missing("11 10 11 11 10 11"))
        with torch.no_grad():
            convolved = model.conv1.convolve(images[1], model.conv1.stream_weights[1])
        means.append(convolved[[0, 2, 3, 5]].mean((0, 2, 3)))
    torch.testing.assert_close(model.bn1.stream1_running_mean, torch.stack(means).mean(0))


def test_rows():
    rows = Rows.of(missing("11 10 11"))
    assert rows.indices[0] is None and rows.indices[1].tolist() == [0, 2] and rows.num_streams == 2
    whole, part = torch.zeros(3, 2), torch.ones(2, 2, requires_grad=True)
    total = rows.add_(1, whole, part)
    assert total is whole and total[:, 0].tolist() == [1, 0, 1]
    (total * torch.tensor([[1.0], [2.0], [3.0]])).sum().backward()
    assert part.grad[:, 0].tolist() == [1, 3]
    with pytest.raises(ConfigError, match="availability is of type"):
        Rows.of(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"availability must have shape \(B, N\), got \(2\)"):
        Rows.of(torch.ones(2, dtype=torch.bool))


def test_treatments():
    treatment = Treatment(recompute="outputs", blocks={"layer2.0": "none"})
    assert [treatment.of(name) for name in ("layer1.0", "layer2.0", "layer3.3")] == ["outputs", "none", "activations"]
    with pytest.raises(ConfigError, match="recompute is 'all'"):
        Treatment(recompute="all")
    with pytest.raises(ConfigError, match="stem_slices is -1"):
        Treatment(stem_slices=-1)


def test_networks_that_are_none():
    with pytest.raises(ConfigError, match="no LINet has 0 streams and depth 18"):
        LINet(stream_channels=())
    with pytest.raises(ConfigError, match="a basic block has no groups"):
        LINet(groups=2)
    with pytest.raises(ConfigError, match="give the number of blocks of four stages"):
        LINet(layers=(1, 1))


def test_from_the_configuration():
    config = LinetSystemConfig(
        depth=50, stream_channels=(3, 1, 2), width_multiplier=0.125, fill="learned", num_classes=4
    )
    model = build_network(config)
    assert model.num_streams == 3 and model.treatment == Treatment(recompute="outputs", stem_slices=4)
    assert model.missing_embeddings.shape == (3, 8) and model.fc.weight.shape == (4, 256)
    assert build_modality_dropout(config).rate_at(100) == 0.2
    assert build_modality_dropout(LinetSystemConfig(modality_dropout="none")) is None
    with pytest.raises(ConfigError, match="a modality dropout rate of 2"):
        build_modality_dropout(LinetSystemConfig(modality_dropout_rate=2.0))


def test_the_byte_table_is_measured():
    setting = Setting(width_multiplier=0.25, batch_size=8, image_size=64, rate=0.5, num_rounds=1)
    proof = replace(setting, width_multiplier=0.125, batch_size=8)
    table = peak_table(setting, proof)
    rows = {row.name: row for row in table.rows}
    assert list(rows) == [row.name for row in ROWS]
    saved = {name: row.peak_bytes - row.resident_bytes for name, row in rows.items()}
    assert saved["frostline-smallest"] < saved["frostline"] < saved["compact"] < saved["no-dropout"]
    assert saved["no-dropout"] < saved["published-before"] < saved["published-after"]
    assert rows["compact"].conv_flops < rows["frostline"].conv_flops < rows["no-dropout"].conv_flops
    assert rows["no-dropout"].conv_flops < 1.3 * rows["frostline-smallest"].conv_flops
    assert all(row.proof_class in ("EXACT", "ROUNDING") and row.buffers_equal for row in rows.values())
    assert all(row.max_rel_grad_diff <= 1e-13 for row in rows.values())
    for name, row in rows.items():
        assert (row.cpu_seconds_ratio is None) == name.startswith("frostline-rate") or row.cpu_seconds_ratio > 0
    by_rate = [saved[f"frostline-rate-{rate}"] for rate in (0, 50, 100)]
    assert by_rate[0] > by_rate[1] > by_rate[2], "what is missing costs nothing"
