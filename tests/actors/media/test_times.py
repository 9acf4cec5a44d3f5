"""Times as people write them."""

from typing import Any

import pytest

from actors.media.times import parse_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:00:01", 1.0),
        ("00:00:01.500", 1.5),
        ("00:00:01.250", 1.25),
        ("00:00:01,5", 1.5),
        ("01:02:03", 3723.0),
        ("01:02:03.0004", 3723.0004),
        ("00:01:01.1", 61.1),
        ("100:00:00", 360000.0),
        ("1:30", 90.0),
        ("2:03", 123.0),
        ("75:30", 4530.0),
        ("75:30,25", 4530.25),
        ("90", 90.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("1,5", 1.5),
        ("7,5", 7.5),
        (" 2.5 ", 2.5),
        ("1.005", 1.005),
        ("0.123456789123", 0.123456789123),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e3", 1000.0),
        ("1e-05", 1e-05),
        (0, 0.0),
        (2.25, 2.25),
    ],
)
def test_seconds(text: Any, seconds: float):
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", "-1", "-00:00:01", "1:2:3:4", "00:60:00", "00:00:60", "1:60", "soon", "noon", "nan", "inf", "1:", ":1"),
        *("1_0", "٣", "1,000.5", "1.5,5", ".", ",", "1e999"),
        *(-0.5, float("nan"), float("inf"), 10**400, True, None, [1]),
    ],
)
def test_what_is_no_time_is_refused(text: Any):
    with pytest.raises(ValueError, match=r"is not a time; write seconds \(1\.5\) or hh:mm:ss"):
        parse_time(text)
