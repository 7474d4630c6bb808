"""Fake quantization as the last step of the effective weight, and the scales that remain after training."""
