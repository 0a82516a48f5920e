from dataclasses import replace

import pytest
import torch
from torch import nn

from frostline.errors import ConfigError, ShapeError, StepError
from frostline.regions import is_frozen, trainable_parameters, trainable_state
from frostline.systems.semcom.config import SemcomConfig, SemcomSystemConfig
from frostline.systems.semcom.model import SemcomModel
from frostline.systems.semcom.system import SemcomSystem
from frostline.training import run_step
from semcom_parts import CPU, PLAIN, nano, scene_batch, small_model, small_system

CUTS = ("vision_tower", "image_proj_norm")
NINE = [
    "vision_tower",
    "image_pos_embed",
    "visual_temporal_embed",
    "image_feature_source",
    "image_projection",
    "image_proj_norm",
    "language_model",
    "processor",
    "tokenizer",
]


@pytest.fixture(scope="module")
def system():
    return small_system()


@pytest.fixture(scope="module")
def monitor():
    return small_system(codec="none", channel="noiseless")


def frozen_parts(model):
    parts = (model.transmitter.tower, model.receiver.projector, model.receiver.language_model, model.receiver.head)
    return [module for part in parts for module in part.modules()]


def test_the_optimizer_holds_exactly_the_codec(system):
    (phase,) = system.phases
    (optimizer,) = phase.optimizers
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    codec = [*system.model.transmitter.compression.parameters(), *system.model.receiver.decompression.parameters()]
    assert len({id(parameter) for parameter in held}) == len(held)
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in codec}
    assert {id(p) for p in trainable_parameters(system.model).values()} == {id(parameter) for parameter in codec}


def test_frozen_parts_stay_in_eval_and_get_no_gradient(system):
    system.model.eval()
    assert not system.model.transmitter.compression.training
    system.model.train()
    assert system.model.transmitter.compression.training and system.model.receiver.decompression.training
    assert not any(module.training for module in frozen_parts(system.model))
    system.model.receiver.language_model.train()
    system.backbone.model.train()
    assert not any(module.training for module in frozen_parts(system.model))
    system.model.loss(scene_batch(3)).total.backward()
    assert all(parameter.grad is None for module in frozen_parts(system.model) for parameter in module.parameters())
    assert all(parameter.grad is not None for parameter in trainable_parameters(system.model).values())
    system.phases[0].zero_grad_()


@pytest.mark.parametrize("mode", CUTS)
def test_no_module_is_registered_twice_and_only_the_tied_embedding_is_a_shared_parameter(mode):
    model = small_model(mode=mode)
    modules = [module for _, module in model.named_modules(remove_duplicate=False)]
    language_model = model.receiver.language_model
    ours = [module for module in modules if module not in set(language_model.modules())]
    assert len(ours) == len(set(ours))
    assert modules.count(language_model) == 1
    names = [name for name, parameter in model.named_parameters(remove_duplicate=False)]
    shared = set(names) - {name for name, _ in model.named_parameters()}
    assert all(name == "receiver.head.weight" or name.endswith("embed_tokens.weight") for name in shared)
    frozen = {id(parameter) for parameter in model.parameters() if not parameter.requires_grad}
    assert frozen == {id(parameter) for parameter in nano().model.parameters()}


def test_the_state_to_save_is_the_codec_s_in_kilobytes(system):
    state = trainable_state(system.model)
    codec = trainable_parameters(system.model)
    assert state.keys() == codec.keys()
    assert all(".compression." in name or ".decompression." in name for name in state)
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert num_bytes == 4 * sum(parameter.numel() for parameter in codec.values()) < 400_000
    for frozen in frozen_parts(system.model):
        assert is_frozen(frozen)


