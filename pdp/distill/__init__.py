"""A teacher beside the labels."""
