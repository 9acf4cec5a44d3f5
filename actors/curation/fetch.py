"""One video: from its url to a file that can be decoded.

A path, file:// or s3:// is read where it is. An http(s) url whose path ends like a film (`VIDEO_SUFFIXES`) is
downloaded as it stands, and goes on where a cut connection left off; every other url is a page for the tool, yt-dlp or
pytube, which runs in a child process so that a page without end costs one video. What came is opened and its first
frame decoded before it is stored, in one step, under a name that follows from the video's id and url: what is there
already is never fetched again.
"""

import http.client
import http.cookiejar
import importlib.util
import logging
import os
import random
import re
import shutil
import ssl
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import av.logging
from filelock import AcquireReturnProxy, FileLock, Timeout
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_before_delay

from actors.core import storage
from actors.core.child import CHILD, ChildFault
from actors.core.errors import UserError
from actors.core.http import retry_after_s
from actors.core.stage import Stage
from actors.media.film import VIDEO_SUFFIXES, FilmError, open_film

logger = logging.getLogger(__name__)
RETRYABLE = frozenset({"fetch_failed", "fetch_blocked", "not_found", "forbidden"})
"""Codes of videos that may be had later: by themselves, or once the user gave cookies, a proxy, rights or the file."""

BACKOFF_S = 2.0
"""Pause before the second try; it doubles with every further one, less a random part of up to a half."""
LONGEST_PAUSE_S = 120.0
"""A host that asks for a longer pause is left alone: its videos fail for now."""
SILENCE_S = 30.0
"""A connection that brings nothing for this long is given up."""
PAGE_BYTES = 256 << 20
"""A page, or a fragment of a film, that is larger is refused: tools hold them in memory."""
REMEDY = "set fetch.cookies (exported from a browser that can see the video) or fetch.proxy"


