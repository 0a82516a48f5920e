"""Real images with class and pose."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from frostline.errors import ConfigError, DataError
from frostline.systems.graf.config import GrafDataConfig
from frostline.systems.graf.sources import open_source, write_folders


def opened(size=8, split="train", seed=0, **keys):
    return open_source(GrafDataConfig(**keys), split=split, seed=seed, size=size)


def test_solids_are_drawn_once():
    source, test = opened(num_images=6), opened(num_test=3, split="test")
    assert (source.names, len(source.classes), len(test.classes)) == (("box", "ring", "cup", "step"), 6, 3)
    late = source.read([5, 1])
    told = []
    source.prepare(lambda done, total: told.append((done, total)))
    assert told == [(6, 6)]
    assert torch.equal(source.read(range(6))[[5, 1]], late)
    assert late.shape == (2, 3, 8, 8) and source.seen and not test.seen


def test_solids_written_as_folders_come_back(tmp_path):
    source = opened(num_images=12, size=16)
    config = GrafDataConfig(kind="folders", path=str(tmp_path), prefix_elevations_degrees=(0, 10, 25, 40))
    write_folders(source, tmp_path, config)
    back = open_source(config, split="train", seed=0, size=16)
    assert set(back.names) == {source.names[number] for number in source.classes.tolist()}
    poses = {
        (source.names[kind], azimuth, elevation): row
        for row, (kind, azimuth, elevation) in enumerate(
            zip(source.classes.tolist(), source.azimuth_degrees.tolist(), source.elevation_degrees.tolist(),
                strict=True)
        )
    }  # fmt: skip
    assert len(back.classes) == len(poses)
    for row in range(len(back.classes)):
        key = back.names[back.classes[row]], float(back.azimuth_degrees[row]), float(back.elevation_degrees[row])
        difference = back.read([row])[0].double() - source.read([poses[key]])[0].double()
        assert difference.abs().mean() < 12, "JPEG's own"
    with pytest.raises(DataError, match="no file name begins with an elevation of"):
        write_folders(source, tmp_path, GrafDataConfig())


def test_one_folder_is_one_object(tmp_path):
    for name in ("0_0000.jpg", "1.5_0359.png"):
        Image.new("RGB", (20, 20), (255, 0, 0)).save(tmp_path / name)
    source = opened(kind="folders", path=str(tmp_path))
    assert source.names == (tmp_path.name,)
    assert source.azimuth_degrees.tolist() == [0, 359]
    assert source.elevation_degrees.tolist() == pytest.approx([0, math.degrees(math.asin(0.6))], abs=0.01)
    assert source.read([1]).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("name", ["7_0000.jpg", "0_north.jpg", "-_1.jpg"])
def test_a_name_that_says_no_pose(tmp_path, name):
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    with pytest.raises(DataError, match=r"the name says no pose[\s\S]*one of 0, 0\.5, 1, 1\.5"):
        opened(kind="folders", path=str(tmp_path))


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(ConfigError, match="folders data has no place"):
        opened(kind="folders")
    with pytest.raises(DataError, match="the data set does not exist"):
        opened(kind="folders", path=str(tmp_path / "none"))
    with pytest.raises(DataError, match="there is no image"):
        opened(kind="folders", path=str(tmp_path))
    with pytest.raises(ConfigError, match="1 prefixes have 4 elevations"):
        opened(kind="folders", path=str(tmp_path), prefixes=(0.0,))
    (tmp_path / "0_0001.jpg").write_text("no image")
    with pytest.raises(DataError, match="the file is no image"):
        opened(kind="folders", path=str(tmp_path)).read([0])


def test_coil20_by_columns(tmp_path):
    from scipy.io import savemat

    pixels = np.zeros((144, 32, 32))
    pixels[:, 3, 5] = np.arange(144) / 143  # row 3, column 5
    file = tmp_path / "coil.mat"
    savemat(file, {"X": pixels.transpose(0, 2, 1).reshape(144, 1024), "Y": np.repeat([[7], [9]], 72, 0)})
    source = opened(size=32, kind="coil20", path=str(file), objects=(9,))
    assert source.names == ("object 9",) and source.azimuth_degrees[:3].tolist() == [0, 5, 10]
    assert source.read([71])[0, :, 3, 5].tolist() == [255] * 3
    assert opened(size=16, kind="coil20", path=str(file), objects=(7, 9)).read([0, 80]).shape == (2, 3, 16, 16)
    with pytest.raises(DataError, match="has other than 72 views"):
        opened(kind="coil20", path=str(file), objects=(1,))
    with pytest.raises(ConfigError, match="no object was named"):
        opened(kind="coil20", path=str(file), objects=())
    file.write_text("no file of matrices")
    with pytest.raises(DataError, match="not COIL-20's file"):
        opened(kind="coil20", path=str(file))


def views(num=20, radius=4.0):
    azimuth, elevation = torch.linspace(0, 5, num), torch.linspace(0.1, 1, num)
    back = torch.stack([elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], 1)
    right = torch.stack([-azimuth.sin(), azimuth.cos(), torch.zeros(num)], 1)
    poses = torch.eye(4).repeat(num, 1, 1)
    poses[:, :3] = torch.stack([right, torch.linalg.cross(back, right), back, radius * back], -1)
    return torch.rad2deg(azimuth), torch.rad2deg(elevation), poses


def test_views_give_their_angles(tmp_path):
    azimuth, elevation, poses = views()
    images = np.arange(20, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)
    np.savez(tmp_path / "scene.npz", images=images, poses=poses.numpy())
    train, test = (opened(4, split, kind="nerf", path=str(tmp_path / "scene.npz")) for split in ("train", "test"))
    assert (len(train.classes), len(test.classes)) == (18, 2)
    assert test.read([0, 1])[:, 0, 0, 0].tolist() == [9, 19]
    torch.testing.assert_close(test.azimuth_degrees, azimuth[[9, 19]], rtol=0, atol=1e-2)
    torch.testing.assert_close(test.elevation_degrees, elevation[[9, 19]], rtol=0, atol=1e-2)
    poses[3, :3, 3] += 1
    np.savez(tmp_path / "moved.npz", images=images, poses=poses.numpy())
    with pytest.raises(DataError, match="do not all look at the origin"):
        opened(kind="nerf", path=str(tmp_path / "moved.npz"))
    np.savez(tmp_path / "other.npz", pictures=images)
    with pytest.raises(DataError, match="no file of images and poses"):
        opened(kind="nerf", path=str(tmp_path / "other.npz"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty", "no file of images and poses"),
        ("torn", "no file of images and poses"),
        ("floats", r"its images are float32 \(20, 4, 4, 3\)"),
        ("transparent", r"its images are uint8 \(20, 4, 4, 4\)"),
        ("too many", r"its poses are \(20, 4, 4\), for 24 images"),
        ("flat poses", r"its poses are \(20, 17\)"),
        ("few", "one in 10 of 3 images is tested: that leaves none to test"),
        ("head over heels", "do not all look at the origin, upright"),
    ],
)
def test_views_that_cannot_be_used(tmp_path, name, said):
    poses, images = views()[2].numpy(), np.zeros((20, 4, 4, 3), np.uint8)
    made = {
        "floats": (images.astype(np.float32), poses),
        "transparent": (np.zeros((20, 4, 4, 4), np.uint8), poses),
        "too many": (np.zeros((24, 4, 4, 3), np.uint8), poses),
        "flat poses": (images, np.zeros((20, 17))),
        "few": (images[:3], poses[:3]),
        "head over heels": (images, poses * np.array([-1, -1, 1, 1], np.float32)),
    }
    file = tmp_path / "scene.npz"
    if name in made:
        np.savez(file, images=made[name][0], poses=made[name][1])
    else:
        file.write_bytes(b"" if name == "empty" else b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=said):
        opened(4, kind="nerf", path=str(file))
