"""A server process that speaks the OpenAI chat-completions protocol, as vLLM does, with faults as a test scripts them.

`python -m tests.support.chat_server` prints its port and serves until its standard input ends. Tests start it with
`chat_server`, and tell it over /script what it is to say.
"""

import base64
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image

MODEL = "some/vision-model"
KEY = "sk-of-the-test-server"
SOUND = "a better caption, with more light in it, than "
STRUCTURED = {
    "subject": "a woman in a red coat",
    "action": "she walks along the river",
    "camera": "a wide shot that does not move",
    "light": "dusk, soft light from the left",
    "style": "natural colours with little contrast",
}


def completion(text: str | None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    """The body of a whole answer."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
        ],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050},
    }


def caption_of(text: str) -> str:
    """The caption of the scene in a prompt; with a star where the prompt is not that of the reference."""
    _, improve, caption = text.rpartition("Caption to improve: ")
    if improve:
        return caption
    found = re.search(r"which may be wrong: (.*)", text)
    return f"{found[1]}*" if found else ""


def says(
    text: str | None, finish: str = "stop", wait_s: float = 0, cut: bool = False, **message: Any
) -> dict[str, Any]:
    """A reply for /script: a text, after a while; cut: the connection ends in the middle."""
    return {"body": completion(text, finish, **message), "wait_s": wait_s, "cut": cut}


def fails(status: int, message: str, wait_s: float = 0, **headers: str) -> dict[str, Any]:
    """A reply for /script: an error in OpenAI's form."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"error": {"message": message, "type": "error", "param": None, "code": status}}
    return {"status": status, "body": body, "headers": named, "wait_s": wait_s}


def raw(text: str, status: int = 200) -> dict[str, Any]:
    """A reply for /script that is these bytes."""
    return {"status": status, "text": text}


class ChatServer:
    """A server process, as a test sees it."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}/v1"
        self._root = f"http://127.0.0.1:{port}"

    def script(self, **how: Any) -> None:
        """Set what it does: replies (by caption, one after the other, the last for ever), otherwise (what all others
        get), takes (requests that it takes at once; more get 429), wait_s (of all replies), names (the name of the
        limit of tokens)."""
        self._call("/script", how)

    def log(self) -> dict[str, Any]:
        """asked: caption, sizes and colours of the pictures, and client process of each request that had the key and
        the model; times; whole: by caption, answers of status 200 that went out whole; most: most requests at once;
        refused: requests answered 429 by `takes`."""
        return self._call("/log", {})

    def count(self, caption: str) -> int:
        """Requests for a caption."""
        return sum(asked["caption"] == caption for asked in self.log()["asked"])

    def _call(self, path: str, body: dict[str, Any]) -> Any:
        with urlopen(Request(self._root + path, json.dumps(body).encode(), method="POST"), timeout=30) as reply:
            return json.loads(reply.read())


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """Run a server process."""
    command = [sys.executable, "-m", "tests.support.chat_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            yield ChatServer(int(process.stdout.readline()))
        finally:
            process.stdin.close()
            process.wait(30)


# ----------------------------------------------------------------------------------------------------- in the process


class _State:
    """What is scripted, and what has come."""

    def __init__(self) -> None:
        self.replies: dict[str, list[dict[str, Any]]] = {}
        self.otherwise: dict[str, Any] | None = None
        self.takes: int | None = None
        self.wait_s = 0.0
        self.names = "max_tokens"
        self.asked: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.whole: Counter[str] = Counter()
        self.most = self.refused = self.at_once = 0
        self.lock = threading.Lock()

    def take(self, body: dict[str, Any], key: str | None, path: str) -> tuple[str, dict[str, Any]]:
        """The caption of a request, and its reply."""
        if path != "/v1/chat/completions":
            return "", {"status": 404, "body": {"detail": "Not Found"}}
        if key != f"Bearer {KEY}":
            return "", fails(401, f"Incorrect API key provided: {key}")
        if body["model"] != MODEL:
            return "", fails(404, f"The model `{body['model']}` does not exist.")
        if self.names not in body:
            return "", fails(400, f"Unsupported parameter: use '{self.names}' instead.")
        [turn] = body["messages"]
        assert turn["role"] == "user"
        *pictures, text = turn["content"]
        caption = caption_of(text["text"])
        seen = [_seen(picture["image_url"]["url"]) for picture in pictures]
        with self.lock:
            self.asked.append({"caption": caption, "text": text["text"], "pictures": seen, "format": _format(body)})
            self.times.append(time.monotonic())
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            if self.takes is not None and self.at_once > self.takes:
                self.refused += 1
                return caption, fails(429, "too many requests in flight")
            replies = self.replies.get(caption)
            if not replies:
                return caption, self.otherwise or {"body": completion(_sound(body, caption))}
            return caption, replies.pop(0) if len(replies) > 1 else replies[0]


def _sound(body: dict[str, Any], caption: str) -> str:
    return json.dumps(STRUCTURED) if "response_format" in body else f"{SOUND}{caption}"


def _format(body: dict[str, Any]) -> str:
    wanted = body.get("response_format")
    return "" if wanted is None else ",".join(sorted(wanted["json_schema"]["schema"]["properties"]))


def _seen(url: str) -> list[int]:
    """Width, height and mean of the red of a picture."""
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64"
    picture = Image.open(BytesIO(base64.b64decode(data, validate=True)))
    return [*picture.size, round(float(np.asarray(picture)[..., 0].mean()))]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state = _State()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/script":
            for name, value in body.items():
                setattr(self.state, name, value)
            self._send(200, b"{}")
        elif self.path == "/log":
            names = ("asked", "times", "whole", "most", "refused")
            self._send(200, json.dumps({name: getattr(self.state, name) for name in names}).encode())
        else:
            self._complete(body)

    def _complete(self, body: dict[str, Any]) -> None:
        state = self.state
        caption, reply = state.take(body, self.headers.get("Authorization"), self.path)
        status, cut = reply.get("status", 200), reply.get("cut", False)
        time.sleep(reply.get("wait_s") or (state.wait_s if status == 200 else 0))
        data = reply["text"].encode() if "text" in reply else json.dumps(reply["body"]).encode()
        # Counted before the last byte: with it the client may go on.
        with state.lock:
            state.at_once -= bool(caption)
            state.whole[caption] += status == 200 and not cut
        self._send(status, data, reply.get("headers", {}), cut)

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        with suppress(ConnectionError):
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read the log over HTTP."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


if __name__ == "__main__":
    server = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()
