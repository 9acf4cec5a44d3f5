"""torchcodec's side of decoding: the frames of a film by their index, in chunks, on a CPU or by NVDEC on a GPU.

torchcodec is exact only where an index tells the frames, and stops at the first damage: PyAV decodes the rest. What has
decoded a film is what the decoder says of itself, not what was asked for.
"""

import ctypes
import logging
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from actors.core.child import CHILD
from actors.core.errors import BrokenRunError, machine_fault
from actors.media.bars import BLACK, NO_BARS, Bars, Lines, Plane, look
from actors.media.clock import MATROSKA, MOV
from actors.media.vectors import Vectors

if TYPE_CHECKING:
    from actors.media.film import Film, Picture

logger = logging.getLogger(__name__)

CHUNK_BYTES = 64 << 20
"""About as much of full-size frames is fetched at once, and no more of them than CHUNK_FRAMES."""
CHUNK_FRAMES = {"cpu": 16, "cuda": 64}
FILM_BYTES = 3 << 29
"""GPU memory that is counted for one film that a GPU decodes: a CUDA context, two decoders, a chunk of frames while it
is scaled, and the frames of 1080p that are held until it is known to which shot they belong. A process that decoded
1080p took 1,447 MiB of an H100; for 4K about twice that is assumed."""
NVDEC, ON_CPU, PYAV = "nvdec", "torchcodec-cpu", "pyav"
"""What has decoded a film; joined by + where PyAV went on."""
NO_DRIVER_LIBRARY = (
    "NVIDIA's driver has no libnvcuvid here; in containers set NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
)


class _Chunk:
    """Frames that were fetched together.

    What is asked for of more than one of them is made of all at once, with one copy to the host.
    """

    def __init__(self, frames: Any, on_gpu: bool, often: set[Any]) -> None:
        """frames: a tensor uint8 (N, 3, H, W). often: what was asked for more than once in a film's chunk so far."""
        self._frames, self._on_gpu, self._often = frames, on_gpu, often
        self._asked: set[Any] = set()
        self._made: dict[Any, np.ndarray] = {}

    @property
    def nbytes(self) -> int:
        return self._frames.untyped_storage().nbytes()

    def scaled(self, number: int, height: int, width: int, smooth: bool, bars: Bars) -> np.ndarray:
        """One of them inside of bars at that size: uint8 (height, width, 3)."""
        # On a CPU what is smooth takes long, and not all frames are sampled.
        alone = smooth and not self._on_gpu
        wanted = (height, width, smooth, bars)
        return self._of(number, wanted, lambda frames: _scaled(frames, *wanted), alone)

    def brightest(self, number: int) -> np.ndarray:
        """The brightest colour of each pixel of one of them: uint8 (H, W)."""
        return self._of(number, None, lambda frames: frames.amax(1).cpu().numpy(), not self._on_gpu)

    def _of(self, number: int, wanted: Any, make: Callable[[Any], np.ndarray], alone: bool) -> np.ndarray:
        if alone or (wanted not in self._often and wanted not in self._asked):
            self._asked.add(wanted)
            return make(self._frames[number : number + 1])[0]
        self._often.add(wanted)
        if wanted not in self._made:
            self._made[wanted] = make(self._frames)
        # A view would keep all of them.
        return self._made[wanted][number].copy()


def _scaled(frames: Any, height: int, width: int, smooth: bool, bars: Bars) -> np.ndarray:
    from torchvision.transforms.v2.functional import resize

    down, across = frames.shape[2:]
    inside = frames[:, :, bars.top : down - bars.bottom, bars.left : across - bars.right]
    return resize(inside, [height, width], antialias=smooth).permute(0, 2, 3, 1).contiguous().cpu().numpy()


class TorchPicture:
    """A `Picture` that torchcodec has decoded."""

    __slots__ = ("_chunk", "_number", "after_hole", "interlaced", "time", "until")
    deinterlaced = False
    duration = 0.0  # what torchcodec says of it is wrong where the rate varies
    damaged = False

    def __init__(self, chunk: _Chunk, number: int, time: float, interlaced: bool) -> None:
        self._chunk, self._number, self.time, self.interlaced = chunk, number, time, interlaced
        self.until, self.after_hole = time, False

    @property
    def nbytes(self) -> int:
        """Memory that it takes while it is held, in bytes: the frames that were fetched with it stay, too."""
        return self._chunk.nbytes

    def scaled(self, width: int, height: int, smooth: bool = True, bars: Bars = NO_BARS) -> np.ndarray:
        """The upright frame inside of bars at that size: uint8 (height, width, 3) RGB."""
        return self._chunk.scaled(self._number, height, width, smooth, bars)

    def lines(self) -> Lines:
        """What may be black bars in the upright frame, in pixels as they are stored."""
        return look([Plane(self._chunk.brightest(self._number), 0, BLACK - 1)])

    def vectors(self) -> Vectors | None:
        return None


def _library() -> Any:
    """torchcodec's decoders; importing them takes seconds."""
    try:
        from torchcodec import decoders
    except (ImportError, RuntimeError, OSError) as error:
        raise BrokenRunError(
            f"video.decoder=torchcodec needs the extra `torchcodec` and FFmpeg's shared libraries "
            f"(Debian: apt-get install ffmpeg): {error}"
        ) from error
    return decoders


