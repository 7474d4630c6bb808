"""What stands for a package of your own."""
