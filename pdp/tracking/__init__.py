"""Trackers, which send a run's curves to other places besides its own files."""
