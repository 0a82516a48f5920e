"""Samples: rooms, folders, SUN RGB-D, NYU v2; cuts that all streams share; what training takes away."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from frostline.errors import ConfigError, DataError
from frostline.systems.linet.availability import ModalityDropout
from frostline.systems.linet.config import LinetDataConfig
from frostline.systems.linet.data import Collate, LinetDataset, open_source, stored_size
from frostline.systems.linet.nyuv2 import decode_nyu_depth, open_nyuv2
from frostline.systems.linet.sources import SceneSource, depth_array
from frostline.systems.linet.sunrgbd import decode_sunrgbd_depth, open_sunrgbd
from frostline.training import Sample


def picture(file, *, colour=(10, 200, 30), size=(40, 30)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


def depth16(file, value, *, size=(40, 30)):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size[::-1], value, np.uint16)).save(file)


def opened(directory, kind, split="train", **more):
    return open_source(LinetDataConfig(kind=kind, directory=str(directory), image_size=14, **more), split=split, seed=0)


def test_scenes_are_drawn_once_and_the_same_in_any_order():
    source = SceneSource(split="train", num_scenes=6, seed=0, size=16)
    first = source.read([3, 1, 3])
    seen = []
    source.prepare(lambda done, total: seen.append((done, total)))
    (colour, depth), labels, availability = source.read(range(6))
    assert seen == [(6, 6)] and colour.dtype == torch.uint8 and depth.shape == (6, 1, 16, 16)
    assert torch.equal(first[0][0], colour[[3, 1, 3]]) and torch.equal(first[1], labels[[3, 1, 3]])
    assert availability.all() and len(source.classes) == 9
    values = torch.cat([colour.flatten(), depth.flatten()]).float() / 255
    assert 0 < values.mean() < 1


def test_normalised_scenes_have_about_mean_0_and_deviation_1():
    source = SceneSource(split="train", num_scenes=64, seed=0, size=32)
    for images, (mean, std) in zip(source.read(range(64))[0], source.norm_stats, strict=True):
        values = (images.float() / 255 - mean) / std
        assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.15


def test_all_streams_of_a_sample_are_cut_and_mirrored_alike():
    class Ramp:
        classes, norm_stats, num_samples = ("a",), ((0.5, 0.5), (0.5, 0.5)), 50

        def read(self, indices):
            plane = torch.arange(16)[:, None] * 16 + torch.arange(16)
            images = plane.to(torch.uint8).expand(len(indices), 1, 16, 16)
            return (images.expand(-1, 3, -1, -1), images), torch.zeros(len(indices)).long(), torch.ones(
                len(indices), 2, dtype=torch.bool)  # fmt: skip

    samples = [Sample(row, epoch) for row in range(50) for epoch in range(2)]
    dataset = LinetDataset(Ramp(), image_size=14, random=True, seed=3)
    examples = dataset.__getitems__(samples)
    for example in examples:
        colour, depth = example.streams
        assert depth.shape == (1, 14, 14) and torch.equal(colour, depth.expand(3, -1, -1))
    corners = {tuple(example.streams[1][0, 0, [0, -1]].tolist()) for example in examples}
    assert len(corners) == 18, "nine places, and each of them mirrored"
    again = LinetDataset(Ramp(), image_size=14, random=True, seed=3).__getitems__(samples[7:9])
    assert torch.equal(again[1].streams[0], examples[8].streams[0])
    middle = LinetDataset(Ramp(), image_size=14, random=False, seed=3).__getitems__(samples[:2])
    assert all(int(example.streams[1][0, 0, 0]) == 17 for example in middle)


def test_collating_takes_streams_away_by_epoch_and_first_sample():
    source = SceneSource(split="train", num_scenes=8, seed=0, size=16)
    dataset = LinetDataset(source, image_size=14, random=True, seed=0)
    collate = Collate(ModalityDropout(rate=1.0, ramp=2), seed=5)
    examples = dataset.__getitems__([Sample(row, 1) for row in range(8)])
    batch = collate(examples)
    assert batch.streams[0].shape == (8, 3, 14, 14) and (batch.availability.sum(1) == 1).all()
    assert torch.equal(collate(examples).availability, batch.availability), "drawn from nothing but the samples"
    other = dataset.__getitems__([Sample(row, 2) for row in range(8)])
    assert not torch.equal(collate(other).availability, batch.availability)
    assert Collate()(examples).availability.all()


def test_numbered_folders(tmp_path):
    for split, num in (("train", 4), ("val", 2)):
        folder = tmp_path / split
        for number in range(num):
            picture(folder / "rgb" / f"{number:05d}.png", colour=(number, 100, 200))
        depth16(folder / "depth" / "00000.png", 257 * 50)
        (folder / "depth" / "00001.png").parent.mkdir(exist_ok=True)
        Image.new("L", (40, 30), 70).save(folder / "depth" / "00001.png")
        (folder / "labels.txt").write_text("\n".join(str(number % 3) for number in range(num)))
    source = opened(tmp_path, "folders")
    (colour, depth), labels, availability = source.read([0, 1, 3])
    assert colour.shape == (3, 3, stored_size(14), stored_size(14)) == (3, 3, 16, 16)
    assert labels.tolist() == [0, 1, 0] and source.classes == ("class 0", "class 1", "class 2")
    assert availability.tolist() == [[True, True], [True, True], [True, False]]
    assert [depth[at].unique().tolist() for at in range(3)] == [[50], [70], [0]]
    assert colour[2, :, 0, 0].tolist() == [3, 100, 200]
    assert opened(tmp_path, "folders", "test").num_samples == 2
    (tmp_path / "classes.txt").write_text("kitchen\nbath\nhall\n")
    assert opened(tmp_path, "folders").classes == ("kitchen", "bath", "hall")


def test_tensor_files(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    colour = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    depth = torch.randint(256, (3, 1, 16, 16), dtype=torch.uint8)
    torch.save(colour, folder / "rgb_tensors.pt")
    torch.save(depth, folder / "depth_tensors.pt")
    (folder / "labels.txt").write_text("2 0 1")
    (mine, other), labels, availability = opened(tmp_path, "folders").read([2, 0])
    assert torch.equal(mine, colour[[2, 0]]) and torch.equal(other, depth[[2, 0]])
    assert labels.tolist() == [1, 2] and availability.all()
    smaller = open_source(
        LinetDataConfig(kind="folders", directory=str(tmp_path), image_size=7), split="train", seed=0
    ).read([0])[0]
    assert smaller[0].shape == (1, 3, 8, 8) and set(smaller[1].unique().tolist()) <= set(depth[0].unique().tolist())
    torch.save(colour.float(), folder / "rgb_tensors.pt")
    with pytest.raises(DataError, match=r"expected uint8 \(3, 3, H, W\), got torch.float32"):
        opened(tmp_path, "folders")


def turned(millimetres):
    """As SUN RGB-D stores them."""
    return ((millimetres << 3) | (millimetres >> 13)) & 0xFFFF


def sunrgbd(root):
    folders = []
    for number in range(12):
        folder = root / "kv1" / "NYUdata" / f"NYU{number:04d}"
        picture(folder / "image" / f"NYU{number:04d}.jpg")
        if number != 3:
            depth16(folder / "depth" / f"NYU{number:04d}.png", turned(2000 + number))
        if number == 5:
            depth16(folder / "depth_bfx" / "x.png", turned(8000))
        (folder / "scene.txt").write_text("attic" if number == 11 else ("bedroom", "kitchen")[number % 2])
        folders.append(folder)
    return folders


def test_sun_rgbd_with_the_published_split(tmp_path):
    root = tmp_path / "SUNRGBD"
    sunrgbd(root)
    listed = np.empty((1, 4), object)
    for at, number in enumerate((1, 2, 3, 11)):
        listed[0, at] = np.array([f"/n/fs/sun3d/data/SUNRGBD/kv1/NYUdata/NYU{number:04d}"])
    toolbox = tmp_path / "SUNRGBDtoolbox" / "traintestSUNRGBD"
    toolbox.mkdir(parents=True)
    savemat(toolbox / "allsplit.mat", {"alltest": listed, "alltrain": listed[:, :0]})
    train, test = (opened(root, "sunrgbd", split, min_class_size=3) for split in ("train", "test"))
    assert train.classes == test.classes == ("bedroom", "kitchen")
    assert (train.num_samples, test.num_samples) == (8, 3), "the attic is too rare"
    (_, depth), labels, availability = test.read([0, 1, 2])
    assert labels.tolist() == [1, 0, 1] and availability[:, 1].tolist() == [True, True, False]
    assert depth[0].unique().tolist() == [round(2001 * 255 / 10_000)]
    five = train.read(range(8))[0][1].amax((1, 2, 3)).tolist()
    assert five.count(204) == 1, "the filled depth is taken where there is one"


def test_sun_rgbd_without_a_split_is_halved_by_name(tmp_path):
    sunrgbd(tmp_path)
    sizes = [open_sunrgbd(tmp_path, split=split, size=16, min_class_size=1).num_samples for split in ("train", "test")]
    assert sum(sizes) == 12 and min(sizes) > 1
    again = open_sunrgbd(tmp_path, split="test", size=16, min_class_size=1)
    assert again.num_samples == sizes[1]


def test_depth_is_decoded_and_holes_stay_holes():
    millimetres = np.array([[0, 1, 4000, 10_000, 60_000]], np.uint16)
    stored = turned(millimetres.astype(np.int64)).astype(np.uint16)
    assert decode_sunrgbd_depth(stored).tolist() == [[0, 1, 102, 255, 255]]
    assert decode_nyu_depth(np.array([[0.0, 0.001, 4.0, 30.0]])).tolist() == [[0, 1, 102, 255]]
    values = np.array([[0, 200], [200, 0]], np.uint8)
    assert set(np.unique(depth_array(values, 5))) == {0, 200}, "the mean of a hole and a wall is neither"


def nyu(file, num=6):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    with h5py.File(file, "w") as content:
        content["images"] = rng.integers(0, 256, (num, 3, 40, 30), np.uint8)
        content["depths"] = rng.uniform(1, 5, (num, 40, 30)).astype(np.float32)
        for name, words in (("sceneTypes", ["kitchen", "bath"]), ("scenes", ["a", "b", "c"])):
            references = content.create_dataset(name, (1, num), h5py.ref_dtype)
            for row in range(num):
                text = content.create_dataset(f"{name}_{row}", data=[[ord(c)] for c in words[row % len(words)]])
                references[0, row] = text.ref
        return np.asarray(content["images"]), np.asarray(content["depths"])


def test_nyu_v2(tmp_path):
    images, depths = nyu(tmp_path / "nyu_depth_v2_labeled.mat")
    savemat(tmp_path / "splits.mat", {"testNdxs": np.array([[2], [6]])})
    train, test = (opened(tmp_path, "nyuv2", split, min_class_size=2) for split in ("train", "test"))
    assert (train.num_samples, test.num_samples, train.classes) == (4, 2, ("bath", "kitchen"))
    (colour, depth), labels, availability = pickle.loads(pickle.dumps(test)).read([1, 0])
    assert labels.tolist() == [0, 0] and availability.all() and colour.shape == (2, 3, 16, 16)
    assert int(depth[0, 0, 0, 0]) == round(float(depths[5, 1, 0]) * 25.5)
    assert abs(float(colour[0].float().mean()) - images[5].mean()) < 5
    places = open_nyuv2(tmp_path, split="test", size=16, min_class_size=1).num_samples
    (tmp_path / "splits.mat").unlink()
    assert open_nyuv2(tmp_path, split="test", size=16, min_class_size=1).num_samples % 2 == 0 and places == 2


def test_data_that_cannot_be_used_is_one_error(tmp_path):
    with pytest.raises(ConfigError, match="folders data has no place"):
        open_source(LinetDataConfig(kind="folders"), split="train", seed=0)
    with pytest.raises(DataError, match="the data set does not exist"):
        opened(tmp_path / "none", "sunrgbd")
    with pytest.raises(DataError, match=r"there is no scene\.txt"):
        opened(tmp_path, "sunrgbd")
    with pytest.raises(DataError, match="the file does not exist"):
        opened(tmp_path, "nyuv2")
    with pytest.raises(DataError, match="there is no split 'train'"):
        opened(tmp_path, "folders")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="cannot read the labels"):
        opened(tmp_path, "folders")
    (tmp_path / "train" / "labels.txt").write_text("0\nkitchen\n")
    with pytest.raises(DataError, match="the labels are not numbers"):
        opened(tmp_path, "folders")
    (tmp_path / "train" / "labels.txt").write_text("0\n1\n")
    picture(tmp_path / "train" / "rgb" / "00000.png")
    with pytest.raises(DataError, match="sample 00001 has neither"):
        opened(tmp_path, "folders")
    (tmp_path / "train" / "rgb" / "00001.png").write_text("no picture")
    with pytest.raises(DataError, match="the picture cannot be read"):
        opened(tmp_path, "folders").read([1])
    sunrgbd(tmp_path / "sun")
    with pytest.raises(DataError, match="no class has 80 pictures; the largest has 6"):
        opened(tmp_path / "sun", "sunrgbd")
    with pytest.raises(ConfigError, match=r"data\.shading is 2"):
        open_source(LinetDataConfig(shading=2.0), split="train", seed=0)
