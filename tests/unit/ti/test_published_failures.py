"""What published plans of textual inversion get wrong, most of it silently: here it is right, or a clear error."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from frostline.errors import AuditError, DataError, StepError
from frostline.systems.ti import bridge
from frostline.systems.ti.concept import Concept, concept_optimizer
from frostline.systems.ti.files import load_concepts, save_concepts
from frostline.systems.ti.infinity.text import CompactText
from frostline.systems.ti.pictures import Pictures
from frostline.systems.ti.prompts import Prompt, Slot, Span
from ti_stand_in import WIDTH, StandIn
from two_processes import results_of_both

LENGTHS = (5, 7, 4, 6)
PROMPTS = [Prompt(f"prompt {n}", tuple(range(n)), (Span("<s>", 1, 1, "t5-output"),)) for n in LENGTHS]
STEPS = 20


def features(number=0):
    generator = torch.Generator().manual_seed(number)
    return CompactText.join([torch.randn(n, WIDTH, generator=generator) for n in LENGTHS])


def concept():
    return Concept("<s>", torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(9)), carrier="dog")


def frozen():
    model = StandIn()
    bridge.freeze_(model)
    return model


def loss_of(model, made, number=0, rows=slice(None)):
    parts = features(number).split()[rows]
    text = bridge.substitute(CompactText.join(parts).official(), PROMPTS[rows], [made])
    generator = torch.Generator().manual_seed(number)
    x, labels = torch.randn(4, WIDTH, generator=generator), torch.randint(7, (4,), generator=generator)
    return torch.nn.functional.cross_entropy(model(text, x[rows]), labels[rows])


def made_step(made, model, **settings):
    optimizer = concept_optimizer([made], model)
    return bridge.ConceptStep([made], optimizer, [model], **settings), optimizer


def test_freezing_before_the_optimizer_leaves_an_empty_one():
    """Published: an AssertionError of its parameter filter, or torch's 'empty parameter list'."""
    made, model = concept(), frozen()
    with pytest.raises(ValueError, match="empty parameter list"):
        torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    assert made_step(made, model)[1].param_groups[0]["params"] == [made.vectors]


def test_backward_twice():
    """Published: loss.backward(), then a step that does it again."""
    made, model = concept(), frozen()
    step, _ = made_step(made, model)
    loss, before = loss_of(model, made), made.vectors.clone()
    loss.backward()
    with pytest.raises(StepError, match="a gradient that this step did not make") as error:
        step.backward_step_(loss)
    assert "leave out loss.backward()" in str(error.value)
    assert torch.equal(made.vectors, before)


def test_a_scaler_that_belongs_to_the_frozen_models_optimizer():
    """Published: 'No inf checks were recorded for this optimizer'."""
    made, model = concept(), frozen()
    scaler = torch.amp.GradScaler("cpu", init_scale=2048.0)
    scaled, unscaled = made_step(made, model, scaler=scaler)[0], concept()
    norm = scaled.backward_step_(loss_of(model, made))
    expected = made_step(unscaled, model)[0].backward_step_(loss_of(model, unscaled))
    assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(made.vectors, unscaled.vectors, atol=1e-7, rtol=0)


def test_an_optimizer_beside_the_scaler():
    """Published: it sees gradients times 2048, unclipped, and steps on infinities."""
    made, model = concept(), frozen()
    seen = []
    optimizer = torch.optim.SGD([made.vectors], lr=0.0)
    optimizer.register_step_pre_hook(lambda *_: seen.append(made.vectors.grad.norm().item()))
    scaler = torch.amp.GradScaler("cpu", init_scale=2048.0)
    step = bridge.ConceptStep([made], optimizer, [model], scaler=scaler, clip_norm=1e-3)
    step.backward_step_(loss_of(model, made))
    step.backward_step_(loss_of(model, made) * torch.inf)
    assert seen == [pytest.approx(1e-3, rel=1e-2)]  # clipped behind unscaling; the infinite one was skipped
    assert scaler.get_scale() == 1024.0


