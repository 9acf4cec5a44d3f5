"""One video: from its url to a file that can be decoded.

A path, file:// or s3:// is read where it is. An http(s) url whose path ends like a film (`VIDEO_SUFFIXES`) is
downloaded as it stands, and goes on where a cut connection left off; every other url is a page for the tool, yt-dlp or
pytube, which runs in a child process so that a page without end costs one video. What came is opened and its first
frame decoded before it is stored, in one step, under a name that follows from the video's id and url: what is there
already is never fetched again.
"""

import http.cookiejar
import logging
import random
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import av.logging
from filelock import AcquireReturnProxy, FileLock, Timeout
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_before_delay

from actors.core import storage
from actors.core.addresses import AddressError
from actors.core.child import CHILD, ChildFault
from actors.core.errors import UserError
from actors.core.http import certificates
from actors.core.temporary import TemporaryFolder, check_space, private_folder
from actors.curation.guard import CODE, ends_the_run, message_of
from actors.curation.sources.origin import unsigned
from actors.curation.sources.page_tools import (
    LONGEST_PAUSE_S,
    REMEDY,
    SILENCE_S,
    Fault,
    FetchConfig,
    by_status,
    too_large,
    with_pytube,
    with_ytdlp,
)
from actors.media.film import VIDEO_SUFFIXES, FilmError, open_film
from actors.media.limits import FilmStage

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)
RETRYABLE = frozenset({"fetch_failed", "fetch_blocked", "not_found", "forbidden", "exception"})
"""Codes of videos that may be had later: by themselves, or once the user gave cookies, a proxy, rights, the file or a
newer version of the tool."""

BACKOFF_S = 2.0
"""Pause before the second try; it doubles with every further one, less a random part of up to a half."""


@dataclass(frozen=True)
class Fetched:
    """Where a video is, or why it is not there."""

    uri: str
    """The file; the url where there is none."""
    code: str = ""
    """"" or fetch_failed (try later: 429, 5xx, a cut, a timeout), fetch_gone (404, 410, removed, private),
    fetch_blocked (401, 403, login, bot check, region), not_found and forbidden (files), bad_url (neither a host nor a
    file can have it), too_large, exception (the tool raised one), crashed (its decoder), or what `open_film` says of a
    file that does not decode (not_a_video, empty_file, ...)."""
    message: str = ""
    """What was found and what to do; "" where all is well."""
    attempts: int = 0
    """Tries that were made; 0 for a file that was there."""
    bytes: int = 0
    """Size of the file."""


def fetch(video_id: str, url: str, folder_uri: str, config: FetchConfig) -> Fetched:
    """Bring one video to where it can be decoded: `<folder_uri>/<video_id><suffix>`, unless its url is a file already.

    Beside it lies `<name>.url`, the url that it is from: a file from another one is downloaded again.

    Raises OSError where the store or this machine's disk fails, UserError where the cookies cannot be read, and
    BrokenRunError where the tool's library is missing.
    """
    try:
        if not url.lower().startswith(("http://", "https://")):
            return _file(url)
        try:
            host = _host(url)
        except ValueError as error:
            return Fetched(url, "bad_url", f"not a url: {error}")
        return _fetched(video_id, url, host, folder_uri, config)
    except Exception as error:
        # Writing to the output would fail for every video.
        if isinstance(error, OSError) or ends_the_run(error):
            raise
        return Fetched(url, CODE, message_of(error))


def _fetched(video_id: str, url: str, host: str, folder_uri: str, config: FetchConfig) -> Fetched:
    suffix = PurePosixPath(urllib.parse.urlsplit(url).path).suffix.lower()
    plain = suffix in VIDEO_SUFFIXES
    target = storage.join(folder_uri, f"{video_id}{suffix if plain else '.mp4'}")
    with suppress(FileNotFoundError):
        size = storage.size(target)
        if _is_from(target, url):
            return Fetched(target, bytes=size)
    with TemporaryFolder() as folder:
        source = (_PlainFile if plain and not _by_socks(config) else _Page)(url, folder, config)
        tries = _tries(video_id, config)
        try:
            with _slot(host, config.per_host):
                path = tries(source.get, time.monotonic() + config.timeout_s)
            _check(path)
        except Fault as fault:
            return Fetched(url, fault.code, str(fault), tries.statistics["attempt_number"])
        # In this order a file never lies beside another one's url.
        storage.delete(target)
        storage.write_bytes(f"{target}.url", unsigned(url).encode())
        storage.upload(path, target)
        return Fetched(target, attempts=tries.statistics["attempt_number"], bytes=path.stat().st_size)


