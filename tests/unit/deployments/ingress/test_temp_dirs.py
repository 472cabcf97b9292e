"""Scratch folders: one a process, never swept up while it lives, always by the next once it is dead."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from deployments.ingress.temp_dirs import Scratch

OTHER = """
import sys, time
from pathlib import Path
from deployments.ingress.temp_dirs import Scratch
scratch = Scratch(Path(sys.argv[1]))
folder = scratch.folder()
(folder / "file").write_text("of another process")
print(folder, flush=True)
time.sleep(60)
"""


def folders(root: Path) -> set[Path]:
    return {path for path in root.iterdir() if path.is_dir()}


def test_nothing_is_made_before_it_is_needed_and_then_once(tmp_path):
    root = tmp_path / "results" / ".downloads"
    scratch = Scratch(root)
    assert not root.exists()
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: scratch.folder(), range(16)))
    assert found == folders(root) and len(found) == 1


def test_what_a_killed_process_left_goes_with_the_next_and_not_before(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        theirs = Path(process.stdout.readline().strip())
        ours = Scratch(tmp_path)
        assert (theirs / "file").read_text() == "of another process"
        assert {theirs, ours.folder()} == folders(tmp_path)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    third = Scratch(tmp_path)
    assert folders(tmp_path) == {ours.folder()}  # ours is held, and stays
    assert len(list(tmp_path.iterdir())) == 3  # its lock, and the root's
    assert third.folder() != ours.folder()


def test_files_of_others_beneath_the_root_are_let_be(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    (tmp_path / "mine").mkdir()
    Scratch(tmp_path)
    assert (tmp_path / "note.txt").exists() and (tmp_path / "mine").is_dir()
