"""Real failures of a CUDA device: how they are classified, and that a process keeps to its share of the memory.

A device-side assert makes CUDA unusable for its process, so each case runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from models.runtime.gpu_memory import CONTEXT_BYTES, memory_fraction
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def run(code: str) -> list[str]:
    """The words that the code prints in a new process."""
    prelude = "import torch\nfrom models.runtime.device_errors import is_device_lost, is_out_of_memory\n"
    command = [sys.executable, "-c", prelude + textwrap.dedent(code)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout.split()


def test_a_device_side_assert_is_a_lost_device_and_every_later_call_fails_so() -> None:
    printed = run(
        """
        def fault(function):
            try:
                function()
            except RuntimeError as error:
                print(type(error).__name__, is_device_lost(error), is_out_of_memory(error))

        def index():
            torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")]
            torch.cuda.synchronize()

        fault(index)
        fault(lambda: torch.ones(4, device="cuda").sum().item())
        """
    )
    kind = getattr(torch, "AcceleratorError", RuntimeError).__name__
    assert printed == [kind, "True", "False"] * 2


def test_an_allocation_that_does_not_fit_is_out_of_memory_and_the_device_goes_on() -> None:
    printed = run(
        """
        try:
            torch.empty(2**44, dtype=torch.uint8, device="cuda")
        except RuntimeError as error:
            print(type(error).__name__, is_device_lost(error), is_out_of_memory(error))
        print(int(torch.ones(4, device="cuda").sum()))
        """
    )
    assert printed == ["OutOfMemoryError", "False", "True", "4"]


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_process_gets_no_more_than_its_share_of_the_memory(share: float) -> None:
    printed = run(
        f"""
        from models.runtime.gpu_memory import limit_gpu_memory

        print(limit_gpu_memory({share}))
        block, blocks = 128 << 20, []
        try:
            while True:
                blocks.append(torch.empty(block, dtype=torch.uint8, device="cuda"))
        except RuntimeError as error:
            print(is_out_of_memory(error), len(blocks) * block)
        del blocks[:]
        print(limit_gpu_memory(1.0))
        torch.empty(int({share} * torch.cuda.get_device_properties(0).total_memory), dtype=torch.uint8, device="cuda")
        print("unlimited")
        """
    )
    total = torch.cuda.get_device_properties(0).total_memory
    assert float(printed[0]) == pytest.approx(memory_fraction(share, total))
    limit = share * total - CONTEXT_BYTES
    assert printed[1] == "True" and limit - (256 << 20) <= int(printed[2]) <= limit
    assert printed[3:] == ["1.0", "unlimited"]


def test_the_context_of_a_process_fits_into_what_is_kept_for_it() -> None:
    """What another process takes beside torch's allocator, after a convolution and a matrix product."""
    code = """
        import sys, torch
        x = torch.randn(8, 64, 64, 64, device="cuda", dtype=torch.float16)
        torch.nn.functional.conv2d(x, torch.randn(64, 64, 3, 3, device="cuda", dtype=torch.float16))
        (x[0, 0] @ x[0, 0]).sum().item()
        print(torch.cuda.memory_reserved(), flush=True)
        sys.stdin.readline()
    """
    torch.cuda.synchronize()
    free = torch.cuda.mem_get_info()[0]
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdin is not None and other.stdout is not None
        reserved = int(other.stdout.readline())
        context = free - torch.cuda.mem_get_info()[0] - reserved
        other.stdin.write("\n")
    assert 0 < context < CONTEXT_BYTES, f"{context / 2**20:.0f} MiB"