def _by_socks(config: FetchConfig) -> bool:
    """Whether a proxy, of the settings or else of the environment, speaks SOCKS: the tool does so too."""
    proxies = [config.proxy] if config.proxy else urllib.request.getproxies().values()
    return any(proxy.lower().startswith("socks") for proxy in proxies)


def _is_from(target: str, url: str) -> bool:
    """Whether a file was downloaded from this url; one of an earlier version does not tell, and counts."""
    try:
        return storage.read_bytes(f"{target}.url").decode() == unsigned(url)
    except FileNotFoundError:
        return True


def _file(url: str) -> Fetched:
    try:
        return Fetched(url, bytes=storage.size(url))
    except FileNotFoundError:
        return Fetched(url, "not_found", f"there is no {url}")
    except PermissionError as error:
        return Fetched(url, "forbidden", str(error))
    except AddressError as error:
        return Fetched(url, "bad_url", f"{error}, or an http(s) url")
    except OSError as error:
        if ends_the_run(error):
            raise
        return Fetched(url, CODE, message_of(error))


def _host(url: str) -> str:
    """The host of an http(s) url, in ASCII; raises ValueError where no host can have that address."""
    parts = urllib.parse.urlsplit(url)
    if found := re.search(r"[\x00-\x1f\x7f]", urllib.parse.urlunsplit(parts)):
        raise ValueError(f"it holds the control character {found[0]!r}")
    if not parts.hostname:
        raise ValueError("it names no host")
    _ = parts.port
    try:
        host = parts.hostname.encode("idna").decode()
    except UnicodeError:
        raise ValueError(f"the host {parts.hostname!r} has a part of 0 or of more than 63 characters") from None
    if len(host) > 253 or re.search(r"[\s\\<>\"^`{|}]", host):
        raise ValueError(f"{host!r} is no name of a host: 1 to 253 characters without spaces")
    return host


def _tries(video_id: str, config: FetchConfig) -> Retrying:
    """Calls what raises a Fault until it passes, at most `attempts` times and within `timeout_s`; raises the last."""

    def passing(fault: BaseException) -> bool:
        return isinstance(fault, Fault) and fault.code == "fetch_failed" and (fault.wait_s or 0) <= LONGEST_PAUSE_S

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


def _fault(state: RetryCallState) -> Fault:
    fault = state.outcome.exception() if state.outcome else None
    assert isinstance(fault, Fault)
    return fault


@contextmanager
def _slot(host: str, count: int) -> Iterator[None]:
    """One of the `count` places that this node has for a host; a process that dies gives its place back."""
    folder = private_folder("hosts")
    # File systems take names of 255 bytes.
    name = re.sub(r"^(www|m)\.", "", host).replace(":", "_")[-200:]
    while (place := _free(folder, name, count)) is None:
        time.sleep(random.uniform(0.1, 0.3))
    with place:
        yield


def _free(folder: Path, name: str, count: int) -> AcquireReturnProxy | None:
    for number in range(count):
        try:
            return FileLock(folder / f"{name}.{number}").acquire(blocking=False)
        except Timeout:
            continue
    return None


