"""Folders put in place: in one step, or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from attention_service.modules import placing


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A module that is there, with one file."""
    place = tmp_path / "modules" / "mine"
    place.mkdir(parents=True)
    (place / "module.json").write_text("old")
    return place


def finished(folder: Path) -> None:
    (folder / "module.json").write_text("new")


def test_a_folder_is_swapped_for_the_one_that_is_there(place: Path) -> None:
    with placing.aside(place) as folder:
        finished(folder)
        assert folder.name.startswith(".")
        placing.put(folder, place, force=True)
    assert (place / "module.json").read_text() == "new"
    assert list(place.parent.iterdir()) == [place]


def test_a_file_and_a_link_to_nothing_are_replaced_too(place: Path) -> None:
    file, link = place.with_name("file"), place.with_name("link")
    file.touch()
    link.symlink_to("absent")
    for taken in (file, link):
        with pytest.raises(placing.PlacingError, match="already; --force replaces it"):
            placing.target(place.parent, taken.name, force=False)
        with placing.aside(taken) as folder:
            finished(folder)
            placing.put(folder, taken, force=True)
        assert (taken / "module.json").read_text() == "new"
    assert sorted(path.name for path in place.parent.iterdir()) == ["file", "link", "mine"]


def test_what_was_put_there_meanwhile_stays(place: Path) -> None:
    with placing.aside(place) as folder:
        finished(folder)
        with pytest.raises(placing.PlacingError, match="already; --force replaces it"):
            placing.put(folder, place, force=False)
    assert (place / "module.json").read_text() == "old"
    assert list(place.parent.iterdir()) == [place]


def test_a_swap_that_fails_half_way_is_undone(place: Path) -> None:
    with pytest.raises(FileNotFoundError):
        placing.put(place.with_name("absent"), place, force=True)
    assert (place / "module.json").read_text() == "old"
    assert list(place.parent.iterdir()) == [place]


def test_nothing_is_left_of_what_fails(place: Path) -> None:
    def interrupted() -> None:
        with placing.aside(place) as folder:
            finished(folder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(place.parent.iterdir()) == [place]


def test_what_cannot_be_deleted_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, *, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    # Tests may run as root, whom nothing keeps from deleting.
    monkeypatch.setattr("shutil.rmtree", refuse)
    with placing.aside(place) as folder:
        finished(folder)
        placing.put(folder, place, force=True)
    assert (place / "module.json").read_text() == "new"
    assert f"what {place} held before cannot be deleted: " in caplog.text
    with pytest.raises(placing.PlacingError, match="is gone, but its files cannot be deleted"):
        placing.remove(place.parent, place.name)
    assert not placing.names(place.parent)


def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert placing.names(tmp_path / "absent") == []
    with pytest.raises(placing.PlacingError, match="file cannot be listed: Not a directory"):
        placing.names(tmp_path / "file")
