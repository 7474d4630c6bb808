"""The configuration: its schema, composition by Hydra, checks, identity and command line; none of it imports torch."""
