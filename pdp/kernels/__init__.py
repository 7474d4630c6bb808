"""Fast versions of what `pdp.masks` defines: Numba kernels for the CPU, Triton kernels for a GPU."""
