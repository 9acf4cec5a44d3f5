"""Files for editors, read back by FFmpeg's parser of subtitles and by the rules of the formats."""

import re
from fractions import Fraction
from pathlib import Path

import av
import pytest

from pipelines.movie_characters.films.editing import Appearance, Stretch, edl, rttm, srt, stretches, timecode

SHOWN = [
    Appearance(0.5, 2.0, "Ann"),
    Appearance(1.0, 3.0, "Bob Ray"),
    Appearance(2.0, 2.5, "Ann"),
    Appearance(9, 9, "Z"),
]
EVENT = re.compile(r"(\d{3})  (.{8}) (V) {5}(C) {8}((?:\d\d:\d\d:\d\d:\d\d ?){4})")


def at(moment: float) -> set[str]:
    return {one.character for one in SHOWN if one.start_s <= moment < one.end_s}


def test_stretches_say_who_is_on_screen_at_each_moment_and_do_not_overlap():
    found = stretches(SHOWN)
    assert found == [
        Stretch(0.5, 1.0, ("Ann",)),
        Stretch(1.0, 2.5, ("Ann", "Bob Ray")),
        Stretch(2.5, 3.0, ("Bob Ray",)),
    ]
    for moment in [0.0, 0.75, 1.5, 2.25, 2.75, 3.5]:
        assert {name for one in found if one.start_s <= moment < one.end_s for name in one.characters} == at(moment)
    assert stretches([]) == []


def test_one_who_is_twice_on_screen_is_named_once():
    found = stretches([Appearance(0, 2, "Ann"), Appearance(1, 3, "Ann")])
    assert found == [Stretch(0, 3, ("Ann",))]


def test_subtitles_are_read_by_ffmpeg(tmp_path: Path):
    path = tmp_path / "film.srt"
    path.write_text(srt([*stretches(SHOWN), Stretch(3725.25, 3726.0, ("Ünal\n1",))]))
    with av.open(path) as container:
        packets = [packet for packet in container.demux() if packet.size]
    read = []
    for packet in packets:
        assert packet.pts is not None and packet.duration is not None
        times = [float(value * packet.time_base) for value in (packet.pts, packet.duration)]
        read.append((*times, bytes(packet).decode()))
    assert read == [
        (0.5, 0.5, "Ann"),
        (1.0, 1.5, "Ann, Bob Ray"),
        (2.5, 0.5, "Bob Ray"),
        (3725.25, 0.75, "Ünal 1"),
    ]


def frames(code: str, base: int) -> int:
    hours, minutes, seconds, rest = map(int, code.split(":"))
    assert rest < base and seconds < 60 and minutes < 60
    return ((hours * 60 + minutes) * 60 + seconds) * base + rest


@pytest.mark.parametrize("rate", [Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(24000, 1001)])
def test_events_of_an_edit_decision_list_lie_on_their_own_frames(rate: Fraction):
    (text,) = edl("film", "film.mp4", [Stretch(10 / float(rate), 3600.0, ("Ann", "Bob"))], rate)
    title, mode, blank, event, clip, marker = text.splitlines()
    assert (title, mode, blank) == ("TITLE: film", "FCM: NON-DROP FRAME", "")
    assert clip == "* FROM CLIP NAME: film.mp4" and marker.endswith("Ann, Bob")
    found = EVENT.fullmatch(event)
    assert found and found[1] == "001"
    source_in, source_out, record_in, record_out = found[5].split()
    assert (source_in, source_out) == (record_in, record_out)
    base = round(rate)
    assert frames(source_in, base) == 10 and frames(source_out, base) == round(3600 * rate)


def test_a_long_film_has_several_lists_of_at_most_999_events():
    shown = [Stretch(number, number + 0.5, ("Ann",)) for number in range(1500)]
    lists = edl("film", "film.mp4", shown, Fraction(25))
    numbers = [[int(line[:3]) for line in text.splitlines() if line[:3].isdigit()] for text in lists]
    assert numbers == [list(range(1, 1000)), list(range(1, 502))]
    # What is shorter than a frame is no event: its source would be empty.
    assert "001" not in edl("film", "film.mp4", [Stretch(1.0, 1.001, ("Ann",))], Fraction(25))[0]


def test_timecode_counts_hours():
    assert timecode(24 * 3661 + 5, Fraction(24)) == "01:01:01:05"


def test_a_line_of_rttm_has_ten_fields_and_no_blank_in_a_name():
    read = [line.split(" ") for line in rttm("my film", SHOWN).splitlines()]
    assert all(len(line) == 10 and line[0] == "SPEAKER" and line[1] == "my_film" for line in read)
    assert [(float(line[3]), float(line[4]), line[7]) for line in read] == [
        (0.5, 1.5, "Ann"),
        (1.0, 2.0, "Bob_Ray"),
        (2.0, 0.5, "Ann"),
    ]
