"""Masks: the cut that separates pruned from kept units, PDP's soft mask, and the gradients of masked weights."""
