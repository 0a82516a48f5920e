"""Pictures of records."""

import pytest
from PIL import Image

from frostline.records import Curve, EvaluationReport
from frostline.reports.files import write_curves

pytest.importorskip("matplotlib")


def report(*curves):
    return EvaluationReport(system="graf", title="a run", x_name="step", curves=curves, facts={})


def test_no_curves_are_no_picture(tmp_path):
    write_curves(report(), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("share", [1.0, 2.0])
def test_a_share_above_one_is_in_the_picture(share, tmp_path):
    """KID may rise above its start; the legend, which has the line's colour too, lies in the lower half."""
    curve = Curve(y_name="distance", name="KID", x=(0.0, 1.0), y=(share, share), note="")
    write_curves(report(curve), tmp_path / "curve.png")
    picture = Image.open(tmp_path / "curve.png").convert("RGB")
    upper = picture.crop((0, 0, picture.width, picture.height // 2))
    assert (11, 114, 133) in {colour for _, colour in upper.getcolors(upper.width * upper.height)}
