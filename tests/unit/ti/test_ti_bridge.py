import copy

import pytest
import torch

from frostline.errors import AuditError, ConfigError, ShapeError, StepError
from frostline.regions import is_frozen
from frostline.systems.ti import bridge
from frostline.systems.ti.concept import Concept, concept_optimizer
from frostline.systems.ti.prompts import rewrite, substitute
from ti_stand_in import StandIn, loss_of
from ti_text_parts import encoder, official, t5, tokenizer

CAPTIONS = ("a photo of a <s>, on grass", "the red <s>", "a <s> on the <s>", "a good photo of a <s>")


def concept():
    return encoder().new_concept("<s>", carrier="dog")


def text_of(made, captions=CAPTIONS):
    texts, prompts = bridge.rewrite(captions, tokenizer(), [made], max_tokens=32)
    return bridge.substitute(official(texts), prompts, [made])


def frozen(**settings):
    model = StandIn(**settings)
    bridge.freeze_(model)
    return model


def gradient(made, model, captions=CAPTIONS):
    made.vectors.grad = None
    loss_of(model, text_of(made, captions)).backward()
    return made.vectors.grad.clone()


def test_the_bridge_substitutes_what_our_own_training_does():
    made, coder = concept(), encoder()
    prompts = [rewrite(caption, tokenizer(), [made]) for caption in CAPTIONS]
    ours = substitute(coder.encode(prompts), prompts, [made])
    kv, lens, ends, longest = text_of(made)
    torch.testing.assert_close(kv, ours.features, atol=1e-5, rtol=0)
    assert (tuple(lens), longest) == (ours.lengths, max(ours.lengths))
    assert ends.dtype == torch.int32 and ends.tolist() == [0, 9, 13, 19, 26]
    model = frozen()
    made.vectors.grad = None
    loss_of(model, ours.official()).backward()
    torch.testing.assert_close(made.vectors.grad, gradient(concept(), model), atol=1e-6, rtol=1e-4)


def test_captions_that_changed_behind_rewriting_are_refused():
    made = concept()
    texts, prompts = bridge.rewrite(CAPTIONS, tokenizer(), [made])
    texts[1] = texts[1] + ", the good"  # as the published positive prompt does
    with pytest.raises(ShapeError, match="features of prompt 1"):
        bridge.substitute(official(texts), prompts, [made])
    inner = encoder().new_concept("<i>", carrier="dog", space="t5-input")
    with pytest.raises(ConfigError, match="encode_through"):
        bridge.rewrite(["a <i>"], tokenizer(), [inner])


def test_freezing_ends_dropouts_and_keeps_checkpointing():
    model, made = StandIn().train(), concept()
    made.vectors.grad = None
    loss_of(model, text_of(made)).backward()
    assert all(parameter.grad is not None for parameter in model.blocks.parameters())
    plain = copy.deepcopy(model).eval().requires_grad_(False)
    plain.cond_drop_rate = 0.0
    bridge.freeze_(model, t5())
    model.train()
    assert is_frozen(model) and not model.training and model.cond_drop_rate == 0.0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(gradient(made, model), gradient(made, plain))
    assert torch.equal(gradient(made, model), gradient(made, model))

    def saved_bytes(net):
        counted = []
        text = text_of(made)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: counted.append(x.nbytes) or x, lambda x: x):
            loss_of(net, text)
        return sum(counted)

    assert saved_bytes(model) < saved_bytes(plain)


def test_freezing_twice_is_freezing_once():
    model = frozen()
    bridge.freeze_(model)
    assert gradient(concept(), model).abs().sum() > 0


def steps(num_accumulated, captions, num_steps=4, scaler=None, clip_norm=0.0):
    """Every update sees all captions, in as many parts."""
    made, model = concept(), frozen()
    optimizer = concept_optimizer([made], model)
    step = bridge.ConceptStep(
        [made], optimizer, [model], num_accumulated=num_accumulated, scaler=scaler, clip_norm=clip_norm
    )
    size = len(captions) // num_accumulated
    norms = []
    for _ in range(num_steps):
        for part in range(num_accumulated):
            rows = slice(part * size, (part + 1) * size)
            kv, lens, ends, longest = text_of(made, captions[rows])
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(len(captions), 64, generator=generator)[rows]
            labels = torch.arange(len(captions))[rows]
            logits = model((kv, lens, ends, longest), x)
            norms.append(step.backward_step_(torch.nn.functional.cross_entropy(logits, labels)))
    return made, optimizer, norms


