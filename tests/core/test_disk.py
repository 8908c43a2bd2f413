"""A file is replaced in one step, or stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsim.core.disk import replacing, write_whole


def test_a_file_has_all_of_the_new_text(tmp_path: Path) -> None:
    file = tmp_path / "sweep.json"
    for text in ("first, longer", "zweite: ü"):
        write_whole(file, text)
        assert file.read_bytes() == text.encode()
        assert list(tmp_path.iterdir()) == [file]


def test_a_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "best.safetensors"
    file.write_bytes(b"old")
    with replacing(file) as fresh:
        fresh.write_bytes(b"new")
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError("no room"), KeyboardInterrupt()])
@pytest.mark.parametrize("begun", [True, False])
def test_what_was_begun_is_taken_away_where_writing_fails(tmp_path: Path, error: BaseException, begun: bool) -> None:
    file = tmp_path / "samples.safetensors"
    file.write_bytes(b"old")

    def fails() -> None:
        with replacing(file) as fresh:
            if begun:
                fresh.write_bytes(b"hal")
            raise error

    with pytest.raises(type(error)):
        fails()
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
