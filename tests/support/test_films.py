"""The films of the other tests: a stamp in a frame can be read back, and cuts stand where they should."""

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.support import films


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(path) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_stamps_survive_coding_resize_and_crop(tmp_path: Path) -> None:
    frames = decoded(films.film(tmp_path / "film.mp4"))
    for size in ((320, 240), (80, 60)):
        resized = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]
        inset = (size[0] - size[1]) // 2
        assert [films.read_stamp(frame) for frame in resized] == list(range(sum(films.SHOTS)))
        assert [films.read_stamp(frame[:, inset:-inset]) for frame in resized] == list(range(sum(films.SHOTS)))


@pytest.mark.parametrize("number", [0, 1, 127, 128, 4095, 1_048_575])
def test_every_number_can_be_stamped(number: int) -> None:
    assert films.read_stamp(films.stamp(number, 161, 121)) == number


def test_a_spoilt_stamp_is_refused() -> None:
    picture = films.stamp(77, 160, 120)
    blend = (picture.astype(float) + films.stamp(78, 160, 120)) / 2
    for spoilt in (np.rot90(picture), picture[::-1], picture[:, :120], blend, np.zeros_like(picture)):
        with pytest.raises(ValueError, match="no stamp"):
            films.read_stamp(spoilt)


def test_times_of_a_film_with_a_variable_rate(tmp_path: Path) -> None:
    path, times = films.variable_rate(tmp_path / "film.mp4")
    with av.open(path) as container:
        found = [frame.time for frame in container.decode(video=0)]
    assert found == pytest.approx(times, abs=1e-6) and times[90] == 5.0


def test_cuts_are_where_the_picture_changes(tmp_path: Path) -> None:
    frames = np.array(decoded(films.film(tmp_path / "film.mp4"))).astype(float)
    change = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    assert sorted(np.argsort(change)[-2:] + 1) == films.cuts() == [48, 84]


def test_each_shot_has_its_tone(tmp_path: Path) -> None:
    with av.open(films.film(tmp_path / "film.mov", audio="pcm_s16le")) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert len(sound) == sum(films.SHOTS) * films.SOUND_RATE // films.RATE
    for shot, pieces in enumerate(np.split(sound, [cut * films.SOUND_RATE // films.RATE for cut in films.cuts()])):
        assert films.pitch(pieces) == pytest.approx(films.tone(shot), abs=2)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_player_turns_a_rotated_film_upright(tmp_path: Path, degrees: int) -> None:
    path = films.rotated(tmp_path / "film.mp4", degrees)
    with pytest.raises(ValueError, match="no stamp"):
        films.read_stamp(decoded(path)[0])
    player = cv2.VideoCapture(str(path))
    assert films.read_stamp(player.read()[1]) == 0


def test_the_shape_of_pixels_counts(tmp_path: Path) -> None:
    stored = decoded(films.non_square_pixels(tmp_path / "film.mp4"))[1]
    assert stored.shape == (120, 120, 3)
    assert films.read_stamp(cv2.resize(stored, films.SIZE)) == 1
