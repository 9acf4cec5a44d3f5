"""Temporary files are out of other users' reach, and those of killed processes are removed by the next one."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.core import storage, whole_files
from actors.core.child import ROOT
from actors.core.errors import UserError
from actors.core.temporary import TemporaryFolder, private_folder, remove_abandoned
from actors.curation.sources.fetch import FetchConfig, fetch
from tests.support import films
from tests.support.servers import FileHost, Reply

STRANGER = 54321
"""The uid of another user."""


@pytest.fixture(autouse=True)
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that every user may write into, in place of /tmp."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def link(place: Path, victim: Path) -> str:
    place.symlink_to(victim)
    return "is a link"


def link_to_nothing(place: Path, victim: Path) -> str:
    place.symlink_to(victim / "missing")
    return "is a link"


def file(place: Path, victim: Path) -> str:
    place.write_text("")
    return "is not a folder"


def opened(place: Path, victim: Path) -> str:
    place.mkdir()
    place.chmod(0o777)
    return "is open to other users"


def foreign(place: Path, victim: Path) -> str:
    if os.getuid():
        pytest.skip("only root can give a folder to another user")
    place.mkdir(0o700)
    os.chown(place, STRANGER, STRANGER)
    return f"belongs to another user \\(uid {STRANGER}\\)"


ATTACKS = [link, link_to_nothing, file, opened, foreign]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_folder_that_another_user_laid_out_is_refused(
    attack: Callable[[Path, Path], str], shared: Path, tmp_path: Path, host: FileHost
):
    victim = tmp_path / "victim"
    victim.mkdir()
    for name in ("127.0.0.1.0", "hosts"):
        (victim / name).write_text("precious")
    why = attack(shared / f"filmray-{os.getuid()}", victim)
    url = host.put("/film.mp4", Reply(films.film(tmp_path / "film.mp4", shots=(6,)).read_bytes()))
    with pytest.raises(UserError, match=why + ".*TMPDIR"):
        fetch("v", url, str(tmp_path / "out"), FetchConfig())
    with pytest.raises(UserError, match=why):
        TemporaryFolder()
    remove_abandoned()
    assert {(victim / name).read_text() for name in ("127.0.0.1.0", "hosts")} == {"precious"}
    assert contents(victim) == ["127.0.0.1.0", "hosts"], "nothing was written through it"


def test_everything_lies_in_one_private_folder(shared: Path, tmp_path: Path, host: FileHost, s3: str):
    data = films.film(tmp_path / "film.mp4", shots=(6,)).read_bytes()
    assert fetch("v", host.put("/film.mp4", Reply(data)), str(tmp_path / "out"), FetchConfig()).code == ""
    storage.write_bytes(f"{s3}/film.mp4", data)
    with storage.local(f"{s3}/film.mp4") as path, storage.local_folder(s3) as folder:
        assert path.read_bytes() == (folder / "film.mp4").read_bytes() == data
        assert [entry.name for entry in shared.iterdir()] == [f"filmray-{os.getuid()}"]
        for below in (private_folder(), *private_folder("work").iterdir()):
            assert not below.stat().st_mode & 0o077
    assert contents(private_folder("work")) == []


def test_an_umask_that_is_open_changes_nothing():
    before = os.umask(0)
    try:
        with TemporaryFolder() as folder:
            assert not folder.stat().st_mode & 0o077
            assert not private_folder("hosts").parent.stat().st_mode & 0o077
    finally:
        os.umask(before)


# Killed processes


@contextmanager
def holding(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs code, says so, and waits; it is killed at the end."""
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


COPY = """
import sys, time
from actors.core import storage
with storage.local(sys.argv[1]) as path:
    print("ready", flush=True)
    time.sleep(600)
"""


def test_copies_of_a_killed_worker_are_removed_by_the_next_and_live_ones_stay(s3: str):
    uri = f"{s3}/film.mp4"
    storage.write_bytes(uri, bytes(1000))
    work = private_folder("work")

    def copies() -> list[Path]:
        return list(work.glob("*/film.mp4"))

    with holding(COPY, uri) as killed, holding(COPY, uri):
        assert len(copies()) == 2
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert len(copies()) == 2
        with storage.local(uri) as path:
            assert len(copies()) == 2 and path in copies(), "the killed one's is gone, the live one's is there"
        assert len(copies()) == 1
        remove_abandoned()
        assert len(copies()) == 1
    remove_abandoned()
    assert contents(work) == []


def test_folders_of_threads_and_of_this_process_do_not_end_each_other():
    with TemporaryFolder() as first, TemporaryFolder() as second:
        (first / "a").write_text("")
        remove_abandoned()
        assert first.is_dir() and second.is_dir()
    assert not first.exists() and not second.exists()
    kept = TemporaryFolder()
    kept.remove()
    kept.remove()
    assert not kept.path.exists()


def test_what_cannot_be_removed_now_is_left_for_later(monkeypatch: pytest.MonkeyPatch):
    kept = TemporaryFolder()
    (kept.path / "film").write_text("")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *_, **__: None)
        kept.remove()
    assert kept.path.exists()
    remove_abandoned()
    assert not kept.path.exists() and contents(private_folder("work")) == []


WRITE = """
import sys, time
from actors.core.whole_files import replacing
with replacing(sys.argv[1]) as file:
    file.write(b"half"); file.flush()
    print("ready", flush=True)
    time.sleep(600)
"""


def test_half_written_files_of_killed_processes_are_removed_from_an_output(tmp_path: Path):
    output = tmp_path / "out"

    def halves() -> int:
        return sum(1 for _ in output.glob(f"*/{whole_files.TEMPORARY}*"))

    def age() -> None:
        before = time.time() - whole_files.ABANDONED_S - 1
        for path in output.glob(f"*/{whole_files.TEMPORARY}*"):
            os.utime(path, (before, before))

    with holding(WRITE, str(output / "clips" / "a.mp4")):
        age()
        whole_files.remove_abandoned(str(output))
        assert halves() == 1, "it is being written"
    whole_files.remove_abandoned(str(output))
    assert halves() == 0
    with holding(WRITE, str(output / "clips" / "a.mp4")):
        pass
    whole_files.remove_abandoned(str(output))
    assert halves() == 1, "too young to be sure where a file system has no locks"
    (output / "clips" / "b.mp4").write_text("whole")
    age()
    whole_files.remove_abandoned(str(output))
    assert contents(output) == ["clips/b.mp4"]
