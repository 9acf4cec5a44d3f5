"""The labelling page as its user has it: the command, a real browser, and what strangers may try."""

import base64
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import pyarrow as pa
import pytest
from playwright.sync_api import Browser, Page, expect
from typer.testing import CliRunner

from actors.core.store import Store
from actors.curation.cutting.keyframes import KEY_FRAMES, decode_jpeg
from actors.curation.selecting.filter import feature_settings, save_filter
from actors.curation.tables import KEYFRAMES
from actors.media.images import encode_jpeg
from jobs.curation.__main__ import app
from jobs.curation.annotate import check_host
from pipelines.curation.selecting.fit_filter import fit
from pipelines.curation.selecting.label_settings import AnnotateConfig, FitConfig
from pipelines.curation.selecting.labels import write_labels
from pipelines.curation.settings import measured_by
from tests.pipelines.curation.outputs import config, fast_is_good, scene, write_plan, write_scores, write_settings
from tests.support import films

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "a token of more than 16 characters & ?"
SECRET = "nobody reads this"
CAPTION = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\"> a \"dog\" & 'cat'"


expect.set_options(timeout=30_000)
PLAYS = "v => new Promise(done => v.addEventListener('timeupdate', () => v.currentTime > 0.2 && done()))"
LOOPS = """v => new Promise(done => {
  let last = 0;
  v.addEventListener('timeupdate', () => { if (v.currentTime < last) done(); last = v.currentTime; });
})"""
POST = """([url, body, kind, mode]) =>
  fetch(url, {method: "POST", mode, body, headers: {"Content-Type": kind}}).catch(() => 0)"""


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output of a film of three shots, one of whose scenes has a caption that is no text, beside a secret file."""
    folder = tmp_path / "output"
    film = films.film(tmp_path / "a.mp4", audio="aac")
    store = Store(str(folder))
    write_settings(config(folder))
    write_plan(store, {"a<b>.mp4": 3})
    shots = [(0.0, 2.0), (2.0, 3.5), (3.5, 4.75)]
    rows = [
        scene(f"a<b>.mp4.{k}_0", uri=str(film), caption=CAPTION, start_s=start, end_s=end)
        for k, (start, end) in enumerate(shots)
    ]
    write_scores(store, *rows)
    for path in (folder / "secret.txt", tmp_path / "secret.txt"):
        path.write_text(SECRET)
    return folder


@dataclass
class Annotating:
    """The command at work."""

    process: subprocess.Popen[str]
    url: str
    port: int

    def ask(self, method: str, path: str, body: Any = None, **headers: str | None) -> tuple[int, bytes]:
        """A request as the page makes it, but for the headers given; None leaves one out."""
        sent: dict[str, str | None] = {"Host": f"127.0.0.1:{self.port}"}
        if method == "POST":
            sent |= {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
            for name, value in {**sent, "Content-Length": str(len(data))}.items():
                if value is not None:
                    connection.putheader(name, value)
            connection.endheaders(data)
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def state(self) -> dict[str, Any]:
        """What the page is told."""
        status, body = self.ask("GET", "/state")
        assert status == 200, body
        return json.loads(body)

    def answer(self, label: int | None) -> int:
        """Label the current scene; returns the status."""
        current = self.state()["scene"]
        body = {"video_id": current["video_id"], "scene_id": current["scene_id"], "label": label}
        return self.ask("POST", "/answer", body)[0]

    def ended(self) -> str:
        """What it printed, once it has ended well."""
        assert self.process.wait(60) == 0
        assert self.process.stdout
        return self.process.stdout.read()


@contextmanager
def annotating(output: Path, *settings: str, **environment: str) -> Iterator[Annotating]:
    command = [sys.executable, "-m", "jobs.curation", "annotate", str(output), "port=0", "annotator=anna", *settings]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            told = process.stdout.readline()
            found = re.match(r"label at (http://127\.0\.0\.1:(\d+)/\S*) ", told)
            assert found, told
            yield Annotating(process, found[1], int(found[2]))
        finally:
            process.kill()


def labels(output: Path) -> dict[str, int]:
    """Anna's labels, as they are on disk."""
    path = output / "labels" / "anna.json"
    return json.loads(path.read_text()) if path.exists() else {}


def refused(output: Path, *settings: str) -> str:
    """What the command says where it ends at once with bad settings."""
    result = CliRunner().invoke(app, ["annotate", str(output), *settings])
    assert result.exit_code == 2, result.output
    return result.stderr


# ------------------------------------------------------------------------------------------------------------ requests


