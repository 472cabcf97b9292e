"""Classifies errors of compute devices: out of memory, and a device that this process cannot use any more.

After some CUDA errors every further call in the process fails ("sticky" errors: CUDA Runtime API, cudaError). Only a
new process can use the device again. Torch, ONNX Runtime and OpenVINO report them in exceptions of different types,
most of which carry nothing but a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from models.errors import WarmTalkError

# torch: OutOfMemoryError, "CUDA error: out of memory" (AcceleratorError), the CPU allocator, and libraries whose own
# allocation failed. ONNX Runtime: its arena, or cudaMalloc. OpenVINO: the allocation of a buffer on the GPU.
_OUT_OF_MEMORY = re.compile(
    r"(CUDA|HIP|XPU) out of memory|(CUDA|HIP) (driver )?error: out of memory|CUDA failure 2\b|_STATUS_ALLOC_FAILED"
    r"|DefaultCPUAllocator: can't allocate memory|DefaultCPUAllocator: not enough memory|std::bad_alloc"
    r"|Failed to allocate memory for requested buffer|\[GPU\] Exceeded max size of memory|\[GPU\] out of GPU resources"
    r"|CL_MEM_OBJECT_ALLOCATION_FAILURE|CL_OUT_OF_HOST_MEMORY"
)
_DEVICE_ERROR = re.compile(
    r"(CUDA|HIP) (driver )?error: |CUDA failure \d+|CUDA error executing|Triton Error \[(CUDA|HIP)\]"
    r"|(CUBLAS|CUDNN|CUSPARSE|CUSOLVER)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR|NOT_INITIALIZED)"
    r"|(CUFFT_EXEC_FAILED|CUFFT_INTERNAL_ERROR)|\[GPU\] CL_OUT_OF_RESOURCES|CL_DEVICE_NOT_AVAILABLE"
    r"|CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST|ERROR_DEVICE_LOST"
)
# Errors of one call that leave the context intact, and a device that was never there (cudaError 1, 9, 98, 100, 101,
# 209, 400, 801, 900 to 908).
_NOT_STICKY = re.compile(
    r"error: (invalid (argument|configuration argument|device function|resource handle)|no kernel image is available"
    r"|invalid device ordinal|no CUDA-capable device"
    r"|operation not supported|operation (not permitted|failed) .*capturing|.*stream is capturing)"
    r"|CUDA failure (1|9|98|100|101|209|400|801|90[0-8])\b"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had too little memory for this computation. A smaller one may succeed."""
    return any(isinstance(e, MemoryError) or _is_torch_oom(e) or _matches(_OUT_OF_MEMORY, e) for e in _chain(error))


def is_device_lost(error: BaseException) -> bool:
    """Whether this process can no longer use its device, so that only a new process helps."""
    return not is_out_of_memory(error) and any(
        _matches(_DEVICE_ERROR, e) and not _matches(_NOT_STICKY, e) for e in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The errors of libraries that led to this one. The text of a WarmTalkError may quote a request: it is left out."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        if not isinstance(current, WarmTalkError):
            yield current
        current = current.__cause__


def _matches(pattern: re.Pattern[str], error: BaseException) -> bool:
    library = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime")
    return library and pattern.search(str(error)) is not None


def _is_torch_oom(error: BaseException) -> bool:
    """Whether it is torch.OutOfMemoryError. By name, because torch may not be imported in this process."""
    return any(kind.__module__ == "torch" and kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
