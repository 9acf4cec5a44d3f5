"""Which face belongs to which body, which part a series belongs to, and that every crop is decoded once."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from actors.comic_characters.crops import CROPS, crop_name, prepare
from actors.comic_characters.network_settings import BackboneConfig
from actors.comic_characters.pairs import KEY, PAIRS, prepare_pairs, read_pairs
from actors.core import storage
from actors.core.store import Store
from actors.media.images import picture_bytes
from pipelines.comic_characters.learning.pairs import find_pairs, pair_tables, plan_pretraining, prepared, split_series
from pipelines.comic_characters.settings import ComicsConfig, PretrainConfig

SIZES = BackboneConfig(face_size=16, body_size=32)


def crops(*rows: tuple[str, str, str, int, int | None, str]) -> pd.DataFrame:
    names = ["series_id", "page_id", "type", "index", "char_index", "error"]
    table = pd.DataFrame(rows, columns=names).astype({"char_index": "Int64"})
    return table.assign(**{name: None for name in CROPS.names if name not in names})[CROPS.names]


def test_a_face_belongs_to_the_body_of_its_character_whatever_their_numbers() -> None:
    pairs, alone = find_pairs(
        crops(
            ("s", "0_0", "face", 0, 1, ""),
            ("s", "0_0", "body", 0, 0, ""),
            ("s", "0_0", "body", 5, 1, ""),
            ("s", "0_1", "face", 2, 0, ""),
            ("t", "0_0", "face", 3, 0, ""),
            ("s", "0_0", "face", 7, 0, "outside"),
            ("s", "0_0", "face", 8, None, ""),
            ("s", "0_0", "body", 8, None, ""),
        )
    )
    assert pairs.to_numpy().tolist() == [["s", "0_0", 0, 5]]
    assert alone == 5


def test_series_are_dealt_out_by_share_and_stay_where_they_are() -> None:
    names = [f"series {n}" for n in range(100)]
    parts = split_series(names * 3, (0.92, 0.04, 0.04), 0)
    assert Counter(parts.values()) == {"train": 92, "valid": 4, "test": 4}
    assert parts == split_series(reversed(names), (92, 4, 4), 0) != split_series(names, (92, 4, 4), 1)
    more = split_series([*names, "one more"], (0.92, 0.04, 0.04), 0)
    assert sum(more[name] != part for name, part in parts.items()) <= 2
    assert Counter(split_series("abc", (0.92, 0.04, 0.04), 0).values()) == {"train": 1, "valid": 1, "test": 1}
    with pytest.raises(ValueError, match="2 series"):
        split_series("ab", (0.92, 0.04, 0.04), 0)


def test_series_that_are_labelled_for_tests_are_not_trained_on() -> None:
    names = [f"series {n}" for n in range(100)]
    known = {"series 7": "test", "series 8": "test", "of nobody": "test"}
    parts = split_series(names, (0.92, 0.04, 0.04), 0, known)
    assert Counter(parts.values()) == {"train": 94, "valid": 4, "test": 2}
    assert parts["series 7"] == parts["series 8"] == "test" and set(parts) == set(names)
    with pytest.raises(ValueError, match="none is left"):
        split_series("abc", (0.92, 0.04, 0.04), 0, {"a": "test", "b": "valid", "c": "test"})


@pytest.fixture
def config(tmp_path: Path) -> ComicsConfig:
    """Three series of four pairs each; of one the body is gone."""
    store, rows = Store(str(tmp_path)), []
    colours = np.random.default_rng(0).integers(0, 256, (3, 4, 2, 3), np.uint8)
    for series in range(3):
        for index in range(4):
            for number, kind in enumerate(("face", "body")):
                rows.append((f"s{series}", "0_0", kind, index + number, index, ""))
                picture = np.full((40 + 20 * number, 40, 3), colours[series, index, number], np.uint8)
                uri = store.uri(crop_name(f"s{series}", "0_0", "face" if number == 0 else "body", index + number))
                storage.write_bytes(uri, picture_bytes(Image.fromarray(picture), quality=95))
    store.replace_table("crops", [pa.Table.from_pandas(crops(*rows), CROPS, preserve_index=False)])
    storage.delete(store.uri(crop_name("s1", "0_0", "body", 2)))
    training = replace(PretrainConfig().training, batch_size=4)
    return ComicsConfig(output=str(tmp_path), backbone=SIZES, pretrain=PretrainConfig(training=training))


def decode_here(config: ComicsConfig, rows: int) -> None:
    for table in pair_tables(plan_pretraining(config).todo, rows):
        prepare_pairs(table, Store(config.output), SIZES.sizes())


def test_each_crop_is_decoded_once_and_a_missing_one_is_told(config: ComicsConfig) -> None:
    store = Store(config.output)
    assert len(plan_pretraining(config).todo) == 12
    decode_here(config, 5)
    assert len(store.parts("pairs")) == 3
    assert plan_pretraining(config).todo.to_numpy().tolist() == [["s1", "0_0", 1, 2]]
    found = prepared(store)
    assert found[found.error != ""][[*KEY, "error"]].to_numpy().tolist() == [["s1", "0_0", 1, 2, "missing_crop"]]
    rows = [row for part in store.read_parts("pairs", PAIRS.names) for row in part.to_pylist()]
    for row in rows[:3]:
        for kind, size in SIZES.sizes().items():
            picture = Image.open(store.uri(crop_name(row["series_id"], row["page_id"], kind, row[kind])))
            kept = np.frombuffer(row[f"{kind}_pixels"], np.uint8).reshape(size, size, 3)
            assert np.array_equal(kept, prepare(picture, kind, size))
    read = {"part": np.array(store.parts("pairs"))}
    batches = list(read_pairs(read, store, {"s0", "s1"}, SIZES.sizes()))
    assert sum(len(batch["face"]) for batch in batches) == 7
    assert batches[0]["body"].shape[1:] == (32, 32, 3)


def test_a_torn_part_is_decoded_again(config: ComicsConfig) -> None:
    store = Store(config.output)
    decode_here(config, 4)
    torn = store.parts("pairs")[0]
    storage.write_bytes(store.uri("pairs", torn), b"PAR1 torn")
    assert len(plan_pretraining(config).todo) in (4, 5)
    decode_here(config, 4)
    assert len(prepared(store)) == 12


def test_what_cannot_be_trained_on_is_told(config: ComicsConfig) -> None:
    store = Store(config.output)
    larger = replace(config.pretrain, training=replace(config.pretrain.training, batch_size=5))
    with pytest.raises(ValueError, match="4 pairs to train on are fewer than"):
        plan_pretraining(replace(config, pretrain=larger))
    store.write_json({"face": 96, "body": 128}, "pairs.json")
    with pytest.raises(ValueError, match="another output"):
        plan_pretraining(config)
    store.replace_table("crops", [])
    storage.delete(store.uri("pairs.json"))
    with pytest.raises(ValueError, match="no face and body of one character"):
        plan_pretraining(config)


def test_a_body_keeps_its_shape_between_bars() -> None:
    tall = Image.fromarray(np.full((80, 20, 3), 200, np.uint8))
    kept = prepare(tall, "body", 32)
    assert (kept[:, 12:20] == 200).all() and not kept[:, :12].any() and not kept[:, 20:].any()
    assert (prepare(tall, "face", 32) == 200).all()
    assert prepare(Image.new("RGB", (500, 1)), "body", 16).shape == (16, 16, 3)
