"""What a URI names: a local path, or a bucket and key of S3."""

import errno
import hashlib
import os
import re
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

from actors.core.errors import UserError

NAME_BYTES = 200
"""File systems take names of 255 bytes, and what is named after something gets a suffix."""


class AddressError(UserError):
    """A URI that can name no file, whatever there is: a mistake in settings, one bad row where data holds it."""


def is_s3(uri: str) -> bool:
    """Whether it is s3://bucket or below."""
    return uri.startswith("s3://")


def local_path(uri: str) -> str:
    """The path of a path or file:// URI; raises AddressError for every other."""
    path = uri
    if uri.startswith("file://"):
        try:
            parts = urllib.parse.urlsplit(uri)
        except ValueError as error:
            raise AddressError(f"{uri!r} is no file URI ({error}); write file:///path, with three slashes") from error
        if parts.netloc not in ("", "localhost"):
            raise AddressError(
                f"{uri!r} names a file of the host {parts.netloc!r}; write file:///path, with three slashes"
            )
        path = os.fsdecode(urllib.parse.unquote_to_bytes(parts.path))
    elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", uri):
        raise AddressError(f"cannot store at {uri!r}; give a path, file:///… or s3://bucket/key")
    if "\0" in path:
        raise AddressError(f"{uri!r} holds a NUL character, which no path has")
    return path


def shown_name(name: str) -> str:
    """The name of a file as text: bytes that are no UTF-8 as \\xNN."""
    return os.fsencode(name).decode(errors="backslashreplace")


def short_name(name: str) -> str:
    """A name of at most `NAME_BYTES`: one that is longer becomes its start and a digest of all of it."""
    data = name.encode()
    if len(data) <= NAME_BYTES:
        return name
    return f"{data[: NAME_BYTES // 2].decode(errors='ignore')}~{hashlib.sha256(data).hexdigest()[:12]}"


def path_or_uri(path: str) -> str:
    """A path, or its file URI where it has bytes that are no UTF-8, which neither tables nor JSON hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + urllib.parse.quote(os.fsencode(os.path.abspath(path)))
    return path


def bucket_key(uri: str) -> tuple[str, str]:
    """Bucket and key of an object; raises AddressError where either is missing."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise AddressError(f"{uri!r} is not s3://bucket/key")
    return bucket, key


@contextmanager
def no_other_kind(uri: str) -> Iterator[None]:
    """What can be no file, as a folder or a name that is too long, is a file that is not there."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            raise
        raise FileNotFoundError(f"no file {uri}: {error.strerror}") from error


def bucket_folder(prefix: str) -> tuple[str, str]:
    """Bucket and prefix of all objects below a folder; the prefix ends with a slash, or is empty."""
    bucket, _, key = prefix.removeprefix("s3://").partition("/")
    return bucket, key.rstrip("/") + "/" if key.rstrip("/") else ""
