"""A video is fetched once, whole and checked, over a network that fails; what cannot be had says why."""

import importlib
import os
import shutil
import sys
import time
import urllib.error
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from actors.core import storage
from actors.core.errors import BrokenRunError
from actors.core.temporary import private_folder
from actors.curation.sources import fetch as module
from actors.curation.sources import page_tools
from actors.curation.sources.fetch import RETRYABLE, FetchConfig, fetch
from tests.support import films
from tests.support.servers import FileHost, Reply

QUICK = FetchConfig(timeout_s=60)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return films.film(tmp_path_factory.mktemp("film") / "film.mp4", shots=(24, 24)).read_bytes()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", 0.01)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "videos")


def stored(store: str) -> list[str]:
    return [entry.name for entry in storage.listing(store) if not entry.name.endswith(".url")]


def test_a_plain_file_is_fetched_once(host: FileHost, film: bytes, store: str) -> None:
    host.put("/a%20film%C3%A9.MP4", Reply(film))
    url = host.url("/a filmé.MP4?token=1#part")
    first = fetch("v1", url, store, QUICK)
    assert (first.uri, first.code, first.message, first.attempts, first.bytes) == (
        storage.join(store, "v1.mp4"),
        *("", "", 1, len(film)),
    )
    assert storage.read_bytes(first.uri) == film
    again = fetch("v1", url, store, QUICK)
    assert again == replace(first, attempts=0)
    assert len(host.requests) == 1 and stored(store) == ["v1.mp4"]


def test_a_file_from_another_url_is_fetched_anew(host: FileHost, film: bytes, store: str) -> None:
    other = film + b"\0" * 9
    host.put("/a.mp4", Reply(film))
    host.put("/b.mp4", Reply(other))
    first = fetch("v1", host.url("/a.mp4?token=1"), store, QUICK)
    assert fetch("v1", host.url("/a.mp4?token=2"), store, QUICK) == replace(first, attempts=0)
    # Until there is another one, the film that is there stays.
    assert fetch("v1", host.url("/gone.mp4"), store, QUICK).code == "fetch_gone"
    assert fetch("v1", host.url("/a.mp4"), store, QUICK) == replace(first, attempts=0)
    second = fetch("v1", host.url("/b.mp4"), store, QUICK)
    assert (second.uri, second.attempts) == (first.uri, 1)
    assert storage.read_bytes(second.uri) == other
    # What an earlier version downloaded does not tell where it is from.
    storage.delete(f"{second.uri}.url")
    assert fetch("v1", host.url("/a.mp4"), store, QUICK).attempts == 0


def test_a_page_is_fetched_once_by_the_tool(
    host: FileHost, film: bytes, store: str, capfd: pytest.CaptureFixture[str]
) -> None:
    url = host.put("/watch", Reply(film)) + "?v=1"
    first = fetch("v1", url, store, QUICK)
    assert (first.uri, first.code, first.attempts, first.bytes) == (storage.join(store, "v1.mp4"), "", 1, len(film))
    assert storage.read_bytes(first.uri) == film
    asked = len(host.requests)
    assert fetch("v1", url, store, QUICK) == replace(first, attempts=0) and len(host.requests) == asked
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("height", "best"), [(360, "360"), (500, "360"), (2000, "720"), (100, "240")])
def test_the_tool_chooses_the_height(host: FileHost, film: bytes, store: str, height: int, best: str) -> None:
    sources = ""
    for lines in ("240", "720", "360"):
        url = host.put(f"/{lines}.mp4", Reply(film))
        sources += f'<source src="{url}" type="video/mp4" label="{lines}p">'
    page = f"<html><title>t</title><body><video>{sources}</video></body></html>"
    got = fetch("v1", host.put("/page", Reply(page.encode(), type="text/html")), store, replace(QUICK, height=height))
    assert got.code == ""
    assert {path for _, path, _ in host.requests if path != "/page"} == {f"/{best}.mp4"}


