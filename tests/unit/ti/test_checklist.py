"""The twelve items that published plans of textual inversion for Infinity leave unchecked, each as a test."""

import copy
import itertools

import pytest
import torch

from frostline.errors import AuditError, CheckpointError, DataError
from frostline.systems.ti import bridge
from frostline.systems.ti.concept import concept_optimizer
from frostline.systems.ti.files import load_concepts, save_concepts
from frostline.systems.ti.infinity.generation import Sampling, generate
from frostline.systems.ti.infinity.quantizer import MultiScaleBSQ
from frostline.systems.ti.infinity.schedule import Schedule
from frostline.systems.ti.infinity.sizes import InfinityConfig
from frostline.systems.ti.infinity.text import CompactText
from frostline.systems.ti.infinity.transformer import Infinity
from frostline.systems.ti.prompts import substitute
from ti_stand_in import WIDTH, StandIn, loss_of
from ti_text_parts import encoder, official, tokenizer

CAPTIONS = ("a photo of a <s>", "the red <s>, on grass")
MODELS = {"base_model": "stand-in", "text_encoder": "tiny"}


def concept(**settings):
    return encoder().new_concept("<s>", **{"carrier": "dog", **settings})


def text_of(made, captions=CAPTIONS):
    texts, prompts = bridge.rewrite(captions, tokenizer(), [made], max_tokens=32)
    return bridge.substitute(official(texts), prompts, [made])


def trainer(made, num_accumulated=1):
    """What a user adds to the published trainer: freeze, optimizer, step."""
    model = StandIn()
    bridge.freeze_(model)
    optimizer = concept_optimizer([made], model)
    return model, optimizer, bridge.ConceptStep([made], optimizer, [model], num_accumulated=num_accumulated)


def train(made, model, step, numbers):
    for number in numbers:
        step.backward_step_(loss_of(model, text_of(made), number))


def test_01_the_parameter_is_k_vectors_that_start_as_the_carrier():
    made = concept(carrier="teapot", num_vectors=2)
    assert made.vectors.shape == (2, WIDTH) and made.vectors.dtype == torch.float32
    assert isinstance(made.vectors, torch.nn.Parameter) and made.vectors.requires_grad
    kv = official(["a photo of a teapot"])[0]
    torch.testing.assert_close(made.vectors.detach(), kv[4:6], atol=1e-5, rtol=0)


def test_02_the_optimizer_holds_it_alone_at_a_rate_that_moves_it():
    made = concept()
    _, optimizer, _ = trainer(made)
    (group,) = optimizer.param_groups
    assert group["params"] == [made.vectors] and group["weight_decay"] == 0
    assert group["lr"] == pytest.approx(0.03 * made.rms.item())
    with pytest.warns(UserWarning, match="will learn nothing"):
        concept_optimizer([made], ti_lr=1e-4, num_steps=100)


def test_03_one_object_owns_what_trains_how_it_steps_and_how_it_is_scaled():
    made = concept()
    model, optimizer, step = trainer(made)
    before = made.vectors.clone()
    norm = step.backward_step_(loss_of(model, text_of(made)))
    assert norm.item() > 0 and not torch.equal(made.vectors, before)
    assert optimizer.state[made.vectors]["step"].item() == 1


def test_04_a_trainer_that_would_train_more_is_not_built():
    made, model = concept(), StandIn()
    optimizer = concept_optimizer([made])
    with pytest.raises(AuditError, match="beside the concepts require gradients"):
        bridge.ConceptStep([made], optimizer, [model])
    with pytest.raises(AuditError, match="no concept"):
        bridge.ConceptStep([made], torch.optim.AdamW([made.vectors, model.query], weight_decay=0.0))


def test_05_substitution_replaces_its_rows_out_of_place_in_training_as_in_inference():
    made, coder = concept(), encoder()
    texts, prompts = bridge.rewrite(CAPTIONS, tokenizer(), [made])
    given = official(texts)
    before = given[0].clone()
    kv, lens, *_ = bridge.substitute(given, prompts, [made])
    assert torch.equal(given[0], before)
    changed = (kv.detach() != before).any(dim=1).nonzero().flatten().tolist()
    assert set(changed) <= {4, lens[0] + 2}
    assert torch.equal(kv[4], made.vectors[0]) and torch.equal(kv[lens[0] + 2], made.vectors[0])
    ours = [coder.rewrite(caption, [made]) for caption in CAPTIONS]
    torch.testing.assert_close(kv, substitute(coder.encode(ours), ours, [made]).features, atol=1e-5, rtol=0)
    with pytest.raises(DataError, match="none of the placeholders"):
        bridge.rewrite(["a photo of a dog"], tokenizer(), [made])


def test_06_everything_else_is_frozen_also_in_its_modes():
    made = concept()
    model, _, _ = trainer(made)
    model.train()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(part.training for part in model.modules())
    assert model.cond_drop_rate == 0.0


