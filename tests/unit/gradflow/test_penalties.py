"""FL404 on small steps: whose rows a gradient penalty is a mean over."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from frostline.gradflow import audit

NUM_IMAGES, NUM_PIXELS = 4, 64

DILUTED = {
    "r1": lambda g: g.pow(2).view(len(g), -1).sum(1).mean(),
    "half, flattened": lambda g: 0.5 * g.square().flatten(1).sum(1).mean(0),
    "wgan-gp": lambda g: ((g.norm(2, dim=1) - 1) ** 2).mean(),
    "one-sided": lambda g: (torch.linalg.vector_norm(g, dim=1) - 1).clamp_min(0).square().mean(),
    "sum over rows": lambda g: (g * g).sum() / len(g),
    "scaled": lambda g: (g * 2.0).pow(2).sum(-1).mean(),
}
RIGHT = {
    "r1": lambda g: g.pow(2).view(NUM_IMAGES, -1).sum(1).mean(),
    "wgan-gp": lambda g: ((g.reshape(NUM_IMAGES, -1).norm(2, dim=1) - 1) ** 2).mean(),
    "sum over images": lambda g: (g * g).sum() / NUM_IMAGES,
    "sum": lambda g: g.pow(2).sum(),
    "forces": lambda g: (-g - torch.ones_like(g)).pow(2).sum(1).mean(),
}


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3 * NUM_PIXELS, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, pixels):
        return self.net(pixels.reshape(-1, 3 * NUM_PIXELS))


def found_in(penalty, shape=(NUM_IMAGES * NUM_PIXELS, 3), sums=True, score=lambda scores: scores):
    torch.manual_seed(0)
    critic = Critic()
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.01)

    def step():
        optimizer.zero_grad()
        x = torch.randn(shape).requires_grad_()
        scores = score(critic(x))
        if sums:
            (gradient,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        else:
            ones = torch.ones_like(scores)
            gradient = torch.autograd.grad(outputs=scores, inputs=x, grad_outputs=ones, create_graph=True)[0]
        (F.softplus(-scores).mean() + 10 * penalty(gradient)).backward()
        optimizer.step()

    return [finding for finding in audit(step, critic, optimizer).findings if finding.code == "FL404"]


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize("name", DILUTED)
def test_a_mean_over_pixels_is_found(name, sums):
    (found,) = found_in(DILUTED[name], sums=sums)
    assert "256 rows, and the gradient is of 4 outputs: 64 rows" in found.what


@pytest.mark.parametrize("name", RIGHT)
def test_a_mean_over_images_is_right(name):
    assert found_in(RIGHT[name]) == []


@pytest.mark.parametrize("name", DILUTED)
def test_one_row_an_image_is_right(name):
    assert found_in(DILUTED[name], shape=(NUM_IMAGES, 3 * NUM_PIXELS)) == []


def test_one_output_for_all_is_left_alone():
    """A set is one input of many rows, of which there may well be a mean."""
    assert found_in(DILUTED["r1"], score=lambda scores: scores.sum()) != []  # a sum of outputs is not one output
    assert found_in(DILUTED["r1"], shape=(NUM_PIXELS, 3)) == []


@pytest.mark.parametrize("penalty", [lambda g: g.pow(2).mean(), lambda g: g.norm(dim=1).mean()])
def test_rows_of_a_weight_belong_to_no_output(penalty):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    def step():
        optimizer.zero_grad()
        loss = (net(torch.randn(16, 1)) - 1).square().mean()
        gradient = torch.autograd.grad(loss, [net[0].weight], create_graph=True)[0]
        (loss + 0.1 * penalty(gradient)).backward()
        optimizer.step()

    assert [finding.code for finding in audit(step, net, optimizer).findings] == []


def test_a_pair_of_inputs_an_output_is_a_convention():
    """A critic of pairs judges two images at once; whether the mean is over pairs or images is a factor of two."""
    assert found_in(DILUTED["r1"], shape=(2 * NUM_IMAGES, 3 * NUM_PIXELS), score=lambda s: s[::2] - s[1::2]) == []
