"""NYU Depth v2 as it is published: one MATLAB file with pictures, depths and the kinds of the scenes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from frostline.errors import DataError, import_extra
from frostline.systems.linet.network import Statistics
from frostline.systems.linet.sources import (
    CHANNELS,
    PHOTOGRAPH_STATS,
    STREAMS,
    Progress,
    Read,
    Source,
    colour_array,
    depth_array,
)

_FILE = "nyu_depth_v2_labeled.mat"
_SPLITS = "splits.mat"
_TEST_SHARE = 0.45
_MAX_METRES = 10.0


def open_nyuv2(root: Path, *, split: str, size: int, min_class_size: int) -> Source:
    """A split of NYU Depth v2 with the kinds of scenes that are frequent enough.

    The split is the published one where ``splits.mat`` lies beside the file; without it, 45 % of the scenes are
    tested, all pictures of a place together.

    Args:
        root: The file, or its folder.
        split: ``train`` or ``test``.
        size: Height and width that pictures are brought to.
        min_class_size: Pictures that a kind must have, over both splits.

    Raises:
        DataError: The file is not there or not in this layout, or nothing is left.
        MissingExtraError: h5py is not installed.

    Source: Silberman et al., Indoor Segmentation and Support Inference from RGBD Images (2012).
    """
    file = root / _FILE if root.is_dir() else root
    if not file.is_file():
        raise DataError("the file does not exist", where=str(file), do=f"give the folder of {_FILE}")
    h5py = import_extra("h5py", extra="linet")
    try:
        content = h5py.File(file, "r")
        kinds, places = _texts(content, "sceneTypes"), _texts(content, "scenes")
    except (OSError, KeyError) as error:
        raise DataError(f"it is not NYU Depth v2's labelled file: {error}", where=str(file)) from None
    counts = Counter(kinds)
    classes = sorted(kind for kind, count in counts.items() if count >= min_class_size)
    tested = _tested(file.parent / _SPLITS, places)
    rows = [row for row, kind in enumerate(kinds) if kind in classes and (row in tested) == (split == "test")]
    if not rows:
        raise DataError(
            f"nothing is left of the set; its kinds have up to {max(counts.values())} pictures",
            where=str(file),
            do="lower --data.min-class-size",
        )
    return NyuSource(file, rows, [classes.index(kinds[row]) for row in rows], classes, size)


class NyuSource:
    """Pictures in an HDF5 file; each process opens it for itself.

    Args:
        file: With ``images`` ``(S, 3, W, H)`` and ``depths`` ``(S, W, H)`` in metres.
        rows: Which of them.
        labels: Of these.
        classes: Names.
        size: Height and width that pictures are brought to.
    """

    norm_stats: tuple[Statistics, ...] = PHOTOGRAPH_STATS

    def __init__(
        self, file: Path, rows: Sequence[int], labels: Sequence[int], classes: Sequence[str], size: int
    ) -> None:
        self.classes, self.num_samples, self._size = tuple(classes), len(rows), size
        self._file, self._rows, self._labels = file, tuple(rows), torch.tensor(labels)
        self._content: Mapping[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_content": None}

    def read(self, indices: Sequence[int]) -> Read:
        """Samples; nothing is missing."""
        if self._content is None:
            self._content = import_extra("h5py", extra="linet").File(self._file, "r")
        colour = np.zeros((len(indices), CHANNELS[0], self._size, self._size), np.uint8)
        depth = np.zeros((len(indices), CHANNELS[1], self._size, self._size), np.uint8)
        for at, index in enumerate(indices):
            row = self._rows[index]
            picture = np.asarray(self._content["images"][row]).transpose(2, 1, 0)
            colour[at] = colour_array(Image.fromarray(np.ascontiguousarray(picture)), self._size)
            depth[at] = depth_array(decode_nyu_depth(np.asarray(self._content["depths"][row]).T), self._size)
        everything = torch.ones(len(indices), len(STREAMS), dtype=torch.bool)
        labels = self._labels[torch.as_tensor(indices, dtype=torch.long)]
        return (torch.from_numpy(colour), torch.from_numpy(depth)), labels, everything

    def prepare(self, progress: Progress) -> None:
        """Nothing."""


def decode_nyu_depth(metres: np.ndarray) -> np.ndarray:
    """Metres to uint8 of 10 metres; 0 stays 0."""
    seen = np.clip(metres * (255 / _MAX_METRES), 1, 255).round()
    return np.where(metres <= 0, 0, seen)


def _texts(content: Any, name: str) -> list[str]:
    """A MATLAB cell of texts, ``(1, S)`` references to characters."""
    references = np.asarray(content[name]).ravel()
    return ["".join(map(chr, np.asarray(content[reference]).ravel())) for reference in references]


def _tested(file: Path, places: Sequence[str]) -> set[int]:
    if not file.is_file():
        shares = [hashlib.sha256(place.encode()).digest()[0] for place in places]
        return {row for row, share in enumerate(shares) if share < 256 * _TEST_SHARE}
    try:
        return {int(number) - 1 for number in loadmat(file)["testNdxs"].ravel()}
    except (MatReadError, KeyError, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"the list of test pictures cannot be read: {error}", where=str(file)) from None
