"""Parts are whole or ignored, a repeated step replaces its own part, and a table can be written anew."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.core.store import Store

SCHEMA = pa.schema([("name", pa.string()), ("value", pa.float32())])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def table(*names: str, value: float = 1.0) -> pa.Table:
    return pa.table({"name": list(names), "value": [value] * len(names)}, SCHEMA)


def test_a_table_is_the_rows_of_all_its_parts(store: Store):
    store.write_part("t", table("a", "b"), ["a", "b"])
    store.write_part("t", table("c"), ["c"])
    read = store.read_table("t", SCHEMA)
    assert read.schema == SCHEMA
    assert sorted(read["name"].to_pylist()) == ["a", "b", "c"]
    assert store.read_table("t", pa.schema([SCHEMA.field("value")])).column_names == ["value"]


def test_the_same_keys_replace_their_part_and_other_keys_do_not(store: Store):
    first = store.write_part("t", table("a", "b", value=1), ["a", "b"])
    assert store.write_part("t", table("a", "b", value=2), ["a", "b"]) == first
    assert store.write_part("t", table("ab", value=3), ["ab"]) != first
    assert store.write_part("t", table("b", "a", value=4), ["b", "a"]) != first
    assert len(store.parts("t")) == 3
    assert sorted(store.read_table("t", SCHEMA)["value"].to_pylist()) == [2, 2, 3, 4, 4]


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_torn_part_is_ignored_and_made_again(
    store: Store, tmp_path: Path, share: float, caplog: pytest.LogCaptureFixture
):
    torn = store.write_part("t", table(*map(str, range(1000))), ["torn"])
    store.write_part("t", table("whole"), ["whole"])
    whole = (tmp_path / "t" / torn).read_bytes()
    (tmp_path / "t" / torn).write_bytes(whole[: int(len(whole) * share)])
    assert store.read_part("t", torn) is None
    assert torn in caplog.text
    assert store.read_table("t", SCHEMA)["name"].to_pylist() == ["whole"]
    store.write_part("t", table(*map(str, range(1000))), ["torn"])
    assert store.read_table("t", SCHEMA).num_rows == 1001


def test_damage_inside_a_part_makes_it_torn_too(store: Store, tmp_path: Path):
    name = store.write_part("t", table(*map(str, range(1000))), ["a"])
    path = tmp_path / "t" / name
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)
    assert store.read_part("t", name) is None


def test_a_missing_folder_is_an_empty_table(store: Store):
    assert store.parts("nothing") == []
    assert store.read_table("nothing", SCHEMA) == SCHEMA.empty_table()


def test_a_part_that_another_tool_wrote_is_read_with_our_types(store: Store, tmp_path: Path):
    (tmp_path / "t").mkdir()
    pd.DataFrame({"value": [0.5], "more": [1], "name": ["a"]}).to_parquet(tmp_path / "t" / "mine.parquet")
    assert store.read_table("t", SCHEMA) == table("a", value=0.5)


def test_a_part_without_a_column_is_an_error_that_names_it_and_not_torn(store: Store, tmp_path: Path):
    (tmp_path / "t").mkdir()
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "t" / "old.parquet")
    with pytest.raises(ValueError, match=r"t/old\.parquet has no column value"):
        store.read_table("t", SCHEMA)


def test_a_table_that_is_replaced_leaves_nothing_behind(store: Store):
    store.write_part("t", table("old"), ["old"])
    store.replace_table("t", (table(str(i)) for i in range(3)))
    assert store.parts("t") == [store.numbered(i) for i in range(3)]
    store.replace_table("t", [table("x")])
    assert store.read_table("t", SCHEMA)["name"].to_pylist() == ["x"]
    store.replace_table("t", [])
    assert store.parts("t") == []


def test_files_that_are_not_parts_are_left_alone(store: Store):
    store.write_json({"a": "é"}, "t", "about.json")
    store.replace_table("t", [table("x")])
    assert store.parts("t") == [store.numbered(0)]
    assert store.read_json("t", "about.json") == {"a": "é"}
    assert store.read_json("t", "none.json") is None


def test_numbers_of_numpy_are_written_as_numbers_and_what_json_has_not_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_json({"count": np.int64(3), "share": np.float32(0.5), "all": np.bool_(True)}, "a.json")
    assert store.read_json("a.json") == {"count": 3, "share": 0.5, "all": True}
    with pytest.raises(TypeError, match="set is nothing that JSON has"):
        store.write_json({"names": {"a"}}, "a.json")
    assert store.read_json("a.json")["count"] == 3
