"""A real colour and depth pair: patches whose depth the camera could not see are samples without that stream."""

import numpy as np
import pytest
import torch

from frostline.systems.linet.network import LINet
from frostline.systems.linet.treatment import Treatment

SIZE = 48


@pytest.fixture(scope="module")
def patches():
    """Patches of the motorcycle: colour, depth (NaN where too much was not seen), whether it is there, and the half."""
    data = pytest.importorskip("skimage.data")
    colour, _, disparity = data.stereo_motorcycle()
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = 994.978 * 193.001 / (disparity + 31.086) / 1000  # metres
    depth = np.where(np.isfinite(disparity), depth, np.nan)
    places = [(y, x) for y in range(0, 500 - SIZE, 32) for x in range(0, 741 - SIZE, 32)]
    cut = [(slice(y, y + SIZE), slice(x, x + SIZE)) for y, x in places]
    pictures = torch.from_numpy(np.array([colour[place].transpose(2, 0, 1) for place in cut]))
    depths = torch.from_numpy(np.array([depth[place][None] for place in cut])).float()
    there = torch.isfinite(depths).double().flatten(1).mean(1) > 0.95
    depths[there] = depths[there].nan_to_num(3.0)
    labels = torch.tensor([int(x > 741 / 2 - SIZE / 2) for _, x in places])
    return pictures, depths, there, labels


def test_the_network_learns_where_on_the_picture_a_patch_lies(patches):
    pictures, depths, there, labels = patches
    assert 0.2 < there.double().mean() < 0.95 and 2 < torch.nanmedian(depths) < 5
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    available = torch.stack([torch.ones_like(there), there], 1)
    batches = [
        (pictures[rows], (depths[rows] - 3) / 0.7, available[rows], labels[rows])
        for rows in order.split(64)
    ]  # fmt: skip
    torch.manual_seed(0)
    model = LINet(2, (3, 1), width_multiplier=0.125, layers=(1, 1, 1, 1))
    model.treatment = Treatment(recompute="outputs", stem_slices=4)
    history = model.fit(
        batches, batches, epochs=5, learning_rate=5e-3, modality_dropout=True, modality_dropout_ramp=2, verbose=False,
        stream_monitoring=True, norm_stats=[(0.5, 0.25), (0.0, 1.0)],
    )  # fmt: skip
    last = history.epochs[-1]
    assert last.val_accuracy > 0.85, "half of them are left"
    assert last.missing_shares[1] > float((~there).double().mean())
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert torch.isfinite(model.predict_proba(batches)).all()
