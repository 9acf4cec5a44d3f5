"""The only door to files: every URI is a path, `file://…` or `s3://bucket/key`.

A file appears whole or not at all. Faults of an S3 store that pass (a cut connection, SlowDown, 500, a timeout) are
tried again a bounded number of times, also in the middle of a body; what will not pass is raised as FileNotFoundError,
PermissionError, ConnectionError (gave up) or another OSError, with the URI and what to do. The endpoint comes from
AWS_ENDPOINT_URL and credentials from the environment or the usual AWS files; neither is logged or part of a message.
"""

import io
import logging
import os
import random
import re
import shutil
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import boto3
import botocore.config
from boto3.s3.transfer import TransferConfig
from botocore import exceptions as aws

from actors.core.errors import UserError

logger = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS = 6
"""Tries of one request, or of one read in a body, beside botocore's own for each."""
TEMPORARY = ".filmray-part-"
"""Start of the name of a local file that is still being written; listings leave it out."""

_PASSING = (
    aws.ConnectionError,  # also ConnectTimeoutError, ReadTimeoutError, EndpointConnectionError, ConnectionClosedError
    aws.HTTPClientError,
    aws.ReadTimeoutError,
    aws.IncompleteReadError,
    aws.ResponseStreamingError,
)
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
_REFUSED_CODES = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "AuthorizationHeaderMalformed"}


@dataclass(frozen=True)
class Entry:
    """One file of a listing."""

    name: str
    """Its path relative to the folder that was listed, parts joined by a slash."""
    uri: str
    """Where it is."""
    size: int
    """Bytes."""
    stamp: str = ""
    """Another one when the file is written again: its modification time in nanoseconds, or its ETag."""


def join(root: str, *names: str) -> str:
    """The URI of a file below the folder `root`; a `file://` root becomes its path.

    Raises ValueError for a name that would leave the root.
    """
    for name in names:
        if name.startswith("/") or not all(name.split("/")) or {".", ".."} & set(name.split("/")):
            raise UserError(
                f"not a name below {root}: {name!r}; it must be relative, without empty parts, '.' and '..'"
            )
    return os.path.join(root if _is_s3(root) else _path(root), *names)


def exists(uri: str) -> bool:
    """Whether a file (not a folder) is there."""
    if not _is_s3(uri):
        return os.path.isfile(_path(uri))
    try:
        _head(uri)
    except FileNotFoundError:
        return False
    return True


def size(uri: str) -> int:
    """Bytes of a file. Raises FileNotFoundError."""
    return find(uri).size


def find(uri: str) -> Entry:
    """One file as a listing of its folder has it. Raises FileNotFoundError."""
    name = uri.rsplit("/", 1)[-1]
    if _is_s3(uri):
        about = _head(uri)
        return Entry(name, uri, about["ContentLength"], about["ETag"])
    if not os.path.isfile(_path(uri)):
        raise FileNotFoundError(f"no file {uri}")
    return _entry(name, uri, os.stat(_path(uri)))


