"""Requests of an S3 store, each repeated while it is away: what `storage` does with s3://bucket/key."""

import io
import logging
import os
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import boto3
import botocore.config
from boto3.s3.transfer import TransferConfig
from botocore import exceptions as aws

from actors.core.addresses import bucket_folder, bucket_key
from actors.core.errors import UserError
from actors.core.local_files import Entry
from actors.core.meters import METERS, READ, S3
from actors.core.s3_faults import PASSING, patiently

logger = logging.getLogger(__name__)

_SETTINGS = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)


def client() -> Any:
    """boto3's client for the store that the environment names now, one per process."""
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


def find(name: str, uri: str) -> Entry:
    """One file, as `name`. Raises FileNotFoundError."""
    bucket, key = bucket_key(uri)
    about = patiently(uri, lambda: client().head_object(Bucket=bucket, Key=key))
    return Entry(name, uri, about["ContentLength"], about["ETag"])


def age_s(uri: str) -> float:
    """Seconds since a file was written, by the store's clock. Raises FileNotFoundError."""
    bucket, key = bucket_key(uri)
    about = patiently(uri, lambda: client().head_object(Bucket=bucket, Key=key))
    now = parsedate_to_datetime(about["ResponseMetadata"]["HTTPHeaders"]["date"])
    return (now - about["LastModified"]).total_seconds()


def read_bytes(uri: str) -> bytes:
    """All of a file. Raises FileNotFoundError."""
    bucket, key = bucket_key(uri)
    return patiently(uri, lambda: client().get_object(Bucket=bucket, Key=key)["Body"].read())


def read_part(uri: str, start: int, size: int) -> bytes:
    """So many bytes of a file from an offset on. Raises FileNotFoundError."""
    bucket, key = bucket_key(uri)
    if not size:
        return b""
    part = f"bytes={start}-{start + size - 1}"
    return patiently(uri, lambda: client().get_object(Bucket=bucket, Key=key, Range=part)["Body"].read())


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file, in place of what may be there."""
    bucket, key = bucket_key(uri)
    # A browser shows a page only by its type, and asks for it anew each time.
    page = {"ContentType": "text/html; charset=utf-8", "CacheControl": "no-cache"} if key.endswith(".html") else {}
    patiently(uri, lambda: client().put_object(Bucket=bucket, Key=key, Body=data, **page))


def create_bytes(uri: str, data: bytes) -> bool:
    """Write a file unless there is one; returns whether this request wrote it."""
    bucket, key = bucket_key(uri)

    def put() -> bool:
        try:
            client().put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except aws.ClientError as error:
            code = error.response.get("Error", {}).get("Code")
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                return False
            if code != "NotImplemented":
                raise
            logger.warning("%s: this store has no conditional writes: two commands at once are not noticed", uri)
            client().put_object(Bucket=bucket, Key=key, Body=data)
        return True

    return patiently(uri, put)


def delete(uri: str) -> None:
    """Remove a file; one that is not there is fine."""
    bucket, key = bucket_key(uri)
    patiently(uri, lambda: client().delete_object(Bucket=bucket, Key=key))


def upload(path: str | Path, uri: str) -> None:
    """Copy a local file, in place of what may be there; a large one in several parts."""
    bucket, key = bucket_key(uri)
    parts = TransferConfig(multipart_threshold=32 << 20, multipart_chunksize=16 << 20, max_concurrency=4)

    def put() -> None:
        with open(path, "rb") as source:
            client().upload_fileobj(source, bucket, key, Config=parts)

    patiently(uri, put)


def check_writable(prefix: str) -> None:
    """Begin an upload below a folder and drop it: it needs the rights that writing needs, and leaves nothing, not even
    a version. Raises what writing would raise."""
    bucket, folder = bucket_folder(prefix)
    key = f"{folder}.filmray-writable"
    upload = patiently(prefix, lambda: client().create_multipart_upload(Bucket=bucket, Key=key))["UploadId"]
    try:
        client().abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
    except (aws.BotoCoreError, aws.ClientError) as error:
        logger.warning("%s: an empty upload could not be dropped (%s)", prefix, error)


def listing(prefix: str) -> Iterator[Entry]:
    """The files below a folder at any depth, read in pages, in the store's order."""
    for page in _pages(prefix):
        yield from _entries(page, prefix)


def children(prefix: str) -> tuple[list[str], list[Entry]]:
    """Names of the folders and the files that lie directly in a folder."""
    below: list[str] = []
    files: list[Entry] = []
    for page in _pages(prefix, Delimiter="/"):
        below += [found["Prefix"].rstrip("/").rpartition("/")[2] for found in page.get("CommonPrefixes", ())]
        files += _entries(page, prefix)
    return below, files


def _pages(prefix: str, **options: str) -> Iterator[Any]:
    bucket, folder = bucket_folder(prefix)
    page: dict[str, Any] = {"Bucket": bucket, "Prefix": folder, **options}
    while True:
        answer = patiently(prefix, lambda: client().list_objects_v2(**page))
        yield answer
        if not answer.get("IsTruncated"):
            return
        page["ContinuationToken"] = answer["NextContinuationToken"]


def _entries(page: Any, prefix: str) -> Iterator[Entry]:
    bucket, folder = bucket_folder(prefix)
    for found in page.get("Contents", ()):
        name = found["Key"][len(folder) :]
        if name and not name.endswith("/"):
            yield Entry(name, f"s3://{bucket}/{found['Key']}", found["Size"], found["ETag"])


class S3File(io.RawIOBase):
    """An object read from any offset; every new connection asks for the same version of it."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._at = 0
        self._body: Any = None
        first = patiently(uri, lambda: self._get())
        self._size: int = first["ContentLength"]
        self._version: str = first["ETag"]
        self._body = first["Body"]

    def _get(self, **arguments: str) -> Any:
        bucket, key = bucket_key(self._uri)
        return client().get_object(Bucket=bucket, Key=key, **arguments)

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
        data = patiently(self._uri, lambda: self._read(len(buffer)))
        METERS.add(READ, len(data), S3)
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
        except PASSING:
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