def test_micro_batches_make_the_step_of_the_whole_batch():
    whole, _, norms = steps(1, CAPTIONS)
    parts, optimizer, pieces = steps(4, CAPTIONS)
    torch.testing.assert_close(parts.vectors, whole.vectors, atol=1e-6, rtol=0)
    assert [norm is None for norm in pieces] == [True, True, True, False] * 4
    torch.testing.assert_close(torch.stack(pieces[3::4]), torch.stack(norms), atol=1e-6, rtol=1e-4)
    assert optimizer.state[parts.vectors]["step"].item() == 4
    assert parts.vectors.grad is None
    assert not torch.equal(whole.vectors, concept().vectors)
    torch.testing.assert_close(whole.vectors.square().mean(1).sqrt(), whole.rms)


def test_a_scaled_loss_makes_the_same_step():
    plain, _, norms = steps(2, CAPTIONS, clip_norm=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2048.0)
    scaled, _, scaled_norms = steps(2, CAPTIONS, scaler=scaler, clip_norm=0.01)
    torch.testing.assert_close(scaled.vectors, plain.vectors, atol=1e-7, rtol=0)
    assert [norm.item() for norm in scaled_norms[1::2]] == pytest.approx(
        [norm.item() for norm in norms[1::2]], rel=1e-5
    )
    assert scaler.state_dict()["_growth_tracker"] == 4  # one update of the scaler a step


def test_infinite_gradients_are_skipped_by_a_scaler_and_refused_without():
    made, model = concept(), frozen()
    before = made.vectors.clone()
    for scaler in (torch.amp.GradScaler("cpu", init_scale=4.0), None):
        optimizer = concept_optimizer([made], model)
        step = bridge.ConceptStep([made], optimizer, [model], scaler=scaler)
        loss = loss_of(model, text_of(made)) * torch.inf
        if scaler:
            step.backward_step_(loss)
            assert scaler.get_scale() == 2.0
        else:
            with pytest.raises(StepError, match="not finite"):
                step.backward_step_(loss)
        torch.testing.assert_close(made.vectors, before, atol=1e-6, rtol=0)
        assert made.vectors.grad is None and not optimizer.state


def test_clipping_bounds_the_gradient_of_the_concepts():
    made, model = concept(), frozen()
    seen = []
    optimizer = torch.optim.SGD([made.vectors], lr=1e-6)
    optimizer.register_step_pre_hook(lambda *_: seen.append(made.vectors.grad.norm().item()))
    step = bridge.ConceptStep([made], optimizer, [model], clip_norm=1e-3)
    norm = step.backward_step_(loss_of(model, text_of(made)))
    assert norm.item() > 1e-3 and seen == [pytest.approx(1e-3, rel=1e-2)]


def test_a_concept_that_no_caption_names_waits():
    made, idle = concept(), encoder().new_concept("<t>", carrier="cat")
    model = frozen()
    step = bridge.ConceptStep([made, idle], concept_optimizer([made, idle], model), [model])
    before = idle.vectors.clone()
    step.backward_step_(loss_of(model, text_of(made)))
    torch.testing.assert_close(idle.vectors, before)


def test_a_step_that_cannot_be_right_is_refused():
    made, model = concept(), StandIn()
    optimizer = concept_optimizer([made])
    with pytest.raises(AuditError, match="9 parameters beside the concepts"):
        bridge.ConceptStep([made], optimizer, [model])
    bridge.freeze_(model)
    with pytest.raises(ConfigError, match="0 micro-batches"):
        bridge.ConceptStep([made], optimizer, [model], num_accumulated=0)
    step = bridge.ConceptStep([made], optimizer, [model])
    with pytest.raises(StepError, match="depends on no concept"):
        step.backward_step_(loss_of(model, official(["a dog"])))
    other = Concept("<t>", torch.ones(1, 64), carrier="cat")
    with pytest.raises(StepError, match="no gradient reached any concept"):
        step.backward_step_(other.vectors.sum())
