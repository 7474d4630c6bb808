"""Sweeps on a Slurm cluster: what was asked, what was submitted, what runs in a job, and how far all of it is."""