def test_components_are_the_nine_frozen_ones_and_the_codec(system):
    components = {component.name: component for component in system.components()}
    assert list(components) == [*NINE, "compression", "decompression"]
    assert all(components[name].num_trainable == 0 and components[name].mode in ("eval", "") for name in NINE)
    florence = system.backbone.model
    for name, part in (
        ("vision_tower", florence.model.vision_tower),
        ("language_model", florence.model.language_model),
    ):
        assert components[name].num_parameters == sum(p.numel() for p in part.parameters()) > 0
        assert components[name].mode == "eval"
    assert components["tokenizer"].note == f"{len(nano().require_processor().tokenizer)} tokens"
    halves = [components["compression"], components["decompression"]]
    assert all(half.num_trainable == half.num_parameters > 0 and half.mode == "train" for half in halves)
    assert sum(half.num_trainable for half in halves) == sum(
        parameter.numel() for parameter in trainable_parameters(system.model).values()
    )
    counted = ("vision_tower", "image_pos_embed", "image_projection", "image_proj_norm", "language_model")
    assert sum(components[name].num_parameters for name in counted) == florence.num_parameters()


def test_without_a_codec_nothing_trains_and_the_model_is_monitored(monitor):
    assert monitor.phases == ()
    assert trainable_parameters(monitor.model) == {}
    assert trainable_state(monitor.model) == {}
    assert [component.name for component in monitor.components()] == NINE
    assert monitor.notes()[-1].startswith("no codec, 0 trainable parameters")
    batch = scene_batch(4)
    features = monitor.model.features_of(batch)
    rebuilt = monitor.model(features, batch.snr_db, batch.noise_seeds)
    assert torch.allclose(rebuilt, features, rtol=1e-6, atol=1e-6)
    assert monitor.model.loss(batch).total.item() < 0.1
    assert monitor.model.num_symbols() == 16 * 128 // 2


def test_a_sample_s_loss_does_not_depend_on_its_neighbours_nor_their_order(system):
    batch = scene_batch(5)
    features = system.model.features_of(batch)
    rebuilt = system.model(features, batch.snr_db, batch.noise_seeds)
    order = [3, 1, 4, 0, 2]
    permuted = system.model(features[order], batch.snr_db[order], [batch.noise_seeds[i] for i in order])
    assert torch.allclose(permuted, rebuilt[order], rtol=1e-5, atol=1e-6)
    for row in range(5):
        alone = system.model(features[row : row + 1], batch.snr_db[row : row + 1], batch.noise_seeds[row : row + 1])
        assert torch.allclose(alone[0], rebuilt[row], rtol=1e-5, atol=1e-6)


def test_training_changes_the_codec_alone_and_lowers_the_loss(tmp_path):
    system = small_system(replace(PLAIN, checkpoint="all", feature_cache="memory"), num_scenes=16, batch_size=16)
    system.fill_cache(lambda done, total: None)
    system.release_upstream_()
    before = {name: tensor.clone() for name, tensor in system.model.state_dict().items()}
    stream = system.batches().iterate(0)
    losses = [run_step(system.phases[0], next(stream), system.group).loss for _ in range(60)]
    after = system.model.state_dict()
    codec = set(trainable_parameters(system.model))
    assert {name for name in before if not torch.equal(before[name], after[name])} == codec
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_a_released_tower_is_gone_and_says_so():
    system = small_system(replace(PLAIN, feature_cache="memory"))
    done = []
    system.fill_cache(lambda now, total: done.append((now, total)))
    assert done == [(24, 24)]
    system.release_upstream_()
    assert system.backbone.tower is None
    assert next(system.batches().iterate(0))[0].features is not None
    with pytest.raises(StepError, match="released"):
        system.model.transmitter.features(torch.zeros(1, 3, 64, 64))


def test_cached_features_are_those_of_the_tower(tmp_path, system):
    memory = replace(PLAIN, feature_cache="disk", feature_cache_directory=str(tmp_path))
    cached = small_system(memory)
    cached.fill_cache(lambda done, total: None)
    assert torch.equal(cached.features(range(24)), system.features(range(24)))
    again = small_system(memory)  # reads the same file
    again.release_upstream_()
    assert torch.equal(again.features(range(24)), system.features(range(24)))


def test_two_systems_of_one_seed_start_alike_and_of_another_do_not():
    def start(seed):
        config = SemcomConfig()
        system = SemcomSystem(replace(config, training=replace(config.training, seed=seed)), CPU)
        return torch.cat([parameter.flatten() for parameter in trainable_parameters(system.model).values()])

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


def test_an_empty_range_of_snr_is_refused():
    with pytest.raises(ConfigError, match=r"no SNR lies between 10\.0 and 5\.0 dB"):
        small_system(snr_min_db=10.0, snr_max_db=5.0)


