"""What the audit says of a user's multi-stream net that feeds masked samples to plain BatchNorm."""

import pytest
import torch
from torch import nn

from frostline.gradflow import audit
from frostline.ops import MaskedBatchNorm2d


def mask_of(present):
    return present.view(-1, 1, 1, 1)


FEEDS = {
    "product": lambda x, present: x * mask_of(present).float(),
    "product the other way": lambda x, present: mask_of(present).float() * x,
    "in place": lambda x, present: x.mul_(mask_of(present)),
    "fill": lambda x, present: x.masked_fill(~mask_of(present), 0.0),
    "where": lambda x, present: torch.where(mask_of(present), x, torch.zeros_like(x)),
    "dropout and then what is there": lambda x, present: (
        x * mask_of(torch.arange(8) > 0).float() * mask_of(present).float()
    ),
}


class Stream(nn.Module):
    def __init__(self, channels, norm=nn.BatchNorm2d, bias=True):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 6, 3, padding=1, bias=bias), norm(6)

    def forward(self, x, **mask):
        return self.norm(self.conv(x), **mask).relu().mean((2, 3))


class TwoStreams(nn.Module):
    """As people write it: what is missing is zero, and runs along."""

    def __init__(self, feed, **stream):
        super().__init__()
        self.feed = feed
        self.colour, self.depth = Stream(3, **stream), Stream(1, **stream)
        self.head = nn.Linear(12, 4)

    def forward(self, colour, depth, present):
        parts = [self.colour(colour), self.depth(self.feed(depth, present))]
        return self.head(torch.cat(parts, 1))


class Indexed(TwoStreams):
    def forward(self, colour, depth, present):
        rows = present.nonzero().flatten()
        found = self.depth((depth * mask_of(present))[rows])
        return self.head(torch.cat([self.colour(colour), colour.new_zeros(8, 6).index_put((rows,), found)], 1))


class Masked(TwoStreams):
    def forward(self, colour, depth, present):
        depth = self.depth(self.feed(depth, present), mask=present)
        return self.head(torch.cat([self.colour(colour), depth], 1))


def audited(model, missing, blank=()):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []

    def step():
        optimizer.zero_grad()
        present = torch.ones(8, dtype=torch.bool)
        present[missing[len(losses) % len(missing)]] = False
        depth = torch.randn(8, 1, 9, 9)
        depth[list(blank)] = 0.0
        loss = nn.functional.cross_entropy(model(torch.randn(8, 3, 9, 9), depth, present), torch.arange(8) % 4)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()

    return audit(step, model, optimizer, steps=3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("way", FEEDS)
def test_masked_samples_in_plain_batch_norm_pollute_its_statistics(way, bias):
    (fault,) = audited(TwoStreams(FEEDS[way], bias=bias), [[0, 2, 5], [1], [4, 6]]).faults
    assert (fault.code, fault.level, fault.parameters) == ("FL305", "fault", ("depth.norm",))
    assert "count samples that a mask has emptied" in fault.what and fault.evidence == "in 3 of 3 steps"
    assert [place.role for place in fault.places] == ["masked", "counted"]
    assert all(place.path == __file__ for place in fault.places)


def test_what_happens_in_a_few_steps_is_a_note():
    report = audited(TwoStreams(FEEDS["product"]), [[2], [], []])
    (note,) = report.findings
    assert (note.code, note.level, note.evidence) == ("FL305", "note", "in 1 of 3 steps")


@pytest.mark.parametrize(
    ("model", "missing", "blank"),
    [
        (TwoStreams(FEEDS["product"]), [[]], ()),
        (TwoStreams(lambda x, _: x), [[0, 2]], (0, 2)),  # blank pictures are data
        (TwoStreams(FEEDS["product"]), [[0, 2]], (3,)),  # beside masked ones: then it is left open
        (TwoStreams(lambda x, present: x * 2), [[0, 2]], ()),
        (TwoStreams(lambda x, present: x * mask_of(torch.rand(8) + 0.1)), [[0, 2]], ()),
        (Indexed(None), [[0, 2]], ()),
        (Masked(FEEDS["product"], norm=MaskedBatchNorm2d), [[0, 2]], ()),
        (TwoStreams(FEEDS["product"], norm=lambda width: nn.GroupNorm(2, width)), [[0, 2]], ()),
        (TwoStreams(FEEDS["product"]).eval(), [[0, 2]], ()),
    ],
    ids=["all there", "blank", "blank beside", "number", "weights", "indexed", "masked norm", "group norm", "eval"],
)
def test_what_is_right_is_not_reported(model, missing, blank):
    assert not [finding for finding in audited(model, missing, blank).findings if finding.code == "FL305"]
