"""Records of any content: each is a scene or a row with a code, and none ends the run.

Drawn by a seeded generator. FILMRAY_ODD_RECORDS sets how many corpora are drawn, FILMRAY_ODD_SEED the first seed:
`FILMRAY_ODD_RECORDS=100000 pytest tests/jobs/curation/test_odd_records.py` looks for longer.
"""

import csv
import json
import os
import random
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.curation.sources.fetch import FetchConfig, fetch
from actors.media.film import VIDEO_SUFFIXES
from pipelines.curation.cutting.plan import make_plan
from pipelines.curation.settings import CurationConfig, VideosConfig
from pipelines.curation.sources.input import Video, read_videos
from pipelines.curation.sources.records import is_usable
from tests.jobs.curation.test_bad_addresses import FAST
from tests.support import films
from tests.support.corpus import run_here, table

COUNT = int(os.environ.get("FILMRAY_ODD_RECORDS", "80"))
SEED = int(os.environ.get("FILMRAY_ODD_SEED", "0"))
GOOD = {"url": "/good.mp4", "clip": {"g": {"span": [0, 1], "scene_split": [{"clip_id": "g", "scene_cut": [0, -1]}]}}}
GOOD["clip"]["g"]["scene_split"][0]["caption"] = ""
TEXTS = (
    *(
        "",
        " ",
        ".",
        "..",
        "a",
        "b",
        "a/b",
        "a\\b",
        "a\0b",
        "x" * 201,
        "ü" * 101,
        "x" * 5000,
        "é",
        "e\u0301",
        "\U0001f3ac",
    ),
    *(
        "\ud83d",
        "a\udc00",
        "\ufffe",
        "\u202e",
        "\n",
        "\t",
        "NaN",
        "null",
        "-rf",
        "~",
        "%00",
        "%2F",
        "{}",
        "<b>",
        "'\"",
        "con",
    ),
    *(
        "settings.json",
        "run.json",
        "plan",
        "a.mp4",
        "a.mp4_",
        ".filmray",
        "1" * 40,
        "00:00:01",
        "1e400",
        "1,5",
        "-1",
        "٣",
    ),
)
NUMBERS = (0, 1, -1, 7, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**40, 0.1, 1.5, -0.0, 1e308, 5e-324)
NUMBERS = (*NUMBERS, float("nan"), float("inf"), float("-inf"), True, False, None)
SCHEMES = ("http://", "https://", "HTTP://", "file://", "s3://", "ftp://", "", "/", "//", "http:/", "://", "\ud83d://")
HOSTS = (
    "",
    "a..b",
    f"{'a' * 64}.com",
    "abc." * 70 + "com",
    "127.0.0.1:9",
    "127.0.0.1:99999",
    "[::1",
    "[::1]:9",
    "xn--",
)
HOSTS = (
    *HOSTS,
    "ä.example",
    "nas",
    "bucket",
    "Bad_Bucket!",
    "a\0b",
    "a b",
    "u:p@127.0.0.1:9",
    "%",
    "１２７.0.0.1",
    ".",
    "-",
)
PATHS = (
    "",
    "/",
    "/x.mp4",
    "/a\0b.mp4",
    f"/{'a' * 5000}.mp4",
    "/%.mp4",
    "/%zz.mp4",
    "/../x.mp4",
    "/ü.mp4",
    "/x.mp4?a=b#c",
)
PATHS = (
    *PATHS,
    "/\n.mp4",
    "//x.mp4",
    "/\u202e.mp4",
    "/" + "d/" * 600 + "x.mp4",
    "/\ud83d.mp4",
    "/ .mp4",
    "/x.mp4/",
    "/\x7f.mp4",
)
ANSWERED = "the store answered 400"
"""S3 says no more of a bucket that cannot exist, nor of a token that is out of date."""