def test_the_logged_norm_is_the_frozen_models():
    """Published: 0.0, while the concept's is not."""
    made, model = concept(), frozen()
    step, _ = made_step(made, model)
    probe = concept()
    loss_of(model, probe).backward()
    assert probe.vectors.grad.norm() > 0
    assert torch.equal(step.backward_step_(loss_of(model, made)), torch.nn.utils.get_total_norm([probe.vectors.grad]))


def test_no_freeze_and_zeroed_gradients_is_a_fine_tune():
    """Published: every tensor of the model changed in one step."""
    made, model = concept(), StandIn()
    with pytest.raises(AuditError, match="holds 9 tensors that are no concept"):
        bridge.ConceptStep([made], torch.optim.AdamW([made.vectors, *model.parameters()], weight_decay=0.0), [model])
    bridge.freeze_(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step, _ = made_step(made, model)
    for number in range(3):
        step.backward_step_(loss_of(model, made, number))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_is_not_frozen_collects_gradients():
    """Published: its gradients are never zeroed, and stay for ever."""
    made, model = concept(), StandIn()
    with pytest.raises(AuditError, match="nobody zeroes them"):
        bridge.ConceptStep([made], concept_optimizer([made]), [model])
    bridge.freeze_(model)
    step, _ = made_step(made, model)
    step.backward_step_(loss_of(model, made))
    assert all(parameter.grad is None for parameter in (*model.parameters(), made.vectors))


def test_a_step_at_every_micro_batch():
    """Published: the step lies outside `if stepping`, 8 updates instead of 2."""
    made, model = concept(), frozen()
    step, optimizer = made_step(made, model, num_accumulated=4)
    norms = [step.backward_step_(loss_of(model, made, number)) for number in range(8)]
    assert [norm is not None for norm in norms] == [False, False, False, True] * 2
    assert optimizer.state[made.vectors]["step"].item() == 2


def test_a_tensor_has_no_state_dict(tmp_path):
    """Published: AttributeError when it is saved, behind the last step."""
    made = concept()
    with pytest.raises(AttributeError):
        made.vectors.state_dict()
    assert sorted(made.state_dict()) == ["rms", "vectors"]
    save_concepts(tmp_path / "concept.safetensors", [made], base_model="", text_encoder="", step=1)
    assert torch.equal(load_concepts(tmp_path / "concept.safetensors")[0].vectors, made.vectors)


def test_conditioning_dropout_writes_into_the_cache_and_drops_the_concept():
    """Published: cached features are lost for good, and the sample's gradient is exactly 0."""
    made, kept = concept(), features()
    before = kept.features.clone()
    published = StandIn()  # without our freeze
    published.cond_drop_rate = 1.0
    published.requires_grad_(False).eval()
    published(kept.official(), torch.zeros(4, WIDTH))
    assert not torch.equal(kept.features, before)

    kept = features()
    text = bridge.substitute(kept.official(), PROMPTS, [made])
    published(text, torch.zeros(4, WIDTH)).square().sum().backward()
    assert torch.equal(kept.features, before)  # also where dropout is on
    assert made.vectors.grad.count_nonzero() == 0

    made.vectors.grad = None
    bridge.freeze_(published)
    published(bridge.substitute(kept.official(), PROMPTS, [made]), torch.zeros(4, WIDTH)).square().sum().backward()
    assert made.vectors.grad.count_nonzero() > 0


def test_a_caption_without_placeholder(tmp_path):
    """Published: 'does not require grad', or nothing at all where the null prompt trains."""
    made, model = concept(), frozen()
    plain = [Prompt(prompt.text, prompt.ids, ()) for prompt in PROMPTS]
    text = bridge.substitute(features().official(), plain, [made])
    step, _ = made_step(made, model)
    with pytest.raises(StepError, match="depends on no concept"):
        step.backward_step_(model(text, torch.zeros(4, WIDTH)).sum())
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "a.txt").write_text("a photo of a dog")
    with pytest.raises(DataError, match="has no <s>: it cannot train it"):
        Pictures(tmp_path, placeholder="<s>", size=(8, 8), captions="files")


