"""Files behave alike at a path and on S3, appear whole or not at all, and survive a store that fails now and then."""

import errno
import io
import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

from actors.core import s3_faults, storage, whole_files
from actors.core.errors import UserError, machine_fault
from actors.core.patience import PATIENCE
from actors.core.s3 import client as s3_client
from tests.support import servers

BIG = random.Random(1).randbytes(5 << 20)


@pytest.fixture(params=["path", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "path" else request.getfixturevalue("s3")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which are not waited for."""
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    return pauses


def through(proxy: servers.FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.environment["AWS_ENDPOINT_URL"])


def test_what_was_written_is_read(root: str, tmp_path: Path) -> None:
    uri = storage.join(root, "a", "b/c d+%41.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"first")
    storage.write_bytes(uri, BIG)
    assert storage.exists(uri) and storage.size(uri) == len(BIG) and storage.read_bytes(uri) == BIG
    storage.download(uri, tmp_path / "down" / "copy")
    assert (tmp_path / "down" / "copy").read_bytes() == BIG
    storage.upload(tmp_path / "down" / "copy", storage.join(root, "up"))
    assert storage.read_bytes(storage.join(root, "up")) == BIG
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"")
    assert storage.read_bytes(uri) == b"" and storage.size(uri) == 0
    with storage.stream(uri) as file:
        assert file.read() == b""


def test_a_large_file_goes_up_in_parts(s3: str, tmp_path: Path) -> None:
    data = BIG * 8
    (tmp_path / "large").write_bytes(data)
    storage.upload(tmp_path / "large", s3 + "/large")
    assert storage.size(s3 + "/large") == len(data) > 32 << 20
    assert storage.read_bytes(s3 + "/large") == data


def test_a_missing_file_is_named(root: str, tmp_path: Path) -> None:
    uri = storage.join(root, "none.mp4")

    def lend() -> None:
        with storage.local(uri):
            pass

    for ask in (storage.read_bytes, storage.size, storage.stream, lambda _: lend()):
        with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
            ask(uri)
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        storage.download(uri, tmp_path / "copy")
    assert not list(tmp_path.glob("**/*"))


def test_stream_reads_pieces_and_seeks(root: str) -> None:
    uri = storage.join(root, "big")
    storage.write_bytes(uri, BIG)
    with storage.stream(uri) as file:
        assert file.read(1000) == BIG[:1000]
        file.seek(-10, io.SEEK_END)
        assert file.read() == BIG[-10:] and file.read() == b""
        file.seek(3 << 20)
        assert file.read(7) == BIG[3 << 20 :][:7] and file.tell() == (3 << 20) + 7


def test_local_lends_a_path(root: str) -> None:
    uri = storage.join(root, "film.mp4")
    storage.write_bytes(uri, BIG)
    with storage.local(uri) as path:
        assert path.read_bytes() == BIG and path.name == "film.mp4"
    assert path.exists() == (not root.startswith("s3://"))
    assert storage.exists(uri)


def test_listing_names_what_lies_below_a_folder(root: str) -> None:
    names = ["a-b.mp4", "a.mp4", "a/b.MP4", "a/b/c.webm", "a0.mp4", "b/é.mp4", "b/z.mp4", "notes.txt"]
    for name in random.Random(0).sample(names, len(names)):
        storage.write_bytes(storage.join(root, name), name.encode())
    storage.write_bytes(storage.join(root, "a", whole_files.TEMPORARY + "1.mp4"), b"half")
    storage.write_bytes(root + "-other/x.mp4", b"not below the folder")
    found = list(storage.listing(root))
    assert found == list(storage.listing(root)) and sorted(entry.name for entry in found) == sorted(names)
    if not root.startswith("s3://"):  # The store of the tests sorts folders its own way.
        assert [entry.name for entry in found] == sorted(names)
    for entry in found:
        assert storage.read_bytes(entry.uri) == entry.name.encode() and entry.size == len(entry.name.encode())
    films = {entry.name for entry in storage.listing(root + "/", (".mp4",))}
    assert films == {name for name in names if name.lower().endswith("mp4")}
    assert {entry.name for entry in storage.listing(root + "/a")} == {"b.MP4", "b/c.webm"}
    assert list(storage.listing(root + "/none")) == []
    assert list(storage.listing(root + "/a.mp4")) == []


def test_children_are_the_folders_and_files_of_one_folder(root: str) -> None:
    assert storage.children(storage.join(root, "films")) == ([], [])
    for name in ("tt2/a.jpg", "tt2/b/c.jpg", "tt10/a.jpg", "z.mp4"):
        storage.write_bytes(storage.join(root, "films", name), b"bytes")
    folders, files = storage.children(f"{storage.join(root, 'films')}/")
    assert folders == ["tt10", "tt2"]
    assert [(entry.name, entry.size) for entry in files] == [("z.mp4", 5)]
    assert storage.read_bytes(files[0].uri) == b"bytes"


def test_listing_of_s3_goes_on_over_pages(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        storage.write_bytes(f"{s3}/{number}", b"")
    client = s3_client()
    monkeypatch.setattr("actors.core.s3.client", lambda: client)
    whole = client.list_objects_v2
    monkeypatch.setattr(client, "list_objects_v2", lambda **page: whole(MaxKeys=3, **page))
    assert [entry.name for entry in storage.listing(s3)] == list("0123456")


def test_local_listing_holds_regular_files_and_links_to_them(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"film")
    (tmp_path / "link.mp4").symlink_to("film.mp4")
    (tmp_path / "broken.mp4").symlink_to("gone.mp4")
    (tmp_path / "loop").symlink_to(".")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert [(entry.name, entry.size) for entry in storage.listing(str(tmp_path))] == [("film.mp4", 4), ("link.mp4", 4)]


def test_what_is_removed_while_a_folder_is_listed_is_left_out(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"1")
    found = storage.listing(str(tmp_path))
    assert next(found).name == "a"
    (tmp_path / "b").unlink()
    assert [entry.name for entry in found] == ["c"]


def test_file_uris_are_paths(tmp_path: Path) -> None:
    uri = (tmp_path / "a b%.bin").as_uri()
    storage.write_bytes(uri, b"x")
    assert (tmp_path / "a b%.bin").read_bytes() == b"x" == storage.read_bytes(uri)
    assert storage.join(tmp_path.as_uri(), "a b%.bin") == str(tmp_path / "a b%.bin")
    with pytest.raises(ValueError, match="three slashes"):
        storage.exists("file://machine/x")


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "", ".", "a/../../b", "a/"])
def test_join_stays_below_its_root(name: str) -> None:
    for root in ("/data", "s3://bucket/folder"):
        with pytest.raises(ValueError, match="not a name below"):
            storage.join(root, name)


@pytest.mark.parametrize("uri", ["s3://bucket", "s3:///key", "s3://bucket/", "gs://bucket/key", "https://host/file"])
def test_what_is_no_file_uri_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="s3://bucket/key"):
        storage.read_bytes(uri)


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "file")
    storage.write_bytes(uri, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        storage.write_bytes(uri, b"new")
    with pytest.raises(OSError, match="No space"):
        storage.upload(uri, str(tmp_path / "other"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and storage.read_bytes(uri) == b"old"


def test_a_killed_write_is_never_listed(tmp_path: Path) -> None:
    program = (
        "import os, sys; from actors.core.whole_files import replacing\n"
        "with replacing(sys.argv[1] + '/film.mp4') as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 1 and list(storage.listing(str(tmp_path))) == []


def test_wrong_credentials_are_explained_and_stay_secret(
    s3: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "actors")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "intruder")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    for ask in (storage.read_bytes, storage.exists, storage.stream, lambda uri: storage.write_bytes(uri, b"")):
        with pytest.raises(PermissionError, match="credentials are right") as refused:
            ask(s3 + "/file")
        assert "hunter2" not in str(refused.value) and "intruder" not in str(refused.value)
    assert "hunter2" not in caplog.text and "intruder" not in caplog.text


def test_no_credentials_say_what_to_set(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(PermissionError, match="AWS_ACCESS_KEY_ID"):
        storage.read_bytes(s3 + "/file")


@pytest.mark.usefixtures("s3")
def test_a_missing_bucket_is_said_to_be_missing() -> None:
    with pytest.raises(FileNotFoundError, match="no bucket"):
        storage.write_bytes("s3://nowhere-at-all/file", b"")
    with pytest.raises(FileNotFoundError, match="no bucket"):
        list(storage.listing("s3://nowhere-at-all/folder"))


def test_a_fork_has_a_client_of_its_own(s3: str) -> None:
    alone = get_context("spawn").Process(target=_read_in_a_fork, args=(s3 + "/file",))
    alone.start()
    alone.join()
    assert alone.exitcode == 0


def _read_in_a_fork(uri: str) -> None:
    storage.write_bytes(uri, b"x")
    ours = id(s3_client())
    if not (child := os.fork()):
        os._exit(id(s3_client()) == ours or storage.read_bytes(uri) != b"x")
    sys.exit(os.waitpid(child, 0)[1] != 0)


@pytest.fixture
def stored(s3: str) -> str:
    storage.write_bytes(s3 + "/big", BIG)
    return s3


@pytest.mark.parametrize("fault", [servers.REFUSED, servers.CUT_RESPONSE])
def test_reads_get_over_faults(
    fault: str,
    stored: str,
    s3_server: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    quick: list[float],
    tmp_path: Path,
) -> None:
    for read in (
        lambda uri: storage.read_bytes(uri) == BIG,
        lambda uri: storage.size(uri) == len(BIG),
        lambda uri: storage.download(uri, tmp_path / "copy") is None and (tmp_path / "copy").read_bytes() == BIG,
        lambda uri: [entry.name for entry in storage.listing(stored)] == ["big"],
    ):
        with servers.fault_proxy(s3_server, 0, 0, script=[fault] * 4) as proxy:
            through(proxy, monkeypatch)
            assert read(stored + "/big")
            assert proxy.faults == {fault: 4}
    assert quick


def test_a_stream_goes_on_where_it_broke(
    stored: str, s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, quick: list[float]
) -> None:
    with servers.fault_proxy(s3_server, 0, 0, script=[servers.CUT_RESPONSE] * 8) as proxy:
        through(proxy, monkeypatch)
        with storage.stream(stored + "/big") as file:
            assert file.read() == BIG
        # Each connection brings half of what was left: eight cuts and a last one are all it takes.
        assert proxy.faults.total() == 8 and proxy.passed == 1


def test_a_stream_does_not_mix_two_versions(
    stored: str, s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, quick: list[float]
) -> None:
    with servers.fault_proxy(s3_server, 0, 0, script=[servers.CUT_RESPONSE]) as proxy:
        through(proxy, monkeypatch)
        with storage.stream(stored + "/big") as file:
            file.read(10)
            storage.write_bytes(stored + "/big", BIG[::-1])
            with pytest.raises(OSError, match="was replaced while it was read"):
                file.read()


@pytest.mark.parametrize("fault", [servers.REFUSED, servers.CUT_REQUEST, servers.CUT_RESPONSE])
def test_writes_get_over_faults(
    fault: str, s3: str, s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, quick: list[float], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(BIG)
    with servers.fault_proxy(s3_server, 0, 0, script=[fault] * 4) as proxy:
        through(proxy, monkeypatch)
        storage.write_bytes(s3 + "/bytes", BIG)
        assert proxy.faults == {fault: 4}
    with servers.fault_proxy(s3_server, 0, 0, script=[fault] * 4) as proxy:
        through(proxy, monkeypatch)
        storage.upload(tmp_path / "file", s3 + "/file")
        assert proxy.faults == {fault: 4}
        assert storage.read_bytes(s3 + "/bytes") == storage.read_bytes(s3 + "/file") == BIG


def test_a_store_that_stays_away_is_given_up(
    stored: str, s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, quick: list[float]
) -> None:
    monkeypatch.setenv(PATIENCE, "0.5")
    with servers.fault_proxy(s3_server, refused=1, cut=0) as proxy:
        through(proxy, monkeypatch)
        with pytest.raises(ConnectionError, match=r"gave up after 0 s \(503 SlowDown\)"):
            storage.read_bytes(stored + "/big")
        assert proxy.passed == 0
    with pytest.raises(ConnectionError, match="check the store"):
        storage.exists(stored + "/big")


def test_a_store_that_was_reached_is_waited_for(
    stored: str,
    s3_server: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    quick: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    away = ["refused", "cut_response"] * 30
    with servers.fault_proxy(s3_server, 0, 0, script=[None, *away]) as proxy, caplog.at_level("INFO", "actors"):
        through(proxy, monkeypatch)
        storage.size(stored + "/big")
        assert storage.read_bytes(stored + "/big") == BIG
        assert proxy.faults.total() == 60
    # botocore pauses, too; a minute of pauses is told once.
    assert sum(quick) > 60 and len(caplog.records) == 1


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "No space left on device; free some space there, and run the same command again"),
        (errno.EDQUOT, "quota raised"),
        (errno.EROFS, "mount it writable, or choose another output"),
        (errno.EACCES, "let this user write there"),
    ],
)
@pytest.mark.parametrize("write", [storage.write_bytes, storage.create_bytes])
def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(
    write: Callable[[str, bytes], object], number: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    path = str(tmp_path / "table" / "part")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=message) as told:
        write(path, b"rows")
    assert told.value.errno == number and path in str(told.value)
    # A child that meets it ends the run, with the same words once.
    assert machine_fault(told.value, writing=True) == str(told.value)
    monkeypatch.undo()
    assert os.listdir(tmp_path / "table") == []
    write(path, b"rows")
    assert storage.read_bytes(path) == b"rows"


def test_a_network_folder_that_is_away_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[float]
) -> None:
    path, times = str(tmp_path / "file"), iter([errno.ESTALE, errno.ETIMEDOUT] * 5)
    replace, read = os.replace, Path.read_bytes

    def away() -> None:
        if number := next(times, None):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", lambda *names: (away(), replace(*names)))
    storage.write_bytes(path, b"rows")
    assert os.listdir(tmp_path) == ["file"] and len(quick) == 9
    times = iter([errno.ESTALE] * 3)
    monkeypatch.setattr(Path, "read_bytes", lambda self: (away(), read(self))[1])
    assert storage.read_bytes(path) == b"rows" and len(quick) == 11
    monkeypatch.setenv(PATIENCE, "0")
    times = iter([errno.ESTALE] * 2)
    with pytest.raises(OSError, match="check that the file system is mounted"):
        storage.read_bytes(path)


def test_how_old_a_file_is_goes_by_its_store(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(root + "/file", b"")
    monkeypatch.setattr("time.time", lambda: 0.0)
    # S3 tells whole seconds.
    assert -1 <= storage.age_s(root + "/file") < 30
    with pytest.raises(FileNotFoundError):
        storage.age_s(root + "/none")


def test_a_wrong_endpoint_is_told_soon(s3: str, monkeypatch: pytest.MonkeyPatch, quick: list[float]) -> None:
    monkeypatch.setattr(s3_faults, "AT_FIRST_S", 0.5)
    monkeypatch.delenv(PATIENCE, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"gave up after 0 s \(EndpointConnectionError\); check the store"):
        storage.exists(s3 + "/any")


def test_patience_is_a_number(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE, "long")
    with pytest.raises(UserError, match="FILMRAY_STORE_PATIENCE_S=long: give seconds"):
        storage.exists(s3 + "/any")


def test_what_will_not_pass_is_asked_once(
    s3: str, s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, quick: list[float]
) -> None:
    with servers.fault_proxy(s3_server, 0, 0) as proxy:
        through(proxy, monkeypatch)
        with pytest.raises(FileNotFoundError):
            storage.read_bytes(s3 + "/none")
        assert proxy.passed == 1 and not quick


@pytest.mark.slow
def test_many_files_through_a_store_that_fails_at_random(
    s3: str, s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, quick: list[float], tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(BIG * 8)
    with servers.fault_proxy(s3_server, refused=0.15, cut=0.15, seed=3) as proxy:
        through(proxy, monkeypatch)
        storage.upload(tmp_path / "large", s3 + "/large")
        for number in range(100):
            storage.write_bytes(f"{s3}/parts/{number:03}", BIG[: number * 1000])
        assert [entry.size for entry in storage.listing(s3 + "/parts")] == [number * 1000 for number in range(100)]
        assert all(storage.read_bytes(f"{s3}/parts/{number:03}") == BIG[: number * 1000] for number in range(100))
        storage.download(s3 + "/large", tmp_path / "back")
        assert {servers.REFUSED, servers.CUT_REQUEST, servers.CUT_RESPONSE} == set(proxy.faults)
    assert (tmp_path / "back").read_bytes() == BIG * 8
