import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.errors import ConfigError
from frostline.units import format_bytes, format_count, format_mib, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("6GiB", 6 * 2**30),
        ("750 MB", 750 * 10**6),
        ("1048576", 2**20),
        (" 1.5 kib ", 1536),
        (".5gb", 5 * 10**8),
        ("12B", 12),
    ],
)
def test_sizes_are_read_with_binary_and_decimal_units(text, num_bytes):
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "GiB", "six GiB", "6 G", "-1 MB", "1,5 GB", "1 2 MB", "1e3 MB", "nan"])
def test_other_texts_are_refused_with_an_example(text):
    with pytest.raises(ConfigError) as raised:
        parse_bytes(text)
    assert raised.value.what == f"{text!r} is not a size"
    assert "6GiB" in raised.value.do


@given(st.integers(0, 2**50))
def test_whole_bytes_come_back(num_bytes):
    assert parse_bytes(f"{num_bytes} B") == num_bytes


@given(st.integers(0, 2**45))
def test_a_printed_size_is_near_the_true_one(num_bytes):
    assert parse_bytes(format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.05, abs=0.5)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1318.2 * 2**20, "1318.2 MiB"),
        (9 * 2**30, "9216.0 MiB"),
        (10 * 2**30, "10.0 GiB"),
        (-20 * 2**20, "-20.0 MiB"),
    ],
)
def test_bytes_are_printed_in_a_binary_unit(num_bytes, text):
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("mib", "text"), [(0.0123, "0.012"), (1, "1.0"), (99.94, "99.9"), (100, "100"), (12345, "12,345")]
)
def test_mib_in_tables_keep_three_digits(mib, text):
    assert format_mib(mib * 2**20) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (35_720, "35,720"), (231_443_968, "231.4 M"), (7e9, "7.0 B")])
def test_counts(count, text):
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.314, "0.31 s"), (42.2, "42 s"), (185, "3:05"), (8020, "2:13:40"), (3600, "1:00:00")],
)
def test_durations(seconds, text):
    assert format_seconds(seconds) == text
