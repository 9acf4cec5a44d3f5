"""MovieNet's files: real ones where they are there, and small ones with all that real ones may lack."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from actors.core.errors import UserError
from actors.media.movienet import FormError, read_annotation, read_meta, read_shots, read_split, shot_of
from tests.support.data import movienet


def write(path: Path, value: Any) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def test_real_files_are_read_whole() -> None:
    folder = movienet()
    found = read_annotation(f"{folder}/annotation_tt0047396.json")
    assert len(found.cast) == 1726 and len(found.scenes) == 123 and not found.style
    assert found.cast[0].person == "nm0046564" and found.cast[1].person == ""
    # 499 of 1,192 pixels.
    assert found.cast[0].body and found.cast[0].body[0] == pytest.approx(0.4186, abs=1e-4)
    assert found.frame_rate == pytest.approx(23.976, abs=0.01)
    # Scenes follow each other without a gap, and end with the shots.
    assert all(one.shots[1] == other.shots[0] for one, other in pairwise(found.scenes))
    shots = read_shots(f"{folder}/shot_tt0047396.txt")
    assert len(shots) - found.scenes[-1].shots[1] in (0, 1)
    assert all(one[1] + 1 == other[0] for one, other in pairwise(shots))
    assert read_annotation(f"{folder}/annotation_tt0022958.json").scenes == ()
    parts = Counter(read_split(f"{folder}/movie1K.split.v1.json").values())
    assert parts == {"train": 660, "valid": 220, "test": 220}


def test_what_an_annotation_marks_is_read_and_what_it_lacks_is_empty(tmp_path: Path) -> None:
    person = {"id": "a", "shot_idx": 3, "img_idx": 1, "resolution": [200, 100], "pid": None, "body": None}
    whole = {
        "cast": [{**person, "face": {"type": "detected", "bbox": [20, 10, 60, 50]}}],
        "scene": [{"id": "s0", "shot": [0, 4], "frame": [0, 90], "place_tag": "bar", "action_tag": None}],
        "story": [{"frame": [0, 50], "duration": [0, 2.0]}, {"frame": None, "duration": None}],
        "cinematic_style": [{"shot_idx": 3, "scale": "CS", "movement": "push"}, {"shot_idx": 4, "scale": None}],
    }
    found = read_annotation(write(tmp_path / "a.json", whole))
    assert found.cast[0].face == (0.1, 0.1, 0.3, 0.5) and found.cast[0].body is None and not found.cast[0].person
    assert (found.scenes[0].place, found.scenes[0].action) == ("bar", "")
    assert found.style == {3: ("CS", "push"), 4: ("", "")} and found.frame_rate == 25
    nothing = read_annotation(write(tmp_path / "b.json", {"imdb_id": "tt1", "cast": None}))
    assert (nothing.cast, nothing.scenes, nothing.style, nothing.frame_rate) == ((), (), {}, None)


@pytest.mark.parametrize(
    ("director", "names"),
    [
        ([{"id": "nm1", "name": "Joel Coen"}, {"id": "nm2", "name": "Ethan Coen"}], ("Joel Coen", "Ethan Coen")),
        (["Agnès Varda", "Agnès Varda"], ("Agnès Varda",)),
        ("Fritz Lang", ("Fritz Lang",)),
        (None, ()),
    ],
)
def test_directors_are_objects_or_names(tmp_path: Path, director: Any, names: tuple[str, ...]) -> None:
    assert read_meta(write(tmp_path / "a.json", {"genres": ["War"], "director": director})).directors == names


@pytest.mark.parametrize(
    ("read", "text", "code"),
    [
        (read_meta, None, "no_meta"),
        (read_meta, "{", "broken_meta"),
        (read_meta, '{"director": [{"id": "nm1"}]}', "broken_meta"),
        (read_meta, '{"genres": 3}', "broken_meta"),
        (read_annotation, "[]", "broken_annotation"),
        (read_annotation, '{"scene": [{"id": "a"}]}', "broken_annotation"),
        (read_annotation, '{"cast": [{"resolution": [0, 0]}]}', "broken_annotation"),
        (read_shots, None, "no_shots"),
        (read_shots, "0 48 12\n49 x 60\n", "broken_shots"),
    ],
)
def test_files_of_another_form_say_so(tmp_path: Path, read: Any, text: str | None, code: str) -> None:
    uri = str(tmp_path / "file") if text is None else write(tmp_path / "file", text)
    with pytest.raises(FormError) as caught:
        read(uri)
    assert caught.value.code == code and uri in str(caught.value)


def test_shots_may_lack_key_frames_at_the_end(tmp_path: Path) -> None:
    assert read_shots(write(tmp_path / "a.txt", "0 48 12 24 36\n\n49 60\n")) == [(0, 48), (49, 60)]


def test_a_split_needs_its_lists(tmp_path: Path) -> None:
    lists = {"train": ["a"], "validation": ["b"], "test": ["c"], "full": ["a", "b", "c"]}
    assert read_split(write(tmp_path / "s", lists)) == {"a": "train", "b": "valid", "c": "test"}
    for wrong in ([1], {"train": ["a"]}, {"train": ["a"], "test": "c"}, "{"):
        with pytest.raises(UserError):
            read_split(write(tmp_path / "s", wrong))


def test_key_frames_say_their_shot() -> None:
    assert shot_of("tt1/shot_0012_img_2.jpg") == 12 and shot_of("shot_0003_img_0") == 3
    assert shot_of("still_12.jpg") is None and shot_of("shot_0012_img_2.jpg.txt.png") is None
