"""Engine registry, OpenVINO model cache, CUDA graphs, and helpers for ids, files and tensors."""
