"""A model of the Hub is asked for once, and a Hub that is away costs seconds."""

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from actors.core.errors import UserError
from actors.models.hub import check_host, check_hub, hub_files, unreachable_is_told


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server with me/model, which has b.json; `status` is its answer for what it has, `asked` the paths."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            server.asked.append(self.path)
            has = self.path == "/me/model/resolve/main/b.json"
            self.send_response(server.status if has else 404)
            self.send_header("X-Error-Code", "" if has else "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            if self.path.startswith("/api/models/"):
                server.asked.append(self.path)
            files = [{"rfilename": "b.json", "size": 2}, {"rfilename": "vae/model.safetensors", "size": 335}]
            body = json.dumps({"id": "me/model", "siblings": files}).encode()
            self.send_response(server.status if self.path.startswith("/api/models/me/model?blobs=") else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.status, server.asked = 200, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def test_any_of_the_files_will_do(hub: Any) -> None:
    assert check_hub("model=me/model", "me/model", ("a.json", "b.json"), "a folder")
    assert [path.rpartition("/")[2] for path in hub.asked] == ["a.json", "b.json"]


@pytest.mark.parametrize("status", [401, 404, 503])
def test_an_answer_is_not_asked_for_again(hub: Any, status: int) -> None:
    hub.status = status
    with pytest.raises(UserError, match=r"model=me/model cannot be downloaded .*Pass a folder, or set HF_TOKEN"):
        check_hub("model=me/model", "me/model", ("b.json",), "a folder")
    assert len(hub.asked) == 1


def test_a_hub_that_is_away_ends_a_command_and_warns_a_dry_run(hub: Any, caplog: pytest.LogCaptureFixture) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(UserError, match="cannot be downloaded"):
        check_hub("model=me/model", "me/model", ("a.json", "b.json"), "a folder")
    with unreachable_is_told(), caplog.at_level(logging.WARNING):
        assert not check_hub("model=me/model", "me/model", ("a.json",), "a folder")
        # What is no name of a repository stays wrong.
        with pytest.raises(UserError, match="cannot be downloaded"):
            check_hub("model=no name", "no name", ("a.json",), "a folder")
    assert "model=me/model: the Hugging Face Hub does not answer" in caplog.text


def test_a_host_that_is_away_is_asked_once_for_several_models(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check_host("model=one", f"http://127.0.0.1:{hub.server_address[1]}", "a folder")
    hub.shutdown()
    hub.server_close()
    asked: list[str] = []

    def ask(address: str, **options: Any) -> None:
        asked.append(address)
        raise TimeoutError("timed out")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", ask)
    for number in range(3):
        with pytest.raises(UserError, match=r"cannot be downloaded .*timed out"):
            check_hub(f"model={number}", f"me/{number}", ("a.json", "b.json"), "a folder")
    with pytest.raises(UserError, match=r"model=four cannot be downloaded: .* does not answer \(timed out\)"):
        check_host("model=four", f"http://127.0.0.1:{hub.server_address[1]}", "a folder")
    assert len(asked) == 1


def test_the_sizes_of_files_are_asked_for_once(hub: Any) -> None:
    hub_files.cache_clear()
    for _ in range(2):
        assert hub_files("me/model") == {"b.json": 2, "vae/model.safetensors": 335}
        assert hub_files("me/none") == hub_files("/no/name") == {}
    assert len(hub.asked) == 2
    hub_files.cache_clear()
    hub.shutdown()
    hub.server_close()
    assert hub_files("me/model") == {}
    hub_files.cache_clear()