def test_07_a_step_is_made_behind_the_last_micro_batch_alone():
    made = concept()
    model, optimizer, step = trainer(made, num_accumulated=4)
    values = [made.vectors.detach().clone()]
    for number in range(8):
        step.backward_step_(loss_of(model, text_of(made), number))
        values.append(made.vectors.detach().clone())
    moved = [not torch.equal(old, new) for old, new in itertools.pairwise(values)]
    assert moved == [False, False, False, True] * 2
    assert optimizer.state[made.vectors]["step"].item() == 2


def test_08_gradients_are_gone_behind_a_step_and_nobody_else_ever_has_one():
    made = concept()
    model, _, step = trainer(made, num_accumulated=2)
    step.backward_step_(loss_of(model, text_of(made)))
    assert made.vectors.grad is not None
    step.backward_step_(loss_of(model, text_of(made)))
    assert made.vectors.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_09_a_saved_concept_is_a_few_kilobytes_with_what_it_fits(tmp_path):
    made, path = concept(), tmp_path / "concept.safetensors"
    save_concepts(path, [made], **MODELS, step=3)
    assert path.stat().st_size < 1_500
    (loaded,) = load_concepts(path, **MODELS, width=WIDTH)
    assert torch.equal(loaded.vectors, made.vectors) and loaded.slot == made.slot


def test_10_a_resumed_run_is_the_run_that_was_not_interrupted(tmp_path):
    whole = concept()
    model, _, step = trainer(whole)
    train(whole, model, step, range(6))
    made, path = concept(), tmp_path / "concept.safetensors"
    model, optimizer, step = trainer(made)
    train(made, model, step, range(3))
    save_concepts(path, [made], **MODELS, step=3)
    state = copy.deepcopy(optimizer.state_dict())
    (made,) = load_concepts(path, **MODELS)
    model, optimizer, step = trainer(made)
    optimizer.load_state_dict(state)
    train(made, model, step, range(3, 6))
    assert torch.equal(made.vectors, whole.vectors)
    with pytest.raises(CheckpointError, match="trained for the base model 'stand-in'"):
        load_concepts(path, base_model="infinity_8b")


@pytest.fixture(scope="module")
def infinity():
    config = InfinityConfig(depth=2, width=64, num_heads=4, text_width=WIDTH, code_bits=8, pool_heads=1, num_levels=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Infinity(config)
        model.initialise_(gate=1.0, head=1.0)
    return model.eval()


def drawn(infinity, text, guidance):
    sampling = Sampling(guidance=guidance, top_k=1)
    return generate(infinity, MultiScaleBSQ(8), text, Schedule(((1, 1), (2, 2), (4, 4))), sampling=sampling).features


def test_11_inside_the_generation_loop_there_is_nothing_to_do(infinity):
    """It sees features, no tokens: the concept is in them already, and the null branch never meets it."""
    made, coder = concept(), encoder()
    prompts = [coder.rewrite(CAPTIONS[0], [made])]
    features = coder.encode(prompts)

    def text():
        return substitute(features, prompts, [made])

    null, guided = drawn(infinity, text(), 0.0), drawn(infinity, text(), 3.0)
    with torch.no_grad():
        made.vectors.neg_()
    assert torch.equal(drawn(infinity, text(), 0.0), null)
    assert not torch.equal(drawn(infinity, text(), 3.0), guided)


def test_12_inference_is_two_lines_and_takes_saved_concepts_also_in_negative_prompts(infinity, tmp_path):
    made, path = concept(), tmp_path / "concept.safetensors"
    with torch.no_grad():
        made.vectors.add_(torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0)))
    save_concepts(path, [made], **MODELS, step=1)
    concepts = load_concepts(path)

    def encode_prompt(prompt, concepts):
        captions, prompts = bridge.rewrite([prompt], tokenizer(), concepts, max_tokens=32, required=False)
        return bridge.substitute(official(captions), prompts, concepts)

    before, after = encode_prompt("a red <s>", [made]), encode_prompt("a red <s>", concepts)
    assert torch.equal(before[0], after[0]) and before[1] == after[1]
    assert torch.equal(encode_prompt("a dog", concepts)[0], official(["a dog"])[0])
    text, negative = (CompactText.from_official(encode_prompt(prompt, concepts)) for prompt in ("a dog", "a <s>"))
    plain, sampling = CompactText.from_official(official(["a dog"])), Sampling(guidance=3.0, top_k=1)
    grids, quantizer = Schedule(((1, 1), (2, 2), (4, 4))), MultiScaleBSQ(8)
    pictures = [
        generate(infinity, quantizer, text, grids, sampling=sampling, negative=other).bits
        for other in (negative, plain)
    ]
    assert not torch.equal(*pictures)