@dataclass(frozen=True)
class FetchConfig(Stage):
    """How videos are fetched."""

    workers: int = 2
    """Videos fetched at once over the whole cluster."""
    num_cpus: float = 0.25
    """Downloads wait for the network, not for a CPU."""
    tool: Literal["yt-dlp", "pytube"] = "yt-dlp"
    """What gets videos out of pages; pytube needs the extra `pytube`, knows YouTube only and is not maintained."""
    height: int = 360
    """Where a page offers a choice: the best picture of at most this height, else the smallest."""
    attempts: int = 3
    """Tries of one video before it fails for now."""
    per_host: int = 2
    """Videos that one node fetches from one host at once."""
    timeout_s: float = 3600
    """Time for one video, all its tries together."""
    max_bytes: int = 20_000_000_000
    """Larger files are refused."""
    cookies: str | None = None
    """A cookies.txt (Netscape format, as browsers export it), a path or s3://."""
    proxy: str | None = None
    """A proxy's url, without a password; one with a password belongs in HTTP_PROXY and HTTPS_PROXY."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.height, self.attempts, self.per_host, self.timeout_s, self.max_bytes) <= 0:
            raise UserError(f"fetch: height, attempts, per_host, timeout_s and max_bytes start above 0: {self}")
        if self.proxy and "@" in self.proxy:
            raise UserError("fetch.proxy holds a password; set HTTP_PROXY and HTTPS_PROXY in the environment instead")
        if self.tool == "pytube":
            if self.cookies:
                raise UserError("fetch.cookies: pytube takes none; use fetch.tool=yt-dlp")
            if importlib.util.find_spec("pytube") is None:
                raise UserError("fetch.tool=pytube needs the extra `pytube`: pip install 'filmray[pytube]'")


@dataclass(frozen=True)
class Fetched:
    """Where a video is, or why it is not there."""

    uri: str
    """The file; the url where there is none."""
    code: str = ""
    """"" or fetch_failed (try later: 429, 5xx, a cut, a timeout), fetch_gone (404, 410, removed, private),
    fetch_blocked (401, 403, login, bot check, region), not_found and forbidden (files), bad_url, too_large, crashed
    (its decoder), or what `open_film` says of a file that does not decode (not_a_video, empty_file, ...)."""
    message: str = ""
    """What was found and what to do; "" where all is well."""
    attempts: int = 0
    """Tries that were made; 0 for a file that was there."""
    bytes: int = 0
    """Size of the file."""


class _Fault(Exception):
    """A try that failed."""

    def __init__(self, code: str, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.wait_s = wait_s


def fetch(video_id: str, url: str, folder_uri: str, config: FetchConfig) -> Fetched:
    """Bring one video to where it can be decoded: `<folder_uri>/<video_id><suffix>`, unless its url is a file already.

    Raises OSError where the store or this machine's disk fails, ValueError where the cookies cannot be read.
    """
    if not url.lower().startswith(("http://", "https://")):
        return _file(url)
    try:
        parts = urllib.parse.urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        return Fetched(url, "bad_url", f"not a url: {error}")
    if not host:
        return Fetched(url, "bad_url", "the url names no host")
    suffix = PurePosixPath(parts.path).suffix.lower()
    plain = suffix in VIDEO_SUFFIXES
    target = storage.join(folder_uri, f"{video_id}{suffix if plain else '.mp4'}")
    try:
        return Fetched(target, bytes=storage.size(target))
    except FileNotFoundError:
        pass
    with tempfile.TemporaryDirectory(prefix="filmray-") as folder:
        # urllib speaks no SOCKS; the tool takes a plain file as well.
        by_itself = plain and not (config.proxy or "").startswith("socks")
        source = (_PlainFile if by_itself else _Page)(url, Path(folder), config)
        tries = _tries(video_id, config)
        try:
            with _slot(host, config.per_host):
                path = tries(source.get, time.monotonic() + config.timeout_s)
            _check(path)
        except _Fault as fault:
            return Fetched(url, fault.code, str(fault), tries.statistics["attempt_number"])
        storage.upload(path, target)
        return Fetched(target, attempts=tries.statistics["attempt_number"], bytes=path.stat().st_size)


def _file(url: str) -> Fetched:
    try:
        return Fetched(url, bytes=storage.size(url))
    except FileNotFoundError:
        return Fetched(url, "not_found", f"there is no {url}")
    except PermissionError as error:
        return Fetched(url, "forbidden", str(error))
    except ValueError as error:
        return Fetched(url, "bad_url", f"{error}, or an http(s) url")


def _tries(video_id: str, config: FetchConfig) -> Retrying:
    """Calls what raises a _Fault until it passes, at most `attempts` times and within `timeout_s`; raises the last."""

    def passing(fault: BaseException) -> bool:
        return isinstance(fault, _Fault) and fault.code == "fetch_failed" and (fault.wait_s or 0) <= LONGEST_PAUSE_S

    def pause_s(state: RetryCallState) -> float:
        longest = min(BACKOFF_S * 2 ** (state.attempt_number - 1), LONGEST_PAUSE_S)
        return max(random.uniform(0.5, 1) * longest, _fault(state).wait_s or 0)

    def tell(state: RetryCallState) -> None:
        number, fault = state.attempt_number + 1, _fault(state)
        logger.info("%s: %s, try %d of %d in %.1f s", video_id, fault, number, config.attempts, state.upcoming_sleep)

    return Retrying(
        retry=retry_if_exception(passing),
        stop=stop_after_attempt(config.attempts) | stop_before_delay(config.timeout_s),
        wait=pause_s,
        before_sleep=tell,
        reraise=True,
    )


def _fault(state: RetryCallState) -> _Fault:
    fault = state.outcome.exception() if state.outcome else None
    assert isinstance(fault, _Fault)
    return fault


@contextmanager
def _slot(host: str, count: int) -> Iterator[None]:
    """One of the `count` places that this node has for a host; a process that dies gives its place back."""
    folder = _places()
    name = re.sub(r"^(www|m)\.", "", host).replace(":", "_")
    while (place := _free(folder, name, count)) is None:
        time.sleep(random.uniform(0.1, 0.3))
    with place:
        yield


def _places() -> Path:
    folder = Path(tempfile.gettempdir(), f"filmray-hosts-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _free(folder: Path, name: str, count: int) -> AcquireReturnProxy | None:
    for number in range(count):
        try:
            return FileLock(folder / f"{name}.{number}").acquire(blocking=False)
        except Timeout:
            continue
    return None


def _by_status(status: int, reason: str, retry_after: str | None) -> _Fault:
    message = f"HTTP {status} {reason}".strip()
    if status in (404, 410):
        return _Fault("fetch_gone", message)
    if status in (401, 403, 407, 451):
        return _Fault("fetch_blocked", f"{message}; {REMEDY}")
    wait_s = retry_after_s(retry_after)
    if wait_s is not None and wait_s > LONGEST_PAUSE_S:
        message += f"; the host asks to come back in {wait_s:.0f} s"
    return _Fault("fetch_failed", message, wait_s)


class _PlainFile:
    """A file that a host serves as it is; what a try has brought is kept for the next."""

    def __init__(self, url: str, folder: Path, config: FetchConfig) -> None:
        parts = urllib.parse.urlsplit(url)
        path, query = (urllib.parse.quote(part, safe="%/:=&?~+!$,;'@()*[]") for part in (parts.path, parts.query))
        self._url = urllib.parse.urlunsplit(parts._replace(path=path, query=query, fragment=""))
        self._path = folder / f"film{PurePosixPath(parts.path).suffix.lower()}"
        self._config = config
        self._version: str | None = None
        proxies = {"http": config.proxy, "https": config.proxy} if config.proxy else None
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler(proxies)]
        if (cookies := _cookies(folder, config)) is not None:
            jar = http.cookiejar.MozillaCookieJar(cookies)
            try:
                jar.load(ignore_discard=True, ignore_expires=True)
            except http.cookiejar.LoadError as error:
                raise UserError(
                    f"fetch.cookies: {config.cookies} is not a Netscape cookies.txt; export it again"
                ) from error
            for cookie in jar:
                # Browsers write 0 for a cookie of this session, which the jar takes for one of 1970.
                cookie.expires = cookie.expires or None
            handlers.append(urllib.request.HTTPCookieProcessor(jar))
        self._opener = urllib.request.build_opener(*handlers)

    def get(self, until: float) -> Path:
        """One try, until that monotonic time; returns the whole file."""
        # Named faults of the network only: a full disk is no fault of the video.
        network = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
        try:
            self._download(until)
        except urllib.error.HTTPError as error:
            if error.code == 416:
                self._version = None
            with error:
                raise _by_status(error.code, str(error.reason), error.headers.get("Retry-After")) from error
        except network as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise _Fault("fetch_failed", f"the connection failed: {reason or type(error).__name__}") from error
        return self._path

    def _download(self, until: float) -> None:
        headers = {"User-Agent": "Mozilla/5.0 (compatible; Filmray)", "Accept-Encoding": "identity"}
        # Only with a mark of its version may a file be put together from two tries.
        have = self._path.stat().st_size if self._version and self._path.exists() else 0
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": self._version or ""}
        request = urllib.request.Request(self._url, headers=headers)
        with self._opener.open(request, timeout=min(SILENCE_S, max(until - time.monotonic(), 0.1))) as response:
            start = 0
            if response.status == 206:
                start = have
                if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                    raise _Fault("fetch_failed", "the host sent another part of the file than was asked for")
            if response.headers.get_content_type() == "text/html":
                raise _Fault("not_a_video", f"the host sent a web page, not a film; if it asks for a login, {REMEDY}")
            total = None if response.length is None else start + response.length
            if total is not None and total > self._config.max_bytes:
                raise _too_large(total, self._config)
            tag = response.headers.get("ETag", "")
            self._version = tag if tag.startswith('"') else response.headers.get("Last-Modified")
            with open(self._path, "ab" if start else "wb") as file:
                while piece := response.read1(1 << 16):
                    file.write(piece)
                    if file.tell() > self._config.max_bytes:
                        raise _too_large(file.tell(), self._config)
                    if time.monotonic() > until:
                        raise _timeout(self._config)
                size = file.tell()
        if total is not None and size != total:
            raise _Fault("fetch_failed", f"the connection was cut after {size} of {total} bytes")


class _Page:
    """A page that a tool gets a video out of."""

    def __init__(self, url: str, folder: Path, config: FetchConfig) -> None:
        self._url, self._folder, self._config = url, folder, config
        self._cookies = _cookies(folder, config)

    def get(self, until: float) -> Path:
        """One try, until that monotonic time; returns the whole file."""
        tool = {"yt-dlp": with_ytdlp, "pytube": with_pytube}[self._config.tool]
        left = max(until - time.monotonic(), 0.1)
        arguments = (self._url, str(self._folder), self._config, self._cookies)
        try:
            answers = list(CHILD.stream(tool, *arguments, stall_s=left, timeout_s=left))
        except ChildFault as fault:
            if fault.code == "crashed":
                raise _Fault("fetch_failed", f"{self._config.tool}: {fault}") from fault
            raise _timeout(self._config) from fault
        except RuntimeError as error:
            # A tool that meets a page its authors did not think of; the next page may be fine.
            last = str(error).strip().splitlines()[-1]
            raise _Fault("fetch_failed", f"{self._config.tool} failed: {last}") from error
        for code, message, wait_s in answers:
            raise _Fault(code, message, wait_s)
        found = [path for path in self._folder.glob("film.*") if path.suffix not in (".part", ".ytdl")]
        if not found:
            raise _Fault("fetch_failed", f"{self._config.tool} brought no file")
        path = max(found, key=lambda one: one.stat().st_size)
        if path.stat().st_size > self._config.max_bytes:
            raise _too_large(path.stat().st_size, self._config)
        return path


def _cookies(folder: Path, config: FetchConfig) -> str | None:
    """A copy of the cookies, since yt-dlp writes into its file."""
    if config.cookies is None:
        return None
    storage.download(config.cookies, folder / "cookies.txt")
    return str(folder / "cookies.txt")


def _too_large(size: int, config: FetchConfig) -> _Fault:
    return _Fault("too_large", f"{size} bytes or more; fetch.max_bytes is {config.max_bytes}")


def _timeout(config: FetchConfig) -> _Fault:
    return _Fault("fetch_failed", f"not done after {config.timeout_s:.0f} s (fetch.timeout_s)")


def _check(path: Path) -> None:
    """Raise the fault of a file of which no frame can be decoded."""
    try:
        answers = list(CHILD.stream(first_frame, str(path), stall_s=120, timeout_s=120))
    except ChildFault as fault:
        raise _Fault(fault.code, f"its first frame: {fault}") from fault
    for code, message in answers:
        raise _Fault(code, message)


def first_frame(path: str) -> Iterator[tuple[str, str]]:
    """Decode the first frame of a file; yields code and message where there is none. For the child process."""
    av.logging.set_level(None)
    try:
        open_film(path)
    except FilmError as error:
        yield error.code, str(error)


def with_ytdlp(
    url: str, folder: str, config: FetchConfig, cookies: str | None
) -> Iterator[tuple[str, str, float | None]]:
    """Have yt-dlp write `film.*` into the folder; yields code, message and pause of a fault. For the child process."""
    import yt_dlp
    from yt_dlp.utils import YoutubeDLError

    def watch(progress: dict[str, Any]) -> None:
        size = max(progress.get("downloaded_bytes") or 0, progress.get("total_bytes") or 0)
        if size > config.max_bytes:
            raise _too_large(size, config)

    class Tool(yt_dlp.YoutubeDL):
        def urlopen(self, req: Any) -> Any:
            response = super().urlopen(req)
            response.read = _bounded(response.read)
            return response

    def refuse(about: dict[str, Any], *, incomplete: bool = False) -> None:
        if about.get("is_live") or about.get("live_status") in ("is_live", "is_upcoming"):
            raise _Fault("fetch_failed", "a live stream that has not ended", LONGEST_PAUSE_S + 1)

    options: dict[str, Any] = {
        # Without ffmpeg picture and sound cannot be joined: a format that holds both, else the picture alone.
        "format": "bv*+ba/b" if shutil.which("ffmpeg") else "b/bv*",
        "format_sort": [f"res:{config.height}", "ext:mp4:m4a", "vcodec:h264"],
        "merge_output_format": "mp4",
        "outtmpl": {"default": str(Path(folder, "film.%(ext)s"))},
        "noplaylist": True,
        "playlist_items": "1",
        "match_filter": refuse,
        "progress_hooks": [watch],
        "retries": 0,
        "extractor_retries": 0,
        "fragment_retries": 0,
        "skip_unavailable_fragments": False,
        # A program of its own would go on after this process is killed.
        "external_downloader": {"default": "native"},
        "hls_prefer_native": True,
        "socket_timeout": SILENCE_S,
        "cachedir": False,
        "updatetime": False,
        "cookiefile": cookies,
        "proxy": config.proxy,
        "logger": _Silent(),
        "quiet": True,
        "noprogress": True,
        "no_warnings": True,
        "no_color": True,
    }
    try:
        with Tool(options) as tool:  # pyright: ignore[reportArgumentType]
            tool.extract_info(url)
    except _Fault as fault:
        yield fault.code, str(fault), fault.wait_s
    except YoutubeDLError as error:
        fault = ytdlp_fault(error)
        yield fault.code, str(fault), fault.wait_s


def _bounded(read: Callable[[int | None], bytes]) -> Callable[..., bytes]:
    """The same read, but what is asked for as a whole may not be without end."""

    def bounded(count: int | None = None) -> bytes:
        if count is not None:
            return read(count)
        pieces, size = [], 0
        while piece := read(1 << 20):
            pieces.append(piece)
            size += len(piece)
            if size > PAGE_BYTES:
                raise _Fault("too_large", f"a page of more than {PAGE_BYTES} bytes")
        return b"".join(pieces)

    return bounded


class _Silent:
    """Takes what yt-dlp would print."""

    def debug(self, message: str) -> None:
        logger.debug("yt-dlp: %s", message)

    info = warning = error = debug


_SAID: tuple[tuple[str, str], ...] = (
    ("fetch_failed", r"try again later|rate.?limit|too many requests|temporar|premieres in|will begin in"),
    ("fetch_blocked", r"your (country|region|location)|geo.?restrict|geo.?block|not a bot|captcha"),
    (
        "fetch_gone",
        r"private video|video is private|removed|terminated|deleted|no longer available|does(n.t| not) exist",
    ),
    ("fetch_blocked", r"sign in|\blog ?in\b|logged in|cookies|members.only|join this channel|\bage\b|subscri|payment"),
    ("fetch_gone", r"video (is )?(unavailable|not available)|isn.t available"),
)
"""What sites say in words, since tools pass on no code; the first that matches counts."""


def _by_words(message: str) -> _Fault:
    message = re.split(r"[;.] please report this issue", message.strip().removeprefix("ERROR: "))[0].strip()[:500]
    for code, words in _SAID:
        if re.search(words, message, re.IGNORECASE):
            return _Fault(code, f"{message}; {REMEDY}" if code == "fetch_blocked" else message)
    return _Fault("fetch_failed", message)


def ytdlp_fault(error: BaseException) -> _Fault:
    """What an error of yt-dlp means for the video: by HTTP status, by kind, else by its words."""
    from yt_dlp.networking.exceptions import HTTPError, TransportError
    from yt_dlp.utils import GeoRestrictedError, UnsupportedError

    said = _by_words(str(error))
    for cause in _causes(error):
        if isinstance(cause, HTTPError):
            return _by_status(cause.status, cause.reason or "", cause.response.headers.get("Retry-After"))
        if isinstance(cause, GeoRestrictedError):
            return _Fault("fetch_blocked", f"{error}; {REMEDY}")
        if isinstance(cause, UnsupportedError):
            return _Fault("not_a_video", "yt-dlp finds no video on this page")
        if isinstance(cause, TransportError):
            return _Fault("fetch_failed", str(said))
    return said


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that led to it, as yt-dlp keeps it: in exc_info, cause and the chain."""
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        kept = getattr(one, "exc_info", None) or (None, None, None)
        waiting += [kept[1], getattr(one, "cause", None), one.__cause__, one.__context__]


