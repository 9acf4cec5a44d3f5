"""A table is replaced in one step or not at all, and is read as it was written."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow as pa
import pytest

from actors.core import storage
from actors.core.catalog import GENERATION, VERSIONS, DamagedError, ReplacedError, Replacement
from actors.core.store import Store

SCHEMA = pa.schema([("value", pa.int64())])
AGAIN = "Run `it` again."


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path) if request.param == "folder" else request.getfixturevalue("s3"))


def rows(*values: int) -> pa.Table:
    return pa.table({"value": list(values)}, SCHEMA)


def values(store: Store, folder: str = "t") -> list[int]:
    return store.read_table(folder, SCHEMA)["value"].to_pylist()


def files(store: Store, folder: str = "t") -> list[str]:
    return [entry.name for entry in storage.listing(store.uri(folder))]


def begun(store: Store, *numbers: int, folders: tuple[str, ...] = ("t",)) -> Replacement:
    new = Replacement(store.root, folders, AGAIN)
    for folder in folders:
        for place, number in enumerate(numbers):
            new.add(new.writer.write(folder, place, rows(number)))
    return new


def test_until_it_is_committed_readers_see_the_old_table_and_then_the_new_one(store: Store):
    store.commit_table("t", [rows(1, 2), rows(3)], AGAIN)
    with begun(store, 7, 8) as new:
        assert values(store) == [1, 2, 3]
        new.commit()
    assert values(store) == [7, 8]
    assert files(store) == store.parts("t"), "what is replaced is gone, so that a glob reads the table"


def test_tables_that_are_replaced_together_change_together(store: Store):
    with begun(store, 1, folders=("a", "b")) as new:
        new.commit({"who": "me"})
    with begun(store, 2, folders=("a", "b")):
        pass
    assert values(store, "a") == values(store, "b") == [1]
    assert store.catalog().tables["b"].about == {"who": "me"}
    assert len(files(store, "a")) == len(files(store, "b")) == 1, "what was not committed is removed"


def test_of_two_at_once_the_second_is_told_and_leaves_what_the_first_wrote(store: Store):
    store.commit_table("t", [rows(0)], AGAIN)
    with begun(store, 1) as slow:
        with begun(store, 2) as fast:
            fast.commit()
        with pytest.raises(ReplacedError, match="was replaced by another command"):
            slow.commit()
    assert values(store) == [2]
    assert files(store) == store.parts("t")


def test_another_table_may_change_meanwhile(store: Store):
    with begun(store, 1) as new:
        store.commit_table("other", [rows(5)], AGAIN)
        new.commit()
    assert (values(store), values(store, "other")) == ([1], [5])


def test_of_many_at_the_same_moment_one_succeeds(store: Store):
    number, barrier = 6, Barrier(6)

    def attempt(value: int) -> int | None:
        with begun(store, value) as new:
            barrier.wait()
            try:
                new.commit()
            except ReplacedError:
                return None
            return value

    with ThreadPoolExecutor(number) as threads:
        won = [value for value in threads.map(attempt, range(number)) if value is not None]
    assert len(won) == 1 and values(store) == won
    assert files(store) == store.parts("t")


def test_what_a_killed_command_left_is_not_read_and_goes_with_the_next(store: Store):
    store.commit_table("t", [rows(1)], AGAIN)
    begun(store, 8, 9)  # never committed, as after a kill
    assert values(store) == [1] and len(files(store)) == 3
    store.commit_table("t", [rows(2)], AGAIN)
    assert values(store) == [2] and files(store) == store.parts("t")


def test_a_command_that_begins_after_a_commit_keeps_its_parts(store: Store, monkeypatch: pytest.MonkeyPatch):
    later: list[Replacement] = []
    create = storage.create_bytes

    def then_begin(uri: str, data: bytes) -> bool:
        made = create(uri, data)
        if not later:
            later.append(begun(store, 5))
        return made

    monkeypatch.setattr(storage, "create_bytes", then_begin)
    store.commit_table("t", [rows(1)], AGAIN)
    later[0].commit()
    assert values(store) == [5]


@pytest.mark.parametrize("damage", ["torn", "other", "missing"])
def test_a_table_that_is_not_as_it_was_written_is_refused_with_what_makes_it_again(store: Store, damage: str):
    store.commit_table("t", [rows(1), rows(2)], AGAIN)
    first, second = store.parts("t")
    if damage == "missing":
        storage.delete(store.uri("t", second))
    else:
        data = storage.read_bytes(store.uri("t", second if damage == "torn" else first))
        storage.write_bytes(store.uri("t", second), data[:50] if damage == "torn" else data)
    with pytest.raises(DamagedError, match=rf"{second} .*Run `it` again\."):
        values(store)
    store.commit_table("t", [rows(3)], AGAIN)
    assert values(store) == [3]


def test_a_part_that_was_replaced_while_it_was_read_is_no_damage(store: Store):
    store.commit_table("t", [rows(1), rows(2)], AGAIN)
    reading = store.read_parts("t")
    next(reading)
    store.commit_table("t", [rows(3)], AGAIN)
    with pytest.raises(ReplacedError):
        next(reading)


def test_a_table_without_a_catalog_is_read_as_it_lies_and_a_new_one_takes_its_place(store: Store):
    store.replace_table("t", [rows(1), rows(2)])
    with begun(store, 5) as new:
        assert values(store) == [1, 2]
        new.commit()
    assert values(store) == [5] and files(store) == store.parts("t")


def test_a_table_that_grows_keeps_what_was_added_meanwhile(store: Store):
    for number in range(3):
        store.write_part("t", rows(number), [str(number)])
    parts = store.parts("t")
    store.write_part("t", rows(9), ["9"])
    store.commit_table("t", [rows(0, 1, 2)], AGAIN, absorbed=parts)
    assert sorted(values(store)) == [0, 1, 2, 9]
    assert len(files(store)) == 2


def test_a_part_may_be_carried_over_and_another_written_anew(store: Store):
    store.commit_table("t", [rows(1), rows(2)], AGAIN)
    with Replacement(store.root, ["t"], AGAIN) as new:
        new.add(*new.before.tables["t"].parts)
        new.swap(new.parts("t")[0], rows(7))
        new.commit()
    assert values(store) == [7, 2] and len(files(store)) == 2


def test_old_versions_of_the_catalog_go(store: Store):
    for number in range(VERSIONS + 5):
        store.commit_table("t", [rows(number)], AGAIN)
    assert values(store) == [VERSIONS + 4]
    assert len(files(store, "tables")) == VERSIONS


def test_the_parts_are_named_after_their_generation(store: Store):
    store.commit_table("t", [rows(1), rows(2)], AGAIN)
    assert all(name.startswith(GENERATION) for name in store.parts("t"))
    assert store.parts("t") == sorted(store.parts("t"))


def test_where_there_are_no_hard_links_one_still_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr("os.link", refuse)
    assert storage.create_bytes(str(tmp_path / "a"), b"1")
    assert not storage.create_bytes(str(tmp_path / "a"), b"2")
    assert (tmp_path / "a").read_bytes() == b"1" and len(list(tmp_path.iterdir())) == 1