def read_bytes(uri: str) -> bytes:
    """All of a file. Raises FileNotFoundError."""
    if not _is_s3(uri):
        return Path(_path(uri)).read_bytes()
    bucket, key = _bucket_key(uri)
    return _call(uri, lambda: _s3().get_object(Bucket=bucket, Key=key)["Body"].read())


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file in one step, in place of what may be there; folders are made."""
    if _is_s3(uri):
        bucket, key = _bucket_key(uri)
        _call(uri, lambda: _s3().put_object(Bucket=bucket, Key=key, Body=data))
        return
    with _replacing(_path(uri)) as file:
        file.write(data)


def create_bytes(uri: str, data: bytes) -> bool:
    """Write a file in one step unless there is one; returns whether it was written. Of several at once one succeeds."""
    if not _is_s3(uri):
        return _create(_path(uri), data)
    bucket, key = _bucket_key(uri)

    def put() -> bool:
        try:
            _s3().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except aws.ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                return False
            if code != "NotImplemented":
                raise
            logger.warning("%s: this store has no conditional writes: two commands at once are not noticed", uri)
            _s3().put_object(Bucket=bucket, Key=key, Body=data)
        return True

    # Where the answer to a request was lost, its repetition finds what it wrote itself.
    return _call(uri, put) or (exists(uri) and read_bytes(uri) == data)


def delete(uri: str) -> None:
    """Remove a file; one that is not there is fine."""
    if _is_s3(uri):
        bucket, key = _bucket_key(uri)
        _call(uri, lambda: _s3().delete_object(Bucket=bucket, Key=key))
    else:
        Path(_path(uri)).unlink(missing_ok=True)


def download(uri: str, path: str | Path) -> None:
    """Copy a file to a local path in one step. Raises FileNotFoundError."""
    with stream(uri) as source, _replacing(str(path)) as file:
        shutil.copyfileobj(source, file, 1 << 20)


def upload(path: str | Path, uri: str) -> None:
    """Copy a local file to a URI in one step, in place of what may be there."""
    if not _is_s3(uri):
        with open(path, "rb") as source, _replacing(_path(uri)) as file:
            shutil.copyfileobj(source, file, 1 << 20)
        return
    bucket, key = _bucket_key(uri)
    parts = TransferConfig(multipart_threshold=32 << 20, multipart_chunksize=16 << 20, max_concurrency=4)

    def put() -> None:
        with open(path, "rb") as source:
            _s3().upload_fileobj(source, bucket, key, Config=parts)

    _call(uri, put)


@contextmanager
def local(uri: str) -> Iterator[Path]:
    """A path at which the file can be read: its own, or that of a copy which is removed afterwards."""
    if not _is_s3(uri):
        path = Path(_path(uri))
        if not path.is_file():
            raise FileNotFoundError(f"no file {uri}")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="filmray-") as folder:
        path = Path(folder, uri.rsplit("/", 1)[-1])
        download(uri, path)
        yield path


@contextmanager
def local_folder(uri: str) -> Iterator[Path]:
    """A folder in which all files below `uri` can be read: itself, or a copy that is removed afterwards.

    Raises FileNotFoundError where there are none.
    """
    if not _is_s3(uri):
        path = Path(_path(uri))
        if not path.is_dir():
            raise FileNotFoundError(f"no folder {uri}")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="filmray-") as temporary:
        path = Path(temporary, uri.rstrip("/").rsplit("/", 1)[-1])
        for entry in listing(uri):
            (path / entry.name).parent.mkdir(parents=True, exist_ok=True)
            download(entry.uri, path / entry.name)
        if not path.is_dir():
            raise FileNotFoundError(f"no files below {uri}")
        yield path


def stream(uri: str) -> AbstractContextManager[BinaryIO]:
    """Open a file to read it in pieces, with seek; a broken connection goes on where it broke.

    Raises FileNotFoundError.
    """
    if _is_s3(uri):
        return io.BufferedReader(_S3File(uri), 1 << 20)
    return open(_path(uri), "rb")


def listing(prefix: str, suffixes: tuple[str, ...] = ()) -> Iterator[Entry]:
    """The files below a folder at any depth, read in pages; a missing folder holds none.

    They come sorted by the code points of the whole name, as S3 does it; a store that only resembles S3 may have
    another order, always the same. `suffixes` (lower case, with the dot) selects by the end of the name, whatever its
    case. In a local folder links to files count as files and links to folders are not followed.
    """
    for entry in _s3_listing(prefix) if _is_s3(prefix) else _local_listing(_path(prefix), ""):
        base = entry.name.rsplit("/", 1)[-1]
        if base.startswith(TEMPORARY) or (suffixes and not base.lower().endswith(suffixes)):
            continue
        yield entry


def children(prefix: str) -> tuple[list[str], list[Entry]]:
    """Names of the folders and the files that lie directly in a folder, both sorted; no folder below is looked into.

    In a local folder links count as what they lead to.
    """
    if _is_s3(prefix):
        below: list[str] = []
        files: list[Entry] = []
        for page in _pages(prefix, Delimiter="/"):
            below += [found["Prefix"].rstrip("/").rpartition("/")[2] for found in page.get("CommonPrefixes", ())]
            files += _entries(page, prefix)
        return below, files
    try:
        with os.scandir(_path(prefix) or ".") as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    files = [_entry(entry.name, entry.path, entry.stat()) for entry in entries if entry.is_file()]
    return [entry.name for entry in entries if entry.is_dir()], files


def absolute(uri: str) -> str:
    """A path from the root, without a slash at its end, since workers have another working folder; s3:// as it is."""
    return uri.rstrip("/") if _is_s3(uri) else os.path.abspath(_path(uri))


