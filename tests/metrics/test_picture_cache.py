"""Pictures that are drawn once."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubkit.metrics.picture_cache import drawn_once

PNG = b"\x89PNG\r\n\x1a\n%s\x00\x00\x00\x00IEND\xaeB`\x82"
DRAWN: list[object] = []


def picture(facts: object) -> bytes:
    DRAWN.append(facts)
    return PNG % repr(facts).encode()


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUBKIT_HOME", str(tmp_path))
    DRAWN.clear()
    return tmp_path / "cache" / "pictures"


def test_the_same_facts_are_drawn_once_and_others_anew(pictures: Path) -> None:
    assert drawn_once(picture, {"a": 1}) == drawn_once(picture, {"a": 1}) == picture({"a": 1})
    assert drawn_once(picture, {"a": 2}) == PNG % b"{'a': 2}"
    assert DRAWN == [{"a": 1}, {"a": 1}, {"a": 2}], "one of them by the comparison itself"
    assert len(list(pictures.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"<html>", PNG[:-1]])
def test_a_damaged_picture_is_drawn_anew(pictures: Path, damage: bytes) -> None:
    whole = drawn_once(picture, "x")
    (file,) = pictures.iterdir()
    file.write_bytes(damage)
    assert drawn_once(picture, "x") == whole == file.read_bytes()
    assert DRAWN == ["x", "x"]


def test_a_picture_that_cannot_be_kept_is_drawn_each_time(pictures: Path) -> None:
    pictures.parent.mkdir()
    pictures.write_text("no folder")
    assert drawn_once(picture, "x") == drawn_once(picture, "x")
    assert DRAWN == ["x", "x"]


def test_the_newest_two_hundred_are_kept(pictures: Path) -> None:
    for number in range(210):
        drawn_once(picture, number)
    assert len(list(pictures.iterdir())) == 200
    DRAWN.clear()
    drawn_once(picture, 209)
    assert not DRAWN
