"""Loaded by every Python process of the chaos graph: a wall clock that can jump and a disk that can be slow.

The folder of this file is on their PYTHONPATH. The two faults are described in tests/chaos/faults.py. The wall clock of
file times is the kernel's and does not jump.
"""

import json
import os
import time

FOLDER = os.environ.get("CHAOS_FAULTS")
LOOK_S = 0.05  # a fault is looked for this often


class Fault:
    """One number of a fault file, 0.0 without the file."""

    def __init__(self, name, key):
        self.path, self.key = os.path.join(FOLDER, name), key  # noqa: PTH118 - imported before site-packages
        self.value, self.looked_s = 0.0, 0.0

    def get(self):
        now_s = time.monotonic()
        if now_s - self.looked_s > LOOK_S:
            self.looked_s = now_s
            try:
                with open(self.path) as file:  # noqa: PTH123
                    self.value = float(json.load(file)[self.key])
            except (OSError, ValueError, KeyError):
                self.value = 0.0
        return self.value


def slowed(function, fault):
    def call(*arguments):
        if seconds := fault.get() / 1e3:
            time.sleep(seconds)
        return function(*arguments)

    return call


if FOLDER:
    jump, delay, real = Fault("clock.json", "offset_s"), Fault("disk.json", "ms_per_write"), time.time
    time.time = lambda: real() + jump.get()
    os.pwrite, os.fsync = slowed(os.pwrite, delay), slowed(os.fsync, delay)
