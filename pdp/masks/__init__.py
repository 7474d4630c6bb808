"""Which units fall under a cut; the soft mask and its gradient."""
