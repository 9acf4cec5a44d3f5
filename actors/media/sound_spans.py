"""The sound of spans of a film, without its pictures."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

import av
import av.logging
import numpy as np
from av.error import FFmpegError

from actors.core import storage
from actors.core.addresses import local_path
from actors.media.clock import MATROSKA, MOV, Clock
from actors.media.film import JUMP_S, Beat, FilmError
from actors.media.formats import open_container
from actors.media.sound import Sound
from actors.media.streams import film_stream, sound_stream

logger = logging.getLogger(__name__)

SKIP_S = 60.0
"""Seconds of sound that are passed over between two signs of life."""


def sound_of(
    path: str, spans: Iterable[tuple[float, float]], rate: int = 48_000, steady: bool = False
) -> Iterator[np.ndarray | None]:
    """Yield the sound of each span of a film: float32 (channels, samples), -1 to 1; None: still alive.

    path: local or s3://. spans: start and end in seconds, by their starts; they may overlap. rate: samples a second,
    to which sound of another rate is resampled. steady: the film's clock is known not to jump, so that Matroska is
    sought in, too; mp4 and mov always are.

    A span has round(end_s · rate) - round(start_s · rate) samples, of mono, stereo or 5.1 (FL FR FC LFE BL BR); silent
    where the sound is damaged or not there. (0, 0) for all spans of a film that has no sound. Raises FilmError.
    """
    av.logging.set_level(None)
    source = storage.stream(path) if path.startswith("s3://") else os.path.abspath(local_path(path))
    try:
        container = open_container(source)
    except (FFmpegError, ValueError) as error:
        raise FilmError("not_a_video", f"no container that can be read: {error}") from error
    with container:
        video, stream = film_stream(container), sound_stream(container)
        if video is None:
            raise FilmError("no_video_stream", "the file holds no moving pictures")
        if stream is None and container.streams.audio:
            raise FilmError("unknown_codec", "no decoder knows the codec of its sound")
        if stream is None:
            yield from (np.zeros((0, 0), np.float32) for _ in spans)
            return
        stream.codec_context.thread_count = 1
        sought = container.format.name in (MOV, MATROSKA) and (steady or Clock(container, video, stream).steady)
        sound = Sound(container, stream, video, (container.start_time or 0) / av.time_base, rate)
        yield from _spans(sound, spans, sought)


def _spans(sound: Sound, spans: Iterable[tuple[float, float]], sought: bool) -> Iterator[np.ndarray | None]:
    beat = Beat()
    # What was read last, from that time to that: a span that overlaps the one before begins in it.
    from_s, at_s, held = 0.0, 0.0, _nothing(sound)
    for start_s, end_s in spans:
        if start_s >= at_s:
            yield from _passed(sound, at_s, start_s, sought)
            from_s, at_s, held = start_s, start_s, _nothing(sound)
        pieces = [held]
        while at_s < end_s:
            until = min(at_s + 1, end_s)
            pieces += _read(sound, at_s, until)
            at_s = until
            yield from beat
        first = sound.sample(start_s) - sound.sample(from_s)
        held, from_s = np.concatenate(pieces, axis=1)[:, first:], start_s
        yield held[:, : sound.sample(end_s) - sound.sample(start_s)]


def _nothing(sound: Sound) -> np.ndarray:
    return np.zeros((sound.channels, 0), np.float32)


def _read(sound: Sound, start_s: float, end_s: float) -> list[np.ndarray]:
    try:
        return [piece for _, piece, _ in sound.pieces(start_s, end_s)]
    except FFmpegError as error:
        # Its decoder has ended with that: all that follows is silent.
        logger.warning("the sound cannot be read on at %.0f s: %s", start_s, error)
        return [piece for _, piece, _ in sound.pieces(start_s, end_s)]


def _passed(sound: Sound, at_s: float, start_s: float, sought: bool) -> Iterator[None]:
    """Go on at a time; yields None while sound is decoded on the way."""
    if sought and start_s > at_s + JUMP_S:
        sound.jump(start_s)
        return
    while at_s < start_s:
        at_s = min(at_s + SKIP_S, start_s)
        with suppress(FFmpegError):
            sound.skip(at_s)
        yield None
