"""Subtitles and plots become passages, and passages vectors of what they say."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.core.errors import UserError
from actors.core.store import Store
from actors.genres.texts import SentencesConfig, list_passages, passages
from pipelines.genres.process import read_any
from pipelines.genres.texts import TextsConfig, embed_texts, plan_texts
from tests.support.tiny_models import sentence_transformer

SRT = """1
00:00:01,500 --> 00:00:03,000
<i>Where are you going?</i>

2
00:01:02,250 --> 00:01:04,000
1984
{\\an8}To the moon.
"""


def write(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return str(path)


def test_subtitles_are_their_words_without_numbers_times_and_marks(tmp_path: Path) -> None:
    assert list(passages(write(tmp_path / "a.srt", SRT))) == [(1.5, "Where are you going? 1984 To the moon.")]
    vtt = "WEBVTT\n\nNOTE made by hand\n\n00:02.500 --> 00:03.000\nHello.\n"
    assert list(passages(write(tmp_path / "a.vtt", vtt))) == [(2.5, "Hello.")]
    # Older than Unicode, and as Windows saves it.
    for encoding in ("cp1252", "utf-16"):
        assert [text for _, text in passages(write(tmp_path / "b.srt", SRT.replace("moon", "café"), encoding))] == [
            "Where are you going? 1984 To the café."
        ]


def test_long_texts_are_cut_into_passages_that_miss_no_word(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(400)]
    found = list(passages(write(tmp_path / "a.txt", "\n".join(words))))
    assert [len(text.split()) for _, text in found] == [150, 150, 100] and math.isnan(found[0][0])
    assert " ".join(text for _, text in found).split() == words
    cues = "".join(f"{i}\n00:00:{i:02d},000 --> 00:00:{i:02d},500\n{' '.join(['word'] * 100)}\n\n" for i in range(3))
    assert [start for start, _ in passages(write(tmp_path / "a.srt", cues))] == [0, 1]


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("a.json", json.dumps({"overview": "A man watches.", "plot": ["A murder?", "A man watches."]}), ""),
        ("a.json", json.dumps({"genres": ["War"]}), "no_text"),
        ("a.json", "{", "broken_text"),
        ("a.srt", "", "no_text"),
        ("a.txt", None, "not_found"),
    ],
)
def test_a_film_without_text_says_why(tmp_path: Path, name: str, text: str | None, code: str) -> None:
    uri = str(tmp_path / name) if text is None else write(tmp_path / name, text)
    rows = list_passages({"film": "tt1", "uri": uri})
    assert [(row["error"], row["number"]) for row in rows] == [(code, -1 if code else 0)]
    if not code:
        assert rows[0]["text"] == "A man watches. A murder?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"model": sentence_transformer(tmp_path_factory.mktemp("sentences")), "num_cpus": 0.5, "batch_size": 2}


def test_films_get_a_vector_a_passage_and_the_same_words_the_same_one(
    ray_cluster: None, tmp_path: Path, model: dict[str, Any]
) -> None:
    words = " ".join(["moon", "man"] * 75)
    write(tmp_path / "in" / "tt1.txt", f"{words} {words} love")
    write(tmp_path / "in" / "tt2.txt", words)
    write(tmp_path / "in" / "tt3.srt", "")
    config = TextsConfig(str(tmp_path / "in"), str(tmp_path / "out"), SentencesConfig(**model))
    plan = plan_texts(config)
    record = embed_texts(config, plan)
    assert record["rows"] == {"in": 3, "out": 2, "rejected": {"no_text": 1}} and record["passages"] == 4
    films = read_any(str(tmp_path / "out"))
    assert films.ids == ["tt1", "tt2"] and np.diff(films.offsets).tolist() == [3, 1]
    one, other = films.frames(0).astype(float), films.frames(1).astype(float)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=2e-3)
    # What stands beside a passage in its batch, and how long that is, changes nothing.
    np.testing.assert_allclose(one[[0, 1]], np.repeat(other, 2, 0), atol=2e-3)
    assert abs(one[2] @ one[0]) < 0.999
    assert not plan_texts(config).todo and Store(str(tmp_path / "out")).read_json("embedding.json")
    with pytest.raises(UserError, match="of another model"):
        plan_texts(TextsConfig(config.input, config.output, SentencesConfig(**model, tokens=9)))


def test_texts_that_cannot_be_had_are_refused(tmp_path: Path, model: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="has no texts"):
        plan_texts(TextsConfig(str(tmp_path), str(tmp_path / "out")))
    write(tmp_path / "in" / "tt1.txt", "a")
    write(tmp_path / "in" / "tt1.srt", SRT)
    with pytest.raises(UserError, match=r"Several texts in .* are of tt1"):
        plan_texts(TextsConfig(str(tmp_path / "in"), str(tmp_path / "out")))
    with pytest.raises(UserError, match=r"has no config\.json"):
        SentencesConfig(model=str(tmp_path)).name()
