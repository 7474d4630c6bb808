"""The pruner: applies a method to a model and manages it from the first epoch to the hard model."""