def with_pytube(
    url: str, folder: str, config: FetchConfig, cookies: str | None
) -> Iterator[tuple[str, str, float | None]]:
    """Have pytube write `film.mp4` into the folder; yields code, message and pause of a fault. For the child process.

    pytube has YouTube's hosts built in and was last released in 2023: it fails on most videos today, and says so.
    """
    import pytube
    from pytube.exceptions import PytubeError

    def watch(stream: Any, _piece: bytes, left: int) -> None:
        if stream.filesize > config.max_bytes or stream.filesize - left > config.max_bytes:
            raise _too_large(stream.filesize, config)

    proxies = {"http": config.proxy, "https": config.proxy} if config.proxy else None
    network = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
    try:
        video = pytube.YouTube(url, on_progress_callback=watch, proxies=proxies)  # pyright: ignore[reportArgumentType]
        video.check_availability()
        stream = choose(list(video.streams.filter(progressive=True)), config.height)
        stream.download(folder, "film.mp4", timeout=int(SILENCE_S), max_retries=0)
    except _Fault as fault:
        yield fault.code, str(fault), fault.wait_s
    except (PytubeError, *network) as error:
        fault = pytube_fault(error)
        yield fault.code, str(fault), fault.wait_s


def choose(streams: list[Any], height: int) -> Any:
    """The best of pytube's streams (`resolution` "360p") of at most this height, else the smallest."""

    def lines(stream: Any) -> int:
        return int((stream.resolution or "0p")[:-1])

    small = [stream for stream in streams if lines(stream) <= height]
    if not streams:
        raise _Fault("fetch_failed", "pytube finds no format with picture and sound; use fetch.tool=yt-dlp")
    return max(small, key=lines) if small else min(streams, key=lines)


def pytube_fault(error: Exception) -> _Fault:
    """What an error of pytube, or of the network below it, means for the video."""
    from pytube import exceptions

    if isinstance(error, urllib.error.HTTPError):
        return _by_status(error.code, str(error.reason), error.headers.get("Retry-After"))
    if isinstance(error, exceptions.AgeRestrictedError | exceptions.MembersOnly | exceptions.VideoRegionBlocked):
        return _Fault("fetch_blocked", f"{error}; use fetch.tool=yt-dlp with fetch.cookies, or fetch.proxy")
    if isinstance(error, exceptions.LiveStreamError):
        return _Fault("fetch_failed", str(error), LONGEST_PAUSE_S + 1)
    if isinstance(error, exceptions.VideoUnavailable):
        return _Fault("fetch_gone", str(error))
    if isinstance(error, exceptions.PytubeError):
        return _Fault("fetch_failed", f"pytube does not understand the page ({error}); use fetch.tool=yt-dlp")
    return _Fault("fetch_failed", f"the connection failed: {error}")
