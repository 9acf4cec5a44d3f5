"""What is measured of a scene is what is inside of its black bars, and without bars what it always was."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from actors.core.stage import Row
from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import FEATURES, UNDIVIDED, FramesConfig, Windows
from actors.curation.exporting.clips import ClipsConfig, write_clips
from actors.curation.features.latents import encode, latent_distances, load_vae
from actors.curation.features.motion import MotionConfig
from actors.curation.tables import BARS
from actors.media.film import VideoConfig
from actors.media.shot_detection.shots import ShotsConfig
from tests.actors.media.test_film import torchcodec_fault
from tests.support import films

RATE = 25
CUTS = (29, 75, 136)
"""Of the first three shots of the film, in frames."""
QUICK = MotionConfig(flow="scaled")
"""Where nothing that moves is compared."""


def shots(path: Path, **frames: Any) -> list[Row]:
    """Rows of the film's first shots with all seven features."""
    rows = measured(path, MotionConfig(), **frames)
    return [row | dict(zip(("mse", "cos_sim"), _latents(row["frames"]), strict=True)) for row in rows]


def measured(path: Path, flow: MotionConfig, **frames: Any) -> list[Row]:
    """Rows of the film's first shots without features of latents."""
    ends = (0, *CUTS)
    named = [
        {"clip_id": "c", "scene_id": f"c_{i}", "ordinal": i, "caption": "", "first": first, "end": end}
        for i, (first, end) in enumerate(pairwise(ends))
    ]
    settings = VideoConfig(), FramesConfig(**frames), ShotsConfig(), flow
    spans = [{"start_s": 0.0, "end_s": None, "scenes": named}]
    return [row for row in cut(str(path), "v", spans, frozenset(), *settings) if row and row["scene_id"]]


def _latents(frames: np.ndarray) -> tuple[float, float]:
    import torch

    mse, cos_sim = latent_distances(encode(load_vae("tiny", torch.float32, "cpu"), torch.from_numpy(frames)))
    return float(mse.mean()), float(cos_sim.mean())


def bikes(width: int, height: int) -> Iterator[np.ndarray]:
    """The central part of real film, uint8 (height, width, 3)."""
    with av.open(str(films.bikes_mp4())) as film:
        for number, frame in enumerate(film.decode(video=0)):
            if number == CUTS[-1]:
                return
            image = frame.to_ndarray(format="rgb24")
            y, x = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
            yield image[y : y + height, x : x + width]


