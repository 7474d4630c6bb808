"""The masks' definitions again, fast: by Numba on the CPU, by Triton on a GPU."""
