"""Every format gives the same videos; what cannot be cut stays with its reason; what cannot be read names its place."""

import bz2
import gzip
import json
import lzma
import os
import re
import tracemalloc
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.curation.sources import json_text
from pipelines.curation.sources.input import Rejected, Video, read_videos
from pipelines.curation.sources.records import MetadataError, Scene, Span

SCENE = {"clip_id": "a.0_0", "scene_cut": [0, -1], "caption": "a cat"}
CLIP = {"span": ["00:00:01.000", "00:00:03.500"], "fps": 25.0, "scene_split": [SCENE]}
VIDEO = {"url": "https://films.example/a.mp4", "clip": {"a.0.mp4": CLIP}}


def clip(*scenes: tuple[Any, ...], span: tuple[Any, Any] = ("00:00:01.000", "00:00:03.500")) -> dict[str, Any]:
    """A clip of HDVG from scenes (scene_id, first, end)."""
    split = [{"clip_id": name, "scene_cut": [first, end], "caption": f"of {name}"} for name, first, end in scenes]
    return {"span": list(span), "fps": 24.0, "scene_split": split}


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def corpus(folder: Path, videos: dict[str, Any], name: str = "corpus.json") -> str:
    return write(folder / name, json.dumps(videos))


def one(folder: Path, clips: dict[str, Any]) -> Video:
    (video,) = read_videos(corpus(folder, {"a": {"url": "/films/a.mp4", "clip": clips}}))
    return video


def reasons(video: Video) -> list[tuple[str, str, int]]:
    return [(scene.scene_id, scene.code, scene.ordinal) for scene in video.rejected]


