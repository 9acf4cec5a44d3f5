"""When a server that answered 429 or 503 wants the next request."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after_s(retry_after: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait, from a number or a date; None where it says nothing."""
    if retry_after is None:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        at = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
