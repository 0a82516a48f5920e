"""What streams are worth, and ResNet weights in a stream."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from frostline.errors import CheckpointError
from frostline.systems.linet.importance import pathway_importance
from frostline.systems.linet.pretrained import adapt_channels, load_resnet_
from frostline.systems.linet.streams import stream_state
from linet_parts import missing, samples, small_net


def test_a_stream_that_adds_nothing_is_worth_nothing():
    model = small_net(streams=(3, 1, 1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("integration_from_streams.2"):
                parameter.zero_()
    images, labels = samples(8, streams=(3, 1, 1))
    found = pathway_importance(model, [(*images, labels)])
    assert found[2].accuracy_drop == 0 and found[2].weight_share == 0
    assert all(share == 0 for share in found[2].added_shares.values())
    assert set(found[0].added_shares) == {"layer1", "layer2", "layer3", "layer4"}
    for stage in found[0].added_shares:
        assert 0 < sum(each.added_shares[stage] for each in found) < 1, "the rest is the integrated pathway's own"
    assert sum(each.weight_share for each in found) == pytest.approx(1)
    assert found[0].alone == model.evaluate([(*images, labels)], streams=[0])


def test_one_stream_and_missing_samples():
    single = small_net(streams=(3,))
    images, labels = samples(4, streams=(3,))
    (only,) = pathway_importance(single, [(*images, labels)])
    assert only.without is None and only.accuracy_drop is None
    model = small_net()
    images, labels = samples(4)
    images[1][0] = float("nan")
    found = pathway_importance(model, [(*images, missing("10 11 11 11"), labels)], max_samples=4)
    assert all(share == share for each in found for share in each.added_shares.values())
    assert found[1].alone.num_samples == 3


class Block(nn.Module):
    """torchvision's names of a basic block, or of a bottleneck."""

    def __init__(self, inside, width, stride, bottleneck):
        super().__init__()
        shapes = [(inside, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            shapes = [(inside, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]
        for number, (before, after, size, step) in enumerate(shapes, 1):
            self.add_module(f"conv{number}", nn.Conv2d(before, after, size, step, size // 2, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(after))
        self.num, outside = len(shapes), shapes[-1][1]
        self.downsample = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x):
        out = x
        for number in range(1, self.num + 1):
            out = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(out))
            out = F.relu(out) if number < self.num else out
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """torchvision's names and mathematics."""

    def __init__(self, blocks, widths, *, bottleneck=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False), nn.BatchNorm2d(widths[0])
        inside = widths[0]
        for stage, (num, width) in enumerate(zip(blocks, widths, strict=True), 1):
            made = []
            for index in range(num):
                made.append(Block(inside, width, 2 if stage > 1 and index == 0 else 1, bottleneck))
                inside = width * (4 if bottleneck else 1)
            self.add_module(f"layer{stage}", nn.Sequential(*made))
        self.fc = nn.Linear(inside, 7)

    def features(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
            yield x


@pytest.mark.parametrize(("depth", "bottleneck"), [(18, False), (50, True)])
def test_a_stream_with_a_resnets_weights_is_that_resnet(depth, bottleneck):
    torch.manual_seed(1)
    resnet = ResNet((1, 1, 2, 2), (8, 16, 32, 64), bottleneck=bottleneck).double()
    images, _ = samples(4)
    list(resnet.features(images[0]))  # running statistics of its own
    model = small_net(depth=depth, layers=(1, 1, 2, 2)).eval()
    shared, other = model.fc.weight.clone(), stream_state(model, 1)
    load_resnet_(model, 0, resnet.state_dict())
    assert torch.equal(model.fc.weight, shared)
    assert all(torch.equal(tensor, other[name]) for name, tensor in stream_state(model, 1).items())
    seen = []
    handles = [
        model.get_submodule(f"layer{stage}.{last}").register_forward_hook(lambda m, args, out: seen.append(out[0]))
        for stage, last in ((1, 0), (2, 0), (3, 1))
    ]  # the streams end with the last block
    with torch.no_grad():
        model(images)
        for mine, theirs in zip(seen, resnet.eval().features(images[0]), strict=False):
            torch.testing.assert_close(mine[0], theirs, rtol=1e-10, atol=1e-10)
    for handle in handles:
        handle.remove()


def test_the_first_kernel_is_adapted_to_the_channels():
    torch.manual_seed(1)
    resnet = ResNet((1, 1, 2, 2), (8, 16, 32, 64)).double()
    model = small_net(streams=(3, 1, 6))
    for stream in (1, 2):
        load_resnet_(model, stream, resnet.state_dict())
    kernel = resnet.conv1.weight
    assert torch.equal(model.conv1.stream_weights[1], kernel.sum(1, keepdim=True))
    grey = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    expected = F.conv2d(grey.expand(2, 3, 16, 16), kernel)
    for stream, num in ((1, 1), (2, 6)):
        actual = F.conv2d(grey.expand(2, num, 16, 16), model.conv1.stream_weights[stream])
        torch.testing.assert_close(actual, expected)
    assert adapt_channels(kernel, 4).shape == (8, 4, 7, 7)


def test_weights_of_another_network_are_refused_and_change_nothing():
    model = small_net()
    before = stream_state(model, 0)
    state = ResNet((1, 1, 2, 2), (8, 16, 32, 64)).double().state_dict()
    lacking = {name: tensor for name, tensor in state.items() if name != "layer2.0.bn1.bias"}
    for wrong, text in (
        (lacking, r"lacks layer2\.0\.bn1\.stream_biases\.0"),
        ({**state, "layer1.1.conv1.weight": state["layer1.0.conv1.weight"]}, r"has layer1\.1\.conv1"),
        (ResNet((1, 1, 2, 2), (16, 32, 64, 128)).state_dict(), r"conv1\.stream_weights\.0 is \(16, 3, 7, 7\)|is \(16"),
    ):
        with pytest.raises(CheckpointError, match=text):
            load_resnet_(model, 0, wrong)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stream_state(model, 0).items())
