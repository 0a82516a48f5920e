"""Parameter groups, focal loss, the balance term."""

import pytest
import torch
from torch.nn import functional as F

from frostline.errors import ConfigError
from frostline.systems.linet.groups import parameter_groups
from frostline.systems.linet.layers import LIConv2d
from frostline.systems.linet.objectives import BalanceLoss, classification_loss
from frostline.systems.linet.streams import stream_of
from frostline.systems.linet.treatment import Treatment
from linet_parts import missing, samples, small_net


def test_every_parameter_is_in_one_group_and_what_normalises_is_not_decayed():
    model = small_net(streams=(3, 1, 1), fill="learned")
    groups = parameter_groups(
        model, stream_lrs=[1.0, 2.0, 3.0], stream_weight_decays=0.5, shared_lr=4.0, shared_weight_decay=0.25,
        integration_weight_decay=0.125,
    )  # fmt: skip
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(names)
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            stream = stream_of(name)
            assert group["lr"] == (4.0 if stream is None else stream + 1.0)
            plain = parameter.dim() > 1 and name != "missing_embeddings"
            decay = 0.5 if stream is not None else 0.125 if "integration" in name else 0.25
            assert group["weight_decay"] == (decay if plain else 0.0), name
    assert {group["name"] for group in groups} == {
        "integration", "shared", "shared (no decay)",
        *(f"stream {n}{more}" for n in range(3) for more in ("", " (no decay)")),
    }  # fmt: skip
    torch.optim.AdamW(groups)


def test_groups_leave_out_what_is_frozen_and_refuse_another_number_of_values():
    model = small_net()
    model.layer1.requires_grad_(False)
    held = {id(p) for group in parameter_groups(model) for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    with pytest.raises(ConfigError, match="stream_lrs has 3 values, the network 2 streams"):
        parameter_groups(model, stream_lrs=[1, 2, 3])


def test_focal_loss_is_the_papers_and_its_gradient_is_finite_at_certainty():
    torch.manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    p = logits.softmax(1)[torch.arange(6), labels]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    actual = classification_loss(logits, labels, kind="focal")
    assert actual.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: classification_loss(x, labels, kind="focal", focal_gamma=1.5), logits)
    sure = torch.tensor([[100.0, 0, 0, 0]], requires_grad=True)
    classification_loss(sure, torch.tensor([0]), kind="focal", focal_gamma=0.5).backward()
    assert torch.isfinite(sure.grad).all()
    smoothed = classification_loss(logits, labels, label_smoothing=0.1)
    assert torch.equal(smoothed, F.cross_entropy(logits, labels, label_smoothing=0.1))


def published_balance(model, images):
    """The published term, of a batch that has everything."""
    added = []
    handles = [
        conv.register_forward_hook(lambda module, args, out: added.append((module, out[0])))
        for conv in model.layer4.modules() if isinstance(conv, LIConv2d)
    ]  # fmt: skip
    model(images)
    for handle in handles:
        handle.remove()
    terms = [
        torch.stack([
            (F.conv2d(stream, weight).norm() + 1e-8).log()
            for stream, weight in zip(streams, conv.integration_from_streams, strict=True)
        ]).var()
        for conv, streams in added
    ]  # fmt: skip
    return torch.stack(terms).mean()


@pytest.mark.parametrize("treatment", [Treatment(), Treatment(recompute="blocks", stem_slices=2)])
def test_balance_is_the_published_term_and_its_gradient(treatment):
    images, _ = samples()
    plain, model = small_net(), small_net()
    model.treatment = treatment
    published_balance(plain, images).backward()
    with BalanceLoss(model).watching() as balance:
        balance.take(model(images)).backward()
    pairs = list(zip(model.parameters(), plain.parameters(), strict=True))
    assert sum(other.grad is not None for _, other in pairs) > 20
    for mine, other in pairs:
        if other.grad is None:
            assert mine.grad is None or not mine.grad.any()
        else:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-10)  # the 1e-8 in the logarithm


def test_missing_streams_are_not_imbalance():
    torch.manual_seed(0)
    image, _ = samples(8, streams=(1,))
    model = small_net(streams=(1, 1))
    state = model.state_dict()
    for name in state:  # two equal streams
        if stream_of(name) == 1:
            state[name].copy_(state[name.replace("s.1", "s.0").replace("stream1", "stream0")])
        if "integration_from_streams.1" in name:
            state[name].copy_(state[name.replace("s.1", "s.0")])
    with BalanceLoss(model).watching() as balance:
        assert balance.take(model([image[0], image[0]]).detach()).item() < 1e-20
        half = balance.take(model([image[0], image[0]], missing("11 11 11 11 10 10 10 10")))
        assert 0 < half.item() < 0.1, "what differs is the samples, not their number"
        none = balance.take(model([image[0], image[0]], missing("10 " * 8)))
        assert none.item() == 0 and none.dtype == torch.float32
        with torch.no_grad():
            model([image[0], image[0]])
        assert balance.take(image[0]).item() == 0
