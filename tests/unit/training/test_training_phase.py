import io

import pytest
import torch
from torch import nn
from training_toy import Toy

from frostline.errors import CheckpointError, ConfigError, ShapeError, StepError
from frostline.regions import trainable_parameters
from frostline.training import Loss, Phase, check_ownership, constant


def phase(*optimizers, name="only", precision="32-true", schedule=None):
    return Phase(
        name,
        lambda batch: Loss(batch.sum(), {}),
        len,
        optimizers,
        schedule=schedule or constant(0),
        device=torch.device("cpu"),
        precision=precision,
    )


def sgd(*parameters, **options):
    return torch.optim.SGD(parameters, lr=0.5, **options)


def test_a_loss_and_its_terms_are_scalars():
    with pytest.raises(ShapeError, match=r"the loss's 'rate' must have shape \(\), got \(3\)"):
        Loss(torch.zeros(()), {"rate": torch.zeros(3)})


def test_a_loss_in_half_precision_is_refused():
    with pytest.raises(StepError, match=r"the loss is torch\.bfloat16\n  do     compute it in float32"):
        Loss(torch.zeros((), dtype=torch.bfloat16), {})


def test_a_phase_needs_an_optimizer():
    with pytest.raises(ConfigError, match="phase 'only' has no optimizer"):
        phase()


def test_owners_may_be_many_but_each_parameter_has_one():
    toy = Toy()
    check_ownership(toy.phases, trainable_parameters(toy.model))
    model = nn.Linear(2, 2)
    both = phase(sgd(model.weight), sgd(model.weight, model.bias))
    with pytest.raises(ConfigError, match="'weight' is in the hands of two optimizers"):
        check_ownership([both], trainable_parameters(model))
    first, second = phase(sgd(model.bias), name="d"), phase(sgd(model.bias), name="g")
    with pytest.raises(ConfigError, match=r"phase 'd' and phase 'g'"):
        check_ownership([first, second], trainable_parameters(model))
    with pytest.raises(ConfigError, match="two phases are called 'd'"):
        check_ownership([first, first], trainable_parameters(model))


def test_a_parameter_outside_the_model_is_refused_for_it_would_not_be_saved():
    vector = nn.Parameter(torch.zeros(3))
    with pytest.raises(ConfigError, match=r"trains a parameter that the model lacks, of shape \(3,\)"):
        check_ownership([phase(sgd(vector))], trainable_parameters(nn.Linear(2, 2)))
    vector.requires_grad_(False)
    check_ownership([phase(sgd(vector))], trainable_parameters(nn.Linear(2, 2)))


def test_the_schedule_scales_every_group_from_its_own_rate():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 1.0}, {"params": [model.bias], "lr": 0.1}])
    one = phase(optimizer, schedule=constant(4))
    rates = []
    for one.step in range(5):
        rates.append((one.set_learning_rate_(), optimizer.param_groups[1]["lr"]))
    assert rates[:2] == [(0.25, pytest.approx(0.025)), (0.5, pytest.approx(0.05))]
    assert rates[3] == rates[4] == (1.0, 0.1)


def test_the_state_is_plain_values_and_goes_back():
    toy = Toy()
    model = toy.model
    sum(parameter.sum() for parameter in model.parameters()).backward()
    for optimizer in toy.phases[0].optimizers:
        optimizer.step()
    toy.phases[0].step, toy.phases[0].num_skipped = 7, 2
    toy.phases[0].set_learning_rate_()
    file = io.BytesIO()
    torch.save(toy.phases[0].state_dict(), file)
    file.seek(0)
    other = Toy().phases[0]
    other.load_state_dict(torch.load(file, weights_only=True))
    assert (other.step, other.num_skipped) == (7, 2)
    assert other.set_learning_rate_() == toy.phases[0].set_learning_rate_()


def test_the_state_of_another_precision_or_other_optimizers_is_refused():
    model = nn.Linear(2, 2)
    plain, scaled = phase(sgd(model.weight)), phase(sgd(model.weight), precision="16-mixed")
    with pytest.raises(CheckpointError, match="saved with another precision than '16-mixed'"):
        scaled.load_state_dict(plain.state_dict())
    with pytest.raises(CheckpointError, match="saved with another precision than '32-true'"):
        plain.load_state_dict(scaled.state_dict())
    with pytest.raises(CheckpointError, match="saved with other optimizers"):
        phase(sgd(model.weight), sgd(model.bias)).load_state_dict(plain.state_dict())
    with pytest.raises(CheckpointError, match="saved with other optimizers"):
        phase(sgd(model.weight, model.bias)).load_state_dict(plain.state_dict())
