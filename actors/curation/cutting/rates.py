"""How fast a film is decoded by NVDEC and on one CPU: by it films are divided among both."""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import av.logging

from actors.core import storage
from actors.core.addresses import AddressError
from actors.core.child import CHILD, ChildFault
from actors.media.film import FilmError, VideoConfig, opened
from actors.media.torch_decoding import CHUNK_FRAMES, NVDEC, ON_CPU

SMALL = (128, 72)
"""Frames are scaled as for finding shots, about."""
FRAMES = 1024
"""Frames that are measured, at most."""
WARM = CHUNK_FRAMES["cuda"]
"""Frames before these: the library and the GPU start with them."""


def speeds(path: str, video: VideoConfig) -> Iterator[dict[str, float] | None]:
    """Yield the frames a second by what decodes: nvdec, torchcodec-cpu; None: alive.

    {} for a film that cannot be read, is too short, or is left to another decoder. Raises BrokenRunError where a GPU is
    to decode and cannot.
    """
    av.logging.set_level(None)
    found: dict[str, float] = {}
    for word, settings in ((NVDEC, video), (ON_CPU, replace(video, num_gpus=0.0))):
        try:
            film = opened(path, settings)
        except FilmError:
            yield {}
            return
        begun, frames = time.monotonic(), 0
        for number, picture in enumerate(islice(film.pictures, WARM + FRAMES)):
            if number == WARM:
                begun = time.monotonic()
            picture.scaled(*SMALL, smooth=False)
            frames = number - WARM
            yield None
        if film.decoder != word or frames <= 0:
            yield {}
            return
        found[word] = frames / max(1e-9, time.monotonic() - begun)
    yield found


def measured(uri: str, video: VideoConfig) -> dict[str, float]:
    """`speeds` in the decoding process of a worker; {} for a film that cannot be read."""
    try:
        with storage.local(uri) as path:
            *_, found = CHILD.stream(speeds, str(path), video, **video.limits)
            return found
    except (ChildFault, OSError, AddressError):
        return {}