def with_torchcodec(film: "Film", path: str, device: str, start: float) -> "Iterator[Picture]":
    """The pictures of a film as torchcodec decodes them, and from where it cannot go on, as PyAV does.

    Raises BrokenRunError where the library, the GPU or its memory is at fault. `film.decoder` and `film.fallback` are
    those of the pictures so far.
    """
    decoder = _library().VideoDecoder
    pyav = film.pictures

    def pictures() -> "Iterator[Picture]":
        done, kind = 0, _unfit(film)
        why = kind
        if not kind:
            try:
                for picture in _decoded(film, decoder, path, device, start):
                    done += 1
                    yield picture
                return
            except BrokenRunError:
                raise
            except (RuntimeError, ValueError, IndexError) as error:
                if fault := machine_fault(error):
                    raise BrokenRunError(f"{_machine()}: torchcodec cannot decode on the {device}: {fault}") from error
                why = str(error).partition("\n")[0]
        film.decoder = f"{film.decoder}+{PYAV}" if done else PYAV
        film.fallback = f"from frame {done} on decoded by PyAV: {why}"
        _tell(film, kind)
        yield from islice(pyav, done, None)

    return pictures()


def _decoded(film: "Film", kind: Any, path: str, device: str, start: float) -> Iterator[TorchPicture]:
    """The pictures of a film by torchcodec's VideoDecoder; raises what that raises, or ValueError."""
    decoder = kind(path, stream_index=film.stream, device=device, num_ffmpeg_threads=1)
    end = decoder.metadata.end_stream_seconds
    if end is None or film.falls_short(end - start):
        raise ValueError("it ends before its declared end")
    often: set[Any] = set()
    step = max(1, min(CHUNK_FRAMES[device], CHUNK_BYTES // (3 * film.width * film.height)))
    for first in range(0, len(decoder), step):
        batch = decoder.get_frames_in_range(first, min(first + step, len(decoder)))
        if not first:
            film.decoder, film.fallback = _word(decoder, device)
            if film.fallback:
                _tell(film, kind=f"{film.codec}: {film.fallback}")
        chunk = _Chunk(batch.data, device == "cuda", often)
        for number, time in enumerate((batch.pts_seconds - start).tolist()):
            yield TorchPicture(chunk, number, time, film.interlaced)


def _unfit(film: "Film") -> str:
    """Why a film is left to PyAV from the start; "" where it is not."""
    if film.container not in (MOV, MATROSKA):
        return "its container has no index of its frames"
    if film.truncated:
        return "it breaks off before its declared end"
    if film.look.deinterlace and film.interlaced:
        return "its frames are to be deinterlaced"
    if done := sorted(set(film.converted) - {"rotated"}):
        return f"its frames are to be {', '.join(done)}"
    return ""


def _word(decoder: Any, device: str) -> tuple[str, str]:
    """What decodes a film, by the decoder's own word, and why that is not the GPU which was asked for."""
    if device == "cpu":
        return ON_CPU, ""
    status = decoder.cpu_fallback
    if status.status_known and not status:
        return NVDEC, ""
    if "NVcuvid unavailable" in str(status):
        raise BrokenRunError(f"{_machine()}: torchcodec cannot decode on the GPU: {NO_DRIVER_LIBRARY}")
    return ON_CPU, f"decoded on the CPU, not by NVDEC: {str(status).rpartition(': ')[2]}"


_TOLD: set[str] = set()


def _tell(film: "Film", kind: str) -> None:
    """Log why a film is not decoded by what was asked for; of a kind of film, if it is of one, only the first."""
    if kind not in _TOLD:
        others = f" (as are other films of {film.codec} in {film.container})" if kind else ""
        logger.warning("%s: %s%s", film.path, film.fallback, others)
    if kind:
        _TOLD.add(kind)


@cache
def check_nvdec(num_gpus: float) -> None:
    """Raise BrokenRunError where this process cannot decode on a GPU, or its share of it is too small for a film.

    Also bounds the decoders that torchcodec keeps for the next film.
    """
    decoders = _library()
    import torch

    try:
        there = torch.cuda.mem_get_info()[1]
        decoders.set_nvdec_cache_capacity(1)
    except (RuntimeError, AssertionError) as error:
        said = str(error).partition("\n")[0]
        raise BrokenRunError(
            f"{_machine()}: video.num_gpus={num_gpus:g}, and torch cannot use a GPU: {said}. Mend its driver, or set "
            "video.num_gpus=0"
        ) from error
    if not _has_nvcuvid():
        raise BrokenRunError(f"{_machine()}: video.num_gpus={num_gpus:g} cannot use NVDEC: {NO_DRIVER_LIBRARY}")
    if min(num_gpus, 1) * there < FILM_BYTES:
        least = min(1.0, math.ceil(1000 * FILM_BYTES / there) / 1000)
        raise BrokenRunError(
            f"{_machine()}: video.num_gpus={num_gpus:g} is {num_gpus * there / 2**30:.1f} GiB of a GPU with "
            f"{there / 2**30:.1f} GiB, and a film takes about {FILM_BYTES / 2**30:.1f} GiB: set "
            f"video.num_gpus={least:g}"
        )


def _has_nvcuvid() -> bool:
    # As torchcodec looks for it.
    for name in ("libnvcuvid.so", "libnvcuvid.so.1"):
        with suppress(OSError):
            ctypes.CDLL(name)
            return True
    return False


def _machine() -> str:
    return socket.gethostname()


def nvdec_checked(num_gpus: float) -> Iterator[bool]:
    """`check_nvdec`, as a decoding process is called."""
    check_nvdec(num_gpus)
    yield True


def check_worker(num_gpus: float) -> bool:
    """`check_nvdec` in the decoding process of this worker, which its films have, too."""
    return all(CHILD.stream(nvdec_checked, num_gpus, stall_s=300, timeout_s=300))
