"""Temporary folders: one per process, kept while it lives, and deleted by the next process once it is dead."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deployments.ingress.temp_dirs import TempDirs

OTHER = """
import sys, time
from pathlib import Path
from deployments.ingress.temp_dirs import TempDirs
temp_dirs = TempDirs(Path(sys.argv[1]))
folder = temp_dirs.folder()
(folder / "file").write_text("of another process")
print(folder, flush=True)
time.sleep(60)
"""


def folders(root: Path) -> set[Path]:
    return {path for path in root.iterdir() if path.is_dir()}


def test_the_folder_is_created_at_the_first_use_and_only_once(tmp_path):
    root = tmp_path / "results" / ".downloads"
    temp_dirs = TempDirs(root)
    assert not root.exists()
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: temp_dirs.folder(), range(16)))
    assert found == folders(root) and len(found) == 1


def test_the_folder_of_a_killed_process_is_deleted_by_the_next_one_and_not_before(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        theirs = Path(process.stdout.readline().strip())
        ours = TempDirs(tmp_path)
        assert (theirs / "file").read_text() == "of another process"
        assert {theirs, ours.folder()} == folders(tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    third = TempDirs(tmp_path)
    assert folders(tmp_path) == {ours.folder()}  # ours is locked, and stays
    assert len(list(tmp_path.iterdir())) == 3  # the folder, its lock, and the root's
    assert third.folder() != ours.folder()


def test_other_files_under_the_root_are_not_touched(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    (tmp_path / "mine").mkdir()
    TempDirs(tmp_path)
    assert (tmp_path / "note.txt").exists() and (tmp_path / "mine").is_dir()
