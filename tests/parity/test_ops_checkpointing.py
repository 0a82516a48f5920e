from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from frostline.errors import ConfigError
from frostline.ops import checkpoint_
from frostline.regions import freeze_


class Block(nn.Module):
    """Dropout, a keyword argument, and an output that is not only a tensor."""

    def __init__(self, width=8):
        super().__init__()
        self.expand = nn.Linear(width, 4 * width)
        self.drop = nn.Dropout(0.5)
        self.shrink = nn.Linear(4 * width, width)

    def forward(self, x, *, scale=None, use_reentrant="mine"):
        assert use_reentrant == "mine"
        y = self.shrink(self.drop(torch.nn.functional.gelu(self.expand(x))))
        return x + (y if scale is None else y * scale), {"note": "kept", "mean": y.detach().mean()}


class Net(nn.Module):
    def __init__(self, num_blocks=3, block=Block):
        super().__init__()
        self.layers = nn.ModuleList(block() for _ in range(num_blocks))

    def forward(self, x, scale=None):
        for layer in self.layers:
            x, extra = layer(x, scale=scale)
            assert extra["note"] == "kept"
        return x


def saved_bytes(model, *args):
    """Bytes that backward would find, each storage once, what the model owns left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(*args)
    return sum(storage.nbytes() for storage in storages.values()), output


def gradients(model, *args, seed=0):
    torch.manual_seed(seed)
    model.zero_grad()
    inputs = [arg.detach().clone().requires_grad_() for arg in args]
    output = model(*inputs)
    output.square().sum().backward()
    return [
        output.detach(),
        torch.get_rng_state(),
        *(tensor.grad for tensor in inputs),
        *(parameter.grad for parameter in model.parameters() if parameter.requires_grad),
    ]


def equal(left, right):
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("trainable", [True, False])
def test_gradients_output_and_generator_are_exact_in_train_mode_with_dropout(trainable):
    torch.manual_seed(0)
    model, x, scale = Net().train().requires_grad_(trainable), torch.randn(5, 8), torch.randn(5, 8)
    before = gradients(model, x, scale)
    checkpoint_(model, ["layers.*"])
    assert equal(gradients(model, x, scale), before)


def test_works_on_a_frozen_net_in_eval_mode_and_saves_memory():
    model, x = Net(), torch.randn(64, 8, requires_grad=True)
    freeze_(model)
    before, bytes_before = gradients(model, x), saved_bytes(model, x)[0]
    handle = checkpoint_(model, ["layers.*"])
    bytes_after, output = saved_bytes(model, x)
    assert output.requires_grad
    assert bytes_after <= 4 * x.nbytes < bytes_before / 2
    assert equal(gradients(model, x), before)
    handle.remove()
    handle.remove()
    assert saved_bytes(model, x)[0] == bytes_before


def test_batch_norm_statistics_move_once_a_step():
    def build():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), nn.Flatten())
        return net.train()

    torch.manual_seed(1)
    x = torch.randn(4, 3, 6, 6)
    plain, treated = build(), build()
    checkpoint_(treated, ["0"])
    for _ in range(2):
        assert equal(gradients(plain, x), gradients(treated, x))
        assert equal(list(plain.buffers()), list(treated.buffers()))
    loss = treated(x).square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    plain(x)
    assert equal(list(plain.buffers()), list(treated.buffers()))


def test_autocast_is_restored_in_the_recomputation():
    model, x = Net().eval(), torch.randn(5, 8)

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return gradients(model, x)

    before = run()
    checkpoint_(model, ["layers.*"])
    assert equal(run(), before)


def test_gradients_accumulate():
    torch.manual_seed(0)
    model, parts = Net().eval(), torch.randn(2, 5, 8)
    expected = copy.deepcopy(model)
    checkpoint_(model, ["layers.*"])
    for net in (expected, model):
        for part in parts:
            net(part).square().sum().backward()
    assert equal([p.grad for p in model.parameters()], [p.grad for p in expected.parameters()])


def test_records_and_recomputes_nothing_where_no_gradient_is_needed():
    class Counted(Block):
        calls = 0

        def forward(self, x, **kwargs):
            Counted.calls += 1
            return super().forward(x, **kwargs)

    model = Net(1, Counted).eval().requires_grad_(False)
    checkpoint_(model, ["layers.*"])
    x = torch.randn(5, 8)
    num_bytes, output = saved_bytes(model, x)
    assert (num_bytes, output.requires_grad, Counted.calls) == (0, False, 1)
    with torch.no_grad():
        assert not model(x.clone().requires_grad_()).requires_grad
    assert Counted.calls == 2


def test_an_argument_changed_in_place_raises_as_it_does_without():
    for keyword in (False, True):
        model = Net(1).eval()
        checkpoint_(model, ["layers.*"])
        x, scale = torch.randn(5, 8, requires_grad=True) * 1, torch.randn(5, 8)
        output = model(x, scale)
        (scale if keyword else x.detach()).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_type_state_copy_and_pickle_stay_as_they_are():
    model, x = Net().eval(), torch.randn(5, 8)
    keys, before = list(model.state_dict()), gradients(model, x)
    plain_bytes = saved_bytes(model, x)[0]
    handle = checkpoint_(model, ["layers.*"])
    assert type(model.layers[0]) is Block
    assert list(model.state_dict()) == keys
    for clone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert equal(gradients(clone, x), before)
        assert saved_bytes(clone, x)[0] < plain_bytes
        with torch.no_grad():
            clone.layers[0].shrink.bias.add_(1)
        assert not torch.equal(clone(x), model(x))
    handle.remove()
    assert "forward" not in vars(model.layers[0])


def test_units_are_globs_names_or_modules():
    model = nn.ModuleDict({"encoder": Net(2), "decoder": Net(2)})
    handle = checkpoint_(model, ["**.layers.*"])
    assert handle.units == ("encoder.layers.0", "encoder.layers.1", "decoder.layers.0", "decoder.layers.1")
    handle.remove()
    handle = checkpoint_(model, [model["decoder"].layers[1], "encoder.layers.0", "encoder.*.0"])
    assert handle.units == ("encoder.layers.0", "decoder.layers.1")
    model.alias = model["encoder"].layers[1]
    assert checkpoint_(model, ["alias"]).units == ("encoder.layers.1",)


def test_an_unknown_unit_is_answered_with_the_nearest_names():
    with pytest.raises(ConfigError, match=r"called 'layer\.\*'(.|\n)*nearest: .*layers\.0"):
        checkpoint_(Net(), ["layer.*"])
    with pytest.raises(ConfigError, match="the Linear to checkpoint is not in the model"):
        checkpoint_(Net(), [nn.Linear(1, 1)])


def test_a_unit_in_a_unit_and_a_container_are_refused_and_nothing_is_changed():
    model = Net()
    with pytest.raises(ConfigError, match=r"'layers\.0\.expand' lies inside 'layers\.0'"):
        checkpoint_(model, ["layers.0", "layers.*.expand"])
    with pytest.raises(ConfigError, match=r"'layers' is a ModuleList(.|\n)*'layers\.\*'"):
        checkpoint_(model, ["layers"])
    assert all("forward" not in vars(module) for module in model.modules())
    checkpoint_(model, ["layers.1"])
    with pytest.raises(ConfigError, match=r"'layers\.1\.drop' lies inside 'layers\.1'"):
        checkpoint_(model, ["layers.1.drop"])
    with pytest.raises(ConfigError, match=r"'layers\.1' lies inside ''"):
        checkpoint_(model, [model])
    with pytest.raises(ConfigError, match=r"'layers\.1' is checkpointed already"):
        checkpoint_(model, ["layers.*"])


def test_runs_on_fake_tensors():
    with FakeTensorMode():
        model, x = Net().eval(), torch.randn(5, 8, requires_grad=True)
        checkpoint_(model, ["layers.*"])
        model(x).sum().backward()
        assert x.grad.shape == x.shape


def test_frozen_bart_in_eval_mode_keeps_less_and_has_the_same_gradient():
    transformers = pytest.importorskip("transformers")
    config = transformers.BartConfig(
        vocab_size=50, d_model=16, max_position_embeddings=32,
        encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BartModel(config)
    freeze_(model)
    features, tokens = torch.randn(2, 9, 16), torch.randint(4, 50, (2, 7))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, 6:] = 0

    def step():
        inputs = features.clone().requires_grad_()

        def forward(x):
            return model(
                inputs_embeds=x, attention_mask=mask, decoder_input_ids=tokens, use_cache=False
            ).last_hidden_state

        forward.parameters, forward.buffers = model.parameters, model.buffers
        num_bytes, output = saved_bytes(forward, inputs)
        output.square().sum().backward()
        return num_bytes, output.detach(), inputs.grad

    plain_bytes, *plain = step()
    handle = checkpoint_(model, ["encoder.layers.*", "decoder.layers.*"])
    assert len(handle.units) == 4
    treated_bytes, *treated = step()
    assert equal(treated, plain)
    assert treated_bytes < plain_bytes / 2
