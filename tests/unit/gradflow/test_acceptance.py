import linecache

import pytest

from frostline.errors import ConfigError
from frostline.gradflow import CODES
from frostline.gradflow.acceptance import accept, check_codes
from frostline.records import Finding, Place

SOURCE = """\
x = h.detach()  # frostline: accept FL104 because the codebook learns by averages
# frostline: accept FL101, FL104 because it is a probe
y = h.detach()
z = 1  # frostline: accept FL104 because of another line
w = h.detach()
v = h.detach()  # FROSTLINE: accept fl104
# not a comment for frostline: accept
u = h.detach()
"""


@pytest.fixture
def place(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SOURCE)
    linecache.checkcache(str(path))
    return lambda line: Place(role="cut", path=str(path), line=line)


def finding(*places, code="FL104"):
    return Finding(code=code, slug=CODES[code].slug, level="fault", what="learns nothing", places=places)


@pytest.mark.parametrize(
    ("line", "code", "why"),
    [
        (1, "FL104", "the codebook learns by averages"),
        (1, "FL101", ""),
        (3, "FL104", "it is a probe"),
        (3, "FL101", "it is a probe"),
        (5, "FL104", ""),  # a comment behind code is that line's own
        (6, "FL104", "accepted by a comment"),
        (8, "FL104", ""),
    ],
)
def test_a_comment_at_the_line_or_alone_above_it(place, line, code, why):
    assert accept(finding(place(line), code=code), frozenset()).accepted == why


def test_any_of_a_findings_lines_will_do(place):
    assert accept(finding(place(5), place(1)), frozenset()).accepted == "the codebook learns by averages"


def test_by_code(place):
    accepted = accept(finding(place(5)), check_codes(["fl104"]))
    assert accepted.accepted == "accepted by --accept"
    assert accept(finding(place(5)), check_codes(["FL101"])).accepted == ""


def test_a_finding_without_lines_or_with_a_lost_file():
    assert accept(finding(), frozenset()).accepted == ""
    assert accept(finding(Place(role="cut", path="/nowhere/a.py", line=3)), frozenset()).accepted == ""


def test_codes_that_do_not_exist_are_an_error():
    assert check_codes([]) == frozenset()
    assert check_codes(["FL101", "fl502"]) == {"FL101", "FL502"}
    with pytest.raises(ConfigError, match="there is no finding 'FL999'"):
        check_codes(["FL101", "FL999"])