def test_the_store_may_be_s3(host: FileHost, film: bytes, s3: str) -> None:
    got = fetch("v1", host.put("/film.webm", Reply(film)), s3, QUICK)
    assert got.uri == s3 + "/v1.webm" and storage.read_bytes(got.uri) == film


def test_files_stay_where_they_are(film: bytes, tmp_path: Path, s3: str, store: str) -> None:
    path = str(tmp_path / "film.mp4")
    for uri in (path, Path(path).as_uri(), s3 + "/film.mp4"):
        got = fetch("v1", uri, store, QUICK)
        assert (got.uri, got.code, got.attempts) == (uri, "not_found", 0) and uri in got.message
        storage.write_bytes(uri, film)
        assert fetch("v1", uri, store, QUICK) == module.Fetched(uri, bytes=len(film))
        storage.delete(uri)
    assert fetch("v1", str(tmp_path), store, QUICK).code == "not_found"
    assert stored(store) == []


@pytest.mark.parametrize(
    "url", ["ftp://host/film.mp4", "gs://bucket/film.mp4", "http:///film.mp4", "http://[::1/film.mp4"]
)
def test_what_is_no_url_is_a_bad_row(url: str, store: str) -> None:
    got = fetch("v1", url, store, QUICK)
    assert got.code == "bad_url" and got.message and got.code not in RETRYABLE


@pytest.mark.parametrize("path", ["/film.mp4", "/watch"])
@pytest.mark.parametrize(
    ("status", "code", "word"),
    [
        (404, "fetch_gone", "404"),
        (410, "fetch_gone", "410"),
        (401, "fetch_blocked", "fetch.cookies"),
        (403, "fetch_blocked", "fetch.proxy"),
        (451, "fetch_blocked", "451"),
    ],
)
def test_what_will_not_come_is_asked_once(
    host: FileHost, store: str, path: str, status: int, code: str, word: str
) -> None:
    got = fetch("v1", host.put(path, Reply(b"no", status, "text/plain")), store, QUICK)
    assert (got.code, got.attempts, got.bytes) == (code, 1, 0) and word in got.message
    assert host.count(path) == 1 and stored(store) == []


@pytest.mark.parametrize("path", ["/film.mp4", "/watch"])
@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_passing_faults_are_tried_again(host: FileHost, film: bytes, store: str, path: str, status: int) -> None:
    url = host.put(path, Reply(b"later", status), Reply(b"later", status, headers={"Retry-After": "0"}), Reply(film))
    got = fetch("v1", url, store, QUICK)
    assert (got.code, got.attempts) == ("", 3) and storage.read_bytes(got.uri) == film


@pytest.mark.parametrize("path", ["/film.mp4", "/watch"])
def test_faults_that_do_not_pass_fail_for_now(host: FileHost, store: str, path: str) -> None:
    got = fetch("v1", host.put(path, Reply(b"", 503)), store, QUICK)
    assert (got.code, got.attempts) == ("fetch_failed", 3) and "503" in got.message
    assert host.count(path) == 3 and got.code in RETRYABLE


@pytest.mark.parametrize("path", ["/film.mp4", "/watch"])
@pytest.mark.parametrize(
    "after",
    ["3600", format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)],
    # Workers must collect tests of the same names, whatever the time.
    ids=["seconds", "date"],
)
def test_a_host_that_asks_for_a_long_pause_is_left_alone(host: FileHost, store: str, path: str, after: str) -> None:
    got = fetch("v1", host.put(path, Reply(b"", 429, headers={"Retry-After": after})), store, QUICK)
    assert (got.code, got.attempts) == ("fetch_failed", 1) and "come back" in got.message and host.count(path) == 1


