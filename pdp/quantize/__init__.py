"""Fake quantization as the last step of the effective weight, and what is left of it when training is over."""