class _PlainFile:
    """A file that a host serves as it is; what a try has brought is kept for the next."""

    def __init__(self, url: str, folder: Path, config: FetchConfig) -> None:
        parts = urllib.parse.urlsplit(url)
        path, query = (urllib.parse.quote(part, safe="%/:=&?~+!$,;'@()*[]") for part in (parts.path, parts.query))
        self._url = urllib.parse.urlunsplit(parts._replace(path=path, query=query, fragment=""))
        self._path = folder / f"film{PurePosixPath(parts.path).suffix.lower()}"
        self._config = config
        self._version: str | None = None
        self._jar = http.cookiejar.MozillaCookieJar()
        if (cookies := _cookies(folder, config)) is not None:
            try:
                self._jar.load(cookies, ignore_discard=True, ignore_expires=True)
            except http.cookiejar.LoadError as error:
                raise UserError(
                    f"fetch.cookies: {config.cookies} is not a Netscape cookies.txt; export it again"
                ) from error
            for cookie in self._jar:
                # Browsers write 0 for a cookie of this session, which the jar takes for one of 1970.
                cookie.expires = cookie.expires or None

    def get(self, until: float) -> Path:
        """One try, until that monotonic time; returns the whole file."""
        import httpx2

        timeout_s = min(SILENCE_S, max(until - time.monotonic(), 0.1))
        headers = {"User-Agent": "Mozilla/5.0 (compatible; Filmray)", "Accept-Encoding": "identity"}
        # Only with a mark of its version may a file be put together from two tries.
        have = self._path.stat().st_size if self._version and self._path.exists() else 0
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": self._version or ""}
        try:
            with (
                httpx2.Client(
                    verify=certificates(),
                    cookies=self._jar,
                    proxy=self._config.proxy,
                    timeout=timeout_s,
                    follow_redirects=True,
                ) as client,
                client.stream("GET", self._url, headers=headers) as response,
            ):
                self._take(response, have, until)
        except httpx2.InvalidURL as error:
            raise Fault("bad_url", f"not a url: {error}") from error
        except UnicodeError as error:
            raise Fault("fetch_failed", f"the host leads on to an address that no host has: {error}") from error
        # Faults of the network only: a full disk is no fault of the video.
        except httpx2.HTTPError as error:
            raise Fault("fetch_failed", f"the connection failed: {str(error) or type(error).__name__}") from error
        return self._path

    def _take(self, response: "httpx2.Response", have: int, until: float) -> None:
        """Write what a response brings behind the `have` bytes that are there, or from the start."""
        import httpx2

        headers = response.headers
        if not response.is_success:
            if response.status_code == 416:
                self._version = None
            raise by_status(response.status_code, response.reason_phrase, headers.get("Retry-After"))
        start = have if response.status_code == 206 else 0
        if response.status_code == 206 and not headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise Fault("fetch_failed", "the host sent another part of the file than was asked for")
        if headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/html":
            raise Fault("not_a_video", f"the host sent a web page, not a film; if it asks for a login, {REMEDY}")
        told = "Content-Length" in headers and "Transfer-Encoding" not in headers
        total = start + int(headers["Content-Length"]) if told else None
        if total is not None and total > self._config.max_bytes:
            raise too_large(total, self._config)
        if total is not None:
            check_space(self._path.parent, total - start, self._url)
        tag = headers.get("ETag", "")
        self._version = tag if tag.startswith('"') else headers.get("Last-Modified")
        with open(self._path, "ab" if start else "wb") as file:
            try:
                for piece in response.iter_raw():
                    file.write(piece)
                    if file.tell() > self._config.max_bytes:
                        raise too_large(file.tell(), self._config)
                    if time.monotonic() > until:
                        raise _timeout(self._config)
            except httpx2.RemoteProtocolError as error:
                cut = f"after {file.tell()}" + ("" if total is None else f" of {total}")
                raise Fault("fetch_failed", f"the connection was cut {cut} bytes") from error


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
            if fault.code in ("stalled", "timeout"):
                raise _timeout(self._config) from fault
            # An exception is one of a page that the tool's authors did not think of: another try ends alike.
            code = "fetch_failed" if fault.code == "crashed" else fault.code
            raise Fault(code, f"{self._config.tool} failed: {fault}") from fault
        for code, message, wait_s in answers:
            raise Fault(code, message, wait_s)
        found = [path for path in self._folder.glob("film.*") if path.suffix not in (".part", ".ytdl")]
        if not found:
            raise Fault("fetch_failed", f"{self._config.tool} brought no file")
        path = max(found, key=lambda one: one.stat().st_size)
        if path.stat().st_size > self._config.max_bytes:
            raise too_large(path.stat().st_size, self._config)
        return path


def _cookies(folder: Path, config: FetchConfig) -> str | None:
    """A copy of the cookies, since yt-dlp writes into its file."""
    if config.cookies is None:
        return None
    storage.download(config.cookies, folder / "cookies.txt")
    return str(folder / "cookies.txt")


def _timeout(config: FetchConfig) -> Fault:
    return Fault("fetch_failed", f"not done after {config.timeout_s:.0f} s (fetch.timeout_s)")


CHECKED = FilmStage(stall_s=120, timeout_s=120).limits
"""What the check of a file may take."""


def _check(path: Path) -> None:
    """Raise the fault of a file of which no frame can be decoded."""
    try:
        answers = list(CHILD.stream(first_frame, str(path), **CHECKED))
    except ChildFault as fault:
        raise Fault(fault.code, f"its first frame: {fault}") from fault
    for code, message in answers:
        raise Fault(code, message)


def first_frame(path: str) -> Iterator[tuple[str, str]]:
    """Decode the first frame of a file; yields code and message where there is none. For the child process."""
    av.logging.set_level(None)
    try:
        open_film(path)
    except FilmError as error:
        # How large pictures may be, the settings of the decode pass say.
        if error.code != "too_large":
            yield error.code, str(error)
