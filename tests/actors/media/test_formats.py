"""Lists of other files under a film's name bring nothing of their neighbours, and real formats are opened as before."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import pytest
from av.error import FFmpegError

from actors.core import storage
from actors.media.film import FilmError, open_film
from actors.media.formats import FORMATS, open_container
from tests.support import films

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nneighbour.ts\n#EXT-X-ENDLIST\n"
MPD = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-main:2011" type="static"><Period>
<AdaptationSet><Representation id="1" bandwidth="1"><BaseURL>neighbour.mp4</BaseURL></Representation></AdaptationSet>
</Period></MPD>"""
IMF = '<?xml version="1.0"?>\n<!-- one -->\n<CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"/>'
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
VOBSUB = "# VobSub index file, v7 (do not modify this line!)\nsize: 720x480\nid: en, index: 0\n"
LISTS = {
    "ffconcat": ("list.mp4", "ffconcat version 1.0\nfile neighbour.mp4\n"),
    "ffconcat with a mark": ("list.mkv", "\ufeffffconcat version 1.0\nfile neighbour.mp4\n"),
    "HLS": ("list.m3u8", HLS),
    "HLS named like a film": ("list.ts", HLS),
    "DASH": ("list.mp4", MPD),
    "IMF": ("list.mp4", IMF),
    "SDP": ("list.mp4", SDP),
    "VobSub": ("list.mp4", VOBSUB),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with films that a list may name."""
    films.film(tmp_path / "neighbour.mp4")
    films.film(tmp_path / "neighbour.ts")
    (tmp_path / "list.sub").write_bytes(bytes(100))
    return tmp_path


@pytest.mark.parametrize("case", LISTS)
def test_a_list_of_films_is_named_as_one_and_not_followed(folder: Path, case: str):
    name, text = LISTS[case]
    path = folder / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FilmError, match=case.partition(" ")[0]) as fault:
        open_film(str(path))
    assert fault.value.code == "playlist"


@pytest.mark.parametrize("case", ["ffconcat", "HLS"])
def test_ffmpeg_alone_would_have_read_the_neighbour(folder: Path, case: str):
    name, text = LISTS[case]
    path = folder / name
    path.write_text(text)
    # A control: what is refused below does play.
    with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
        assert sum(1 for _ in container.decode(video=0)) == sum(films.SHOTS)
    for source in (str(path), io.BytesIO(text.encode())):
        with pytest.raises(FFmpegError):
            open_container(source)


def test_a_list_in_a_store_reads_no_file_of_this_machine(folder: Path, s3: str):
    uri = f"{s3}/list.mp4"
    storage.write_bytes(uri, f"ffconcat version 1.0\nfile {folder}/neighbour.mp4\n".encode())
    with pytest.raises(FilmError) as fault:
        open_film(uri)
    assert fault.value.code == "playlist"


def test_a_name_with_a_number_pattern_is_no_sequence_of_images(tmp_path: Path):
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"frame{number:03}.png"), films.stamp(number, *films.SIZE))
    pattern = str(tmp_path / "frame%03d.png")
    with av.open(pattern) as container:
        assert container.format.name == "image2"
    with pytest.raises((FilmError, FileNotFoundError)):
        open_film(pattern)
    Path(pattern).write_bytes((tmp_path / "frame000.png").read_bytes())
    with pytest.raises(FilmError) as fault:
        open_film(pattern)
    assert fault.value.code == "not_a_video"


WRITTEN: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "film.mp4": ("libx264", None, {}),
    "film.mov": ("libx264", None, {}),
    "film.mkv": ("libx264", None, {}),
    "film.webm": ("libvpx-vp9", None, {}),
    "film.avi": ("mpeg4", None, {}),
    "film.ts": ("libx264", None, {}),
    "film.mpg": ("mpeg2video", None, {}),
    "film.vob": ("mpeg2video", "vob", {}),
    "film.flv": ("flv", None, {}),
    "film.f4v": ("libx264", "f4v", {}),
    "film.ogv": ("libvpx", "ogg", {}),
    "film.wmv": ("wmv2", "asf", {}),
    "film.mxf": ("mpeg2video", "mxf", {}),
    "film.gxf": ("mpeg2video", "gxf", {"size": (720, 576), "rate": 25}),
    "film.wtv": ("mpeg2video", "wtv", {}),
    "film.3gp": ("libx264", "3gp", {}),
    "film.gif": ("gif", "gif", {"pixels": "rgb8"}),
    "film.apng": ("apng", "apng", {"pixels": "rgb24"}),
    "film.y4m": ("wrapped_avframe", "yuv4mpegpipe", {}),
    "film.h264": ("libx264", "h264", {}),
    "film.hevc": ("libx265", "hevc", {}),
    "film.h263": ("h263", "h263", {"size": (176, 144)}),
    "film.obu": ("libsvtav1", "obu", {}),
    "film.m2v": ("mpeg2video", "mpeg2video", {}),
    "film.m4v": ("mpeg4", "m4v", {}),
    "film.mjpeg": ("mjpeg", "mjpeg", {"pixels": "yuvj420p"}),
    "film.mpjpeg": ("mjpeg", "mpjpeg", {"pixels": "yuvj420p"}),
    "film.nut": ("mpeg4", "nut", {}),
    "film.ivf": ("libvpx", "ivf", {}),
    "film.dv": ("dvvideo", "dv", {"size": (720, 576), "rate": 25}),
    "film.rm": ("rv20", "rm", {"size": (176, 144)}),
    "film.swf": ("flv", "swf", {}),
    "film.png": ("png", "image2pipe", {"pixels": "rgb24"}),
}
FRAMES = 6


@films.aside
def write(
    path: Path,
    codec: str,
    muxer: str | None,
    pixels: str = "yuv420p",
    size: tuple[int, int] = films.SIZE,
    rate: int = films.RATE,
) -> Path:
    """Write a film of `FRAMES` frames."""
    with av.open(str(path), "w", format=muxer) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(films.stamp(number, *size), format="rgb24").reformat(
                format=pixels, threads=1
            )
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("name", WRITTEN)
def test_a_format_that_can_be_written_can_be_read(tmp_path: Path, name: str):
    codec, muxer, how = WRITTEN[name]
    film = open_film(str(write(tmp_path / name, codec, muxer, **how)))
    assert set(film.container.split(",")) & set(FORMATS)
    assert sum(1 for _ in film.pictures) == FRAMES


@pytest.mark.parametrize("path", sorted(films.samples_folder().iterdir()), ids=lambda path: path.suffix)
def test_films_of_the_wild_are_opened(path: Path):
    assert next(open_film(str(path)).pictures)


@pytest.mark.parametrize(("name", "make"), [("song.mp4", films.sound_only), ("song.mkv", films.sound_only)])
def test_sound_alone_is_still_reported_as_that(tmp_path: Path, name: str, make: Callable[[Path], Path]):
    with pytest.raises(FilmError) as fault:
        open_film(str(make(tmp_path / name)))
    assert fault.value.code == "no_video_stream"
