"""Whether there is room and right to write is known before anything is written."""

from collections import namedtuple
from pathlib import Path

import pytest

from actors.core import storage
from actors.core.errors import BrokenRunError, UserError, check_all
from tests.support.servers import s3, s3_server

__all__ = ["s3", "s3_server"]
Usage = namedtuple("Usage", "total used free")


def test_a_folder_is_writable_where_it_can_be_made_and_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    storage.check_writable(str(tmp_path / "a/b"))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(UserError, match="file is no folder"):
            storage.check_writable(str(tmp_path / place))
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="link is no folder"):
        storage.check_writable(str(tmp_path / "link/below"))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(1, 1, 1_000_000))
    with pytest.raises(UserError, match="1 MB are free there"):
        storage.check_writable(str(tmp_path))


def test_a_store_is_asked_and_nothing_is_left_there(s3: str, monkeypatch: pytest.MonkeyPatch):
    storage.check_writable(f"{s3}/out")
    assert not list(storage.listing(s3))
    bucket = s3.removeprefix("s3://").partition("/")[0]
    with pytest.raises(UserError, match=r"cannot write to s3://no-such-bucket/out: "):
        storage.check_writable("s3://no-such-bucket/out")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")
    with pytest.raises(UserError, match=f"cannot write to s3://{bucket}"):
        storage.check_writable(s3)


def test_what_has_no_room_here_is_not_downloaded(s3: str, monkeypatch: pytest.MonkeyPatch):
    storage.write_bytes(f"{s3}/films/a.mp4", bytes(2_000_000))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(1, 1, 1_000_000))
    monkeypatch.setattr(storage, "download", lambda *arguments: pytest.fail("it was downloaded"))
    told = r"has 2 MB, and .* has 1 MB free\. Free some space, or set TMPDIR"
    with pytest.raises(BrokenRunError, match=told), storage.local(f"{s3}/films/a.mp4"):
        pass
    with pytest.raises(BrokenRunError, match=told), storage.local_folder(f"{s3}/films"):
        pass


def test_checks_that_do_not_depend_on_each_other_are_told_together():
    def raises(*messages: str) -> None:
        for message in messages:
            raise UserError(message)

    check_all(raises, raises)
    with pytest.raises(UserError) as told:
        check_all(lambda: raises("a"), raises, lambda: check_all(lambda: raises("b"), lambda: raises("a")))
    assert str(told.value) == "a\nerror: b"
