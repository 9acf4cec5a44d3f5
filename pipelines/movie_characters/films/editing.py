"""Who is on screen when, in files that editors and other tools read.

srt   SubRip subtitles: the names of those who are on screen
edl   an edit decision list (CMX 3600): an event for each stretch with the same people, at its own place in the film
rttm  Rich Transcription Time Marked (NIST): a line per appearance, as tools for diarization read them
"""

import math
import re
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

EVENTS = 999
"""Most events of an edit decision list."""


class Appearance(NamedTuple):
    """A stretch of a film with a character."""

    start_s: float
    end_s: float
    character: str


class Stretch(NamedTuple):
    """A stretch of a film with the same characters."""

    start_s: float
    end_s: float
    characters: tuple[str, ...]
    """In the order of the alphabet."""


def stretches(appearances: Iterable[Appearance]) -> list[Stretch]:
    """Stretches in which somebody is on screen, none of which overlaps another; equal ones that touch are one."""
    some = [one for one in appearances if one.end_s > one.start_s]
    changes = sorted(
        [(one.start_s, 1, one.character) for one in some] + [(one.end_s, -1, one.character) for one in some]
    )
    times = sorted({time for time, _, _ in changes})
    there: dict[str, int] = {}
    found: list[Stretch] = []
    place = 0
    for start, end in pairwise(times):
        while place < len(changes) and changes[place][0] <= start:
            _, step, name = changes[place]
            there[name] = there.get(name, 0) + step
            place += 1
        names = tuple(sorted(name for name, count in there.items() if count))
        if found and found[-1].end_s == start and found[-1].characters == names:
            found[-1] = found[-1]._replace(end_s=end)
        elif names:
            found.append(Stretch(start, end, names))
    return found


def srt(shown: Iterable[Stretch]) -> str:
    """SubRip subtitles, a cue for each stretch of a millisecond or more."""
    cues = []
    for start, end, names in shown:
        if (begin := round(1000 * start)) < (until := round(1000 * end)):
            times = " --> ".join(_subtitle_time(time) for time in (begin, until))
            cues.append(f"{len(cues) + 1}\n{times}\n{_line(', '.join(names))}\n\n")
    return "".join(cues)


def _subtitle_time(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02},{rest:03}"


def edl(film: str, file: str, shown: Iterable[Stretch], rate: Fraction) -> list[str]:
    """Edit decision lists, each of at most 999 events; more than one only where a film has more.

    An event takes a stretch of the film and puts it at the same place of the record, so that the list lies over the
    film. Timecode starts at 00:00:00:00 and counts all frames (non-drop). Who is on screen stands in comments: a marker
    (LOC), as Avid Media Composer and DaVinci Resolve import it.

    Args:
        film: name of the film. file: name of its file.
        rate: frames per second.
    """
    events = []
    for start, end, names in shown:
        first, last = math.floor(start * rate + Fraction(1, 2)), math.floor(end * rate + Fraction(1, 2))
        if first < last:
            begin, until = timecode(first, rate), timecode(last, rate)
            who = _line(", ".join(names))
            events.append((f"V     C        {begin} {until} {begin} {until}", begin, who))
    lists = []
    for part in range(0, len(events) or 1, EVENTS):
        lines = [f"TITLE: {_line(film)[:70]}", "FCM: NON-DROP FRAME", ""]
        for number, (event, begin, who) in enumerate(events[part : part + EVENTS], 1):
            lines += [
                f"{number:03}  AX       {event}",
                f"* FROM CLIP NAME: {_line(file)}",
                f"* LOC: {begin} GREEN   {who}",
            ]
        lists.append("\n".join(lines) + "\n")
    return lists


def timecode(frame: int, rate: Fraction) -> str:
    """The timecode HH:MM:SS:FF of a frame, which counts all frames, by the rounded rate."""
    seconds, rest = divmod(frame, max(1, round(rate)))
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}:{rest:02}"


def rttm(film: str, appearances: Iterable[Appearance]) -> str:
    """A SPEAKER line for each appearance, by time; blanks in names become underscores."""
    lines = [
        f"SPEAKER {_word(film)} 1 {start:.3f} {end - start:.3f} <NA> <NA> {_word(name)} <NA> <NA>\n"
        for start, end, name in sorted(appearances)
        if end > start
    ]
    return "".join(lines)


def _word(text: str) -> str:
    return re.sub(r"\s+", "_", text.strip()) or "_"


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
