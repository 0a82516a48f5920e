"""SUN RGB-D as it is unpacked: a folder a picture, with image, depth and the name of the scene."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from frostline.errors import DataError
from frostline.systems.linet.sources import Entry, FileSource, Source

_SPLIT_FILE = Path("SUNRGBDtoolbox/traintestSUNRGBD/allsplit.mat")
_LAYOUT = "expected folders such as kv1/NYUdata/NYU0001 with scene.txt, image/*.jpg and depth/*.png"
_TEST_SHARE = 0.5
_MAX_MILLIMETRES = 10_000


def open_sunrgbd(root: Path, *, split: str, size: int, min_class_size: int) -> Source:
    """A split of SUN RGB-D with the classes that are large enough; of the whole set, 19 have 80 pictures.

    The split is the published one where ``allsplit.mat`` of the toolbox lies in the directory or in the one above;
    without it, half of the pictures are tested, chosen by their folder's name. The filled depth (``depth_bfx``) is
    taken where it is there. A picture without depth has a missing stream.

    Args:
        root: Of the pictures, usually called SUNRGBD.
        split: ``train`` or ``test``.
        size: Height and width that pictures are brought to.
        min_class_size: Pictures that a class must have, over both splits.

    Raises:
        DataError: It is not in this layout, or nothing is left.

    Source: Song, Lichtenberg and Xiao, SUN RGB-D (2015).
    """
    scenes = sorted(root.rglob("scene.txt"))
    if not scenes:
        raise DataError("there is no scene.txt in or below the directory", where=str(root), do=_LAYOUT)
    named = [(file.parent, file.read_text(encoding="utf-8").strip()) for file in scenes]
    counts = Counter(name for _, name in named)
    classes = sorted(name for name, count in counts.items() if count >= min_class_size)
    if not classes:
        raise DataError(
            f"no class has {min_class_size} pictures; the largest has {max(counts.values())}",
            where=str(root),
            do="lower --data.min-class-size",
        )
    tested = _tested([folder for folder, _ in named], root)
    entries = [
        Entry(_first(folder, "image"), _first(folder, "depth_bfx", "depth"), classes.index(name))
        for folder, name in named
        if name in classes and (folder in tested) == (split == "test")
    ]
    entries = [entry for entry in entries if entry.colour is not None or entry.depth is not None]
    return FileSource(entries, classes, size=size, decode_depth=decode_sunrgbd_depth, where=f"{root}, {split}")


def decode_sunrgbd_depth(values: np.ndarray) -> np.ndarray:
    """Millimetres, their bits turned left by three in 16, to uint8 of 10 metres."""
    bits = values.astype(np.uint16)
    millimetres = (bits >> 3) | (bits << 13)
    seen = np.clip(millimetres.astype(np.float64) * (255 / _MAX_MILLIMETRES), 1, 255).round()
    return np.where(millimetres == 0, 0, seen)


def _first(folder: Path, *names: str) -> Path | None:
    files = (file for name in names for file in sorted((folder / name).glob("*")))
    return next((file for file in files if file.suffix.lower() in (".png", ".jpg", ".jpeg")), None)


def _tested(folders: Sequence[Path], root: Path) -> set[Path]:
    file = next((base / _SPLIT_FILE for base in (root, root.parent) if (base / _SPLIT_FILE).is_file()), None)
    if file is None:
        shares = {
            folder: hashlib.sha256(folder.relative_to(root).as_posix().encode()).digest()[0] for folder in folders
        }
        return {folder for folder, share in shares.items() if share < 256 * _TEST_SHARE}
    try:
        listed = loadmat(file)["alltest"].ravel()
        paths = [PurePosixPath(str(np.ravel(cell)[0])) for cell in listed]
    except (MatReadError, KeyError, IndexError, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"the list of test pictures cannot be read: {error}", where=str(file)) from None
    ends = {_end(path.parts) for path in paths}
    return {folder for folder in folders if _end(folder.parts) in ends}


def _end(parts: Sequence[str]) -> tuple[str, ...]:
    """What comes behind the data set's own folder; the list names it as it lay with its authors."""
    known = [at for at, part in enumerate(parts) if part in ("kv1", "kv2", "realsense", "xtion")]
    return tuple(parts[known[-1] :]) if known else tuple(parts[-1:])