def padded(image: np.ndarray, width: int, height: int) -> np.ndarray:
    y, x = (height - image.shape[0]) // 2, (width - image.shape[1]) // 2
    return np.pad(image, ((y, y), (x, x), (0, 0)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("inside", "outside"),
    [((640, 268), (640, 360)), ((360, 270), (480, 270)), ((360, 268), (640, 360))],
    ids=["letterbox 2.39:1", "pillarbox 4:3", "both"],
)
def test_bars_change_no_feature_by_more_than_5_percent(
    tmp_path: Path, inside: tuple[int, int], outside: tuple[int, int]
) -> None:
    plain = films.written(tmp_path / "plain.mp4", bikes(*inside), RATE)
    barred = films.written(tmp_path / "barred.mp4", (padded(image, *outside) for image in bikes(*inside)), RATE)
    # Not the first: its optical flow, of five wild frames, changes by 10 % where two lines are cut off or it is encoded
    # anew.
    of_plain = shots(plain)
    for without, with_bars in zip(of_plain[1:], shots(barred)[1:], strict=True):
        assert not any(without[name] for name in BARS) and any(with_bars[name] for name in BARS)
        for name in FEATURES:
            assert with_bars[name] == pytest.approx(without[name], rel=0.05), name
    whole = measured(barred, QUICK, crop_bars=False)
    assert any(whole[0][name] for name in BARS), "they are found, too, where they are not cut off"
    if inside[1] < outside[1]:
        assert whole[0]["max_rgb_diff"] < 0.9 * of_plain[0]["max_rgb_diff"]


def test_a_film_without_bars_is_measured_as_if_none_were_sought(tmp_path: Path) -> None:
    def picture(image: np.ndarray, number: int) -> np.ndarray:
        # It opens dark, and one edge is dark throughout.
        dark = cv2.convertScaleAbs(image, alpha=min(1.0, number / 20))
        return films.blacked(dark, 0, 0, 40, 0)

    made = (picture(image, number) for number, image in enumerate(bikes(640, 272)))
    path = films.written(tmp_path / "film.mp4", made, RATE)
    for ours, plain in zip(measured(path, QUICK), measured(path, QUICK, crop_bars=False), strict=True):
        assert not any(ours[name] for name in BARS)
        assert np.array_equal(ours["frames"], plain["frames"])
        assert all(ours[name] == plain[name] for name in ("phash", "thumbnail", "max_rgb_diff", "mean_rgb_diff"))


def one_scene(path: Path, windows: Windows = UNDIVIDED) -> list[Row]:
    settings = VideoConfig(), FramesConfig(), ShotsConfig("none"), MotionConfig(flow="scaled")
    return [row for row in cut(str(path), "v", None, frozenset(), *settings, windows) if row and row["scene_id"]]


def bars_of(row: Row) -> tuple[int, ...]:
    return tuple(row[name] for name in BARS)


def near(frame: np.ndarray, wanted: np.ndarray) -> float:
    """How far two pictures are apart, 0 to 255."""
    return float(np.abs(frame.astype(int) - wanted).mean())


def still(height: int, width: int) -> np.ndarray:
    return cv2.resize(next(bikes(640, 272)), (width, height), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((60, 60, 0, 0), (30, 30, 0, 0)),
        ((30, 30, 0, 0), (60, 60, 0, 0)),
        ((60, 60, 0, 0), (60, 60, 80, 80)),
        ((360, 0, 0, 0), (60, 60, 0, 0)),
    ],
    ids=["narrower", "wider", "another pair", "from black"],
)
def test_frames_of_a_scene_are_cut_alike_whatever_bars_each_has(
    tmp_path: Path, before: tuple[int, int, int, int], after: tuple[int, int, int, int]
) -> None:
    picture = still(360, 640)
    shown = [films.blacked(picture, *(before if number < 24 else after)) for number in range(48)]
    [row] = one_scene(films.written(tmp_path / "film.mp4", shown, RATE, crf=8))
    frames = row["frames"]
    top, bottom, left, right = bars_of(row)
    assert any(bars_of(row)) and frames.shape == (8, 240, 240, 3)
    for number, frame in enumerate(frames):
        inside = shown[6 * number][top : 360 - bottom, left : 640 - right]
        short = min(inside.shape[:2])
        y, x = (inside.shape[0] - short) // 2, (inside.shape[1] - short) // 2
        square = cv2.resize(inside[y : y + short, x : x + short], (240, 240), interpolation=cv2.INTER_AREA)
        assert near(frame, square) < 6


def test_each_window_of_a_shot_has_its_own(tmp_path: Path) -> None:
    picture = still(360, 640)
    made = (films.blacked(picture, *((60, 60, 0, 0) if 100 <= number < 200 else (0, 0, 0, 0))) for number in range(300))
    rows = one_scene(films.written(tmp_path / "film.mp4", made, RATE), Windows(16, 0, 4))
    assert [bars_of(row) for row in rows] == [(0,) * 4, (62, 62, 0, 0), (0,) * 4]