def test_modes_decide_over_memory_and_noise():
    """Published: eval() ends checkpointing, train() makes the same batch's gradient random."""

    def gradient(model):
        made = concept()
        loss_of(model, made).backward()
        return made.vectors.grad

    published = StandIn().requires_grad_(False)
    published.cond_drop_rate = 0.0
    assert not torch.equal(gradient(published.train()), gradient(published.train()))

    def saved_bytes(model):
        counted = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: counted.append(x.nbytes) or x, lambda x: x):
            loss_of(model, concept())
        return sum(counted)

    ours = frozen()
    assert torch.equal(gradient(ours.train()), gradient(ours.train()))
    assert torch.equal(gradient(ours), gradient(published.eval()))
    assert saved_bytes(ours) < saved_bytes(published.eval())


def test_another_carrier_at_inference():
    """Published: trained on 'dog', drawn with 'dog2': other tokens, and the vector written twice."""
    made = Concept("<s>", torch.ones(2, WIDTH), carrier="dog")
    assert made.slot == Slot("<s>", "dog", 2)  # what a saved file brings along
    with pytest.raises(AttributeError):
        made.carrier = "dog2"


def child(directory):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    rows = slice(2 * rank, 2 * rank + 2)
    model = frozen()
    try:
        DistributedDataParallel(model)
        wrapped = ""
    except RuntimeError as error:
        wrapped = str(error)
    found = {"wrapped": wrapped}
    for name, apart in (("together", 0.0), ("own start", 1.0)):
        made = concept()
        with torch.no_grad():
            made.vectors.add_(apart * rank)
        step, _ = made_step(made, model, num_accumulated=2)
        for number in range(STEPS):
            step.backward_step_(loss_of(model, made, number, rows))
        found[name] = made.vectors.detach().clone()
    alone, scaled = concept(), concept()
    for number in range(STEPS):  # as published: nobody reduces
        loss = loss_of(model, alone, number, rows)
        (alone.vectors.data.sub_(0.1 * torch.autograd.grad(loss, alone.vectors)[0]))
    found["published"] = alone.vectors.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    step, optimizer = made_step(scaled, model, scaler=scaler)
    for number in range(3):  # in the second, one process alone has an infinity
        factor = torch.inf if number == 1 and rank == 1 else 1.0
        step.backward_step_(loss_of(model, scaled, number, rows) * factor)
    found |= {"scaled": scaled.vectors.detach().clone(), "scale": scaler.get_scale()}
    found["updates"] = optimizer.state[scaled.vectors]["step"].item()
    torch.save(found, Path(directory) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return results_of_both(__file__, tmp_path_factory.mktemp("two"))


def test_a_wrapper_round_a_frozen_model(ranks):
    """Published: DistributedDataParallel refuses it. Here nothing is wrapped."""
    assert all("is not needed when a module" in found["wrapped"] for found in ranks)


def test_processes_that_learn_apart(ranks):
    """Published: no error, and vectors that drift apart. Here two processes are one with the whole batch."""
    assert not torch.equal(ranks[0]["published"], ranks[1]["published"])
    made, model = concept(), frozen()
    step, _ = made_step(made, model, num_accumulated=2)
    for number in range(STEPS):
        step.backward_step_(loss_of(model, made, number))
    for name in ("together", "own start"):
        assert torch.equal(ranks[0][name], ranks[1][name])
        assert (ranks[0][name] - made.vectors).abs().max() <= 1e-6


def test_an_infinity_in_one_process_is_skipped_by_both(ranks):
    assert torch.equal(ranks[0]["scaled"], ranks[1]["scaled"])
    assert ranks[0]["scaled"].isfinite().all()
    assert [(found["scale"], found["updates"]) for found in ranks] == [(4.0, 2.0)] * 2


if __name__ == "__main__":
    child(sys.argv[1])
