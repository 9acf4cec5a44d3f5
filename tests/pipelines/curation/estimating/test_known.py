"""What is known of films before they are measured."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.curation.estimating import known
from pipelines.curation.estimating.known import Drawn, known_of
from tests.support import films


def task(url: Path | str, spans: list[dict[str, float | None]] | None = None) -> dict[str, str | None]:
    return {"video_id": "v", "url": str(url), "spans": None if spans is None else json.dumps(spans)}


def test_containers_tell_length_and_pixels_and_other_films_are_like_them(tmp_path: Path) -> None:
    films.film(tmp_path / "a.mp4", shots=(48, 48))
    films.text_file(tmp_path / "b.mp4")
    spans = [{"start_s": 1.0, "end_s": 1.5}, {"start_s": 2.0, "end_s": None}]
    rows = [task(tmp_path / "a.mp4"), task(tmp_path / "a.mp4", spans), task(tmp_path / "b.mp4"), task("https://a/b")]
    found = known_of(rows, [None, None, 500_000, None])
    assert found.probed == 2
    # A text of 0.5 MB would last 2 s at 2 Mbit/s; of a film behind http nothing is known.
    assert found.seconds == pytest.approx([4, 2.5, 2, (4 + 2.5 + 2) / 3], abs=0.05)
    rate = found.pixels[0] / 4
    # All of the film is decoded up to the end of the last span.
    assert found.pixels / rate == pytest.approx([4, 4, 2, 10 / 3], abs=0.05)
    assert (found.sizes > 0).all()


def test_few_of_many_films_stand_for_all_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "MOST", 50)
    rng = np.random.default_rng(1)
    sizes = np.exp(rng.normal(15, 1, 2000)).astype(int)
    seconds = sizes / 2e5 * np.exp(rng.normal(0, 0.2, 2000))
    shares, holds = [], []
    for seed in range(60):
        drawn = Drawn(np.random.default_rng(seed))
        for number, size in enumerate(sizes.tolist()):
            drawn.add({"at": number}, size)
        assert drawn.count == 2000 and len({film["at"] for film in drawn.films}) == 50
        mine = seconds[[film["at"] for film in drawn.films]]
        shares.append(drawn.factor * mine.sum() / seconds.sum())
        holds.append(abs(shares[-1] - 1) <= drawn.spread(mine) * shares[-1])
    assert np.mean(shares) == pytest.approx(1, abs=0.03)
    assert np.mean(holds) > 0.85