def test_a_pause_that_a_host_asks_for_is_kept(
    host: FileHost, film: bytes, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    url = host.put("/film.mp4", Reply(b"", 429, headers={"Retry-After": "7"}), Reply(film))
    assert fetch("v1", url, store, QUICK).attempts == 2
    assert [pause for pause in pauses if pause] == [7]


def test_a_cut_file_goes_on_where_it_broke(host: FileHost, film: bytes, store: str) -> None:
    cut = len(film) // 3
    got = fetch("v1", host.put("/film.mp4", Reply(film, cut=cut), Reply(film, cut=2 * cut), Reply(film)), store, QUICK)
    assert (got.code, got.attempts) == ("", 3) and storage.read_bytes(got.uri) == film
    asked = [headers.get("range") for _, _, headers in host.requests]
    assert asked == [None, f"bytes={cut}-", f"bytes={2 * cut}-"]


def test_a_host_without_ranges_starts_again(host: FileHost, film: bytes, store: str) -> None:
    url = host.put("/film.mp4", Reply(film, cut=100, ranges=False), Reply(film, ranges=False))
    assert storage.read_bytes(fetch("v1", url, store, QUICK).uri) == film


def test_two_versions_of_a_file_are_never_mixed(host: FileHost, film: bytes, store: str) -> None:
    url = host.put("/film.mp4", Reply(b"\0" * len(film), cut=100), Reply(film))
    got = fetch("v1", url, store, QUICK)
    assert host.requests[1][2]["range"] == "bytes=100-" and storage.read_bytes(got.uri) == film


def test_a_file_that_stays_cut_fails_for_now(host: FileHost, film: bytes, store: str) -> None:
    got = fetch("v1", host.put("/film.mp4", Reply(film, cut=100)), store, QUICK)
    assert got.code == "fetch_failed" and f"of {len(film)} bytes" in got.message and stored(store) == []


def test_the_tool_gets_over_a_cut(host: FileHost, film: bytes, store: str) -> None:
    url = host.put("/watch", Reply(film), Reply(film, cut=len(film) // 2), Reply(film))
    got = fetch("v1", url, store, QUICK)
    assert (got.code, got.attempts) == ("", 2) and storage.read_bytes(got.uri) == film


@pytest.mark.parametrize("path", ["/film.mp4", "/watch"])
def test_a_slow_drip_ends_in_time(host: FileHost, film: bytes, store: str, path: str) -> None:
    # The tool gets what it needs to know of the file at once, and the file itself slowly.
    url = host.put(path, *[Reply(film)] * (path == "/watch"), Reply(film * 100, pause_s=0.05))
    got = fetch("v1", url, store, FetchConfig(timeout_s=1))
    assert got.code == "fetch_failed" and "fetch.timeout_s" in got.message and stored(store) == []


@pytest.mark.parametrize("path", ["/film.mp4", "/watch"])
@pytest.mark.parametrize("endless", [True, False])
def test_a_file_that_is_too_large_is_refused(host: FileHost, film: bytes, store: str, path: str, endless: bool) -> None:
    got = fetch("v1", host.put(path, Reply(film * 50, endless=endless)), store, replace(QUICK, max_bytes=len(film) * 4))
    assert (got.code, got.attempts) == ("too_large", 1) and "fetch.max_bytes" in got.message and stored(store) == []


def test_a_page_without_end_is_refused(host: FileHost, store: str) -> None:
    page = b"<html>" + b"<p>more</p>" * 1_000_000
    got = fetch("v1", host.put("/watch", Reply(page, type="text/html", endless=True)), store, QUICK)
    assert (got.code, got.attempts) == ("too_large", 1) and "page" in got.message


def test_a_silent_host_is_given_up(host: FileHost, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.2)
    got = fetch("v1", host.put("/film.mp4", Reply(b"x" * 5000, pause_s=2)), store, replace(QUICK, attempts=2))
    assert (got.code, got.attempts) == ("fetch_failed", 2) and "timed out" in got.message


def test_no_host_fails_for_now(store: str) -> None:
    for path in ("/film.mp4", "/watch"):
        got = fetch("v1", "http://127.0.0.1:9" + path, store, QUICK)
        assert (got.code, got.attempts) == ("fetch_failed", 3) and "refused" in got.message


def test_what_does_not_decode_is_not_stored(host: FileHost, store: str, tmp_path: Path) -> None:
    page = Reply(b"<html><body>Please log in</body></html>", type="text/html")
    for path in ("/film.mp4", "/watch"):
        got = fetch("v1", host.put(path, page), store, QUICK)
        assert (got.code, got.attempts) == ("not_a_video", 1) and "page" in got.message
    wrong = {
        "not_a_video": films.text_file,
        "empty_file": films.empty_file,
        "no_index": films.without_index,
        "no_video_stream": films.sound_only,
        "unknown_codec": films.unknown_codec,
        "playlist": films.list_of_films,
    }
    for code, make in wrong.items():
        body = make(tmp_path / f"{code}.mp4").read_bytes()
        got = fetch("v1", host.put("/wrong.mp4", Reply(body)), store, QUICK)
        assert (got.code, got.attempts, got.uri) == (code, 1, host.url("/wrong.mp4"))
        assert got.message and got.code not in RETRYABLE
    assert stored(store) == []


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the program ffmpeg")
@pytest.mark.parametrize("step", ["FFmpegMergerPP", "FFmpegFixupM4aPP", "FFmpegFixupM3u8PP", "FFmpegFixupTimestampPP"])
def test_the_tools_own_ffmpeg_follows_no_list(step: str, tmp_path: Path) -> None:
    from yt_dlp import YoutubeDL

    ffmpeg: Any = importlib.import_module("yt_dlp.postprocessor.ffmpeg")

    listed, out = films.list_of_films(tmp_path / "film.mp4"), tmp_path / "out.mp4"
    options: Any = page_tools._ytdlp_options(str(tmp_path), FetchConfig(), None)
    with YoutubeDL(options) as tool:
        getattr(ffmpeg, step)(tool).run_ffmpeg(str(tmp_path / "neighbour.mp4"), str(out), ["-c", "copy"])
        assert out.stat().st_size > 1000
        out.unlink()
        with pytest.raises(ffmpeg.FFmpegPostProcessorError):
            getattr(ffmpeg, step)(tool).run_ffmpeg(str(listed), str(out), ["-c", "copy"])
    assert not out.exists()


def confused(*arguments: object) -> Iterator[tuple[str, str, float | None]]:
    """A tool that meets a page its authors did not think of."""
    yield from ()
    raise KeyError("formats")


def incomplete(*arguments: object) -> Iterator[tuple[str, str, float | None]]:
    """A tool whose library is not installed."""
    yield from ()
    import a_library_that_is_not_there  # noqa: F401  # pyright: ignore[reportMissingImports]


def test_an_exception_of_the_tool_is_reported_as_what_it_is(
    host: FileHost, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "with_ytdlp", confused)
    got = fetch("v1", host.url("/watch"), store, FetchConfig())
    assert (got.code, got.attempts, got.message) == ("exception", 1, "yt-dlp failed: KeyError: 'formats'")
    assert got.code in RETRYABLE and stored(store) == []


def test_a_tool_without_its_library_ends_the_run(host: FileHost, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "with_ytdlp", incomplete)
    with pytest.raises(BrokenRunError, match="a_library_that_is_not_there"):
        fetch("v1", host.url("/watch"), store, FetchConfig())


def test_redirects_are_followed(host: FileHost, film: bytes, store: str) -> None:
    host.put("/there.bin", Reply(film))
    for path in ("/film.mp4", "/watch"):
        got = fetch("v" + path, host.put(path, Reply(b"", 302, headers={"Location": "/there.bin"})), store, QUICK)
        assert got.code == "" and storage.read_bytes(got.uri) == film


@pytest.mark.parametrize("where", [f"http://{'a' * 70}.example/", "http://[::1/", "file:///etc/passwd", "/film.mp4"])
def test_a_redirect_to_nowhere_fails_for_now(host: FileHost, store: str, where: str) -> None:
    got = fetch("v1", host.put("/film.mp4", Reply(b"", 302, headers={"Location": where})), store, QUICK)
    assert (got.code, got.attempts) == ("fetch_failed", 3) and stored(store) == []


def test_cookies_are_sent_and_their_file_stays_as_it_is(
    host: FileHost, film: bytes, store: str, tmp_path: Path
) -> None:
    text = "# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tsession\tabc\n"
    (tmp_path / "cookies.txt").write_text(text)
    config = replace(QUICK, cookies=str(tmp_path / "cookies.txt"))
    for path in ("/film.mp4", "/watch"):
        assert fetch("v" + path, host.put(path, Reply(film)), store, config).code == ""
    assert {headers.get("cookie") for _, _, headers in host.requests} == {"session=abc"}
    assert (tmp_path / "cookies.txt").read_text() == text
    (tmp_path / "cookies.txt").write_text("{}")
    with pytest.raises(ValueError, match=r"fetch\.cookies"):
        fetch("v2", host.url("/film.mp4"), store, config)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        fetch("v2", host.url("/film.mp4"), store, replace(QUICK, cookies=str(tmp_path / "nowhere")))


def test_a_proxy_is_asked(host: FileHost, film: bytes, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for url in ("http://films.example/film.mp4", "http://films.example/watch"):
        host.put(url, Reply(film))
        got = fetch("v" + url[-3:], url, store, replace(QUICK, proxy=host.url("")))
        assert got.code == "" and host.count(url) >= 1
    monkeypatch.setenv("http_proxy", host.url(""))
    assert fetch("v2", "http://films.example/film.mp4", store, QUICK).code == ""
    # What speaks SOCKS is for the tool.
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    got = fetch("v3", "http://films.example/film.mp4", store, replace(QUICK, attempts=1))
    assert got.code == "fetch_failed" and "[generic]" in got.message


@pytest.mark.parametrize("per_host", [1, 2])
def test_a_node_keeps_to_its_places_per_host(host: FileHost, film: bytes, store: str, per_host: int) -> None:
    url = host.put("/film.mp4", Reply(film, pause_s=0.3 / len(film) * 1024))
    alone = get_context("spawn").Process(target=_fetch_in_forks, args=(4, url, store, per_host))
    alone.start()
    alone.join()
    assert alone.exitcode == 0
    assert 1 <= host.most_at_once <= per_host and len(stored(store)) == 4


def _fetch_in_forks(count: int, url: str, store: str, per_host: int) -> None:
    module._check = lambda _: None  # Decoding would take longer than fetching.
    workers = []
    for number in range(count):
        if not (worker := os.fork()):
            os._exit(len(fetch(f"v{number}", url, store, replace(QUICK, per_host=per_host)).code))
        workers.append(worker)
    ended = [os.waitpid(worker, 0)[1] for worker in workers]
    sys.exit(any(ended))


def test_a_process_that_dies_gives_its_place_back(host: FileHost, film: bytes, store: str) -> None:
    ours, theirs = Pipe()
    holder = get_context("spawn").Process(target=_hold_a_place, args=("127.0.0.1", theirs), daemon=True)
    holder.start()
    assert ours.recv() == "held"
    folder = private_folder("hosts")
    assert module._free(folder, "127.0.0.1", 1) is None
    with module._free(folder, "127.0.0.1", 2) or pytest.fail("a second place was not free"):
        assert module._free(folder, "127.0.0.1", 2) is None
    holder.kill()
    holder.join()
    assert fetch("v1", host.put("/film.mp4", Reply(film)), store, replace(QUICK, per_host=1)).code == ""


def _hold_a_place(host: str, told: Connection) -> None:
    with module._slot(host, 1):
        told.send("held")
        time.sleep(600)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("[youtube] x: Private video. Sign in if you've been granted access to this video", "fetch_gone"),
        ("[youtube] x: Video unavailable. This video has been removed by the uploader", "fetch_gone"),
        ("[youtube] x: Video unavailable", "fetch_gone"),
        ("[youtube] x: This video is not available", "fetch_gone"),
        (
            "[youtube] x: Video unavailable. This video is no longer available because the account is terminated",
            "fetch_gone",
        ),
        (
            "[youtube] x: Sign in to confirm you\u2019re not a bot. Use --cookies for the authentication",
            "fetch_blocked",
        ),
        ("[youtube] x: Sign in to confirm your age. This video may be inappropriate for some users.", "fetch_blocked"),
        ("[youtube] x: The uploader has not made this video available in your country", "fetch_blocked"),
        ("[youtube] x: Join this channel to get access to members-only content", "fetch_blocked"),
        ("[youtube] x: Video unavailable. This content isn't available, try again later.", "fetch_failed"),
        ("[youtube] x: Premieres in 3 hours", "fetch_failed"),
        ("[youtube] x: Requested format is not available", "fetch_failed"),
        ("[youtube] x: Unable to extract uploader id; please report this issue on https://github.com/", "fetch_failed"),
    ],
)
def test_what_sites_say_is_understood(said: str, code: str) -> None:
    from yt_dlp.utils import DownloadError, ExtractorError

    fault = page_tools.ytdlp_fault(DownloadError(f"ERROR: {said}", (ExtractorError, ExtractorError(said), None)))  # pyright: ignore[reportArgumentType]
    assert fault.code == code and "report this issue" not in str(fault)
    assert ("fetch.cookies" in str(fault)) == (code == "fetch_blocked")


def test_errors_of_pytube_are_understood() -> None:
    """Its hosts are built in and not reachable here: what it raises is made by hand."""
    from pytube import exceptions

    for kind, code in {
        exceptions.VideoPrivate: "fetch_gone",
        exceptions.VideoUnavailable: "fetch_gone",
        exceptions.RecordingUnavailable: "fetch_gone",
        exceptions.AgeRestrictedError: "fetch_blocked",
        exceptions.MembersOnly: "fetch_blocked",
        exceptions.VideoRegionBlocked: "fetch_blocked",
        exceptions.LiveStreamError: "fetch_failed",
    }.items():
        assert page_tools.pytube_fault(kind("x")).code == code
    for status, code in {410: "fetch_gone", 403: "fetch_blocked", 500: "fetch_failed"}.items():
        assert page_tools.pytube_fault(urllib.error.HTTPError("u", status, "", Message(), None)).code == code
    assert "yt-dlp" in str(page_tools.pytube_fault(exceptions.RegexMatchError("a", "b")))


def test_pytube_says_what_it_cannot_do(host: FileHost, film: bytes, store: str) -> None:
    config = replace(QUICK, tool="pytube", attempts=1)
    got = fetch("v1", host.put("/about", Reply(film)), store, config)
    assert got.code == "fetch_failed" and "use fetch.tool=yt-dlp" in got.message and host.requests == []
    assert fetch("v1", host.put("/film.mp4", Reply(film)), store, config).code == ""


def test_pytube_takes_the_best_of_at_most_the_height() -> None:
    class Stream:
        def __init__(self, resolution: str) -> None:
            self.resolution = resolution

    streams = [Stream("240p"), Stream("720p"), Stream("360p")]
    for height, best in ((360, "360p"), (500, "360p"), (2000, "720p"), (100, "240p")):
        assert page_tools.choose(streams, height).resolution == best


def test_wrong_settings_name_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="per_host"):
        FetchConfig(per_host=0)
    with pytest.raises(ValueError, match=r"fetch\.proxy.*environment") as refused:
        FetchConfig(proxy="http://me:hunter2@proxy")
    assert "hunter2" not in str(refused.value)
    with pytest.raises(ValueError, match=r"fetch\.cookies"):
        FetchConfig(tool="pytube", cookies="cookies.txt")
    monkeypatch.setitem(sys.modules, "pytube", None)
    with pytest.raises(ValueError, match="extra `pytube`"):
        FetchConfig(tool="pytube")
