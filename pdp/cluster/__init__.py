"""Sweeps on a Slurm cluster: the plan, the submission, what runs inside a job, and the progress."""
