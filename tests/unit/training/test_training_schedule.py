import pytest

from frostline.training import constant, cosine


def test_constant_rises_linearly_to_one():
    assert [constant(4)(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert constant(0)(0) == 1.0


def test_cosine_rises_falls_and_ends_at_its_final_factor():
    factor = cosine(4, 105)
    assert [factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factor(54) == pytest.approx((1 + 0.02) / 2)
    assert factor(104) == factor(1000) == pytest.approx(0.02)
    assert all(factor(step) >= factor(step + 1) for step in range(4, 110))


def test_cosine_shorter_than_its_warm_up_only_rises():
    assert [cosine(10, 5)(step) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
