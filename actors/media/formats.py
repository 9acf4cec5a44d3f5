"""Which files are opened as films: formats that hold their pictures themselves, never lists of other files.

FFmpeg follows a list whatever the file's name is: an ffconcat or HLS file called film.mp4 would bring the contents of
its neighbours. Formats and protocols are therefore allow-lists, also for files that such a format opens in turn.
"""

import re
from contextlib import AbstractContextManager, suppress
from typing import Any, BinaryIO, cast

import av
import av.logging
from av.container import InputContainer
from av.error import FFmpegError

from actors.media.limits import MAX_PIXELS

FORMATS = (
    # Containers of films.
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpegtsraw", "mpeg", "mpegvideo"),
    *("flv", "live_flv", "kux", "ogg", "asf", "asf_o", "mxf", "mxg", "gxf", "lxf", "nut", "nuv", "nsv", "rm", "ivr"),
    *("wtv", "pva", "ty", "dhav", "dv", "swf", "ivf", "iv8", "lvf", "vivo", "vividas", "usm", "xmv", "pmp", "mtv"),
    *("bink", "smk", "roq", "flic", "film_cpk", "filmstrip", "moflex", "mods", "thp", "r3d", "cine", "ser", "cdxl"),
    # Coded or plain pictures without a container.
    *("h261", "h263", "h264", "hevc", "vvc", "evc", "m4v", "av1", "obu", "apv", "dirac", "vc1", "vc1test", "dnxhd"),
    *("avs2", "avs3", "cavsvideo", "hxvs", "ipu", "mjpeg", "mpjpeg", "smjpeg", "ingenient", "mjpeg_2000"),
    *("rawvideo", "yuv4mpegpipe", "v210", "v210x", "bitpacked"),
    # Animations and single pictures.
    *("gif", "apng", "webp", "webp_anim", "jpegxl_anim", "gif_pipe", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe"),
    *("tiff_pipe", "jpegxl_pipe", "j2k_pipe", "jpegls_pipe", "dpx_pipe", "exr_pipe", "ppm_pipe", "pgm_pipe"),
    # Sound, so that a file without pictures is reported as one.
    *("wav", "w64", "mp3", "aac", "flac", "aiff", "caf", "au", "ac3", "eac3", "dts", "truehd", "amr", "ape", "wv"),
    *("tta", "mpc", "mpc8", "loas"),
)
"""FFmpeg's names of the formats that are opened. None of them reads another file."""

OPTIONS = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
"""FFmpeg's options of every film that is opened."""
_REFUSED_SIZE = re.compile(r"size (\d+x\d+) (?:exceeds|is invalid)")
"""Beyond max_pixels, or beyond FFmpeg's own bound, about 16,000 x 16,000."""
_REFUSED_STREAMS = re.compile(r"max_streams (?:parameter )?\((\d+)\)")
_LISTS = {
    "an ffconcat list": rb"ffconcat ",
    "an HLS playlist": rb"#EXTM3U",
    "a DASH manifest": rb"(<\?xml[^>]*>\s*(<!--.*?-->\s*)*)?<MPD\b",
    "an IMF playlist": rb"(<\?xml[^>]*>\s*(<!--.*?-->\s*)*)?<(\w+:)?CompositionPlaylist\b",
    "an SDP session": rb"v=0\r?\n",
    "a VobSub index": rb"# VobSub index file",
}
"""How lists of other files begin, by what they are."""
_HEAD = 4096


def open_container(
    source: str | BinaryIO | AbstractContextManager[BinaryIO], max_pixels: int = MAX_PIXELS
) -> InputContainer:
    """Open a film for reading; raises FFmpegError or ValueError where it is none, or a list of others.

    max_pixels: larger pictures are not decoded when the file is probed, where its streams are known before that.
    """
    options = OPTIONS | decoder_options(max_pixels)
    return cast(InputContainer, av.open(cast(Any, source), "r", metadata_errors="replace", options=options))


def decoder_options(max_pixels: int) -> dict[str, str]:
    """FFmpeg's options of a decoder that refuses larger pictures; its own are padded to whole blocks."""
    return {"max_pixels": str(max_pixels + max_pixels // 8 + 4096)}


def refusal(
    source: str | BinaryIO | AbstractContextManager[BinaryIO], max_pixels: int = MAX_PIXELS, stream: int | None = None
) -> str:
    """Why FFmpeg takes a film, or the pictures of a stream, for too large; "" where that is not why it fails.

    It forgets what it refuses, and tells it in its log only.
    """
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    # Else lines that another film repeated come out in this one's.
    av.logging.set_skip_repeated(False)
    try:
        with (
            av.logging.Capture() as lines,
            suppress(FFmpegError, ValueError, StopIteration),
            open_container(source, max_pixels) as container,
        ):
            if stream is not None:
                pictures = container.streams[stream]
                pictures.codec_context.options = decoder_options(max_pixels)
                next(container.decode(cast(Any, pictures)))
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips)
    for _, _, text in lines:
        if found := _REFUSED_SIZE.search(text):
            return f"pictures of {found[1]} pixels, more than max_pixels={max_pixels}"
        if found := _REFUSED_STREAMS.search(text):
            return f"more streams than {found[1]}"
    return ""


def listing_kind(file: BinaryIO) -> str | None:
    """What kind of list of other files this is, by its first bytes; None where it is not one."""
    file.seek(0)
    head = file.read(_HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((kind for kind, start in _LISTS.items() if re.match(start, head, re.DOTALL)), None)
