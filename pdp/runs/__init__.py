"""What runs leave on the disk."""
