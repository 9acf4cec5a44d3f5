"""Which streams of a file are the film: its pictures and its sound."""

import av
from av.container import InputContainer
from av.stream import Disposition

_NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_STILLS = frozenset(
    {"mjpeg", "mjpegb", "png", "apng", "bmp", "gif", "webp", "tiff", "jpeg2000", "jpegls", "jpegxl", "targa"}
)
"""Codecs of covers and thumbnails, which often are not marked as such; beside another codec they are not the film."""


def film_stream(container: InputContainer) -> av.VideoStream | None:
    """The pictures of a film: of what a decoder knows the default, else the largest; never a cover or thumbnails."""
    streams = [s for s in container.streams.video if not s.disposition & _NO_FILM]
    return max(streams, key=_preference, default=None)


def _preference(stream: av.VideoStream) -> tuple[bool, bool, bool, int, int]:
    context = stream.codec_context
    if context is None:
        return False, False, False, 0, -stream.index
    default = bool(stream.disposition & Disposition.default)
    return True, context.name not in _STILLS, default, context.width * context.height, -stream.index


def sound_stream(container: InputContainer) -> av.AudioStream | None:
    """The first sound of a film that a decoder knows; None where there is none."""
    return next((stream for stream in container.streams.audio if stream.codec_context is not None), None)