class Draw(random.Random):
    """Draws parts of metadata."""

    def url(self) -> str:
        """Something that stands where a url belongs."""
        return self.choice(SCHEMES) + self.choice(HOSTS) + self.choice(PATHS)

    def value(self, depth: int = 0) -> Any:
        """Any value of JSON."""
        kind = self.randrange(6 if depth < 3 else 4)
        if kind == 4:
            return [self.value(depth + 1) for _ in range(self.randrange(3))]
        if kind == 5:
            return {self.choice(TEXTS): self.value(depth + 1) for _ in range(self.randrange(3))}
        return self.choice(TEXTS) if kind < 2 else self.choice(NUMBERS)

    def odd(self, sound: Any) -> Any:
        """Mostly what is sound, else any value."""
        return self.value() if self.random() < 0.15 else sound

    def part(self, tree: dict[str, Any]) -> Any:
        """An object that may lack a key, or be something else."""
        if self.random() < 0.05:
            tree.pop(self.choice(list(tree)))
        return self.odd(tree)

    def video(self) -> Any:
        """A video of HDVG, with what may be wrong with one."""
        clips = {}
        for _ in range(self.randrange(3)):
            scenes = [
                self.part(
                    {
                        "clip_id": self.odd(self.choice(TEXTS)),
                        "scene_cut": self.odd([self.odd(self.choice(NUMBERS)), self.odd(-1)]),
                        "caption": self.odd(self.choice(TEXTS)),
                    }
                )
                for _ in range(self.randrange(3))
            ]
            span = self.odd([self.odd(0), self.odd(self.choice(NUMBERS))])
            clips[self.choice(TEXTS)] = self.part({"span": span, "scene_split": self.odd(scenes)})
        return self.part({"url": self.odd(self.url()), "clip": self.odd(clips)})


