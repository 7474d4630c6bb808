"""The files that runs leave on the disk."""
