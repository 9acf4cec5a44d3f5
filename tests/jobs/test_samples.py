"""The films of the demo."""

from pathlib import Path

import av
import pytest

from jobs import samples


def test_the_films_are_copied_and_decode(tmp_path: Path) -> None:
    copies = samples.copy_films(tmp_path / "films")
    assert [copy.name for copy in copies] == ["demo.mp4", "bikes.mp4", "bigbuckbunny.mp4"]
    for copy in copies:
        with av.open(copy) as container:
            assert next(container.decode(video=0)).width > 0
    times = [copy.stat().st_mtime_ns for copy in copies]
    assert [copy.stat().st_mtime_ns for copy in samples.copy_films(tmp_path / "films")] == times


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(samples.FILMS, "no-such-package-of-films", ["film.mp4"])
    with pytest.raises(ValueError, match="no-such-package-of-films is not installed"):
        samples.copy_films(tmp_path)