@pytest.mark.slow
def test_answers_are_on_disk_when_they_are_acknowledged(output: Path):
    write_labels(str(output / "labels" / "bert.json"), {("a<b>.mp4", f"a<b>.mp4.{k}_0"): k % 2 for k in range(3)})
    with annotating(output) as server:
        first = server.state()
        assert first["left"] == 3 and first["labels"] == {"good": 0, "all": 0} and first["agreement"] == []
        assert first["scene"]["caption"] == CAPTION
        assert list(first["scene"]["features"])[-1] == "no_frames"
        key = {name: first["scene"][name] for name in ("video_id", "scene_id")}
        status, body = server.ask("POST", "/answer", key | {"label": 1})
        assert status == 200 and json.loads(body)["left"] == 2
        assert labels(output) == {f"frames/{key['video_id']}/{key['scene_id']}": 1}
        assert server.ask("POST", "/answer", key | {"label": 0})[0] == 409
        assert server.answer(0) == 200
        (found,) = server.state()["agreement"]
        assert (found["with"], found["scenes"]) == ("bert", 2)
        server.ask("POST", "/undo", {})
        assert len(labels(output)) == 1
        for body in (
            b"",
            b"{",
            b"[]",
            b"null",
            {},
            key,
            key | {"label": 2},
            key | {"label": True},
            key | {"label": "1"},
            b"[" * 60_000,
            b'{"a":' * 12_000,
            b"1" * 60_000,
            b"\xff\xfe\x00",
            b'{"video_id": "caf\xe9"}',
        ):
            assert server.ask("POST", "/answer", body)[0] == 400
        for charset in ("utf-16", "nobody-knows", "rot13", "undefined", "zlib"):
            kind = f"application/json; charset={charset}"
            assert server.ask("POST", "/answer", b'{"a": 1}', Content_Type=kind)[0] == 400, charset
        assert len(labels(output)) == 1
        status, body = server.ask("POST", "/stop", {})
        assert status == 200
        told = server.ended()
    assert json.loads(body)["summary"] == told.splitlines()
    assert "anna: 1 good, 0 bad, 0 skipped now; 1 labels in" in told
    assert "agreement with bert" in told
    assert told.splitlines()[-1] == f"next: python -m jobs.curation fit-filter {output}"
    with annotating(output, "question=Is it <b>sharp</b>?") as server:
        assert b"Is it &lt;b&gt;sharp&lt;/b&gt;?" in server.ask("GET", "/")[1]
        assert server.state()["left"] == 2
        server.process.send_signal(signal.SIGINT)
        assert "anna: 0 good, 0 bad, 0 skipped now; 1 labels in" in server.ended()


def test_the_filter_of_the_output_says_what_is_uncertain(output: Path):
    rows = [scene(f"a.0_{i}", mean_velocity=0.3 * i) for i in range(20)]
    write_scores(Store(str(output)), *rows)
    write_plan(Store(str(output)), {"a": 20})
    measured = feature_settings(measured_by(config(output)))
    learnt = fit(replace(fast_is_good(noise=0.2), measured_by=measured), FitConfig(str(output)))
    save_filter(learnt, str(output / "filter.json"))
    far = abs(learnt.probability(pd.DataFrame(rows)) - 0.5)
    with annotating(output, "order=uncertain") as server:
        assert far[int(server.state()["scene"]["scene_id"].removeprefix("a.0_"))] == min(far)


def keep_key_frames(output: Path, scenes: int) -> None:
    """Let the first so many scenes of an output have key frames, and remove its film."""
    store = Store(str(output))
    [part] = store.parts("scores")
    rows = [
        {"video_id": "a<b>.mp4", "scene_id": f"a<b>.mp4.{k}_0"}
        | {name: encode_jpeg(films.stamp(10 * k + i, 160, 120), 85) for i, name in enumerate(KEY_FRAMES)}
        for k in range(scenes)
    ]
    store.write_table(pa.Table.from_pylist(rows, KEYFRAMES), "keyframes", part, row_group_size=1)
    (output.parent / "a.mp4").unlink()


def test_key_frames_are_shown_without_the_film(output: Path):
    keep_key_frames(output, 2)
    with annotating(output, "show=keyframes") as server:
        seen = set()
        for _ in range(3):
            state = server.state()
            assert state["still"]
            scene_id = state["scene"]["scene_id"]
            query = f"video_id={quote('a<b>.mp4')}&scene_id={quote(scene_id)}"
            pictures = json.loads(server.ask("GET", f"/pictures?{query}")[1])
            data = [base64.b64decode(url.removeprefix("data:image/jpeg;base64,")) for url in pictures]
            place = int(scene_id.removeprefix("a<b>.mp4.")[0])
            expected = [10 * place + i for i in range(3)] if place < 2 else []
            assert [films.read_stamp(decode_jpeg(one)) for one in data] == expected
            # A scene that has none plays, and its film is gone.
            if not data:
                assert server.ask("GET", f"/clip?{query}")[0] == 422
            seen.add(scene_id)
            assert server.ask("GET", "/pictures?video_id=a&scene_id=b")[0] == 404
            assert server.answer(1) == 200
        assert len(seen) == 3


