"""Which errors of torch, ONNX Runtime and OpenVINO mean too little memory, and which a device that is lost."""

import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail, Fail, RuntimeException

from models.errors import InputError, StageError
from models.runtime.device_errors import is_device_lost, is_out_of_memory

ARENA = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
    "Status Message: bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) "
    "Failed to allocate memory for requested buffer of size 8388608000"
)
CUDA_710 = "CUDA failure 710: device-side assert triggered ; GPU=0 ; hostname=a ; file=cuda_stream_handle.cc ; line=175"
CUDA_HINT = "\nCUDA kernel errors might be asynchronously reported at some other API call"
OPENVINO = "Exception from src/inference/src/cpp/infer_request.cpp:245:\n"

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139.72 GiB"),
    torch.AcceleratorError("CUDA error: out of memory" + CUDA_HINT),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeException(ARENA),
    Fail("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0 ; expr=cudaStreamCreateWithFlags(…)"),
    RuntimeError(OPENVINO + "[GPU] Exceeded max size of memory object allocation: requested 9000000000 bytes"),
    RuntimeError(OPENVINO + "[GPU] out of GPU resources"),
]
LOST = [
    torch.AcceleratorError("CUDA error: device-side assert triggered" + CUDA_HINT),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered" + CUDA_HINT),
    torch.AcceleratorError("CUDA error: unspecified launch failure"),
    torch.AcceleratorError("CUDA error: the launch timed out and was terminated"),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),  # torch before 2.8
    RuntimeError("CUDA driver error: an illegal memory access was encountered"),
    RuntimeError("HIP error: unspecified launch failure"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    Fail(f"[ONNXRuntimeError] : 1 : FAIL : {CUDA_710}"),
    EPFail(f"[ONNXRuntimeError] : 11 : EP_FAIL : Non-zero status code returned. {CUDA_710.replace('710', '700')}"),
    RuntimeError(OPENVINO + "[GPU] CL_OUT_OF_RESOURCES exception."),
    RuntimeError(OPENVINO + "[GPU] clFlush, error code: -14 CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST"),
    RuntimeError("ze_result: ZE_RESULT_ERROR_DEVICE_LOST"),
]
OTHER = [
    ValueError("CUDA error: device-side assert triggered"),  # no library raises it so
    RuntimeError("The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 0"),
    RuntimeError("CUDA error: invalid argument"),
    RuntimeError("CUDA error: operation not permitted when stream is capturing"),
    torch.AcceleratorError("CUDA error: invalid configuration argument" + CUDA_HINT),
    torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"),
    RuntimeError(
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input."
    ),
    Fail("[ONNXRuntimeError] : 1 : FAIL : Load model from a.onnx failed: Protobuf parsing failed."),
    Fail("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 1: invalid argument ; GPU=0"),
    InputError("CUDA error: device-side assert triggered", "CUDA out of memory"),  # quotes what the caller sent
    torch.AcceleratorError("CUDA error: invalid device ordinal" + CUDA_HINT),
    RuntimeError("CUDA error: no CUDA-capable device is detected"),
    Fail("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 101: invalid device ordinal ; GPU=-1"),
    TimeoutError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_too_little_memory_is_not_a_lost_device(error):
    assert (is_out_of_memory(error), is_device_lost(error)) == (True, False)


@pytest.mark.parametrize("error", LOST, ids=str)
def test_an_error_after_which_every_call_fails_is_a_lost_device(error):
    assert (is_out_of_memory(error), is_device_lost(error)) == (False, True)


@pytest.mark.parametrize("error", OTHER, ids=str)
def test_other_errors_belong_to_their_call_alone(error):
    assert (is_out_of_memory(error), is_device_lost(error)) == (False, False)


def test_real_allocations_that_fail_are_out_of_memory():
    with pytest.raises(RuntimeError) as failed:
        torch.empty(2**50)
    assert is_out_of_memory(failed.value)


def test_the_cause_of_an_error_is_classified():
    wrapped = StageError("The face cannot be restored.", "")
    wrapped.__cause__ = LOST[0]
    assert is_device_lost(wrapped) and not is_out_of_memory(wrapped)
    wrapped.__cause__ = OUT_OF_MEMORY[0]
    assert is_out_of_memory(wrapped) and not is_device_lost(wrapped)
