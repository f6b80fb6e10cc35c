"""Small files that others read after a kill: whole or as they were before."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hubkit import files
from hubkit.files import sync_folder, write_whole

_OUT_OF_SPACE = """
import resource, sys
from pathlib import Path
from hubkit.files import write_whole
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    write_whole(Path(sys.argv[1]), b"n" * 5000, durable=sys.argv[2] == "durable")
except OSError as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_as_a_whole_with_its_mode(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "state.json"
    write_whole(path, "früher", durable=durable)
    assert path.read_text("utf-8") == "früher"
    write_whole(path, b"\0now", durable=durable, mode=0o600)
    assert path.read_bytes() == b"\0now"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", ["", "durable"])
def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path, durable: str) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b"before")
    done = subprocess.run(
        [sys.executable, "-c", _OUT_OF_SPACE, str(path), durable],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "OSError"
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


def test_a_file_system_that_syncs_no_folders_is_one_to_work_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(with_: int) -> None:
        def fsync(handle: int) -> None:
            raise OSError(with_, os.strerror(with_))

        monkeypatch.setattr(files.os, "fsync", fsync)

    fails(errno.EINVAL)
    sync_folder(tmp_path)
    fails(errno.EIO)
    with pytest.raises(OSError, match=r"[Ii]nput/output"):
        sync_folder(tmp_path)