class TestJson:
    def test_all_fields(self, tmp_path: Path) -> None:
        clips = {"a.0.mp4": clip(("a.0_0", 0, 30), ("a.0_1", 30, -1)), "a.1.mp4": clip(("a.1_0", 5, 9), span=("4", 6))}
        videos = {"a": {"url": "https://films.example/a", "clip": clips}, "b": VIDEO | {"url": "s3://bucket/b.mp4"}}
        assert list(read_videos(corpus(tmp_path, videos))) == [
            Video(
                0,
                "a",
                "https://films.example/a",
                (
                    Span(
                        "a.0.mp4",
                        1.0,
                        3.5,
                        (Scene("a.0_0", "of a.0_0", 0, 30, 0), Scene("a.0_1", "of a.0_1", 30, -1, 1)),
                    ),
                    Span("a.1.mp4", 4.0, 6.0, (Scene("a.1_0", "of a.1_0", 5, 9, 2),)),
                ),
            ),
            Video(1, "b", "s3://bucket/b.mp4", (Span("a.0.mp4", 1.0, 3.5, (Scene("a.0_0", "a cat", 0, -1, 0),)),)),
        ]

    def test_json_lines_give_the_same(self, tmp_path: Path) -> None:
        videos = {f"v{i}": VIDEO | {"url": f"film {i}.mp4"} for i in range(5)}
        videos["v3"] = VIDEO | {"clip": {"c": clip(("s", 3, 2), ("t", 0, 1), ("t", 0, 1))}}
        lines = [json.dumps({name: video}) for name, video in videos.items()]
        lines[:2] = [json.dumps({"v0": videos["v0"], "v1": videos["v1"]}), "", "  "]
        whole = list(read_videos(corpus(tmp_path, videos)))
        assert [video.index for video in whole] == [0, 1, 2, 3, 4]
        for name, end_of_line in (("corpus.jsonl", "\n"), ("corpus.ndjson", "\r\n"), ("CORPUS.JSONL", "\n")):
            assert list(read_videos(write(tmp_path / name, end_of_line.join(lines)))) == whole

    @pytest.mark.parametrize("half", [r"\ud83d", r"\udc00", r"\uDFFF", b"\xed\xa0\xbd", b"\xed\xb0\x80"])
    def test_byte_order_mark_and_half_characters(
        self, tmp_path: Path, half: str | bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        half = half.encode() if isinstance(half, str) else half
        text = json.dumps({"a": VIDEO}).replace("a cat", r"caf\u00e9 \ud83d\ude00 \\ud83d ?").encode("utf-8-sig")
        text = text.replace(b"?", half)
        (whole,) = read_videos(write(tmp_path / "c.json", text))
        (line,) = read_videos(write(tmp_path / "c.jsonl", text))
        assert whole == line
        assert whole.spans is not None
        assert whole.spans[0].scenes[0].caption == "café \U0001f600 \\ud83d \ufffd"
        assert [entry.getMessage() for entry in caplog.records if "1 halves of surrogate pairs" in entry.getMessage()]

    def test_half_characters_in_ids_and_urls(self, tmp_path: Path) -> None:
        text = json.dumps({"a\ud83d": VIDEO | {"url": "/f\udce9.mp4", "clip": {"c\udc00": clip(("s\udc00", 0, 4))}}})
        (video,) = read_videos(write(tmp_path / "c.json", text))
        assert (video.video_id, video.url) == ("a\ufffd", "/f\ufffd.mp4")
        assert video.spans == (Span("c\ufffd", 1.0, 3.5, (Scene("s\ufffd", "of s\ufffd", 0, 4, 0),)),)

    @pytest.mark.parametrize("piece", [1, 7, 64, 1 << 16])
    def test_what_programs_write_that_json_has_not(
        self, tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(json_text, "PIECE", piece)
        nan, scene = float("nan"), SCENE | {"caption": 'NaN "Infinity" \\'}
        clips = {
            "whole": CLIP | {"span": [nan, None], "fps": nan, "scene_split": [scene]},
            "null": CLIP | {"span": [None, ""], "scene_split": [SCENE | {"clip_id": "n", "caption": nan}]},
            "long": CLIP | {"span": [0.12345678901234567, 3], "scene_split": [SCENE | {"clip_id": "l"}]},
            "endless": CLIP | {"span": [0, float("inf")], "scene_split": [SCENE | {"clip_id": "i"}]},
        }
        video = one(tmp_path, clips)
        assert video.spans == (
            Span("whole", 0.0, None, (Scene("a.0_0", 'NaN "Infinity" \\', 0, -1, 0),)),
            Span("null", 0.0, None, (Scene("n", "", 0, -1, 1),)),
            Span("long", 0.12345678901234567, 3.0, (Scene("l", "a cat", 0, -1, 2),)),
        )
        assert reasons(video) == [("i", "bad_span", 3)]
        assert "'Infinity' is not a time" in video.rejected[0].message

    @pytest.mark.parametrize(
        "number", [str(2**63), str(-(2**70)), "1" + "0" * 5000, "1e400", "1.5", "NaN"], ids=lambda number: number[:9]
    )
    def test_numbers_of_any_length(self, tmp_path: Path, number: str) -> None:
        text = json.dumps({"a": VIDEO | {"clip": {"c": CLIP | {"scene_split": [SCENE | {"scene_cut": [0, "?"]}]}}}})
        more = json.dumps({"b": VIDEO}) + "\n"
        path = write(tmp_path / "c.jsonl", more + text.replace('"?"', number) + "\n")
        good, video = read_videos(path)
        assert good.spans and not good.rejected
        assert (video.spans, reasons(video)) == ((), [("a.0_0", "bad_scene_cut", 0)])

    def test_deep_brackets_are_told(self, tmp_path: Path) -> None:
        scene = json.dumps(SCENE | {"caption": "?"}).replace('"?"', "[" * 100_000 + "]" * 100_000)
        text = json.dumps({"z": VIDEO, "a": VIDEO | {"clip": {"c": CLIP | {"scene_split": ["?"]}}}})
        with pytest.raises(MetadataError, match=r"c\.json: broken JSON .*256 brackets within each other"):
            list(read_videos(write(tmp_path / "c.json", text.replace('"?"', scene))))

    def test_fps_may_be_missing(self, tmp_path: Path) -> None:
        without = {key: value for key, value in CLIP.items() if key != "fps"}
        assert one(tmp_path, {"c": without}).spans == one(tmp_path, {"c": CLIP}).spans

    @pytest.mark.slow
    def test_memory_does_not_grow_with_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "corpus.json"
        captions = "a long take of a harbour at dawn " * 60
        videos = 400
        with path.open("w") as file:
            file.write("{")
            for i in range(videos):
                scenes = [SCENE | {"clip_id": f"{i}.0_{k}", "caption": f"{k} {captions}"} for k in range(75)]
                file.write(
                    ("," if i else "") + f'"{i}":' + json.dumps(VIDEO | {"clip": {"0": CLIP | {"scene_split": scenes}}})
                )
            file.write("}")
        assert path.stat().st_size > 60e6
        tracemalloc.start()
        try:
            count = sum(len(span.scenes) for video in read_videos(str(path)) for span in video.spans or ())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert count == videos * 75
        assert peak < 3e6


class TestTable:
    ROWS = (
        "video_id,url,start,end,caption\n"
        'a,a.mp4,,,"first, of a"\n'
        "b,https://films.example/b,00:00:01.500,00:00:02,of b\n"
        '\na,a.mp4,1.5,3,"two\nlines"\n'
        "a,a.mp4,4,,\n"
    )

    def test_rows_are_grouped(self, tmp_path: Path) -> None:
        url = str(tmp_path / "a.mp4")
        expected = [
            Video(
                0,
                "a",
                url,
                (
                    Span("a.0", 0.0, None, (Scene("a.0_0", "first, of a", 0, -1, 0),)),
                    Span("a.1", 1.5, 3.0, (Scene("a.1_0", "two\nlines", 0, -1, 1),)),
                    Span("a.2", 4.0, None, (Scene("a.2_0", "", 0, -1, 2),)),
                ),
            ),
            Video(1, "b", "https://films.example/b", (Span("b.0", 1.5, 2.0, (Scene("b.0_0", "of b", 0, -1, 0),)),)),
        ]
        assert list(read_videos(write(tmp_path / "c.csv", self.ROWS))) == expected
        assert list(read_videos(write(tmp_path / "d.csv", self.ROWS.encode("utf-8-sig")))) == expected

    @pytest.mark.parametrize("times", ["text", "numbers"])
    def test_parquet_gives_the_same_as_csv(self, tmp_path: Path, times: str) -> None:
        rows = pa.table(
            {
                "caption": ["first, of a", "of b", "two\nlines", None],
                "note": [1, 2, 3, 4],
                "video_id": ["a", "b", "a", "a"],
                "url": ["a.mp4", "https://films.example/b", "a.mp4", "a.mp4"],
                "start": [None, 1.5, 1.5, 4.0] if times == "numbers" else ["", "00:00:01.500", "1.5", "4"],
                "end": [None, 2.0, 3.0, None] if times == "numbers" else ["", "2", "00:00:03", None],
            }
        )
        pq.write_table(rows, tmp_path / "c.parquet", row_group_size=2)
        csv = list(read_videos(write(tmp_path / "c.csv", self.ROWS)))
        assert list(read_videos(str(tmp_path / "c.parquet"))) == csv

    def test_caption_column_may_be_missing_and_ids_may_be_numbers(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"video_id": [7], "url": ["/f.mp4"], "start": [0], "end": [2]}), tmp_path / "c.parquet")
        expected = [Video(0, "7", "/f.mp4", (Span("7.0", 0.0, 2.0, (Scene("7.0_0", "", 0, -1, 0),)),))]
        assert list(read_videos(str(tmp_path / "c.parquet"))) == expected
        assert list(read_videos(write(tmp_path / "c.csv", "video_id,url,start,end\n7,/f.mp4,0,2\n"))) == expected

    def test_end_before_start_stays_with_its_number(self, tmp_path: Path) -> None:
        path = write(tmp_path / "c.csv", "video_id,url,start,end,caption\na,/f.mp4,5,3,x\na,/f.mp4,5,7,y\n")
        (video,) = read_videos(path)
        message = "the span ends at 3.0 s, not after its start at 5.0 s"
        assert video.rejected == (Rejected("a.0", "a.0_0", "x", "bad_span", message, 0),)
        assert video.spans == (Span("a.1", 5.0, 7.0, (Scene("a.1_0", "y", 0, -1, 1),)),)


