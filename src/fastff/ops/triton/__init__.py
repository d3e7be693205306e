"""The GPU kernels, in Triton, and their launches on tensors."""
