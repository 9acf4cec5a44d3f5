"""What clients of HTTP share: certificates, and when a server that answered 429 or 503 wants the next request."""

import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache


@cache
def certificates() -> ssl.SSLContext:
    """Whom to trust, for `httpx2.Client(verify=...)`. One per process: a client of its own takes 30 ms to read them."""
    import httpx2

    return httpx2.create_ssl_context()


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
