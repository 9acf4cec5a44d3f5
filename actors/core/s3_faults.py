"""Which faults of an S3 store pass, and what the others mean."""

import errno
import os
from collections.abc import Callable
from typing import TypeVar

from botocore import exceptions as aws

from actors.core.addresses import AddressError
from actors.core.errors import AGAIN
from actors.core.patience import PATIENCE, patience_s, repeated

T = TypeVar("T")

AT_FIRST_S = 10.0
"""Seconds for which a store is tried that this process has not reached yet, as with a wrong endpoint."""

PASSING = (
    aws.ConnectionError,  # also ConnectTimeoutError, ReadTimeoutError, EndpointConnectionError, ConnectionClosedError
    aws.HTTPClientError,
    aws.ReadTimeoutError,
    aws.IncompleteReadError,
    aws.ResponseStreamingError,
)
"""Exceptions of a connection that may be better the next time."""
_PASSING_STATUS = {408, 429, 500, 502, 503, 504}
# NoSuchUpload: a multipart upload whose completion was answered into a cut connection; it is done again from its start.
_PASSING_CODES = {
    "SlowDown",
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "NoSuchUpload",
}
_BAD_ADDRESS_CODES = {"InvalidBucketName", "KeyTooLongError", "InvalidURI", "InvalidObjectName"}
_REFUSED_CODES = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AuthorizationHeaderMalformed"}
_reached: set[str] = set()
"""Endpoints that have answered this process."""


def patiently(uri: str, request: Callable[[], T]) -> T:
    """Make a request of an S3 store, again while its faults may pass; other faults are an OSError that names the URI.

    Raises ConnectionError where the store stays away for `patience_s`; a process that has never reached it gives up
    after AT_FIRST_S, unless the variable PATIENCE is set.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    allowed_s = patience_s() if endpoint in _reached or PATIENCE in os.environ else min(patience_s(), AT_FIRST_S)
    try:
        answer = repeated(uri, request, _passes, _name, allowed_s)
    except aws.ClientError as error:
        raise (_gave_up(uri, error, allowed_s) if _passes(error) else _explained(uri, error)) from error
    except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError) as error:
        raise PermissionError(
            f"no credentials for {uri}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
            "or give the node a role"
        ) from error
    except (aws.ParamValidationError, aws.UnsupportedS3ArnError, UnicodeError) as error:
        raise AddressError(f"{uri!r} cannot be a file on S3: {str(error).splitlines()[-1]}") from error
    except PASSING as error:
        raise _gave_up(uri, error, allowed_s) from error
    _reached.add(endpoint)
    return answer


def _passes(error: BaseException) -> bool:
    if isinstance(error, aws.ClientError):
        code, status = _answer(error)
        return status in _PASSING_STATUS or code in _PASSING_CODES
    return isinstance(error, PASSING)


def _answer(error: aws.ClientError) -> tuple[str, int]:
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code, int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _name(error: BaseException) -> str:
    if isinstance(error, aws.ClientError):
        code, status = _answer(error)
        return f"{status} {code}"
    return type(error).__name__


def _gave_up(uri: str, error: Exception, seconds: float) -> ConnectionError:
    return ConnectionError(
        f"{uri}: gave up after {seconds:.0f} s ({_name(error)}); check the store and its endpoint, and run the same "
        f"command again. store.patience_s sets how long a store is waited for"
    )


def _explained(uri: str, error: aws.ClientError) -> Exception:
    code, status = _answer(error)
    if code in _BAD_ADDRESS_CODES:
        return AddressError(f"{uri!r} cannot be a file on S3: the store answered {code}")
    if code == "NoSuchBucket":
        return FileNotFoundError(f"no bucket for {uri}; make it first, or check the name and AWS_ENDPOINT_URL")
    if status == 404:
        return FileNotFoundError(f"no file {uri}")
    if status in (401, 403) or code in _REFUSED_CODES:
        return PermissionError(
            f"{uri}: refused ({code}); check that the credentials are right and in time, "
            "and that they allow s3:ListBucket, GetObject, PutObject and DeleteObject there"
        )
    if status == 507 or "Quota" in code or "StorageFull" in code:
        return OSError(errno.ENOSPC, f"the store is full ({code}); free some space there, and {AGAIN}", uri)
    if status == 412:
        return OSError(f"{uri} was replaced while it was read; read it again")
    return OSError(f"{uri}: the store answered {status} {code}")
