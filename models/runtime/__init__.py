"""Engine registry, compiled-model caches, CUDA graphs, small file and tensor helpers."""