def test_a_cache_on_disk_needs_a_place():
    with pytest.raises(ConfigError, match="a feature cache on disk has no place"):
        small_system(replace(PLAIN, feature_cache="disk"))


# Your own codec


def with_codec(compression, decompression):
    return SemcomModel(
        nano(), SemcomSystemConfig(), PLAIN, image_size=64, compression=compression, decompression=decompression
    )


def test_your_own_codec_takes_ten_lines():
    class Send(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Conv1d(128, 6, kernel_size=3, padding=1)

        def forward(self, features, snr_db):
            return self.mix(features.transpose(1, 2)) / (1 + snr_db[:, None, None].exp())

    class Receive(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.ConvTranspose1d(6, 128, kernel_size=3, padding=1)

        def forward(self, received, snr_db):
            return self.mix(received).transpose(1, 2)

    torch.manual_seed(0)
    system = SemcomSystem(SemcomConfig(), CPU, compression=Send(), decompression=Receive())
    assert sum(component.num_trainable for component in system.components()) == 2 * 6 * 128 * 3 + 6 + 128
    record = run_step(system.phases[0], (scene_batch(4),), system.group)
    assert record.gradient_norm > 0 and not record.skipped
    assert system.model.num_symbols() == 6 * 16 // 2


class Returns(nn.Module):
    """Values of a fixed shape behind the batch."""

    def __init__(self, *shape, batch=None):
        super().__init__()
        self.gain, self.shape, self.batch = nn.Parameter(torch.ones(())), shape, batch

    def forward(self, values, snr_db):
        return self.gain * torch.ones(self.batch or len(values), *self.shape)


@pytest.mark.parametrize("actual", [(16, 127), (17, 128), (128, 16), (2048,), (16, 128, 1)])
def test_a_wrong_decompression_is_told_both_shapes(actual):
    model, batch = with_codec(Returns(16, 8), Returns(*actual)), scene_batch(3)
    with pytest.raises(ShapeError) as raised:
        model.loss(batch)
    assert (raised.value.expected, raised.value.actual) == ((3, 16, 128), (3, *actual))
    assert raised.value.where == "Returns"
    for size in (*raised.value.expected, *actual):
        assert str(size) in str(raised.value)


def test_a_decompression_that_loses_samples_is_refused():
    with pytest.raises(ShapeError) as raised:
        with_codec(Returns(16, 8), Returns(16, 128, batch=1)).loss(scene_batch(3))
    assert (raised.value.expected, raised.value.actual) == ((3, 16, 128), (1, 16, 128))


def test_an_odd_number_of_values_is_refused():
    with pytest.raises(ShapeError, match="even") as raised:
        with_codec(Returns(16, 7), Returns(16, 128)).loss(scene_batch(2))
    assert raised.value.actual == (2, 16, 7)


@pytest.mark.parametrize("half", ["compression", "decompression"])
def test_half_a_codec_is_refused(half):
    with pytest.raises(ConfigError) as raised:
        SemcomModel(nano(), SemcomSystemConfig(), PLAIN, image_size=64, **{half: Returns(16, 8)})
    assert raised.value.what == "half a codec"
    assert "compression=" in raised.value.do and "decompression=" in raised.value.do


@pytest.mark.parametrize("codec", ["adaptive", "linear"])
@pytest.mark.parametrize("mode", CUTS)
def test_bandwidth_is_symbols_over_source_values(codec, mode):
    model = small_model(mode=mode, codec=codec, symbols_per_token=3)
    assert model.num_symbols() == 3 * model.shape[0]
    assert model.bandwidth_ratio() == 3 * model.shape[0] / (3 * 64 * 64)


def test_the_adaptive_codec_starts_blind_to_the_snr_and_can_learn_to_see_it():
    model = small_model()
    compress, features = model.transmitter.compression, torch.randn(2, 16, 128)
    low, high = torch.tensor([-6.0, -6.0]), torch.tensor([15.0, 15.0])
    assert torch.equal(compress(features, low), compress(features, high))
    with torch.no_grad():
        compress.modulate.weight.add_(0.1)
    assert not torch.allclose(compress(features, low), compress(features, high))
