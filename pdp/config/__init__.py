"""The configuration: its schema, composition by Hydra, checks, identity, command line; nothing here imports torch."""