@pytest.mark.slow
def test_the_browser_shows_key_frames_and_takes_labels(output: Path, opened: Callable[[str], Page]):
    keep_key_frames(output, 3)
    with annotating(output, "show=keyframes") as server:
        page = opened(server.url)
        for count in (1, 2, 3):
            expect(page.locator("#stills img")).to_have_count(3)
            expect(page.locator("#note")).to_be_empty()
            assert page.locator("#stills img").first.evaluate("image => image.naturalWidth") == 160
            page.keyboard.press("1")
            expect(page.locator("#done")).to_contain_text(f"{count} labelled")
        expect(page.locator("#note")).to_contain_text("No scene is left")
        expect(page.locator("#stills img")).to_have_count(0)


def test_strangers_and_paths_are_refused(output: Path):
    with annotating(output) as server:
        scene_id = server.state()["scene"]["scene_id"]
        key = {"video_id": "a<b>.mp4", "scene_id": scene_id, "label": 1}
        own = f"127.0.0.1:{server.port}"

        for headers in (
            {"Origin": None},
            {"Origin": "null"},
            {"Origin": ""},
            {"Origin": "http://films.example"},
            {"Origin": f"http://127.0.0.1:{server.port}.films.example"},
            {"Origin": f"http://localhost:{server.port}"},
        ):
            assert server.ask("POST", "/answer", key, **headers)[0] == 403, headers
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None):
            assert server.ask("POST", "/answer", key, Content_Type=kind)[0] in (400, 415), kind
        assert server.ask("GET", "/answer")[0] == 405
        assert server.ask("POST", "/stop", {}, Origin=None)[0] == 403

        # A name of another site that resolves to this machine.
        for host in (
            "films.example",
            f"films.example:{server.port}",
            f"127.0.0.1.films.example:{server.port}",
            "",
            "[",
            None,
        ):
            for path in ("/", "/state", f"/clip?video_id={quote('a<b>.mp4')}&scene_id={quote(scene_id)}"):
                assert server.ask("GET", path, Host=host)[0] in (400, 403), host
            assert server.ask("POST", "/answer", key, Host=host, Origin=f"http://{host}")[0] in (400, 403)
        for host in (own, f"localhost:{server.port}", "[::1]:9", "127.0.0.1"):
            assert server.ask("GET", "/state", Host=host)[0] == 200

        secret = str(output / "secret.txt")
        for target in (
            *("/secret.txt", "/../secret.txt", "/../../secret.txt", "../secret.txt", secret, f"/{secret}"),
            *("/%2e%2e/secret.txt", "/..%2fsecret.txt", "/%2e%2e%2f%2e%2e%2fsecret.txt", "/..\\secret.txt"),
            *("/clip/../secret.txt", "/clip/%2e%2e/secret.txt", "/labels/anna.json", "/annotate.html.j2"),
            *("/clip", "/clip?video_id=..&scene_id=secret.txt", f"/clip?video_id=/&scene_id={secret}"),
            *("/clip?video_id=a%00&scene_id=..%2f..%2fsecret", f"/clip?video_id=a%3Cb%3E.mp4&scene_id=../{scene_id}"),
            *(f"file://{secret}", f"http://{own}/../secret.txt", f"http://{own}/clip/..%5csecret.txt"),
        ):
            reply = raw(server.port, f"GET {target} HTTP/1.1\r\nHost: {own}\r\nConnection: close\r\n\r\n")
            assert re.match(rb"HTTP/1.\d 40[034] ", reply), (target, reply)
            assert SECRET.encode() not in reply
        assert labels(output) == {}
        assert server.process.poll() is None


