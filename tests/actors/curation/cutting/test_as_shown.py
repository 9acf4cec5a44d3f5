"""Features and clips are of what a viewer sees: deinterlaced, tone-mapped, upright; a scene's row says so."""

from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from actors.core.stage import Row
from actors.curation.cutting.cut import cut
from actors.curation.cutting.scenes import FramesConfig
from actors.curation.exporting.clips import ClipsConfig, write_clips
from actors.curation.exporting.presets import Bucket, write_fitted
from actors.curation.features.motion import MotionConfig
from actors.media.bars import NO_BARS
from actors.media.film import VideoConfig, open_film
from actors.media.shot_detection.shots import ShotsConfig
from actors.media.shown import Look
from tests.actors.media.test_film import torchcodec_fault
from tests.actors.media.test_shown import COLOURS, SHOWN, chart, comb, patches, pq_film
from tests.support import films

TAGS = ("colorspace", "color_range", "color_primaries", "color_trc")
BT709 = dict.fromkeys(TAGS, 1)


def scene(path: Path, **frames: Any) -> Row:
    settings = VideoConfig(), FramesConfig(**frames), ShotsConfig("none"), MotionConfig()
    [row] = [row for row in cut(str(path), "v", None, frozenset(), *settings) if row and row["scene_id"]]
    assert row["error"] == ""
    return row


def clip(path: Path, folder: Path, end_s: float, look: Look = SHOWN) -> Path:
    wanted = [{"scene_id": "v.0_0", "start_s": 0.0, "end_s": end_s}]
    [made] = [row for row in write_clips(str(path), wanted, str(folder), ClipsConfig(crf=4), 250, look=look) if row]
    assert (made["error"], made["message"]) == ("", "")
    return Path(made["path"])


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(path) as container:
        return list(container.decode(video=0))


def tags_of(frame: av.VideoFrame) -> dict[str, int]:
    return {name: int(getattr(frame, name)) for name in TAGS}


def test_features_of_interlaced_film_are_near_those_of_the_progressive_original(tmp_path: Path) -> None:
    plain = scene(films.fields(tmp_path / "plain.mp4", two_times=False, flagged=False))
    woven = films.fields(tmp_path / "woven.mp4")
    ours, before = scene(woven), scene(woven, deinterlace=False)
    assert (plain["converted"], ours["converted"], before["converted"]) == ("", "deinterlaced", "")
    assert ours["interlaced"] and before["interlaced"] and not plain["interlaced"]
    assert max(map(comb, ours["frames"])) < max(map(comb, plain["frames"])) + 10 < max(map(comb, before["frames"]))

    def far(row: Row) -> float:
        return float(np.abs(row["frames"].astype(int) - plain["frames"]).mean())

    assert far(ours) < 0.8 * far(before)
    for name in ("max_rgb_diff", "mean_rgb_diff"):
        assert ours[name] == pytest.approx(plain[name], rel=0.05), name
    assert (ours["start_s"], ours["end_s"], ours["no_frames"]) == (plain["start_s"], plain["end_s"], plain["no_frames"])


def test_features_of_progressive_film_are_the_same_whatever_its_flags(tmp_path: Path) -> None:
    rows = [
        scene(films.fields(tmp_path / f"{flagged}.mp4", two_times=False, flagged=flagged)) for flagged in (True, False)
    ]
    assert [(row["interlaced"], row["converted"]) for row in rows] == [(True, ""), (False, "")]
    for name in ("max_rgb_diff", "mean_rgb_diff"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=0.01), name
    assert np.abs(rows[0]["frames"].astype(int) - rows[1]["frames"]).mean() < 0.5, "they are not coded alike"


@pytest.mark.parametrize("two_times", [True, False])
def test_clips_of_interlaced_film_have_no_comb_and_the_times_of_its_frames(tmp_path: Path, two_times: bool) -> None:
    path = films.fields(tmp_path / "film.mp4", 30, two_times=two_times)
    frames = decoded(clip(path, tmp_path / "clips", 1.2))
    assert [frame.time for frame in frames] == pytest.approx([number / 25 for number in range(30)], abs=1e-4)
    assert not any(frame.interlaced_frame for frame in frames)
    for number, frame in enumerate(frames):
        image, wanted = frame.to_ndarray(format="rgb24"), films.ball(number / 25)
        assert comb(image) < 2 * comb(wanted) + 5
        assert np.abs(image.astype(int) - wanted).mean() < (2.5 if two_times else 2)
    as_stored = decoded(clip(path, tmp_path / "before", 1.2, Look()))
    assert two_times == (comb(as_stored[9].to_ndarray(format="rgb24")) > 60)


