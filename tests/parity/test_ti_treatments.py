"""What is traded for memory on a frozen Infinity changes no bit of a concept's gradient."""

import pytest
import torch

from frostline.errors import ConfigError, StepError
from frostline.memory import Workload, estimate
from frostline.ops import Offload
from frostline.regions import freeze_
from frostline.systems.ti.infinity.loss import bit_losses
from frostline.systems.ti.infinity.schedule import square_schedule
from frostline.systems.ti.infinity.text import CompactText
from frostline.systems.ti.infinity.transformer import Infinity
from frostline.systems.ti.infinity.treatment import TREATMENTS, Treatment, treat_
from ti_infinity_parts import SCHEDULE, tiny_config, tiny_inputs, tiny_model, tiny_text

BITS = torch.randint(0, 2, (2, SCHEDULE.num_tokens, 6), generator=torch.Generator().manual_seed(3))
CHOICES = {**TREATMENTS, "parts": Treatment(checkpoint_parts=True), "offload": Treatment(offload=True)}


def step(model):
    """Loss and gradient of a concept in the middle of the first prompt, under autocast."""
    text, vector = tiny_text(3, 5), torch.full((1, 24), 0.5, requires_grad=True)
    features = torch.cat([text.features[:1], vector, text.features[2:]])
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(CompactText(features, text.lengths), tiny_inputs(), SCHEDULE)
    loss = bit_losses(logits, BITS).mean()
    loss.backward()
    return loss.detach(), vector.grad


@pytest.mark.parametrize("num_chunks", [1, 2])
@pytest.mark.parametrize("name", CHOICES)
def test_every_treatment_is_exact(name, num_chunks, tmp_path):
    expected = step(tiny_model(num_chunks=num_chunks))
    model = tiny_model(num_chunks=num_chunks)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    treated = treat_(model, CHOICES[name], weight_file=tmp_path / "weights.safetensors", folder=tmp_path, min_bytes=1)
    for found, wanted in zip(step(model), expected, strict=True):
        assert torch.equal(found, wanted)
    moved = [handle.store.peak_written_bytes for handle in treated.handles if isinstance(handle, Offload)]
    assert all(moved) and len(moved) == CHOICES[name].offload
    assert expected[1].abs().max() > 0
    treated.remove()
    treated.remove()
    assert all(torch.equal(model.state_dict()[key], tensor) for key, tensor in state.items())
    for found, wanted in zip(step(model), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("training", [True, False])
def test_recomputing_does_not_depend_on_the_mode(training):
    model = Infinity(tiny_config()).train(training).requires_grad_(False)
    saved = {}
    for name in ("frozen", "checkpointed", "frostline-parts"):
        choice = CHOICES.get(name, Treatment(checkpoint_blocks=True, checkpoint_parts=True))
        treated, sizes = treat_(model, choice), []
        vector = torch.ones(3, 24, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            model(CompactText(vector, (3,)), tiny_inputs(1), SCHEDULE)
        saved[name] = sum(sizes)
        treated.remove()
    assert saved["checkpointed"] < 0.5 * saved["frozen"]
    assert saved["frostline-parts"] == saved["checkpointed"]


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match="give weight_file"):
        treat_(tiny_model(), TREATMENTS["frostline"])
    with pytest.raises(ConfigError, match="call freeze_"):
        treat_(Infinity(tiny_config()), TREATMENTS["frostline"], weight_file=tmp_path / "w.safetensors")
    model = tiny_model()
    treated = treat_(model, TREATMENTS["frostline"], weight_file=tmp_path / "w.safetensors")
    with pytest.raises(StepError, match="run the step under"):
        model(tiny_text(3, 5), tiny_inputs(), SCHEDULE)
    treated.remove()


def test_each_treatment_needs_less_than_the_one_before(tmp_path):
    schedule, config = square_schedule(1, 16, 40), tiny_config(depth=3, width=256, mlp_ratio=4.0)

    def peak(name):
        def workload(model):
            freeze_(model)
            treat_(model, TREATMENTS[name], weight_file=tmp_path / name, folder=tmp_path)
            vector = torch.ones(3, 24, requires_grad=True)
            inputs = torch.zeros(1, schedule.num_tokens - 1, 6)

            def run():
                with torch.autocast("cpu", torch.bfloat16):
                    logits = model(CompactText(vector, (3,)), inputs, schedule)
                logits.float().square().mean().backward()

            return Workload(step=run, model=model, inputs=(vector, inputs))

        return estimate(lambda: Infinity(config), workload).peak_bytes

    peaks = [peak(name) for name in TREATMENTS]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)
    assert peaks[-1] < 0.5 * peaks[0]


def test_the_names_say_what_was_chosen():
    assert str(TREATMENTS["frozen"]) == "no treatment"
    assert str(TREATMENTS["frostline"]) == "bfloat16 weights, checkpointed blocks, checkpointed parts"