class TestFolder:
    def test_films_at_any_depth(self, tmp_path: Path) -> None:
        for name in (
            "z.mp4",
            "demo.mov",
            "demo.MP4",
            "a/b/c.mkv",
            "a/poster.jpg",
            "a/film.swf",
            "a/film.gif",
            "notes.txt",
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        expected = [
            Video(i, name.replace("/", "-"), str(tmp_path / name), None)
            for i, name in enumerate(["a/b/c.mkv", "demo.MP4", "demo.mov", "z.mp4"])
        ]
        assert list(read_videos(str(tmp_path))) == expected
        assert list(read_videos(f"{tmp_path}/")) == expected
        assert list(read_videos(tmp_path.as_uri())) == expected

    def test_paths_become_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "films").mkdir()
        (tmp_path / "films" / "x.mp4").touch()
        corpus(tmp_path / "films", {"x": VIDEO | {"url": "x.mp4"}})
        monkeypatch.chdir(tmp_path)
        for source in ("films", "films/x.mp4", "films/corpus.json"):
            assert [video.url for video in read_videos(source)] == [str(tmp_path / "films" / "x.mp4")]

    def test_a_single_film(self, tmp_path: Path) -> None:
        path = tmp_path / "my film.mp4"
        path.touch()
        assert list(read_videos(str(path))) == [Video(0, "my film.mp4", str(path), None)]
        assert list(read_videos(path.as_uri())) == [Video(0, "my film.mp4", str(path), None)]

    def test_a_folder_with_a_films_suffix(self, tmp_path: Path) -> None:
        (tmp_path / "films.ts").mkdir()
        (tmp_path / "films.ts" / "x.mp4").touch()
        assert [video.video_id for video in read_videos(str(tmp_path / "films.ts"))] == ["x.mp4"]

    def test_two_paths_that_make_one_id_are_two_films(self, tmp_path: Path) -> None:
        for name in ("2021-01.mp4", "2021/01.mp4", "2021/b-c/d.mp4", "2021/b/c-d.mp4", "2021-b/c/d.mp4"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        found = list(read_videos(str(tmp_path)))
        assert all(video.spans is None and not video.rejected for video in found)
        names = {Path(video.url).relative_to(tmp_path).as_posix(): video.video_id for video in found}
        assert names["2021-01.mp4"] == "2021-01.mp4" and names["2021-b/c/d.mp4"] == "2021-b-c-d.mp4"
        assert re.fullmatch(r"2021-01~[0-9a-f]{12}\.mp4", names["2021/01.mp4"])
        assert len(set(names.values())) == 5
        assert [video.video_id for video in read_videos(str(tmp_path), 1)] == [video.video_id for video in found[1:]]
        # Ids do not depend on where the folder lies.
        tmp_path.rename(moved := tmp_path.with_name("moved"))
        assert [video.video_id for video in read_videos(str(moved))] == [video.video_id for video in found]

    def test_names_that_only_look_alike_are_rows_of_their_own(self, tmp_path: Path) -> None:
        for name in (rb"caf\xe9.mp4", b"caf\xe9.mp4"):
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
        found = list(read_videos(str(tmp_path)))
        assert [reasons(video) for video in found] == [[("", "bad_name", 0)]] * 2
        assert len({video.video_id for video in found}) == 2

    def test_no_films(self, tmp_path: Path) -> None:
        write(tmp_path / "notes.txt", "nothing")
        with pytest.raises(MetadataError, match=r"missing: no such file"):
            read_videos(str(tmp_path / "missing"))
        for source in (tmp_path, tmp_path / "notes.txt"):
            with pytest.raises(ValueError, match=rf"^{re.escape(str(source))}: no videos here.* \.mp4 .*\.webm"):
                list(read_videos(str(source)))


class TestUrl:
    @pytest.mark.parametrize(
        ("url", "resolved"),
        [
            ("https://films.example/watch?v=1", "https://films.example/watch?v=1"),
            ("s3://bucket/film.mp4", "s3://bucket/film.mp4"),
            ("file:///films/film.mp4", "file:///films/film.mp4"),
            ("/films/film.mp4", "/films/film.mp4"),
            ("film.mp4", "{folder}/film.mp4"),
            ("./films/film.mp4", "{folder}/films/film.mp4"),
            ("../film 1.mp4", "{parent}/film 1.mp4"),
        ],
    )
    def test_relative_paths_start_at_the_metadata(self, tmp_path: Path, url: str, resolved: str) -> None:
        path = corpus(tmp_path, {"a": VIDEO | {"url": url}})
        for source in (path, Path(path).as_uri()):
            (video,) = read_videos(source)
            assert video.url == resolved.format(folder=tmp_path, parent=tmp_path.parent)


class TestRejected:
    def test_cuts(self, tmp_path: Path) -> None:
        video = one(tmp_path, {"c": clip(("s0", 5, 5), ("s1", 5, 4), ("s2", -1, 4), ("s3", 0, -2), ("s4", 7, -1))})
        assert reasons(video) == [(f"s{i}", "bad_scene_cut", i) for i in range(4)]
        assert video.rejected[0].message.startswith("[5, 5] is no cut")
        assert video.spans == (Span("c", 1.0, 3.5, (Scene("s4", "of s4", 7, -1, 4),)),)

    @pytest.mark.parametrize("span", [("00:00:03", "00:00:03"), ("00:00:03", "00:00:02.999")])
    def test_span(self, tmp_path: Path, span: tuple[str, str]) -> None:
        video = one(tmp_path, {"c": clip(("s0", 0, -1), ("s1", 0, 4), span=span), "d": clip(("s2", 0, 1))})
        assert reasons(video) == [("s0", "bad_span", 0), ("s1", "bad_span", 1)]
        assert video.spans is not None
        assert [(span.clip_id, span.scenes[0].ordinal) for span in video.spans] == [("d", 2)]

    def test_same_scene_id(self, tmp_path: Path) -> None:
        video = one(tmp_path, {"c": clip(("s", 0, 4), ("s", 0, 4)), "d": clip(("t", 0, 4), ("s", 4, 8))})
        assert reasons(video) == [("s", "duplicate_id", 1), ("s", "duplicate_id", 3)]
        assert video.spans is not None
        assert [[scene.ordinal for scene in span.scenes] for span in video.spans] == [[0], [2]]

    def test_scene_ids_need_to_differ_only_within_a_video(self, tmp_path: Path) -> None:
        assert [video.rejected for video in read_videos(corpus(tmp_path, {"a": VIDEO, "b": VIDEO}))] == [(), ()]

    @pytest.mark.parametrize("name", ["corpus.json", "corpus.jsonl"])
    def test_same_video_id(self, tmp_path: Path, name: str) -> None:
        again = VIDEO | {"clip": {"c": clip(("s", 0, 4), ("t", 4, -1))}}
        text = f'{{"a": {json.dumps(VIDEO)}, "b": {json.dumps(VIDEO)}, "a": {json.dumps(again)}}}'
        videos = list(read_videos(write(tmp_path / name, text)))
        assert [(video.video_id, bool(video.spans), reasons(video)) for video in videos] == [
            ("a", True, []),
            ("b", True, []),
            ("a", False, [("s", "duplicate_id", 0), ("t", "duplicate_id", 1)]),
        ]
        assert list(read_videos(str(tmp_path / name), start=2)) == videos[2:]

    def test_same_clip_key(self, tmp_path: Path) -> None:
        both = json.dumps({"c": clip(("s", 0, 4))})[:-1] + ", " + json.dumps({"c": clip(("t", 0, 4))})[1:]
        (video,) = read_videos(write(tmp_path / "c.json", f'{{"a": {{"url": "/f.mp4", "clip": {both}}}}}'))
        assert video.spans == (Span("c", 1.0, 3.5, (Scene("s", "of s", 0, 4, 0),)),)
        assert reasons(video) == [("t", "duplicate_id", 1)]

    @pytest.mark.parametrize("clips", [{}, {"c": clip()}])
    def test_no_scenes(self, tmp_path: Path, clips: dict[str, Any]) -> None:
        video = one(tmp_path, clips)
        assert (video.spans, reasons(video)) == ((), [("", "no_scenes", 0)])

    def test_every_scene_is_there_once(self, tmp_path: Path) -> None:
        scenes = [(f"s{i % 7}", i % 5 - 1, i % 4 - 1) for i in range(60)]
        spans = [("0", "1"), ("1", "0")]
        video = one(tmp_path, {f"c{k}": clip(*scenes[k : k + 10], span=spans[k // 10 % 2]) for k in range(0, 60, 10)})
        kept = [(scene.ordinal, scene.scene_id) for span in video.spans or () for scene in span.scenes]
        lost = [(scene.ordinal, scene.scene_id) for scene in video.rejected]
        assert kept and lost
        assert sorted(kept + lost) == [(i, scene[0]) for i, scene in enumerate(scenes)]


class TestRange:
    @pytest.fixture(params=["json", "jsonl", "csv", "folder"])
    def five(self, tmp_path: Path, request: pytest.FixtureRequest) -> str:
        names = [f"v{i}" for i in range(5)]
        if request.param == "folder":
            for name in names:
                (tmp_path / f"{name}.mp4").touch()
            return str(tmp_path)
        if request.param == "csv":
            rows = "".join(f"{name},/{name}.mp4,0,1\n" for name in names)
            return write(tmp_path / "c.csv", f"video_id,url,start,end\n{rows}")
        if request.param == "jsonl":
            return write(tmp_path / "c.jsonl", "\n".join(json.dumps({name: VIDEO}) for name in names))
        return corpus(tmp_path, dict.fromkeys(names, VIDEO))

    def test_both_ends_are_included(self, five: str) -> None:
        whole = list(read_videos(five))
        assert len(whole) == 5
        assert list(read_videos(five, 1, 3)) == whole[1:4]
        assert list(read_videos(five, 4)) == whole[4:]
        assert list(read_videos(five, 0, 0)) == whole[:1]
        assert list(read_videos(five, 0, 4)) == whole

    @pytest.mark.parametrize(("start", "end"), [(5, None), (5, 5), (0, 5), (2, 99)])
    def test_out_of_bounds_says_the_bounds(self, five: str, start: int, end: int | None) -> None:
        with pytest.raises(ValueError, match=rf"videos.start={start}, videos.end={end}: .* has 5 videos, 0 to 4"):
            list(read_videos(five, start, end))

    @pytest.mark.parametrize(("start", "end"), [(-1, None), (3, 2), (0, -1)])
    def test_not_a_range(self, five: str, start: int, end: int | None) -> None:
        with pytest.raises(ValueError, match=rf"videos.start={start}, videos.end={end}: both count from 0"):
            read_videos(five, start, end)

    def test_what_lies_behind_is_not_read(self, tmp_path: Path) -> None:
        path = write(tmp_path / "c.jsonl", json.dumps({"a": VIDEO}) + "\nbroken")
        assert [video.video_id for video in read_videos(path, 0, 0)] == ["a"]


def without(tree: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if name != key}


AT_CLIP = r'"a"\."clip"\."a\.0\.mp4"'
AT_SCENE = AT_CLIP + r'\."scene_split"\[0\]'

BAD_VIDEOS = {
    "a number": ({"a": 3}, r'"a": must be an object with url, clip, not 3'),
    "no url": ({"a": without(VIDEO, "url")}, r'"a": key "url" is missing; it needs url, clip'),
    "url null": ({"a": VIDEO | {"url": None}}, r'"a"\."url": must be text, not None'),
    "url empty": ({"a": VIDEO | {"url": ""}}, r'"a"\."url": is empty; give https'),
    "no clip": ({"a": without(VIDEO, "clip")}, r'"a": key "clip" is missing'),
    "clips in a list": ({"a": VIDEO | {"clip": [CLIP]}}, r'"a"\."clip": must be an object, not \['),
    "id empty": ({"": VIDEO}, r"'' cannot be an id"),
    "id with slash": ({"a/b": VIDEO}, r"'a/b' cannot be an id"),
    "id with backslash": ({"a\\b": VIDEO}, r"cannot be an id"),
    "id with NUL": ({"a\0b": VIDEO}, r"'a\\x00b' cannot be an id"),
    "id of dots": ({"..": VIDEO}, r"'\.\.' cannot be an id.* not \. or \.\."),
    "id too long": ({"é" * 101: VIDEO}, r"cannot be an id.* 1 to 200 bytes"),
}
BAD_CLIPS = {
    "no span": (without(CLIP, "span"), AT_CLIP + r': key "span" is missing; it needs span, scene_split'),
    "no scenes": (without(CLIP, "scene_split"), AT_CLIP + r': key "scene_split" is missing'),
    "one time": (CLIP | {"span": ["0"]}, AT_CLIP + r'\."span": must be two times, start and end, not \[\'0\'\]'),
    "span as text": (CLIP | {"span": "0-1"}, AT_CLIP + r'\."span": must be a list, not \'0-1\''),
    "no time": (CLIP | {"span": ["0", "late"]}, AT_CLIP + r'\."span"\[1\]: \'late\' is not a time; write seconds'),
    "negative time": (CLIP | {"span": [-1, 2]}, AT_CLIP + r'\."span"\[0\]: -1 is not a time'),
}
BAD_SCENES = {
    "no caption": (
        without(SCENE, "caption"),
        AT_SCENE + r': key "caption" is missing; it needs clip_id, scene_cut, cap',
    ),
    "no id": (without(SCENE, "clip_id"), AT_SCENE + r': key "clip_id" is missing'),
    "id a number": (SCENE | {"clip_id": 4}, AT_SCENE + r'\."clip_id": must be text, not 4'),
    "id with slash": (SCENE | {"clip_id": "a/0"}, AT_SCENE + r'\."clip_id": \'a/0\' cannot be an id'),
    "half frames": (
        SCENE | {"scene_cut": [0, 1.5]},
        AT_SCENE + r'\."scene_cut": must be two whole frame numbers, not \[0',
    ),
    "cut of three": (SCENE | {"scene_cut": [0, 1, 2]}, AT_SCENE + r'\."scene_cut": must be two whole frame numbers'),
    "cut of truth": (
        SCENE | {"scene_cut": [False, True]},
        AT_SCENE + r'\."scene_cut": must be two whole frame numbers',
    ),
}
BAD = (
    BAD_VIDEOS
    | {f"clip: {name}": ({"a": VIDEO | {"clip": {"a.0.mp4": tree}}}, at) for name, (tree, at) in BAD_CLIPS.items()}
    | {
        f"scene: {name}": ({"a": VIDEO | {"clip": {"a.0.mp4": CLIP | {"scene_split": [tree]}}}}, at)
        for name, (tree, at) in BAD_SCENES.items()
    }
)


CODES = {"url empty": "bad_url", "scene: id with slash": "bad_name"} | {
    name: f"bad_{kind}"
    for kind, names in {
        "name": [name for name in BAD_VIDEOS if name.startswith("id ")],
        "span": ["clip: one time", "clip: no time", "clip: negative time"],
        "scene_cut": ["scene: half frames", "scene: cut of three", "scene: cut of truth"],
    }.items()
    for name in names
}
"""Of what is wrong with a value; all others are bad_metadata."""


class TestBadMetadata:
    @pytest.mark.parametrize("name", BAD)
    def test_one_bad_record_costs_that_record(self, tmp_path: Path, name: str) -> None:
        tree, message = BAD[name]
        path = corpus(tmp_path, {"z": VIDEO} | tree)
        (good,) = read_videos(corpus(tmp_path, {"z": VIDEO}, "good.json"))
        first, bad = read_videos(path)
        assert first == good and bad.spans == ()
        (row,) = bad.rejected
        assert row.code == CODES.get(name, "bad_metadata")
        assert re.match(rf"{re.escape(path)}: .*{message}", row.message)
        for text in (bad.video_id, row.clip_id, row.scene_id):
            assert len(text.encode()) <= 250 and "\0" not in text

    def test_the_other_scenes_of_its_video_stay(self, tmp_path: Path) -> None:
        split = [SCENE, 7, without(SCENE, "caption"), SCENE | {"clip_id": "a.0_3"}]
        video = one(tmp_path, {"c": CLIP | {"scene_split": split}, "d": 3, "e": clip(("t", 0, 4))})
        assert reasons(video) == [("c[1]", "bad_metadata", 1), ("c[2]", "bad_metadata", 2), ("d", "bad_metadata", 4)]
        assert video.spans is not None
        assert [[scene.ordinal for scene in span.scenes] for span in video.spans] == [[0, 3], [5]]

    @pytest.mark.parametrize("name", [name for name in BAD if name not in CODES])
    def test_where_no_record_has_the_form_the_file_is_refused(self, tmp_path: Path, name: str) -> None:
        tree, message = BAD[name]
        path = corpus(tmp_path, tree)
        with pytest.raises(MetadataError, match=rf"^{re.escape(path)}: .*{message}"):
            list(read_videos(path))

    @pytest.mark.parametrize("name", ["no url", "clip: no span", "scene: no caption"])
    def test_line_in_json_lines(self, tmp_path: Path, name: str) -> None:
        tree, message = BAD[name]
        path = write(tmp_path / "c.jsonl", "\n".join([json.dumps({"z": VIDEO}), "", json.dumps(tree)]))
        _, bad = read_videos(path)
        assert re.match(rf"{re.escape(path)}, line 3: {message}", bad.rejected[0].message)

    def test_the_same_bad_id_twice(self, tmp_path: Path) -> None:
        videos = list(read_videos(write(tmp_path / "c.jsonl", (json.dumps({"a/b": VIDEO}) + "\n") * 2)))
        assert [reasons(video) for video in videos] == [[("", "bad_name", 0)], [("", "duplicate_id", 0)]]

    def test_the_example_of_the_message(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        corpus(tmp_path, {"abc": {"url": "x.mp4", "clip": {"abc.0.mp4": {"scene_split": []}}}})
        monkeypatch.chdir(tmp_path)
        with pytest.raises(MetadataError) as error:
            list(read_videos("corpus.json"))
        expected = 'corpus.json: "abc"."clip"."abc.0.mp4": key "span" is missing; it needs span, scene_split'
        assert str(error.value) == expected

    def test_key_twice(self, tmp_path: Path) -> None:
        text = '{"a": {"url": "/one.mp4", "url": "/two.mp4", "clip": {}}}'
        with pytest.raises(MetadataError, match=r'"a": key "url" stands twice; remove one'):
            list(read_videos(write(tmp_path / "c.json", text)))

    @pytest.mark.parametrize(
        ("cut", "message"),
        [
            (lambda text: text[:-30], r'before byte \d+, after the video "a": .*premature EOF'),
            (lambda text: text.replace('"b":', '"b"'), r'before byte \d+, after the video "a": .*, at: .*"b"'),
            (lambda text: text + text, r"trailing garbage.*one object a line is JSON Lines: name it \.jsonl"),
            (lambda text: "", r"before byte 0: .*premature EOF, at: the end; repair it"),
            (lambda text: "films!", r"before byte 6: .*films!"),
            (lambda text: text.replace("a cat", "\n"), r"invalid character inside string"),
        ],
    )
    def test_broken_json(self, tmp_path: Path, cut: Any, message: str) -> None:
        path = write(
            tmp_path / "c.json", cut(json.dumps({"a": VIDEO, "b": VIDEO | {"clip": {"c": clip(("s", 0, 1))}}}))
        )
        with pytest.raises(MetadataError, match=rf"^{re.escape(path)}: broken JSON .*{message}"):
            list(read_videos(path))

    def test_not_utf_8(self, tmp_path: Path) -> None:
        text = json.dumps({"a": VIDEO}).replace("a cat", "café").encode("latin-1")
        with pytest.raises(MetadataError, match=r"c\.json: broken JSON .*invalid bytes in UTF8"):
            list(read_videos(write(tmp_path / "c.json", text)))
        rows = "video_id,url,start,end,caption\na,/f,,,café\n".encode("latin-1")
        with pytest.raises(MetadataError, match=r"c\.csv, line \d.* not UTF-8 .*; save it as UTF-8"):
            list(read_videos(write(tmp_path / "c.csv", rows)))

    def test_broken_line(self, tmp_path: Path) -> None:
        good = json.dumps({"a": VIDEO})
        path = write(tmp_path / "c.jsonl", f"{good}\n{good[:40]}\n{json.dumps({'b': VIDEO})}\n")
        first, broken, last = read_videos(path)
        assert first.spans and last.spans
        assert reasons(broken) == [("", "bad_metadata", 0)]
        assert broken.rejected[0].message.startswith(f"{path}, line 2: broken JSON")
        with pytest.raises(MetadataError, match="line 1: broken JSON"):
            list(read_videos(write(tmp_path / "d.jsonl", good[:40])))

    @pytest.mark.parametrize("text", ["[]", '[{"a": 1}]', "{}", "3", '"films"'])
    def test_not_an_object_of_videos(self, tmp_path: Path, text: str) -> None:
        for name, place in (("c.json", r"c\.json"), ("c.jsonl", r"c\.jsonl, line 1")):
            with pytest.raises(MetadataError, match=rf"{place}: no videos here; it must be an object {{video_id: "):
                list(read_videos(write(tmp_path / name, text)))

    @pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.parquet", "c.json"])
    def test_empty_file(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(MetadataError, match=rf"{name}: (no videos here|no column|broken)"):
            list(read_videos(write(tmp_path / name, b"")))

    @pytest.mark.parametrize("name", ["c.json", "c.jsonl", "c.csv", "c.parquet", ""])
    def test_nothing_there(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(MetadataError, match=r"no such file; give a metadata file or a folder"):
            read_videos(str(tmp_path / name) if name else "")

    @pytest.mark.parametrize(
        ("rows", "code", "message"),
        [
            ("a,/f.mp4,soon,\n", "bad_span", r", line 2: \"start\": 'soon' is not a time; write seconds"),
            ("a,/f.mp4,0,-3\n", "bad_span", r", line 2: \"end\": '-3' is not a time"),
            (",/f.mp4,,\n", "bad_name", r", line 2: \"video_id\": '' cannot be an id"),
            ("a/b,/f.mp4,,\n", "bad_name", r", line 2: \"video_id\": 'a/b' cannot be an id"),
            ("a\0b,/f.mp4,,\n", "bad_name", r", line 2: \"video_id\": 'a\\x00b' cannot be an id"),
            (f"{'a' * 5000},/f.mp4,,\n", "bad_name", r", line 2: \"video_id\": 'aaa.*… cannot be an id"),
            ("a,,,\n", "bad_url", r", line 2: \"url\": is empty"),
            ("a,/f.mp4,\n", "bad_metadata", r", line 2: 3 fields under 4 columns; quote what holds a comma"),
            ("a,/f,g.mp4,,\n", "bad_metadata", r", line 2: 5 fields under 4 columns"),
            ('a,"/f"x,,\n', "bad_metadata", r", line 2: broken CSV: .* expected after"),
            ('z,"/f\n.mp4",,\n\nb,/f.mp4,x,\n', "bad_span", r", line 5: \"start\": 'x' is not a time"),
            ("a,/f\udce9.mp4,,\n", "bad_metadata", r", line 2: not UTF-8 \(byte 0xe9\); save it as UTF-8"),
            ("z,/f.mp4,,\nz,/g.mp4,,\n", "bad_metadata", r", line 3: \"url\": is /g.mp4, but the video's .* /f.mp4"),
        ],
    )
    def test_one_bad_line_of_csv_costs_that_line(self, tmp_path: Path, rows: str, code: str, message: str) -> None:
        text = f"video_id,url,start,end\n{rows}y,/y.mp4,0,1\n"
        path = write(tmp_path / "c.csv", text.encode(errors="surrogateescape"))
        *_, good = videos = list(read_videos(path))
        assert (good.video_id, good.spans) == ("y", (Span("y.0", 0.0, 1.0, (Scene("y.0_0", "", 0, -1, 0),)),))
        (row,) = [row for video in videos for row in video.rejected]
        assert row.code == code and row.scene_id and re.match(rf"{re.escape(path)}{message}", row.message)
        assert sum(len(video.rejected) + len(video.spans or ()) for video in videos) == 2 + rows.startswith("z")

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ("", r": no videos here"),
            ('a,"/f.mp4,,\nb,/f.mp4,,\n', r", line 2: broken CSV: unexpected end of data"),
            ("a,b\nc,d\n", r", line 2: 2 fields under 4 columns"),
        ],
    )
    def test_csv_that_is_refused(self, tmp_path: Path, rows: str, message: str) -> None:
        path = write(tmp_path / "c.csv", f"video_id,url,start,end\n{rows}")
        with pytest.raises(MetadataError, match=rf"^{re.escape(path)}{message}"):
            list(read_videos(path))

    def test_missing_columns_are_told_with_those_there(self, tmp_path: Path) -> None:
        message = r": no column url, end; it has video_id, start, title, and needs video_id, url, start, end, may have"
        with pytest.raises(MetadataError, match=rf"c\.csv{message}"):
            read_videos(write(tmp_path / "c.csv", "video_id,start,title\na,0,x\n"))
        pq.write_table(pa.table({"video_id": ["a"], "start": [0], "title": ["x"]}), tmp_path / "c.parquet")
        with pytest.raises(MetadataError, match=rf"c\.parquet{message}"):
            read_videos(str(tmp_path / "c.parquet"))

    def test_column_twice(self, tmp_path: Path) -> None:
        with pytest.raises(MetadataError, match=r"column url stands twice; it has video_id, url, url, start, end"):
            read_videos(write(tmp_path / "c.csv", "video_id,url,url,start,end\na,/f,/g,0,1\n"))

    @pytest.mark.parametrize(
        ("column", "value", "code", "message"),
        [
            ("start", -1.0, "bad_span", "-1.0 is not a time"),
            ("end", float("inf"), "bad_span", "inf is not a time"),
            ("end", True, "bad_span", "True is not a time"),
            ("end", datetime(2026, 1, 1, 0, 1), "bad_span", "'2026-01-01 00:01:00' is not a time"),
            ("end", timedelta(seconds=-3), "bad_span", "-3.0 is not a time"),
            ("start", [1.0], "bad_span", "is not a time"),
            ("video_id", None, "bad_name", "'' cannot be an id"),
            ("video_id", float("nan"), "bad_name", "'' cannot be an id"),
            ("video_id", b"caf\xe9", "bad_name", "cannot be an id"),
            ("url", None, "bad_url", "is empty"),
            ("url", "", "bad_url", "is empty"),
            ("url", 4, "bad_metadata", "must be text, not 4"),
            ("caption", 4, "bad_metadata", "must be text, not 4"),
        ],
    )
    def test_one_bad_row_of_parquet_costs_that_row(
        self, tmp_path: Path, column: str, value: Any, code: str, message: str
    ) -> None:
        row = {"video_id": "a", "url": "/f.mp4", "start": 0.0, "end": 1.0, "caption": "x"} | {column: value}
        pq.write_table(pa.table({name: [item] for name, item in row.items()}), tmp_path / "c.parquet")
        if code == "bad_metadata":
            with pytest.raises(MetadataError, match=rf'c\.parquet, row 1: "{column}": {message}'):
                list(read_videos(str(tmp_path / "c.parquet")))
            return
        (video,) = read_videos(str(tmp_path / "c.parquet"))
        assert [row.code for row in video.rejected] == [code]
        assert re.search(rf'c\.parquet, row 1: "{column}": .*{message}', video.rejected[0].message)

    def test_broken_parquet(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"video_id": ["a"], "url": ["/f"], "start": [0], "end": [1]}), tmp_path / "c.parquet")
        torn = (tmp_path / "c.parquet").read_bytes()[:-20]
        for data in (torn, b"video_id,url\n"):
            with pytest.raises(MetadataError, match=r"c\.parquet: broken Parquet: .*; write it again"):
                read_videos(write(tmp_path / "c.parquet", data))


class TestTimesOfTables:
    """What Parquet, pandas and Python write for a time, and for none."""

    @pytest.mark.parametrize(
        "ends",
        [
            pa.array([90.5, None, float("nan")], pa.float64()),
            pa.array([90.5, None, float("nan")], pa.float32()),
            pa.array([Decimal("90.50"), None, None], pa.decimal128(9, 2)),
            pa.array([Decimal("90.50"), None, None], pa.decimal256(40, 2)),
            pa.array([90_500, None, None], pa.duration("ms")),
            pa.array([90_500_000_001, None, None], pa.duration("ns")),
            pa.array([90_500, None, None], pa.time32("ms")),
            pa.array([90_500_000_001, None, None], pa.time64("ns")),
            pa.array(["00:01:30.5", "", "nan"]),
            pa.array(["0 days 00:01:30.500000", "NaT", "None"], pa.large_string()),
            pa.array(["0:01:30.5", None, "<NA>"], pa.string_view()),
            pa.array(["90.5", None, "NULL"]).dictionary_encode(),
        ],
        ids=lambda array: str(array.type),
    )
    def test_parquet(self, tmp_path: Path, ends: pa.Array) -> None:
        columns = {"video_id": ["a"] * 3, "url": ["/f.mp4"] * 3, "start": pa.nulls(3), "end": ends}
        pq.write_table(pa.table(columns), tmp_path / "c.parquet")
        (video,) = read_videos(str(tmp_path / "c.parquet"))
        assert video.spans is not None and not video.rejected
        assert [span.end_s for span in video.spans] == [pytest.approx(90.5, abs=1e-6), None, None]
        assert [span.start_s for span in video.spans] == [0.0] * 3

    def test_pandas(self, tmp_path: Path) -> None:
        table = pd.DataFrame(
            {
                "video_id": [7.0, 8.0, np.nan],
                "url": pd.Categorical(["/f.mp4", "/g.mp4", "/h.mp4"]),
                "start": pd.array([1, None, 2], "Int64"),
                "end": pd.to_timedelta(pd.Series(["00:00:02", None, "1 days 00:00:00.25"])),
                "caption": ["a cat", np.nan, None],
            }
        )
        table.to_parquet(tmp_path / "c.parquet")
        table.to_csv(tmp_path / "c.csv", index=False)
        for path in (tmp_path / "c.parquet", tmp_path / "c.csv"):
            first, second, third = read_videos(str(path))
            names = ("7", "8") if path.suffix == ".parquet" else ("7.0", "8.0")
            assert (first.video_id, second.video_id) == names
            assert first.spans == (Span(f"{names[0]}.0", 1.0, 2.0, (Scene(f"{names[0]}.0_0", "a cat", 0, -1, 0),)),)
            assert second.spans == (Span(f"{names[1]}.0", 0.0, None, (Scene(f"{names[1]}.0_0", "", 0, -1, 0),)),)
            assert [row.code for row in third.rejected] == ["bad_name"]
        (_, _, day) = read_videos(write(tmp_path / "d.csv", (tmp_path / "c.csv").read_text().replace("\n,", "\n9,")))
        assert day.spans is not None and day.spans[0].end_s == 86400.25

    def test_text_of_parquet_that_is_no_utf_8_costs_its_row(self, tmp_path: Path) -> None:
        def text(*values: bytes) -> pa.Array:
            return pa.array(values, pa.binary()).view(pa.string())

        columns: Any = {
            "video_id": text(b"a", b"b", b"caf\xe9"),
            "url": text(b"/a.mp4", b"/\xe9.mp4", b"/c.mp4"),
            "start": [0, 0, 0],
            "end": [1, 1, 1],
            "caption": text(b"caf\xe9", b"", b""),
        }
        pq.write_table(pa.table(columns), tmp_path / "c.parquet")
        first, second, third = read_videos(str(tmp_path / "c.parquet"))
        assert first.spans is not None and first.spans[0].scenes[0].caption == "caf\ufffd"
        assert [video.rejected[0].code for video in (second, third)] == ["bad_url", "bad_name"]
        assert third.video_id == r"caf\udce9"


class TestFiles:
    """How metadata lies in files."""

    @pytest.mark.parametrize(
        ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
    )
    def test_packed_files_are_read(self, tmp_path: Path, suffix: str, pack: Any) -> None:
        rows = "video_id,url,start,end\na,/f.mp4,0,1\n".encode("utf-8-sig")
        pq.write_table(pa.table({"video_id": ["a"], "url": ["/f"], "start": [0], "end": [1]}), tmp_path / "c.parquet")
        files = {
            "c.json": json.dumps({"a": VIDEO}).encode(),
            "c.jsonl": json.dumps({"a": VIDEO}).encode(),
            "c.csv": rows,
            "c.parquet": (tmp_path / "c.parquet").read_bytes(),
        }
        for name, data in files.items():
            plain = list(read_videos(write(tmp_path / name, data)))
            assert plain[0].spans
            assert list(read_videos(write(tmp_path / f"{name}{suffix}", pack(data)))) == plain
            assert list(read_videos(write(tmp_path / name, pack(data)))) == plain, "packed, whatever its name"
        torn = pack(json.dumps({"a": VIDEO, "b": VIDEO | {"url": os.urandom(4000).hex()}}).encode())[:-900]
        with pytest.raises(MetadataError, match=r"c\.json.*: cannot be unpacked \(.*\); fetch or pack it again"):
            list(read_videos(write(tmp_path / f"c.json{suffix}", torn)))

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"\x28\xb5\x2f\xfd\0\0\0\0", "is packed with Zstandard; unpack it"),
            (b"PK\x03\x04\0\0\0\0", "is a ZIP file; unpack it"),
            ("{}".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ],
    )
    @pytest.mark.parametrize("name", ["c.json", "c.jsonl", "c.csv", "c.parquet"])
    def test_others_are_named(self, tmp_path: Path, name: str, data: bytes, message: str) -> None:
        with pytest.raises(MetadataError, match=rf"{name}: {message}"):
            list(read_videos(write(tmp_path / name, data)))

    @pytest.mark.parametrize(("name", "delimiter"), [("c.csv", ";"), ("c.csv", "\t"), ("c.csv", "|"), ("c.tsv", "\t")])
    def test_delimiters(self, tmp_path: Path, name: str, delimiter: str) -> None:
        rows = ["video_id,url,start,end,caption", "a,/f.mp4,0,1.5,two", "b,/g.mp4,,,"]
        expected = list(read_videos(write(tmp_path / "d.csv", "\n".join(rows))))
        text = "\r\n".join(row.replace(",", delimiter) for row in rows)
        assert list(read_videos(write(tmp_path / name, text))) == expected
        quoted = text.replace("two", f'"two{delimiter} three, four"')
        spans = next(read_videos(write(tmp_path / name, quoted))).spans
        assert spans is not None and spans[0].scenes[0].caption == f"two{delimiter} three, four"


class TestLinks:
    """Links in a folder of films."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in ("films/own/a.mp4", "disk/b.mp4", "disk/deep/c.mp4", "other/d.mp4"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path / "films"

    def test_linked_folders_are_listed_once(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        (folder / "disk").symlink_to(folder.parent / "disk")
        (folder / "disk again").symlink_to(folder.parent / "disk")
        (folder / "deep").symlink_to(folder.parent / "disk" / "deep")
        (folder.parent / "disk" / "loop").symlink_to(folder.parent / "disk")
        (folder.parent / "disk" / "back").symlink_to(folder)
        (folder / "latest").symlink_to(folder / "own")
        (folder / "above").symlink_to(folder.parent)
        (folder / "itself").symlink_to(folder / "itself")
        (folder / "gone.mp4").symlink_to(folder / "nothing.mp4")
        (folder / "one.mp4").symlink_to(folder.parent / "other" / "d.mp4")
        found = [Path(video.url).resolve().name for video in read_videos(str(folder))]
        assert sorted(found) == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
        told = "\n".join(entry.getMessage() for entry in caplog.records)
        for name in (
            "disk",
            "disk again/loop",
            "disk again/back",
            "disk again/deep",
            "latest",
            "above",
            "itself",
            "gone.mp4",
        ):
            assert f"/{name} " in told, name

    def test_a_folder_of_links_only_has_films(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "links").mkdir()
        for name in ("films", "disk", "other"):
            (tmp_path / "links" / name).symlink_to(tmp_path / name)
        names = [video.video_id for video in read_videos(str(tmp_path / "links"))]
        assert names == ["disk-b.mp4", "disk-deep-c.mp4", "films-own-a.mp4", "other-d.mp4"]
