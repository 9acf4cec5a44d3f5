"""The page on which a person labels scenes: 1 good, 0 bad, s skip, u undo, q stop.

It is served on this machine alone. Served on another address it wants a token in every request, and since it speaks
plain HTTP, an SSH tunnel is the better way to it from elsewhere.

What a stranger could try, and what is in the way:
    another site posts labels     a POST needs an Origin that is this host, and JSON
    another site's name resolves to this machine (DNS rebinding)     on loopback, Host has to be loopback, too
    a path that leaves the output     there are no paths: a clip is asked for by its scene, which has to be the current
    a caption with markup     captions travel as JSON and become text; no script runs but the page's own
"""

import asyncio
import hmac
import ipaddress
import math
import secrets
import shlex
import signal
import socket
from base64 import b64encode
from collections.abc import Awaitable, Callable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from actors.core.errors import UserError
from actors.core.stage import Row
from actors.core.store import Store
from actors.curation.cutting.scenes import FEATURES
from actors.curation.selecting.filter import load_filter, place
from pipelines.curation.selecting.annotate import (
    AHEAD,
    BACK,
    ClipError,
    Clips,
    NotCurrentError,
    Session,
    key_frames,
    scenes_to_label,
    with_key_frames,
)
from pipelines.curation.selecting.label_settings import AnnotateConfig
from pipelines.curation.selecting.labels import read_labels
from pipelines.curation.settings import CurationConfig, measured_by

TOKEN = "FILMRAY_TOKEN"
"""The environment variable that holds the token."""
TOKEN_LENGTH = 16
"""A token has at least so many characters."""
_SCENE = ("video_id", "scene_id", "caption", "start_s", "end_s", "width", "height")
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def annotate(config: AnnotateConfig, run: CurationConfig, token: str | None) -> None:
    """Serve the page until the person stops; prints its address, and at the end a summary.

    run: the settings that the output was made with. Raises ValueError for an address or token that does not do.
    """
    check_host(config.host, token)
    labels, own = config.files()
    model, store = None, Store(config.output)
    if config.order == "uncertain":
        model = load_filter(place(config.output, config.filter), measured_by(run), store)
    everyone = read_labels(labels)
    asked = scenes_to_label(store, config.per_video, config.seed, model, everyone.get(PurePosixPath(own).stem))
    session = Session(asked.scenes, own, everyone, asked.beyond)
    asyncio.run(_serve(session, Clips(session.scenes, run), config, token))
    print("\n".join(summary(session, config)))


def check_host(host: str, token: str | None) -> None:
    """Raise UserError where others could reach the page without a token, or guess it."""
    if token is not None and len(token) < TOKEN_LENGTH:
        raise UserError(f"{TOKEN} has {len(token)} characters: a token needs at least {TOKEN_LENGTH}")
    if token is not None and not (token.isascii() and token.isprintable() and token == token.strip()):
        raise UserError(f"{TOKEN} does not fit into a header: plain letters, digits and signs do")
    if token is None and not _is_loopback(host):
        raise UserError(
            f"host={host} can be reached by others: put a token of at least {TOKEN_LENGTH} characters into {TOKEN}, "
            "or leave host out and come through an SSH tunnel"
        )


def summary(session: Session, config: AnnotateConfig) -> list[str]:
    """What was done, in lines; the last is the command that comes next."""
    said = session.answers
    now = f"{said.count(1)} good, {said.count(0)} bad, {said.count(None)} skipped"
    lines = [f"{session.annotator}: {now} now; {len(session.labels)} labels in {session.file}"]
    for name, found in session.agreement().items():
        kappa = "unknown" if math.isnan(found.kappa) else f"{found.kappa:.2f}"
        lines.append(f"agreement with {name}: {found.share:.0%} of {found.scenes} scenes, κ {kappa}")
    where = [] if config.labels is None else [f"labels={config.labels}"]
    following = ["python", "-m", "jobs.curation", "fit-filter", config.output, *where]
    return [*lines, f"next: {shlex.join(following)}"]


