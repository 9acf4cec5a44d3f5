"""An address or a name that cannot be used is one row of the result, never the end of a run."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.core import storage
from actors.media.film import open_film
from pipelines.curation.sources.input import read_videos
from pipelines.genres.embed import find_films as genre_films
from pipelines.movie_characters.films.timeline import find_films
from tests.support import films
from tests.support.corpus import run_here, table
from tests.support.servers import FileHost, Reply

FAST = ("frames.size=64", "latents.model=tiny", "frames.min=2", "select.min_velocity=0", "select.max_rgb_diff=60000")
FILES = {
    "other-host": "file://host/film.mp4",
    "bucket": "s3://bucket",
    "bucket-slash": "s3://bucket/",
    "bad-bucket": "s3://Bad_Bucket!/film.mp4",
    "nul": "/films/a\0b.mp4",
    "nul-s3": "s3://Bad_Bucket!/a\0b.mp4",
    "bad-uri": "file://[half/film.mp4",
}
"""Urls of files that no file can have, by video_id."""
HOSTS = {
    "empty-label": "http://a..b/film.mp4",
    "empty-label-page": "http://a..b/watch?v=1",
    "long-label": f"http://{'a' * 64}.com/film.mp4",
    "long-host": f"http://{'abc.' * 70}com/film.mp4",
    "nul-host": "http://a\0b/film.mp4",
    "nul-path": "http://example.invalid/a\0b.mp4",
    "space": "http://a b/film.mp4",
    "no-host": "http:///film.mp4",
    "port": "http://127.0.0.1:99999/film.mp4",
    "half": "http://[::1/film.mp4",
    "ftp": "ftp://127.0.0.1/film.mp4",
}
"""Urls that no host can have, by video_id."""


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return films.film(tmp_path / "films" / "good.mp4", shots=(24,))


def metadata(path: Path, urls: dict[str, str]) -> Path:
    """HDVG metadata with one scene a video."""
    scene = {"scene_cut": [0, -1], "caption": ""}
    videos = {
        name: {
            "url": url,
            "clip": {f"{name}.0.mp4": {"span": [0, 1], "scene_split": [{**scene, "clip_id": f"{name}.0_0"}]}},
        }
        for name, url in urls.items()
    }
    path.write_text(json.dumps(videos))
    return path


def rejected(output: Path) -> dict[str, str]:
    rows = table(output, "rejected")
    assert rows.message.str.len().gt(10).all(), "each says what to do"
    return dict(zip(rows.video_id, rows.code, strict=True))


@pytest.mark.parametrize("with_hosts", [True, False], ids=["through fetch", "files only"])
def test_bad_urls_are_rows_of_their_own(
    with_hosts: bool, ray_cluster: None, film: Path, host: FileHost, tmp_path: Path
):
    output = tmp_path / "out"
    urls = {"good": str(film), **FILES, **(HOSTS if with_hosts else {})}
    missing = {"long-path": "/" + "a" * 5000, "long-name": f"/{'a' * 300}.mp4", "folder": str(film.parent)}
    missing |= {"below-a-file": f"{film}/film.mp4"}
    if with_hosts:
        moved = Reply(b"", 302, headers={"Location": "http://a..b/film.mp4"})
        urls["moved"] = host.put("/moved.mp4", moved)
    corpus = metadata(tmp_path / "corpus.json", {**urls, **missing})
    run_here("run", f"input={corpus}", f"output={output}", "fetch.attempts=1", *FAST)
    scenes = table(output, "scenes")
    assert list(scenes[scenes.error == ""].video_id) == ["good"]
    codes = dict.fromkeys([*FILES, *(HOSTS if with_hosts else ())], "bad_url") | dict.fromkeys(missing, "not_found")
    assert rejected(output) == codes | ({"moved": "fetch_failed"} if with_hosts else {})
    record = json.loads((output / "run.json").read_text())
    assert record["status"] == "done" and record["rows"]["in"] == len(urls) + len(missing)


def test_a_video_may_be_named_like_a_file_of_the_output(ray_cluster: None, film: Path, tmp_path: Path):
    output, names = tmp_path / "out", ("settings.json", "run.json", "export.json", "clips", "scores")
    corpus = metadata(tmp_path / "corpus.json", dict.fromkeys(names, str(film)))
    for _ in range(2):
        run_here("run", f"input={corpus}", f"output={output}", *FAST)
    assert sorted(table(output, "scenes").video_id) == sorted(names)
    for name in names:
        assert (output / "clips" / name / f"{name}.0_0.mp4").stat().st_size > 0
    assert json.loads((output / "run.json").read_text())["export"]["there"] == len(names), "nothing was made again"


def test_names_that_cannot_be_ids_are_rows_of_their_own(ray_cluster: None, film: Path, tmp_path: Path):
    folder, output, data = film.parent, tmp_path / "out", film.read_bytes()
    deep = folder / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    (deep / "film.mp4").write_bytes(data)
    (folder / f"{'ü' * 110}.mp4").write_bytes(data)
    (folder / "back\\slash.mp4").write_bytes(data)
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.mp4")).write_bytes(data)
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    run_here("run", f"input={folder}", f"output={output}", *FAST)
    assert list(table(output, "scenes").video_id) == ["good.mp4"]
    assert sorted(rejected(output).values()) == ["bad_name"] * 4
    rows = table(output, "rejected")
    assert len(set(rows.video_id)) == 4 and max(len(str(name).encode()) for name in rows.video_id) <= 200
    assert rows.message.str.contains(r"caf\\\\xe9.mp4").sum() == 1
    record = json.loads((output / "run.json").read_text())
    assert record["lost_videos"] == {"bad_name": 4}


def test_a_folder_that_may_not_be_read_is_named_and_left_out(caplog: pytest.LogCaptureFixture):
    with someone_else(), tempfile.TemporaryDirectory() as root:
        # As the folder of a file system's repairs lies in every disk's root.
        folder = Path(root, "disk")
        (folder / "lost+found").mkdir(parents=True)
        films.empty_file(folder / "a.mp4")
        (folder / "inside").symlink_to(folder / "lost+found" / "film.mp4")
        (folder / "lost+found").chmod(0)
        try:
            assert [video.video_id for video in read_videos(str(folder))] == ["a.mp4"]
            assert list(find_films(str(folder))) == ["a"]
            with pytest.raises(PermissionError):
                list(storage.listing(str(folder)))
            with pytest.raises(PermissionError):
                list(read_videos(str(folder / "lost+found")))
        finally:
            (folder / "lost+found").chmod(0o700)
    named = [entry.getMessage() for entry in caplog.records if "lost+found cannot be read" in entry.getMessage()]
    assert len(named) >= 2 and all("Permission denied" in line and "left out" in line for line in named)


@contextmanager
def someone_else() -> Iterator[None]:
    """Another user where this is root, who may read everything."""
    if os.getuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_names_that_no_table_holds_are_listed_as_text_and_can_be_opened(film: Path):
    folder = film.parent
    latin = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.mp4"))
    latin.write_bytes(film.read_bytes())
    (folder / f"{'f' * 251}.mp4").write_bytes(film.read_bytes())
    for found in (find_films(str(folder)), {source.film: source.uri for source in genre_films(str(folder))}):
        assert len(found) == 3
        for name, uri in found.items():
            assert len(name.encode()) <= 200 and uri.encode()
            assert sum(1 for _ in open_film(uri).pictures) == 24
            with storage.local(uri) as path:
                assert path.read_bytes() == film.read_bytes()
