import warnings

import pytest
import torch
from torch import nn

from frostline.errors import AuditError, ConfigError, ShapeError
from frostline.regions import is_frozen, trainable_state
from frostline.systems.ti.concept import Concept, check_trainable, concept_optimizer
from frostline.systems.ti.prompts import substitute
from ti_stand_in import WIDTH, StandIn, loss_of
from ti_text_parts import encoder


def concept(num=2, scale=0.1, **settings):
    rows = scale * torch.randn(num, WIDTH, generator=torch.Generator().manual_seed(0))
    return Concept("<s>", rows, carrier="dog", **settings)


def test_a_concept_is_a_copy_of_its_rows():
    rows = torch.randn(2, WIDTH).half()
    made = Concept("<s>", rows, carrier="dog")
    rows.zero_()
    assert made.vectors.dtype == torch.float32 and bool(made.vectors.ne(0).all())
    assert (made.name, made.carrier, made.space, made.num_vectors, made.fixed_norm) == (
        "<s>",
        "dog",
        "t5-output",
        2,
        True,
    )
    assert "<s> (dog), (2, 64) in t5-output" in repr(made)
    assert not concept(space="t5-input").fixed_norm


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (torch.ones(WIDTH), ShapeError, "k, width"),
        (torch.zeros(1, WIDTH), ConfigError, "zero or not finite"),
        (torch.full((1, WIDTH), torch.nan), ConfigError, "zero or not finite"),
        (torch.ones(0, WIDTH), ConfigError, "0 vectors"),
    ],
)
def test_rows_that_nothing_can_start_from_are_refused(rows, error, words):
    with pytest.raises(error, match=words):
        Concept("<s>", rows, carrier="dog")


def test_behind_rms_norm_the_length_changes_no_loss_and_renormalising_keeps_it():
    made, model = concept(num=1, scale=3.0), StandIn().eval()
    model.cond_drop_rate = 0.0
    coder = encoder()
    prompts = [coder.rewrite("a <s> on grass", [made])]
    features = coder.encode(prompts)

    def loss():
        return loss_of(model, substitute(features, prompts, [made]).official())

    before = loss()
    before.backward()
    radial = (made.vectors.grad * made.vectors).sum() / made.vectors.grad.norm() / made.vectors.norm()
    assert abs(radial.item()) < 1e-4
    with torch.no_grad():
        made.vectors.mul_(5.0)
    assert loss().item() == pytest.approx(before.item(), abs=1e-6)
    made.renormalise_()
    torch.testing.assert_close(made.vectors.square().mean(1).sqrt(), made.rms)
    assert loss().item() == pytest.approx(before.item(), abs=1e-6)


def test_before_t5_the_length_is_free():
    made = concept(space="t5-input")
    with torch.no_grad():
        made.vectors.mul_(5.0)
    before = made.vectors.clone()
    made.renormalise_()
    assert torch.equal(made.vectors, before)


def test_the_optimizer_holds_the_concepts_alone_at_rates_by_their_size():
    small, large, model = concept(scale=0.1), Concept("<t>", 10 * torch.ones(1, WIDTH), carrier="cat"), StandIn()
    model.concept = small  # also where a system keeps it inside
    optimizer = concept_optimizer([small, large], model, relative_lr=0.02)
    assert [group["params"] for group in optimizer.param_groups] == [[small.vectors], [large.vectors]]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02 * small.rms.mean().item(), 0.2])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["concept.vectors"]
    assert is_frozen(model) and not is_frozen(small)
    assert sorted(trainable_state(model)) == ["concept.rms", "concept.vectors"]
    model.train()
    assert not model.blocks[0].training


def test_an_absolute_rate_that_cannot_learn_is_said_to():
    made = concept(scale=0.5)
    with pytest.warns(UserWarning, match=r"<s> will learn nothing: 100 steps of learning rate 0.0001") as caught:
        optimizer = concept_optimizer([made], ti_lr=1e-4, num_steps=100)
    assert caught[0].filename == __file__
    assert optimizer.param_groups[0]["lr"] == 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        concept_optimizer([made], ti_lr=1e-2, num_steps=100)
        concept_optimizer([made], num_steps=300)
    with pytest.warns(UserWarning, match="5 steps.* relative rate of 0.06,"):
        concept_optimizer([made], relative_lr=0.03, num_steps=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        concept_optimizer([made], relative_lr=0.06, num_steps=5)  # what it asks for is enough


def test_a_step_that_trains_anything_else_is_refused():
    made, other, model = concept(), Concept("<t>", torch.ones(1, WIDTH), carrier="cat"), StandIn()
    with pytest.raises(
        AuditError, match=r"9 parameters beside the concepts require gradients: query, cfg_uncond, norm.weight"
    ):
        check_trainable(torch.optim.AdamW([made.vectors], weight_decay=0.0), [made], [model])
    model.requires_grad_(False)
    with pytest.raises(AuditError, match=r"holds 1 tensors that are no concept: \(64,\)"):
        check_trainable(torch.optim.AdamW([made.vectors, model.query], weight_decay=0.0), [made], [model])
    with pytest.raises(AuditError, match="does not hold <t>"):
        check_trainable(torch.optim.AdamW([made.vectors], weight_decay=0.0), [made, other], [model])
    with pytest.raises(AuditError, match="decays the concepts"):
        check_trainable(torch.optim.AdamW([made.vectors]), [made], [model])
    made.vectors.requires_grad_(False)
    with pytest.raises(AuditError, match="<s> requires no gradient"):
        check_trainable(torch.optim.SGD([made.vectors]), [made], [model])
    with pytest.raises(ConfigError, match="there is no concept"):
        concept_optimizer([], nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="learning rate is 0"):
        concept_optimizer([other], ti_lr=0.0)
