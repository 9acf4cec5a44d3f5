"""Small files that unfold large: headers that promise more pixels, samples, streams or chapters than memory holds."""

import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from tests.support import films

SIDE = 16_384
"""Side of the pictures that headers promise: with four bytes a pixel they take 1 GiB."""

# ------------------------------------------------------------------------------------------------------------- pictures


def png(width: int = SIDE, height: int = SIDE) -> bytes:
    """A black PNG; all of its pixels are there. Its height is a multiple of 64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    size = height * (1 + 3 * width)
    lines = packer.compress(bytes(64 * size // height)) + packer.flush(zlib.Z_FULL_FLUSH)
    # The same lines again and again, the last block, and the checksum of so many zeros.
    data = b"\x78\xda" + lines * (height // 64) + b"\x03\x00" + struct.pack(">I", size % 65_521 << 16 | 1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg(width: int = 65_500, height: int = 65_500) -> bytes:
    """A JPEG of 64 x 64 pixels whose header says that it is larger."""
    file = BytesIO()
    Image.fromarray(films.stamp(0, 64, 64)).save(file, "JPEG")
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def gif(width: int = SIDE, height: int = SIDE, frames: int = 50) -> bytes:
    """An animation of so many whole frames of one colour, each of a few bytes: what they lack is transparent."""
    file = BytesIO()
    Image.new("P", (8, 8)).save(file, "GIF")
    small = file.getvalue()
    at = small.index(b"\x2c", 13 + 3 * 2 ** ((small[10] & 7) + 1))
    frame = bytearray(small[at:-1])
    frame[5:9] = struct.pack("<HH", width, height)
    screen = bytearray(small[:at])
    screen[6:10] = struct.pack("<HH", width, height)
    control = b"\x21\xf9\x04\x00\x0a\x00\x00\x00"
    return bytes(screen) + (control + bytes(frame)) * frames + b";"


def bmp(width: int = SIDE, height: int = SIDE) -> bytes:
    """A BMP of which only the header is there."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header + bytes(64)


PICTURES: dict[str, Callable[[], bytes]] = {"png": png, "jpg": jpeg, "gif": gif, "bmp": bmp}
"""Pictures that are too large, by the ends of their names."""

# ---------------------------------------------------------------------------------------------------------------- films


def _holding(path: Path, codec: str, packets: list[bytes], extradata: bytes | None = None) -> Path:
    """A film of these packets, whose container tells of 64 x 64 pixels."""
    with av.open(path, "w") as container:
        stream: Any = container.add_stream(codec, rate=24)
        stream.width = stream.height = 64
        stream.codec_context.extradata = extradata
        stream.pix_fmt = stream.codec_context.codec.video_formats[0].name
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 24)
            packet.pts = packet.dts = number
            packet.duration, packet.is_keyframe = 1, True
            container.mux(packet)
    return path


def png_film(path: Path) -> Path:
    """A film of one PNG that is larger than its container tells."""
    return _holding(path, "png", [png()])


def jpeg_film(path: Path) -> Path:
    """A film of JPEGs that are larger than their container tells."""
    return _holding(path, "mjpeg", [jpeg()] * 2)


def gif_film(path: Path) -> Path:
    """An animation of large frames."""
    path.write_bytes(gif())
    return path