def check(videos: list[Video], count: int | None = None) -> None:
    """Every video has a scene or a row, the good one its scene, and tables and folders can hold all of it."""
    assert count is None or len(videos) == count
    (good,) = [video for video in videos if video.video_id == "good" and video.spans]
    assert good.spans and [scene.scene_id for scene in good.spans[0].scenes] in (["g"], ["good.0_0"])
    for video in videos:
        scenes = [scene for span in video.spans or () for scene in span.scenes]
        assert scenes or video.rejected
        for text in (video.video_id, video.url, *(row.scene_id for row in video.rejected)):
            assert text.encode() is not None
        for row in video.rejected:
            assert row.code and row.message.encode()
        for scene in scenes:
            assert is_usable(video.video_id) and is_usable(scene.scene_id)
            assert 0 <= scene.first < 2**63 and -1 <= scene.end < 2**63
        ordinals = sorted([scene.ordinal for scene in scenes] + [row.ordinal for row in video.rejected])
        assert ordinals == list(range(len(ordinals)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_any_metadata_is_scenes_and_rows(tmp_path: Path, kind: str):
    for number in range(COUNT):
        draw = Draw(f"{SEED} {kind} {number}")
        path = tmp_path / f"corpus.{kind}"
        count = None
        if kind.startswith("json"):
            videos = [("good", GOOD), *((draw.choice(TEXTS), draw.video()) for _ in range(draw.randrange(5)))]
            ascii_only, count = draw.random() < 0.5, len(videos)
            pairs = [json.dumps(name, ensure_ascii=ascii_only) + ":" + dump(tree, ascii_only) for name, tree in videos]
            text = "{" + ",".join(pairs) + "}" if kind == "json" else "\n".join(f"{{{pair}}}" for pair in pairs)
            path.write_bytes(text.encode(errors="surrogatepass"))
        elif kind == "csv":
            with path.open("w", newline="", errors="surrogatepass") as file:
                rows = csv.writer(file, delimiter=draw.choice(",;\t|"))
                rows.writerow(["video_id", "url", "start", "end", "caption"])
                rows.writerow(["good", "/good.mp4", 0, 1, ""])
                for _ in range(draw.randrange(6)):
                    row = [draw.odd(draw.choice(TEXTS)), draw.url(), draw.odd(0), draw.odd(1), draw.value()]
                    rows.writerow(row[: draw.randrange(6)] if draw.random() < 0.1 else row)
        else:
            pq.write_table(columns(draw), path)
        config = CurationConfig(input=str(path), output=str(tmp_path / "out"))
        try:
            found = list(read_videos(str(path)))
            check(found, count)
            plan = make_plan(config)
            assert plan.videos == len(found)
            make_plan(replace(config, videos=VideosConfig(len(found) - 1)))
        except Exception as error:
            raise AssertionError(f"seed {SEED}, {kind}, number {number}: {path.read_bytes()[:2000]!r}") from error


def dump(tree: Any, ascii_only: bool) -> str:
    return json.dumps(tree, ensure_ascii=ascii_only)


def columns(draw: Draw) -> pa.Table:
    """A table with columns of any type, the first row of which is sound."""
    count = draw.randrange(5)

    def texts(sound: str, drawn: Any) -> pa.Array:
        data = [sound, *(drawn() for _ in range(count))]
        return pa.array([text.encode(errors="surrogatepass") for text in data], pa.binary()).view(pa.string())

    def times(sound: int) -> pa.Array:
        kind = draw.choice(
            [pa.int64(), pa.float64(), pa.duration("ns"), pa.time64("us"), pa.decimal128(38, 2), pa.int8()]
        )
        values = [sound, *(draw.choice([0, 1, 100, None, -1 if kind != pa.time64("us") else 5]) for _ in range(count))]
        return pa.array(values, kind)

    return pa.table(
        {
            "video_id": texts("good", lambda: draw.choice(TEXTS)),
            "url": texts("/good.mp4", draw.url),
            "start": pa.nulls(count + 1),
            "end": times(1),
            "caption": texts("", lambda: draw.choice(TEXTS)),
        }
    )


def test_any_address_is_a_row(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    resolve = socket.getaddrinfo

    def here(host: Any, *arguments: Any, **options: Any) -> Any:
        # No name of another machine is looked up.
        if host not in ("127.0.0.1", "localhost", "::1", b"127.0.0.1"):
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return resolve(host, *arguments, **options)

    settings = FetchConfig(attempts=1, timeout_s=5)
    s3_host = socket.gethostbyname("localhost")
    assert s3_host == "127.0.0.1" and s3
    monkeypatch.setattr(socket, "getaddrinfo", here)
    draw, codes = Draw(SEED), set()
    for number in range(4 * COUNT):
        url = draw.url().encode(errors="replace").decode()
        # Every other url is a page, for which a tool is started.
        if url.lower().startswith("http") and Path(url.partition("?")[0]).suffix.lower() not in VIDEO_SUFFIXES:
            continue
        try:
            got = fetch("a", url, str(tmp_path / "videos"), settings)
        except Exception as error:
            raise AssertionError(f"seed {SEED}, number {number}: {url!r}") from error
        assert got.code and got.message and (got.code != "exception" or ANSWERED in got.message), (url, got)
        codes.add(got.code)
    assert {"bad_url", "not_found", "fetch_failed"} <= codes


def test_a_run_over_odd_records_keeps_the_good_ones(ray_cluster: None, vae_folder: str, s3: str, tmp_path: Path):
    film = films.film(tmp_path / "good.mp4", shots=(24,))
    draw = Draw(SEED)
    videos: dict[str, Any] = {"good": GOOD | {"url": str(film)}}
    for number in range(40):
        url = draw.url()
        while url.lower().startswith("http"):
            url = draw.url()
        scene = {"clip_id": draw.choice(TEXTS), "scene_cut": [draw.choice(NUMBERS), -1], "caption": draw.choice(TEXTS)}
        sound = str(film) if number % 8 == 0 else url
        clip = {"span": [draw.choice(NUMBERS), draw.choice(NUMBERS)], "scene_split": [scene]}
        videos[draw.choice(TEXTS) + str(number)] = {"url": sound, "clip": {"c": clip}}
    (tmp_path / "corpus.json").write_text(json.dumps(videos))
    output = tmp_path / "out"
    for _ in range(2):
        run_here("run", f"input={tmp_path}/corpus.json", f"output={output}", f"latents.model={vae_folder}", *FAST)
        record = json.loads((output / "run.json").read_text())
        assert record["status"] == "done"
        scenes, rejected = table(output, "scenes"), table(output, "rejected")
        assert scenes[scenes.video_id == "good"].kept.all()
        assert len({*scenes.video_id, *rejected.video_id}) == len(videos), "every video has a row"
        assert rejected.message[rejected.code == "exception"].str.contains(ANSWERED).all()
