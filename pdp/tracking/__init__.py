"""Where curves go beside a run's own files."""
