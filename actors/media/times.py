"""Times in a film, as people write them."""

import math
import re
from decimal import Decimal
from typing import Any

from actors.core.errors import UserError

_NUMBER = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_CLOCK = re.compile(r"(?:([0-9]{1,6}):([0-5]?[0-9])|([0-9]{1,6})):([0-5]?[0-9](?:\.[0-9]*)?)")


def parse_time(value: Any) -> float:
    """Seconds from "hh:mm:ss.mmm", "mm:ss", "1.5" or a number; fractions may have any length, so "1.5" is 1500 ms.

    A comma is a decimal point, as in subtitles. Raises ValueError for anything else, also for what is negative or not
    finite, and for 60 or more after a colon.
    """
    seconds = math.nan
    text = value.strip().replace(",", ".") if isinstance(value, str) else ""
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, many_minutes, rest = clock.groups(default="0")
        # Decimal rounds once, so that "00:01:01.1" and 61.1 are the same number.
        seconds = float(int(hours) * 3600 + (int(minutes) + int(many_minutes)) * 60 + Decimal(rest))
    elif type(value) in (int, float) or _NUMBER.fullmatch(text):
        seconds = float(Decimal(text or value))
    if not 0 <= seconds < math.inf:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}…"
        raise UserError(f"{shown} is not a time; write seconds (1.5) or hh:mm:ss.mmm (00:00:01.500)")
    return seconds