def test_where_the_size_of_pictures_changes_there_are_none(tmp_path: Path) -> None:
    parts = []
    for number, size in enumerate(((360, 640), (180, 320))):
        picture = films.blacked(still(*size), size[0] // 6, size[0] // 6, 0, 0)
        parts.append(films.written(tmp_path / f"{number}.ts", [picture] * 25, RATE))
    path = tmp_path / "film.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    rows = one_scene(path)
    assert all(bars_of(row) == (0,) * 4 for row in rows) and not any(row["error"] for row in rows)


def clip_of(path: Path, folder: Path, **config: Any) -> tuple[Row, Row]:
    """The only scene of a film and its clip's row."""
    [scene] = one_scene(path)
    wanted = [{name: scene[name] for name in ("scene_id", "start_s", "end_s", *BARS)}]
    [made] = [row for row in write_clips(str(path), wanted, str(folder), ClipsConfig(crf=4, **config), 250) if row]
    assert not made["error"]
    return scene, made


@pytest.mark.parametrize(
    ("bars", "film"),
    [
        ((20, 20, 0, 0), {}),
        ((20, 22, 12, 14), {"rotation": 90}),
        ((20, 22, 12, 14), {"rotation": 270, "pixels": "yuv444p"}),
        ((20, 20, 32, 32), {"pixel_shape": Fraction(4, 3)}),
        ((20, 20, 12, 12), {"size": (321, 181), "pixels": "yuv444p"}),
        ((0, 0, 0, 0), {}),
    ],
    ids=["letterbox", "turned", "turned left", "wide pixels", "odd", "none"],
)
def test_a_clip_and_its_frames_lack_the_bars(
    tmp_path: Path, bars: tuple[int, int, int, int], film: dict[str, Any]
) -> None:
    path = films.film(tmp_path / "film.mp4", (24,), **{"size": (320, 240), **film, "bars": bars})
    scene, made = clip_of(path, tmp_path / "out", crop_bars=True)
    with av.open(str(made["path"])) as clip:
        stream = clip.streams.video[0]
        shape = float(stream.sample_aspect_ratio or 1)
        picture = next(clip.decode(stream))
        assert stream.width % 2 == stream.height % 2 == 0
        assert abs(stream.width * shape - (scene["width"] - scene["bar_left"] - scene["bar_right"])) <= 5
        assert abs(stream.height - (scene["height"] - scene["bar_top"] - scene["bar_bottom"])) <= 2
        image = picture.to_ndarray(format="rgb24")
    still: Any = cv2.imread(made["frame_paths"][0])
    for shown in (image, still):
        edges = shown[0], shown[-1], shown[:, 0], shown[:, -1]
        assert min(edge.max(-1).mean() for edge in edges) > 60, "no black line is left"


def test_without_the_setting_a_clip_has_its_bars(tmp_path: Path) -> None:
    path = films.film(tmp_path / "film.mp4", (24,), size=(320, 240), bars=(20, 20, 0, 0))
    _, made = clip_of(path, tmp_path / "out")
    with av.open(made["path"]) as clip:
        assert clip.streams.video[0].height == 240


@pytest.mark.parametrize(
    ("inside", "turned"),
    [((320, 180), False), ((256, 240), False), ((320, 180), True)],
    ids=["letter", "pillar", "turned"],
)
def test_torchcodec_measures_inside_of_the_same_bars(tmp_path: Path, inside: tuple[int, int], turned: bool) -> None:
    if torchcodec_fault():
        pytest.skip(f"torchcodec cannot be loaded: {torchcodec_fault()}")
    # Not the first shot, whose optical flow hangs on the last bit of a pixel.
    pictures = (padded(image, 320, 240) for image in islice(bikes(*inside), *CUTS[:2]))
    path = films.written(tmp_path / "plain.mp4", pictures, RATE)
    if turned:
        path = films.displayed(path, tmp_path / "turned.mp4", (0, 1, -1, 0))
    rows = {}
    for decoder in ("pyav", "torchcodec"):
        settings = VideoConfig(decoder=decoder), FramesConfig(), ShotsConfig("none"), MotionConfig()
        rows[decoder], film = filter(None, cut(str(path), "v", None, frozenset(), *settings))
        assert film["decoder"] == {"pyav": "pyav", "torchcodec": "torchcodec-cpu"}[decoder]
    ours, wanted = rows["torchcodec"], rows["pyav"]
    assert bars_of(ours) == bars_of(wanted) and any(bars_of(ours))
    assert near(ours["frames"], wanted["frames"]) < 3
    for name in ("max_rgb_diff", "mean_rgb_diff", "mean_velocity"):
        assert ours[name] == pytest.approx(wanted[name], rel=0.05), name