def _local_listing(folder: str, above: str) -> Iterator[Entry]:
    try:
        with os.scandir(folder or ".") as found:
            # A folder sorts as its files do, with the slash: "a-b.mp4" comes before "a/c.mp4".
            entries = sorted(found, key=lambda entry: entry.name + "/" * entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _local_listing(entry.path, f"{above}{entry.name}/")
        elif entry.is_file():
            yield _entry(above + entry.name, entry.path, entry.stat())


def _entry(name: str, path: str, about: os.stat_result) -> Entry:
    return Entry(name, path, about.st_size, str(about.st_mtime_ns))


def _s3_listing(prefix: str) -> Iterator[Entry]:
    for page in _pages(prefix):
        yield from _entries(page, prefix)


def _pages(prefix: str, **options: str) -> Iterator[Any]:
    bucket, folder = _bucket_folder(prefix)
    page: dict[str, Any] = {"Bucket": bucket, "Prefix": folder, **options}
    while True:
        answer = _call(prefix, lambda: _s3().list_objects_v2(**page))
        yield answer
        if not answer.get("IsTruncated"):
            return
        page["ContinuationToken"] = answer["NextContinuationToken"]


def _entries(page: Any, prefix: str) -> Iterator[Entry]:
    bucket, folder = _bucket_folder(prefix)
    for found in page.get("Contents", ()):
        name = found["Key"][len(folder) :]
        if name and not name.endswith("/"):
            yield Entry(name, f"s3://{bucket}/{found['Key']}", found["Size"], found["ETag"])


def _bucket_folder(prefix: str) -> tuple[str, str]:
    bucket, _, key = prefix.removeprefix("s3://").partition("/")
    return bucket, key.rstrip("/") + "/" if key.rstrip("/") else ""


class _S3File(io.RawIOBase):
    """An object read from any offset; every new connection asks for the same version of it."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._at = 0
        self._body: Any = None
        first = _call(uri, lambda: self._get())
        self._size: int = first["ContentLength"]
        self._version: str = first["ETag"]
        self._body = first["Body"]

    def _get(self, **arguments: str) -> Any:
        bucket, key = _bucket_key(self._uri)
        return _s3().get_object(Bucket=bucket, Key=key, **arguments)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise UserError(f"seek before the start of {self._uri}")
        if at != self._at:
            self._at = at
            self._drop()
        return at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._size or not len(buffer):
            return 0
        data = _call(self._uri, lambda: self._read(len(buffer)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, count: int) -> bytes:
        try:
            if self._body is None:
                self._body = self._get(Range=f"bytes={self._at}-", IfMatch=self._version)["Body"]
            data: bytes = self._body.read(count)
            if not data:
                raise aws.IncompleteReadError(actual_bytes=self._at, expected_bytes=self._size)
            return data
        except _PASSING:
            self._drop()
            raise

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()


@contextmanager
def _replacing(path: str) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends, and leaves nothing when it fails."""
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _create(path: str, data: bytes) -> bool:
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:
            # A file system without hard links: the name is still given once, but the file grows as it is written.
            try:
                with open(path, "xb") as file:
                    file.write(data)
            except FileExistsError:
                return False
        return True
    finally:
        Path(temporary).unlink(missing_ok=True)


def _is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def _path(uri: str) -> str:
    if uri.startswith("file://"):
        parts = urllib.parse.urlsplit(uri)
        if parts.netloc not in ("", "localhost"):
            raise UserError(f"{uri} names a file of the host {parts.netloc!r}; write file:///path, with three slashes")
        return urllib.parse.unquote(parts.path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", uri):
        raise UserError(f"cannot store at {uri}; give a path, file:///… or s3://bucket/key")
    return uri


def _bucket_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket or not key:
        raise UserError(f"{uri!r} is not s3://bucket/key")
    return bucket, key


_SETTINGS = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)


def _s3() -> Any:
    # The process is part of the key: a fork must not share its parent's sockets.
    return _client(os.getpid(), *map(os.environ.get, _SETTINGS))


@lru_cache(maxsize=4)
def _client(*_key: object) -> Any:
    # A session of its own, since boto3's default one remembers the first credentials that it saw.
    settings = botocore.config.Config(
        retries={"mode": "standard", "total_max_attempts": 3},
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=16,
    )
    return boto3.Session().client("s3", config=settings)


def _head(uri: str) -> Any:
    bucket, key = _bucket_key(uri)
    return _call(uri, lambda: _s3().head_object(Bucket=bucket, Key=key))


def _call(uri: str, request: Callable[[], T]) -> T:
    """Make a request, again after faults that pass, and raise the rest as an OSError that names the URI."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except aws.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            if status not in _PASSING_STATUS and code not in _PASSING_CODES:
                raise _explained(uri, code, status) from error
            fault = f"{status} {code}"
            last: Exception = error
        except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError) as error:
            raise PermissionError(
                f"no credentials for {uri}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
                "or give the node a role"
            ) from error
        except _PASSING as error:
            fault = type(error).__name__
            last = error
        if attempt == ATTEMPTS:
            raise ConnectionError(
                f"{uri}: gave up after {ATTEMPTS} tries ({fault}); check the store and its endpoint"
            ) from last
        pause = random.uniform(0.5, 1) * min(0.2 * 2**attempt, 10)
        logger.info("%s: %s, try %d of %d in %.1f s", uri, fault, attempt + 1, ATTEMPTS, pause)
        time.sleep(pause)
    raise AssertionError("unreachable")


def _explained(uri: str, code: str, status: int) -> OSError:
    if code == "NoSuchBucket":
        return FileNotFoundError(f"no bucket for {uri}; make it first, or check the name and AWS_ENDPOINT_URL")
    if status == 404:
        return FileNotFoundError(f"no file {uri}")
    if status in (401, 403) or code in _REFUSED_CODES:
        return PermissionError(
            f"{uri}: refused ({code}); check that the credentials are right and in time, "
            "and that they allow s3:ListBucket, GetObject, PutObject and DeleteObject there"
        )
    if status == 412:
        return OSError(f"{uri} was replaced while it was read; read it again")
    return OSError(f"{uri}: the store answered {status} {code}")