def test_every_request_needs_the_token_where_there_is_one(output: Path):
    with annotating(output, FILMRAY_TOKEN=TOKEN) as server:
        assert server.url.endswith(f"/?token={quote(TOKEN, safe='')}")
        for path in ("/", "/state", "/clip", "/nowhere", "/?token=", "/?token=wrong", f"/?token={quote(TOKEN[:-1])}"):
            status, body = server.ask("GET", path)
            assert status == 403 and TOKEN.encode() not in body
        for given in ("Bearer wrong", "Bearer \xe9", TOKEN[:-1], "Bearer "):
            for path in ("/answer", "/undo", "/stop"):
                assert server.ask("POST", path, {}, Authorization=given)[0] == 403
        assert server.ask("GET", f"/?token={quote(TOKEN, safe='')}")[0] == 200
        assert server.ask("GET", "/state", Authorization=f"Bearer {TOKEN}")[0] == 200


def raw(port: int, request: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request.encode())
        reply = b""
        with suppress(ConnectionError):
            while data := connection.recv(1 << 16):
                reply += data
    return reply


def test_each_person_has_a_file_and_a_file_is_a_person(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOGNAME", "carl")
    assert AnnotateConfig("out").files() == ("out/labels", "out/labels/carl.json")
    assert AnnotateConfig("s3://b/out", annotator="anna").files() == (
        "s3://b/out/labels",
        "s3://b/out/labels/anna.json",
    )
    assert AnnotateConfig("out", labels="annotations.json").files() == ("annotations.json", "annotations.json")
    with pytest.raises(ValueError, match="one person's file"):
        AnnotateConfig("out", labels="annotations.json", annotator="anna")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "films.example", "", "127.0.0.1.example"])
def test_an_address_that_others_reach_needs_a_token(host: str):
    with pytest.raises(ValueError, match="FILMRAY_TOKEN"):
        check_host(host, None)
    with pytest.raises(ValueError, match="15 characters"):
        check_host(host, "x" * 15)
    for token in ("ü" * 16, "x" * 16 + "\n"):
        with pytest.raises(ValueError, match="header"):
            check_host(host, token)
    check_host(host, "x" * 16)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_none(host: str):
    check_host(host, None)


def test_what_cannot_work_ends_at_once(output: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("FILMRAY_TOKEN", raising=False)
    assert "FILMRAY_TOKEN" in refused(output, "host=0.0.0.0")
    assert "annotator='../anna'" in refused(output, "annotator=../anna")
    assert "filter.json does not exist" in refused(output, "order=uncertain")
    assert "order=uncertain only" in refused(output, f"filter={output / 'filter.json'}")
    (output / "labels").mkdir()
    (output / "labels" / "bert.json").write_text('{"frames/a/b": 7}')
    assert "bert.json" in refused(output)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        own = f"labels={output / 'new.json'}"
        assert "port=0 for a free one" in refused(output, own, f"port={taken.getsockname()[1]}")


@pytest.mark.slow
def test_a_kill_loses_no_label_that_was_acknowledged_and_tears_no_file(tmp_path: Path):
    count = 600
    write_settings(config(tmp_path))
    write_plan(Store(str(tmp_path)), {"a": count})
    write_scores(Store(str(tmp_path)), *(scene(f"a.0_{i}", uri=str(tmp_path / "a.mp4")) for i in range(count)))
    before = 0
    for seconds in (0.01, 0.06, 0.11):
        with annotating(tmp_path) as server:
            assert server.state()["left"] == count - before
            done = 0
            while done < 10:
                assert server.answer(done % 2) == 200
                done += 1
            killing = threading.Timer(seconds, server.process.kill)
            killing.start()
            with suppress(OSError, http.client.HTTPException):
                while server.answer(done % 2) == 200:
                    done += 1
            assert server.process.wait(30) == -signal.SIGKILL
        # One may have been written and not acknowledged.
        assert len(labels(tmp_path)) - before in (done, done + 1)
        before = len(labels(tmp_path))


# ------------------------------------------------------------------------------------------------------------- browser


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[[str], Page]]:
    """Opens a page; at the end no script of it may have failed, and nothing may have broken its policy."""
    with browser.new_context() as context:
        wrong: list[str] = []

        def opened(url: str) -> Page:
            page = context.new_page()
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda told: wrong.append(told.text) if "Content Security" in told.text else None)
            page.goto(url)
            return page

        yield opened
        assert wrong == []


def playing(page: Page) -> None:
    """Wait until the current clip plays."""
    expect(page.locator("#good")).to_be_enabled()
    page.locator("#clip").evaluate(PLAYS)