class Page:
    """The page's requests."""

    def __init__(self, session: Session, clips: Clips, config: AnnotateConfig, token: str | None) -> None:
        self.stopped = asyncio.Event()
        self._session, self._clips, self._token = session, clips, token
        self._config, self._only_loopback = config, _is_loopback(config.host)
        self._store = Store(config.output)
        self._still = with_key_frames(self._store, session.scenes) if config.show == "keyframes" else set[int]()
        # One answer after the other: a file is read, changed and written.
        self._lock = asyncio.Lock()
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
        )
        self._template = environment.get_template("annotate.html.j2")

    def app(self) -> web.Application:
        """The application to serve."""
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 16)
        app.on_response_prepare.append(_add_headers)
        app.add_routes(
            [
                web.get("/", self._page),
                web.get("/state", self._tell),
                web.get("/clip", self._clip),
                web.get("/pictures", self._pictures),
                web.post("/answer", self._answer),
                web.post("/undo", self._undo),
                web.post("/stop", self._stop),
            ]
        )
        self._look_ahead()
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if self._only_loopback and not _is_loopback(_hostname(host)):
            return _refused(403, f"this page is not at {host}")
        if self._token is not None:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ") or request.query.get("token", "")
            if not hmac.compare_digest(given.encode(errors="surrogateescape"), self._token.encode()):
                return _refused(403, "the address needs the token that was printed with it")
        if request.method == "POST":
            if request.headers.get("Origin") not in (f"http://{host}", f"https://{host}"):
                return _refused(403, "only the page itself may answer")
            if request.content_type != "application/json":
                return _refused(415, "answers are JSON")
        return await handler(request)

    async def _page(self, request: web.Request) -> web.Response:
        nonce = secrets.token_urlsafe(16)
        page = web.Response(
            text=self._template.render(nonce=nonce, question=self._config.question), content_type="text/html"
        )
        page.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "media-src blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return page

    async def _tell(self, request: web.Request) -> web.Response:
        return web.json_response(self._state())

    def _asked(self, request: web.Request) -> Row | None:
        """The current scene, where a request is for it."""
        current = self._session.current()
        asked = request.query.get("video_id"), request.query.get("scene_id")
        return current if current and asked == (current["video_id"], current["scene_id"]) else None

    async def _pictures(self, request: web.Request) -> web.StreamResponse:
        """The scene's key frames as data URLs; none where it is to play."""
        current = self._asked(request)
        if current is None:
            return _refused(404, "this scene is not asked for")
        place = self._session.ahead(1)[0]
        files = await asyncio.to_thread(key_frames, self._store, current) if place in self._still else []
        if not files:
            self._still.discard(place)
            self._look_ahead()
        return web.json_response([f"data:image/jpeg;base64,{b64encode(data).decode()}" for data in files])

    async def _clip(self, request: web.Request) -> web.StreamResponse:
        if self._asked(request) is None:
            return _refused(404, "this scene is not asked for")
        try:
            clip = self._clips.clip(self._session.ahead(1)[0])
            # Who no longer waits for a clip does not keep it from being cut.
            path = await asyncio.shield(asyncio.wrap_future(clip))
        except ClipError as error:
            return _refused(422, str(error))
        return web.FileResponse(path)

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            asked = await request.json()
            key, label = (asked["video_id"], asked["scene_id"]), asked["label"]
        except (ValueError, TypeError, LookupError, RecursionError):
            # Also bytes that are not of the charset, a charset that nobody knows, and brackets without end.
            return _refused(400, "an answer is {video_id, scene_id, label}")
        if not (label is None or (type(label) is int and label in (0, 1))):
            return _refused(400, "a label is 1 for good, 0 for bad, or null to skip")
        return await self._step(lambda: self._session.answer(key, label))

    async def _undo(self, request: web.Request) -> web.Response:
        return await self._step(self._session.undo)

    async def _stop(self, request: web.Request) -> web.Response:
        async with self._lock:
            self.stopped.set()
            return web.json_response({"summary": summary(self._session, self._config)})

    async def _step(self, act: Callable[[], None]) -> web.Response:
        async with self._lock:
            try:
                await asyncio.to_thread(act)
            except NotCurrentError as error:
                return _refused(409, str(error))
            except (OSError, ValueError) as error:
                return _refused(500, f"not saved: {error}")
            self._look_ahead()
            return web.json_response(self._state())

    def _look_ahead(self) -> None:
        self._clips.want(place for place in self._session.ahead(1 + AHEAD) if place not in self._still)
        old = self._session.past(BACK + 1)
        if old is not None:
            self._clips.forget(old)

    def _state(self) -> dict[str, Any]:
        session = self._session
        row = session.current()
        scene = None
        if row is not None:
            features = {name: float(f"{row[name]:.4g}") for name in FEATURES}
            scene = {name: _plain(row[name]) for name in _SCENE} | {"features": features}
        return {
            "scene": scene,
            "annotator": session.annotator,
            "labels": {"good": sum(session.labels.values()), "all": len(session.labels)},
            "left": session.left,
            "still": self._config.show == "keyframes",
            "can_undo": bool(session.answers),
            "agreement": [
                {"with": name, "scenes": found.scenes, "share": found.share, "kappa": _plain(found.kappa)}
                for name, found in session.agreement().items()
            ],
        }


async def _serve(session: Session, clips: Clips, config: AnnotateConfig, token: str | None) -> None:
    page = Page(session, clips, config, token)
    # An open page keeps its connection; nothing that matters is on its way when the person has stopped.
    runner = web.AppRunner(page.app(), access_log=None, shutdown_timeout=1)
    try:
        await runner.setup()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, page.stopped.set)
        try:
            await web.TCPSite(runner, config.host, config.port).start()
        except OSError as error:
            what = f"host={config.host} port={config.port} cannot be had ({error.strerror or error})"
            raise UserError(f"{what}: name another, or port=0 for a free one") from error
        url = _url(config.host, runner.addresses[0][1], token)
        print(f"label at {url} (q there, or Ctrl-C here, ends it)", flush=True)
        await page.stopped.wait()
    finally:
        await asyncio.to_thread(clips.stop)
        await runner.cleanup()


def _url(host: str, port: int, token: str | None) -> str:
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/" + (f"?token={quote(token, safe='')}" if token else "")


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _plain(value: Any) -> Any:
    """A value of a table as JSON has it; null where it is missing."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _refused(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status)


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
