"""Distillation: training with a teacher's outputs as well as the labels."""