def test_an_hdr_film_is_measured_and_written_as_an_sdr_screen_shows_it(tmp_path: Path) -> None:
    lights = [(light,) * 3 for light in (1.0, 20.0, 80.0, 203.0, 600.0, 1000.0)]
    path = pq_film(tmp_path / "film.mkv", lights, frames=30)
    row = scene(path)
    assert (row["converted"], row["color_transfer"], row["color_space"]) == ("tone_mapped", "smpte2084", "bt2020nc")
    film = open_film(str(path), look=SHOWN)
    shown = patches(next(film.pictures).scaled(film.width, film.height))
    # The central square is of the four patches in the middle.
    assert np.abs(row["frames"][0][120, [30, 210]].astype(int) - shown[[2, 3]]).max() <= 3
    assert scene(path, color_managed=False)["converted"] == ""
    made = clip(path, tmp_path / "clips", 1.0)
    frame = decoded(made)[0]
    assert frame.format.name == "yuv420p" and tags_of(frame) == BT709
    assert np.abs(patches(frame.to_ndarray(format="rgb24")) - shown).max() <= 4
    still = cv2.imread(str(made.with_name("frames") / "v.0_0" / "0000.jpg"))
    assert still is not None and np.abs(patches(still[..., ::-1]) - shown).max() <= 6
    list(write_fitted(str(made), [str(tmp_path / "fitted.mp4")], [Bucket(96, 32, 5)], 8))
    fitted = decoded(tmp_path / "fitted.mp4")[0]
    assert tags_of(fitted) == BT709
    assert np.abs(patches(fitted.to_ndarray(format="rgb24")) - shown).max() <= 5


@pytest.mark.parametrize(
    ("matrix", "full", "tags"),
    [
        (1, False, {"colorspace": 1, "color_range": 1, "color_primaries": 1, "color_trc": 1}),
        (5, False, {"colorspace": 6, "color_range": 1, "color_primaries": 6, "color_trc": 6}),
        (1, True, {"colorspace": 1, "color_range": 2, "color_primaries": 1, "color_trc": 1}),
        (9, False, {"colorspace": 9, "color_range": 1, "color_primaries": 9, "color_trc": 14}),
    ],
    ids=["bt709", "bt601", "full range", "bt2020 sdr"],
)
def test_clips_and_clips_of_presets_have_the_colours_of_their_film(
    tmp_path: Path, matrix: int, full: bool, tags: dict[str, int]
) -> None:
    path = films.tagged(tmp_path / "film.mkv", [chart()] * 30, matrix=matrix, full=full, tags=tags)
    made = clip(path, tmp_path / "clips", 1.0)
    frame = decoded(made)[0]
    assert tags_of(frame) == tags
    assert np.abs(patches(frame.to_ndarray(format="rgb24")) - COLOURS).max() <= 4
    list(write_fitted(str(made), [str(tmp_path / "fitted.mp4")], [Bucket(96, 48, 5)], 8))
    fitted = decoded(tmp_path / "fitted.mp4")[0]
    assert tags_of(fitted) == tags | {"color_range": 1}, "presets are in the range of video"
    assert np.abs(patches(fitted.to_ndarray(format="rgb24")) - COLOURS).max() <= 5


@pytest.mark.parametrize("matrix", [(-1, 0, 0, 1), (0, 1, 1, 0), (0, -1, 1, 0)], ids=["mirrored", "both", "turned"])
def test_a_clip_of_a_turned_or_mirrored_film_is_upright_and_lacks_its_bars(
    tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    # Bars of unlike sides show which of them is cut off where.
    film = films.film(tmp_path / "stored.mp4", (30,), size=(320, 240), bars=(36, 30, 0, 0))
    path = films.displayed(film, tmp_path / "film.mp4", matrix)
    row = scene(path)
    bars = {name: row[f"bar_{name}"] for name in NO_BARS._fields}
    shown = next(open_film(str(path)).pictures).scaled(row["width"], row["height"])
    inside = shown[bars["top"] : row["height"] - bars["bottom"], bars["left"] : row["width"] - bars["right"]]
    assert sorted(bars.values()) == [0, 0, 32, 38]
    wanted = [{"scene_id": "v.0_0", "start_s": 0.0, "end_s": 1.0} | {f"bar_{k}": v for k, v in bars.items()}]
    config = ClipsConfig(crf=4, crop_bars=True)
    [made] = [one for one in write_clips(str(path), wanted, str(tmp_path / "clips"), config, None) if one]
    image = decoded(Path(made["path"]))[0].to_ndarray(format="rgb24")
    assert image.shape == inside.shape and np.abs(image.astype(int) - inside).mean() < 4
    edges = row["frames"][0][[0, -1]], row["frames"][0][:, [0, -1]]
    assert min(edge.max(-1).mean() for edge in edges) > 60, "no black line is measured"


@pytest.mark.parametrize("kind", ["fields", "hdr", "mirrored"])
def test_torchcodec_leaves_to_pyav_what_is_to_be_converted(tmp_path: Path, kind: str) -> None:
    if torchcodec_fault():
        pytest.skip(f"torchcodec cannot be loaded: {torchcodec_fault()}")
    plain = films.film(tmp_path / "plain.mp4", (30,))
    make = {
        "fields": lambda path: films.fields(path, 30),
        "hdr": lambda path: pq_film(path, [(light,) * 3 for light in (1, 20, 80, 203, 600, 1000)], frames=30),
        "mirrored": lambda path: films.displayed(plain, path, (-1, 0, 0, 1)),
    }
    path = make[kind](tmp_path / "film.mp4")
    rows = []
    for decoder in ("pyav", "torchcodec"):
        settings = VideoConfig(decoder=decoder), FramesConfig(), ShotsConfig("none"), MotionConfig()
        row, film = filter(None, cut(str(path), "v", None, frozenset(), *settings))
        rows.append(row)
        assert film["decoder"] == "pyav"
    assert np.array_equal(rows[0]["frames"], rows[1]["frames"]) and rows[0]["converted"] == rows[1]["converted"] != ""
