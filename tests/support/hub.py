"""A local server of the Hugging Face Hub's protocol, as much of it as an upload of small files needs."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


def start(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server that huggingface_hub takes for the Hub; `files` are those uploaded to me/faces with the token `mine`."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    return server


def stop(server: Any) -> None:
    """End the server."""
    server.shutdown()
    server.server_close()


class Hub(BaseHTTPRequestHandler):
    """Repository me/faces; files by path."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://{self.headers['Host']}"
        if self.headers["Authorization"] != "Bearer mine":
            self._say(401, {"error": "who are you?"})
        elif self.path == "/api/repos/create":
            self._say(200, {"url": f"{address}/me/faces"})
        elif self.path.endswith("/preupload/main"):
            asked = [file["path"] for file in json.loads(body)["files"]]
            self._say(200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]})
        elif self.path == "/api/models/me/faces/commit/main":
            lines = [json.loads(line) for line in body.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.server.files |= {one["path"]: base64.b64decode(one["content"]) for one in files}  # pyright: ignore[reportAttributeAccessIssue]
            self._say(200, {"success": True, "commitOid": "0", "commitUrl": f"{address}/me/faces/commit/0"})
        else:
            self._say(404, {"error": self.path})

    def _say(self, status: int, told: dict[str, Any]) -> None:
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass
