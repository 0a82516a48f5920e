"""Scores, the nets behind them, and pictures to look at."""

import warnings

import pytest
import torch
from PIL import Image

from frostline.errors import ConfigError
from frostline.systems.graf import Poses
from frostline.systems.graf.augmentation import augment
from frostline.systems.graf.config import DiscriminatorConfig
from frostline.systems.graf.features import FeatureNet, FileFeatures, train_feature_net
from frostline.systems.graf.metrics import Scores, judged
from frostline.systems.graf.sampling import sheet
from frostline.systems.graf.sources import ImageSource
from frostline.systems.graf.turntable import write_film


def marked(num=64):
    """Two classes by colour; a bright column tells the azimuth, from four."""
    numbers = torch.arange(num)
    images = torch.zeros(num, 3, 32, 32, dtype=torch.uint8)
    images[numbers, numbers % 2] = 200
    quarters = (numbers // 2) % 4
    for row, quarter in enumerate(quarters):
        images[row, 2, :, 8 * quarter : 8 * quarter + 8] = 255
    return ImageSource(images, ["red", "green"], numbers % 2, 90.0 * quarters, torch.zeros(num))


def test_a_net_learns_class_and_azimuth_and_leaves_the_generators_alone():
    source = marked()
    before = torch.get_rng_state()
    net = train_feature_net(source, seed=1, num_steps=60)
    assert torch.equal(torch.get_rng_state(), before)
    images, poses = source.read(range(64)), Poses.from_degrees(source.azimuth_degrees, source.elevation_degrees)
    accuracy, error = judged(net, images, source.classes, poses)
    assert accuracy == 1 and error < 30
    turned = Poses(poses.azimuth + torch.pi, poses.elevation)
    assert judged(net, images, 1 - source.classes, turned)[0] == 0
    assert judged(net, images, source.classes, turned)[1] > 150
    again = train_feature_net(source, seed=1, num_steps=60)
    assert torch.equal(net(images), again(images))
    torch.testing.assert_close(net(images).square().sum(1), torch.full((64,), 64.0))


def test_kid_and_fid_tell_distributions_apart():
    pytest.importorskip("torchmetrics")
    from frostline.systems.graf.metrics import _distances_of

    torch.manual_seed(0)
    net = FeatureNet(2).eval().requires_grad_(False)
    real = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8)
    for metric_number in (0, 1):
        found = []
        for other in (torch.randint_like(real, 0, 256), torch.full_like(real, 255)):
            metric = _distances_of(net, subset_size=20)[metric_number]
            metric.update(real, real=True)
            metric.update(other, real=False)
            result = metric.compute()
            found.append(float(result[0] if isinstance(result, tuple) else result))
        assert found[1] > found[0] + 0.01


def test_features_of_a_file(tmp_path):
    class Net(torch.nn.Module):
        def forward(self, images):
            return images.float().mean((2, 3))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(Net(), torch.zeros(1, 3, 299, 299, dtype=torch.uint8)), tmp_path / "net.pt")
    net = FileFeatures(str(tmp_path / "net.pt"))
    assert net.num_features == 3
    torch.testing.assert_close(net(torch.full((2, 3, 16, 16), 7, dtype=torch.uint8)), torch.full((2, 3), 7.0))
    (tmp_path / "other.pt").write_text("other")
    with pytest.raises(ConfigError, match="no TorchScript net of uint8 images"):
        FileFeatures(str(tmp_path / "other.pt"))


def test_psnr():
    assert Scores(squared_error=0.04).psnr_db == pytest.approx(20)  # from -1 to 1: a range of 2
    assert Scores(kid=1.0).psnr_db is None


@pytest.mark.parametrize("kind", ["colour", "translation", "both"])
def test_augmentation_passes_gradients_and_depends_on_the_seed_alone(kind):
    config = DiscriminatorConfig(augmentation=kind)
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64).requires_grad_()
    seeds = torch.tensor([1, 2, 3])
    changed = augment(images, seeds, config)
    changed.square().sum().backward()
    assert (images.grad != 0).any((1, 2, 3)).all()
    assert torch.equal(augment(images[1:], seeds[1:], config), changed[1:])
    assert not torch.equal(augment(images, seeds, config, real=True), changed)
    assert torch.equal(augment(images, seeds, DiscriminatorConfig()), images)


def test_sheets_and_films(tmp_path):
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    laid = sheet(images, 3)
    assert laid.shape == (4, 6, 3) and laid[::2, ::2, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    frames = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    write_film(frames, tmp_path / "film.gif", frames_per_second=10)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 3
    pytest.importorskip("imageio_ffmpeg")
    write_film(frames, tmp_path / "film.mp4", frames_per_second=10)
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"
