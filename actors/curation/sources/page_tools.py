"""Tools that get a video out of a page, and what their errors mean for the video.

Each runs in a child process, so that a page without end costs one video.
"""

import http.client
import importlib.util
import logging
import re
import shutil
import ssl
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from actors.core.errors import UserError, machine_fault
from actors.core.http import retry_after_s
from actors.core.stage import Stage
from actors.media.formats import OPTIONS

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 120.0
"""A host that asks for a longer pause is left alone: its videos fail for now."""
SILENCE_S = 30.0
"""A connection that brings nothing for this long is given up."""
PAGE_BYTES = 256 << 20
"""A page, or a fragment of a film, that is larger is refused: tools hold them in memory."""
REMEDY = "set fetch.cookies (exported from a browser that can see the video) or fetch.proxy"


@dataclass(frozen=True)
class FetchConfig(Stage):
    """How videos are downloaded."""

    workers: int = 2
    """Videos downloaded at once over the whole cluster. Raise it where hosts are many and the network is fast."""
    num_cpus: float = 0.25
    """CPUs that one download holds. Downloads wait for the network, so a part of a CPU is enough."""
    tool: Literal["yt-dlp", "pytube"] = "yt-dlp"
    """The tool that downloads videos from web pages. pytube needs the extra `pytube`, knows YouTube only and is not
    maintained."""
    height: int = 360
    """Picture height to download, in pixels, where a page offers several: the largest of at most this height, else the
    smallest. Features are measured at frames.size, so larger films change clips only."""
    attempts: int = 3
    """Downloads of one video that may fail before the video gets an error code; at least 1."""
    per_host: int = 2
    """Videos that one node downloads from one host at once. Lower it where a host answers 429."""
    timeout_s: float = 3600
    """Seconds for one video, all attempts together. Raise it for long films on slow hosts."""
    max_bytes: int = 20_000_000_000
    """Largest file to download, in bytes; larger ones get the error code too_large."""
    cookies: str | None = None
    """A cookies.txt (Netscape format, as browsers export it), a path or s3://, for videos that need a login; null:
    none."""
    proxy: str | None = None
    """URL of a proxy, without a password; put one with a password into HTTP_PROXY and HTTPS_PROXY. null: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.height, self.attempts, self.per_host, self.timeout_s, self.max_bytes) <= 0:
            raise UserError(f"fetch: height, attempts, per_host, timeout_s and max_bytes must be above 0: {self}")
        if self.proxy and "@" in self.proxy:
            raise UserError("fetch.proxy holds a password; set HTTP_PROXY and HTTPS_PROXY in the environment instead")
        if self.tool == "pytube":
            if self.cookies:
                raise UserError("fetch.cookies: pytube takes none; use fetch.tool=yt-dlp")
            if importlib.util.find_spec("pytube") is None:
                raise UserError("fetch.tool=pytube needs the extra `pytube`: pip install 'filmray[pytube]'")


class Fault(Exception):
    """A try that failed."""

    def __init__(self, code: str, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.wait_s = wait_s


def by_status(status: int, reason: str, retry_after: str | None) -> Fault:
    message = f"HTTP {status} {reason}".strip()
    if status in (404, 410):
        return Fault("fetch_gone", message)
    if status in (401, 403, 407, 451):
        return Fault("fetch_blocked", f"{message}; {REMEDY}")
    wait_s = retry_after_s(retry_after)
    if wait_s is not None and wait_s > LONGEST_PAUSE_S:
        message += f"; the host asks to come back in {wait_s:.0f} s"
    return Fault("fetch_failed", message, wait_s)


def too_large(size: int, config: FetchConfig) -> Fault:
    return Fault("too_large", f"{size} bytes or more; fetch.max_bytes is {config.max_bytes}")


def with_ytdlp(
    url: str, folder: str, config: FetchConfig, cookies: str | None
) -> Iterator[tuple[str, str, float | None]]:
    """Have yt-dlp write `film.*` into the folder; yields code, message and pause of a fault. For the child process."""
    import yt_dlp
    from yt_dlp.utils import YoutubeDLError

    def watch(progress: dict[str, Any]) -> None:
        size = max(progress.get("downloaded_bytes") or 0, progress.get("total_bytes") or 0)
        if size > config.max_bytes:
            raise too_large(size, config)

    class Tool(yt_dlp.YoutubeDL):
        def urlopen(self, req: Any) -> Any:
            response = super().urlopen(req)
            response.read = _bounded(response.read)
            return response

    def refuse(about: dict[str, Any], *, incomplete: bool = False) -> None:
        if about.get("is_live") or about.get("live_status") in ("is_live", "is_upcoming"):
            raise Fault("fetch_failed", "a live stream that has not ended", LONGEST_PAUSE_S + 1)

    options = {**_ytdlp_options(folder, config, cookies), "match_filter": refuse, "progress_hooks": [watch]}
    try:
        with Tool(options) as tool:  # pyright: ignore[reportArgumentType]
            tool.extract_info(url)
    except Fault as fault:
        yield fault.code, str(fault), fault.wait_s
    except YoutubeDLError as error:
        if machine_fault(error, writing=True):
            raise
        fault = ytdlp_fault(error)
        yield fault.code, str(fault), fault.wait_s


def _ytdlp_options(folder: str, config: FetchConfig, cookies: str | None) -> dict[str, Any]:
    return {
        # Without ffmpeg picture and sound cannot be joined: a format that holds both, else the picture alone.
        "format": "bv*+ba/b" if shutil.which("ffmpeg") else "b/bv*",
        "format_sort": [f"res:{config.height}", "ext:mp4:m4a", "vcodec:h264"],
        "merge_output_format": "mp4",
        "outtmpl": {"default": str(Path(folder, "film.%(ext)s"))},
        "noplaylist": True,
        "playlist_items": "1",
        "retries": 0,
        "extractor_retries": 0,
        "fragment_retries": 0,
        "skip_unavailable_fragments": False,
        "postprocessor_args": _ffmpeg_arguments(),
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


def _ffmpeg_arguments() -> dict[str, list[str]]:
    """What each step of yt-dlp passes to ffmpeg, which would follow a list that a host sends in place of a film."""
    from yt_dlp.postprocessor.ffmpeg import FFmpegPostProcessor

    arguments = [text for name, value in OPTIONS.items() for text in (f"-{name}", value)]
    # Their names are the only key that yt-dlp knows for arguments of inputs.
    return {f"{step.pp_key().lower()}+ffmpeg_i": arguments for step in _below(FFmpegPostProcessor)}


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)


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
                raise Fault("too_large", f"a page of more than {PAGE_BYTES} bytes")
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


def _by_words(message: str) -> Fault:
    message = re.split(r"[;.] please report this issue", message.strip().removeprefix("ERROR: "))[0].strip()[:500]
    for code, words in _SAID:
        if re.search(words, message, re.IGNORECASE):
            return Fault(code, f"{message}; {REMEDY}" if code == "fetch_blocked" else message)
    return Fault("fetch_failed", message)


def ytdlp_fault(error: BaseException) -> Fault:
    """What an error of yt-dlp means for the video: by HTTP status, by kind, else by its words."""
    from yt_dlp.networking.exceptions import HTTPError, TransportError
    from yt_dlp.utils import GeoRestrictedError, UnsupportedError

    said = _by_words(str(error))
    for cause in _causes(error):
        if isinstance(cause, HTTPError):
            return by_status(cause.status, cause.reason or "", cause.response.headers.get("Retry-After"))
        if isinstance(cause, GeoRestrictedError):
            return Fault("fetch_blocked", f"{error}; {REMEDY}")
        if isinstance(cause, UnsupportedError):
            return Fault("not_a_video", "yt-dlp finds no video on this page")
        if isinstance(cause, TransportError):
            return Fault("fetch_failed", str(said))
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
            raise too_large(stream.filesize, config)

    proxies = {"http": config.proxy, "https": config.proxy} if config.proxy else None
    network = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
    try:
        video = pytube.YouTube(url, on_progress_callback=watch, proxies=proxies)  # pyright: ignore[reportArgumentType]
        video.check_availability()
        stream = choose(list(video.streams.filter(progressive=True)), config.height)
        stream.download(folder, "film.mp4", timeout=int(SILENCE_S), max_retries=0)
    except Fault as fault:
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
        raise Fault("fetch_failed", "pytube finds no format with picture and sound; use fetch.tool=yt-dlp")
    return max(small, key=lines) if small else min(streams, key=lines)


def pytube_fault(error: Exception) -> Fault:
    """What an error of pytube, or of the network below it, means for the video."""
    from pytube import exceptions

    if isinstance(error, urllib.error.HTTPError):
        return by_status(error.code, str(error.reason), error.headers.get("Retry-After"))
    if isinstance(error, exceptions.AgeRestrictedError | exceptions.MembersOnly | exceptions.VideoRegionBlocked):
        return Fault("fetch_blocked", f"{error}; use fetch.tool=yt-dlp with fetch.cookies, or fetch.proxy")
    if isinstance(error, exceptions.LiveStreamError):
        return Fault("fetch_failed", str(error), LONGEST_PAUSE_S + 1)
    if isinstance(error, exceptions.VideoUnavailable):
        return Fault("fetch_gone", str(error))
    if isinstance(error, exceptions.PytubeError):
        return Fault("fetch_failed", f"pytube does not understand the page ({error}); use fetch.tool=yt-dlp")
    return Fault("fetch_failed", f"the connection failed: {error}")
