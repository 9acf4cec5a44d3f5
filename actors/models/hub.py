"""Whether the Hugging Face Hub has a model, asked once and without waiting, before a run begins; and which one a local
folder holds."""

import hashlib
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

from actors.core.errors import UserError

log = logging.getLogger(__name__)

TIMEOUT_S = 10
"""Seconds for one answer. Where there is no network, the library's own downloads try again for half a minute a file."""

AGAIN_S = 60
"""Seconds for which a host that did not answer is not asked again: a command may need several models."""

_away: dict[str, tuple[float, Exception]] = {}
"""When a host did not answer, and what was met, by its address."""
_NEEDED = ContextVar("_NEEDED", default=True)


@contextmanager
def unreachable_is_told() -> Iterator[None]:
    """Within it a Hub that does not answer costs a warning, not the command: for commands that download nothing."""
    token = _NEEDED.set(False)
    try:
        yield
    finally:
        _NEEDED.reset(token)


def check_hub(setting: str, repository: str, files: Sequence[str], instead: str) -> bool:
    """Raise UserError where a repository has none of some files and none was downloaded before.

    setting: what the user set, as name=value; instead: what to pass instead, in words. Returns False where the Hub does
    not answer and that is only to be told.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    problem: Exception | None = None
    try:
        if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
            return True
        if away := _known_away(constants.ENDPOINT):
            raise away
        for file in files:
            try:
                get_hf_file_metadata(hf_hub_url(repository, file), timeout=TIMEOUT_S)
                return True
            except HfHubHTTPError as error:
                # What is said of the first file counts: it is the one that most repositories have.
                problem = problem or error
    except HFValidationError as error:
        problem = error
    except Exception as error:  # The library lets through what its HTTP client raises.
        _away[constants.ENDPOINT] = time.monotonic(), error
        problem = error
        if not _NEEDED.get():
            log.warning("%s: the Hugging Face Hub does not answer (%s)", setting, first_line(error))
            return False
    raise UserError(
        f"{setting} cannot be downloaded from the Hugging Face Hub ({first_line(problem)}). Pass {instead}, or set "
        "HF_TOKEN."
    ) from problem


def check_host(setting: str, address: str, instead: str) -> None:
    """Raise UserError where a host, from which a model is to be downloaded, does not answer within TIMEOUT_S.

    setting: what the user set, as name=value; instead: what to pass instead, in words.
    """
    problem = _known_away(address)
    if problem is None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=TIMEOUT_S):
                return
        except urllib.error.HTTPError:
            return
        except OSError as error:
            _away[address] = time.monotonic(), error
            problem = error
    reason = first_line(getattr(problem, "reason", problem))
    if not _NEEDED.get():
        log.warning("%s: %s does not answer (%s)", setting, address, reason)
        return
    raise UserError(
        f"{setting} cannot be downloaded: {address} does not answer ({reason}). Pass {instead}."
    ) from problem


def _known_away(address: str) -> Exception | None:
    when, problem = _away.get(address, (-AGAIN_S, None))
    return problem if time.monotonic() - when < AGAIN_S else None


def first_line(problem: object) -> str:
    """The beginning of a message, without a stop at its end."""
    return str(problem).strip().partition("\n")[0].rstrip(".")


def local_digest(*names: str | None) -> str:
    """12 hexadecimal digits of settings and weights in those of the names that are local folders or files; "" for none.

    Weights are read once in a process: a second for one or two gigabytes.
    """
    paths = [Path(name) for name in names if name]
    files = [
        file
        for path in paths
        for file in ([path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else [])
        if file.suffix in (".json", ".safetensors", ".bin", ".pt", ".pth")
    ]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256("".join(_digest(*one) for one in stats).encode()).hexdigest()[:12] if files else ""


@lru_cache(32)
def _digest(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def downloaded_files(repository: str) -> dict[str, int]:
    """Size in bytes of each file of a repository that was downloaded, by its path in it."""
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}", "snapshots")
    files = {path.relative_to(snapshots): path.stat().st_size for path in snapshots.rglob("*") if path.is_file()}
    return {Path(*path.parts[1:]).as_posix(): size for path, size in files.items()}


@lru_cache(64)
def hub_files(repository: str) -> dict[str, int]:
    """Size in bytes of each file of a repository, by its path in it, as the Hub says; none where it does not."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        if _known_away(constants.ENDPOINT):
            return {}
        found = HfApi(constants.ENDPOINT).model_info(repository, files_metadata=True, timeout=TIMEOUT_S)
    except (HfHubHTTPError, HFValidationError):
        return {}
    except Exception as error:  # The library lets through what its HTTP client raises.
        _away[constants.ENDPOINT] = time.monotonic(), error
        return {}
    return {one.rfilename: one.size or 0 for one in found.siblings or ()}