@pytest.mark.slow
def test_a_scene_plays_in_a_loop_and_is_answered_by_key(output: Path, opened: Callable[[str], Page]):
    with annotating(output) as server:
        page = opened(server.url)
        playing(page)
        assert page.locator("#caption").inner_text() == CAPTION
        assert page.title() == "Label scenes"
        assert page.locator("#caption *").count() == 0
        assert "a<b>.mp4" in page.locator("#about").inner_text()
        assert page.locator("#features dt").all_inner_texts()[0] == "max_rgb_diff"
        video = page.locator("#clip")
        assert video.evaluate("v => [v.videoWidth, v.videoHeight, v.muted, v.loop]") == [160, 120, True, True]
        lasts = {0: 2.0, 1: 1.5, 2: 1.25}[int(server.state()["scene"]["scene_id"][-3])]
        assert video.evaluate("v => v.duration") == pytest.approx(lasts, abs=0.1)
        video.evaluate(LOOPS)

        page.keyboard.press("1")
        expect(page.locator("#done")).to_contain_text("1 labelled, 1 good")
        assert list(labels(output).values()) == [1]
        playing(page)
        page.keyboard.press("0")
        expect(page.locator("#done")).to_contain_text("2 labelled, 1 good, 1 bad")
        assert list(labels(output).values()) == [1, 0]
        page.keyboard.press("u")
        expect(page.locator("#done")).to_contain_text("1 labelled")
        assert list(labels(output).values()) == [1]
        playing(page)
        about = page.locator("#about").inner_text()
        page.keyboard.press("s")
        expect(page.locator("#about")).not_to_have_text(about)
        assert list(labels(output).values()) == [1]
        page.keyboard.press("Control+1")
        page.keyboard.press("q")
        expect(page.locator("#note")).to_contain_text("Stopped")
        assert "1 good, 0 bad, 1 skipped" in page.locator("#note").inner_text()
        assert "1 good, 0 bad, 1 skipped" in server.ended()
    assert list(labels(output).values()) == [1]


@pytest.mark.slow
def test_buttons_a_token_and_a_server_that_is_gone(output: Path, opened: Callable[[str], Page]):
    with annotating(output, FILMRAY_TOKEN=TOKEN) as server:
        page = opened(server.url)
        playing(page)
        page.get_by_role("button", name="good").click()
        expect(page.locator("#done")).to_contain_text("1 labelled")
        playing(page)
        server.process.kill()
        server.process.wait()
        page.get_by_role("button", name="bad").click()
        expect(page.locator("#problem")).to_contain_text("start it again")
    assert list(labels(output).values()) == [1]
    with annotating(output) as server:
        page = opened(server.url)
        playing(page)
        assert "2 to go" in page.locator("#left").inner_text()
        page.get_by_role("button", name="bad").click()
        expect(page.locator("#done")).to_contain_text("2 labelled, 1 good, 1 bad")
        playing(page)
        page.get_by_role("button", name="undo").click()
        expect(page.locator("#done")).to_contain_text("1 labelled")
        page.get_by_role("button", name="stop").click()
        server.ended()
    assert list(labels(output).values()) == [1]


@pytest.mark.slow
def test_a_scene_without_a_clip_says_why_and_can_only_be_skipped(tmp_path: Path, opened: Callable[[str], Page]):
    write_settings(config(tmp_path))
    write_plan(Store(str(tmp_path)), {"a": 1})
    write_scores(Store(str(tmp_path)), scene("a.0_0", uri=str(tmp_path / "<b>gone.mp4")))
    with annotating(tmp_path) as server:
        page = opened(server.url)
        expect(page.locator("#note")).to_contain_text("<b>gone.mp4")
        page.keyboard.press("1")
        assert page.get_by_role("button", name="good").is_disabled()
        page.keyboard.press("s")
        expect(page.locator("#note")).to_contain_text("No scene is left")
        assert labels(tmp_path) == {}


@pytest.mark.slow
def test_another_site_in_the_same_browser_labels_nothing(output: Path, opened: Callable[[str], Page], tmp_path: Path):
    with annotating(output) as server:
        scene_id = server.state()["scene"]["scene_id"]
        body = json.dumps({"video_id": "a<b>.mp4", "scene_id": scene_id, "label": 1})
        page = opened("about:blank")
        for kind, mode in (("text/plain", "no-cors"), ("application/json", "cors")):
            page.evaluate(POST, [f"{server.url}answer", body, kind, mode])
        start, end = body[:-1] + ', "x": "', '"}'
        page.evaluate(
            """([url, name, value]) => {
              const form = document.createElement("form"), field = document.createElement("input");
              Object.assign(form, {method: "post", action: url, enctype: "text/plain"});
              Object.assign(field, {name, value});
              form.append(field);
              document.body.append(form);
              form.submit();
            }""",
            [f"{server.url}answer", start, end],
        )
        expect(page.locator("body")).to_contain_text("only the page itself")
        assert labels(output) == {}
        assert server.state()["left"] == 3