def _stream(codec: str, muxer: str, options: dict[str, str]) -> bytes:
    """A film without a container, of 64 x 64 pixels."""
    file = BytesIO()
    with av.open(file, "w", format=muxer) as container:
        stream: Any = container.add_stream(codec, rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(2):
            frame = av.VideoFrame.from_ndarray(films.stamp(number, 64, 64), format="rgb24").reformat(
                format="yuv420p", threads=1
            )
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def _golomb(value: int) -> str:
    bits = f"{value + 1:b}"
    return "0" * (len(bits) - 1) + bits


def _read_golomb(bits: str, at: int) -> tuple[int, int]:
    """A number of H.265's headers, and where the next one begins."""
    zeros = bits.index("1", at) - at
    return int(bits[at + zeros : at + 2 * zeros + 1], 2) - 1, at + 2 * zeros + 1


def _bits(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def _bytes(bits: str) -> bytes:
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def hevc_film(path: Path, side: int = SIDE) -> Path:
    """H.265 without a container, whose header tells a larger picture."""
    data = _stream("libx265", "hevc", {"x265-params": "log-level=none"})
    start = data.index(b"\x00\x00\x01\x42\x01") + 3
    end = data.index(b"\x00\x00\x01", start)
    unit = data[start:end].replace(b"\x00\x00\x03", b"\x00\x00")
    bits = _bits(unit)
    at = 16 + 8 + 96
    _, at = _read_golomb(bits, at)
    _, at = _read_golomb(bits, at)
    _, after = _read_golomb(bits, at)
    _, after = _read_golomb(bits, after)
    # What follows is as it was; so is the end, whose stop bit need not be at the end of a byte.
    large = _bytes((bits[:at] + 2 * _golomb(side) + bits[after:]).rstrip("0"))
    escaped = bytearray()
    for byte in large:
        if byte <= 3 and escaped[-2:] == b"\x00\x00":
            escaped.append(3)
        escaped.append(byte)
    path.write_bytes(data[:start] + bytes(escaped) + data[end:])
    return path


@films.aside
def av1_film(path: Path, side: int = SIDE) -> Path:
    """AV1 in Matroska whose header tells a larger picture."""
    data = _stream("libsvtav1", "obu", {"preset": "12", "svtav1-params": "lp=1"})
    at = data.index(b"\x0a")
    length = data[at + 1]
    bits = _bits(data[at + 2 : at + 2 + length])
    # Profile, still, reduced, timing, delay and one operating point without a tier.
    assert bits[3:7] == "0000" and bits[7:12] == "00000" and int(bits[24:29], 2) <= 7
    across, down = (int(bits[i : i + 4], 2) + 1 for i in (29, 33))
    after = 37 + across + down
    large = _bytes(bits[:29] + f"{15:04b}" * 2 + f"{side - 1:016b}" * 2 + bits[after:])
    header = data[at : at + 1] + bytes([len(large)]) + large
    return _holding(path, "libsvtav1", [header + data[at + 2 + length :]], header)


def aspect(path: Path, width: int = 65_535, height: int = 1) -> Path:
    """An MP4 of 64 x 64 pixels, each so many times as wide as it is high."""
    films.film(path, (24,), size=(128, 64), pixel_shape=Fraction(2))
    data = bytearray(path.read_bytes())
    at = data.index(b"pasp") + 4
    data[at : at + 8] = struct.pack(">II", width, height)
    path.write_bytes(data)
    return path


def thin(path: Path, size: tuple[int, int] = (16, 8192)) -> Path:
    """A film of few pixels, all on a line: scaled to the short side that models take it is as large as a wall."""
    return films.written(path, [np.zeros((size[1], size[0], 3), np.uint8)] * 8)


def large(path: Path, side: int = 8000, small: int = 0, frames: int = 40) -> Path:
    """A film of PNGs, so many of 320 x 240 pixels and then so many of another size."""
    file = BytesIO()
    Image.fromarray(films.stamp(0, 320, 240)).save(file, "PNG")
    return _holding(path, "png", [file.getvalue()] * small + [png(side, side)] * frames)


def sound(path: Path, rate: float = 2e9, channels: int = 1) -> Path:
    """A film in Matroska of two seconds whose sound has another rate, or number of channels, than its samples."""
    films.film(path, (48,), audio="pcm_s16le")
    data = bytearray(path.read_bytes())
    at = data.index(b"A_PCM")
    at = data.index(b"\x9f\x81", data.rindex(b"\xae", 0, at))
    data[at + 2] = channels
    at = data.index(b"\xb5\x88", at)
    data[at + 2 : at + 10] = struct.pack(">d", rate)
    path.write_bytes(data)
    return path


def wav(path: Path, rate: int = 4_294_967_295, channels: int = 65_535) -> Path:
    """Sound whose header is absurd."""
    about = struct.pack("<HHIIHH", 1, channels, rate, 4_294_967_295, 65_535, 16)
    body = (
        b"WAVEfmt " + struct.pack("<I", len(about)) + about + b"data" + struct.pack("<I", 4_294_967_280) + bytes(9999)
    )
    path.write_bytes(b"RIFF" + struct.pack("<I", 4_294_967_295) + body)
    return path


# ------------------------------------------------------------------------------------------------------------- Matroska


def _element(kind: str, data: bytes) -> bytes:
    return bytes.fromhex(kind) + struct.pack(">Q", len(data) | 1 << 56) + data


def _number(kind: str, value: int) -> bytes:
    return _element(kind, value.to_bytes(8))


def _matroska(path: Path, *parts: bytes) -> Path:
    head = _element("1a45dfa3", _element("4282", b"matroska"))
    info = _element("1549a966", _number("2ad7b1", 1_000_000))
    path.write_bytes(head + _element("18538067", info + b"".join(parts)))
    return path


def _track(number: int) -> bytes:
    pictures = _element("e0", _number("b0", 64) + _number("ba", 64))
    about = _number("d7", number) + _number("73c5", number) + _number("83", 1) + _element("86", b"V_MPEG4/ISO/AVC")
    return _element("ae", about + pictures)


def streams(path: Path, number: int = 20_000) -> Path:
    """A film of so many streams of pictures, none of which holds any."""
    return _matroska(path, _element("1654ae6b", b"".join(map(_track, range(1, number + 1)))))


def chapters(path: Path, number: int = 100_000) -> Path:
    """A film of so many chapters."""
    plain = films.film(path.with_name(f"plain-{path.name}"), (48,))
    with av.open(plain) as before, av.open(path, "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        after.set_chapters(
            [
                {"id": i, "start": i, "end": i + 1, "time_base": Fraction(1, 1000), "metadata": {"title": "x"}}
                for i in range(number)
            ]
        )
        for packet in before.demux():
            if packet.size:
                packet.stream = stream
                after.mux(packet)
    plain.unlink()
    return path


def nested(path: Path, depth: int = 50_000) -> Path:
    """A film in Matroska after whose pictures come tags that lie in each other, so deep."""
    films.film(path, (48,))
    # From the inside: each has a size of eight bytes.
    tags = [bytes.fromhex("67c8") + struct.pack(">Q", (10 * i) | 1 << 56) for i in range(depth)]
    data = path.read_bytes()
    at = data.index(bytes.fromhex("18538067")) + 4
    segment = data[at + 8 :] + _element("1254c367", _element("7373", b"".join(reversed(tags))))
    path.write_bytes(data[:at] + struct.pack(">Q", len(segment) | 1 << 56) + segment)
    return path


def many_parts(path: Path, number: int = 200_000) -> Path:
    """An MP4 whose index has so many tracks."""

    def box(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data) + 8) + kind + data

    moov = box(b"moov", box(b"mvhd", bytes(100)) + box(b"trak", b"") * number)
    path.write_bytes(box(b"ftyp", b"isom\x00\x00\x02\x00isom") + moov + box(b"mdat", bytes(99)))
    return path


TOO_LARGE: dict[str, Callable[[Path], Path]] = {
    "png.mov": png_film,
    "png.avi": png_film,
    "jpeg.mov": jpeg_film,
    "jpeg.mkv": jpeg_film,
    "animation.gif": gif_film,
    "h265.hevc": hevc_film,
    "av1.mkv": av1_film,
    "av1.mp4": av1_film,
    "wide.mp4": aspect,
    "high.mp4": lambda path: aspect(path, 1, 65_535),
    "thin.mp4": thin,
    "streams.mkv": streams,
    "streams.mp4": many_parts,
}
"""Films that are refused before memory is taken for them, by their names."""
SOUND: dict[str, Callable[[Path], Path]] = {
    "chapters.mkv": chapters,
    "nested.mkv": nested,
    "rate.mkv": sound,
    "slow.mkv": lambda path: sound(path, 1.0),
    "channels.mkv": lambda path: sound(path, 48_000, 255),
}
"""Films of two seconds, of one shot, whose pictures are in order."""
