"""What `prove linet` checks, and that each check can fail."""

import copy

import pytest
import torch

from frostline.errors import BudgetError, PlanError
from frostline.records import Plan, Treatment
from frostline.systems.linet import checks as checks_module
from frostline.systems.linet.budget import Choice, treatments
from frostline.systems.linet.checks import check_network
from frostline.systems.linet.network import LINet
from frostline.systems.linet.planning import plan_of, treatment_of
from frostline.systems.linet.reference import plain_logits
from frostline.systems.linet.treatment import Treatment as NetworkTreatment
from linet_parts import small_net


def verdicts(model, size=32):
    return {check.name: check for check in check_network(model, size)}


@pytest.fixture(scope="module")
def found():
    model = small_net(torch.float32, depth=18, dropout=0.5)
    before = copy.deepcopy(model.state_dict())
    checks = verdicts(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return checks


def test_the_published_checks_come_first(found):
    names = ["in-place masks", "indexing", "forward with dropout", "gradient flow"]
    assert list(found)[:4] == names
    assert {found[name].verdict for name in names} <= {"EXACT", "ROUNDING"}
    assert found["in-place masks"].verdict == found["forward with dropout"].verdict == "EXACT"
    assert "8 samples, of which 2 lack a stream" in found["forward with dropout"].text


def test_every_treatment_is_proved(found):
    expected = ["published optimisation", "compact streams", *map(str, treatments(small_net())[1:])]
    assert list(found)[4:-1] == expected
    assert {found[name].verdict for name in expected} <= {"EXACT", "ROUNDING"}
    assert all("140 of 140 statistics bit by bit" in found[name].text for name in expected)


def test_checkpointing_the_published_blocks_is_refused_for_its_statistics(found):
    refusal = found["torch's checkpoint per block"]
    assert refusal.verdict == "refused"
    assert refusal.text.startswith("133 of 140 statistics change") and "gradients bit by bit" in refusal.text


def test_a_parameter_without_a_gradient_is_none():
    model = small_net(torch.float32)
    model.fc.weight.data.zero_()  # nothing passes
    assert verdicts(model)["gradient flow"].verdict == "none"


def test_a_treatment_that_changes_gradients_is_bounded(monkeypatch):
    def wrong(model, streams, availability, *, masking="before", checkpointed=False):
        logits = plain_logits(model, streams, availability, masking=masking, checkpointed=checkpointed)
        return logits * (1.0 if masking == "before" else 1.001)

    monkeypatch.setattr(checks_module, "plain_logits", wrong)
    found = verdicts(small_net(torch.float32))
    assert found["in-place masks"].verdict == found["published optimisation"].verdict == "BOUNDED"
    assert found["compact streams"].verdict == "EXACT"


def test_missing_data_that_is_read_fails_the_forward(monkeypatch):
    def reading(self, streams, availability=None):
        return plain_logits(self, streams, availability)

    monkeypatch.setattr(LINet, "forward", reading)
    found = verdicts(small_net(torch.float32))
    assert found["forward with dropout"].verdict == "BOUNDED" and found["gradient flow"].verdict == "none"


@pytest.mark.parametrize("step", range(6))
def test_a_plan_says_what_the_treatment_does(step):
    model = small_net(layers=(1, 1, 1, 5))
    treatment = treatments(model)[step]
    made = plan_of(choice(treatment), model, "200B")
    read = treatment_of(made, model)
    assert read.stem_slices == treatment.stem_slices and made.budget_bytes == 200
    assert [read.of(name) for name, _ in model.blocks()] == [treatment.of(name) for name, _ in model.blocks()]
    assert len(made.treated) == (0 if step == 0 else 8 + bool(treatment.stem_slices))


def choice(treatment, fits=True):
    return Choice(treatment, 100, 300, fits, resident_bytes=50, extra_work=0.1, peak_at="backward")


def test_a_choice_that_does_not_fit_is_no_plan():
    with pytest.raises(BudgetError, match="no plan fits 99B: the smallest peak is 100 B, at backward") as error:
        plan_of(choice(NetworkTreatment(), fits=False), small_net(), "99B")
    assert error.value.smallest_bytes == 100


@pytest.mark.parametrize(("unit", "kind"), [("layer1.0", "checkpoint"), ("layer9.0", "recompute-blocks")])
def test_a_plan_of_another_kind_is_refused(unit, kind):
    made = plan_of(choice(NetworkTreatment()), small_net())
    other = Plan(**{**vars(made), "treatments": (Treatment(unit=unit, kind=kind),)})
    with pytest.raises(PlanError, match=f"a LINet has no {unit}: {kind}"):
        treatment_of(other, small_net())
