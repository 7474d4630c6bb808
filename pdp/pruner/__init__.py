"""A method on a model, and its life."""
