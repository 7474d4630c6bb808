"""Directories of runs as train.py leaves them, created without training."""

import numpy as np
from record_values import record_values

from pdp.config.compose import compose
from pdp.config.stored import to_yaml
from pdp.runs.directory import RunDirectory
from pdp.runs.record import Record, write_record

CONFIG = to_yaml(compose(["model=resnet20", "sparsity=0.866", "recipe.epochs=4"]))


def make_run(results, hash8="0123abcd", seed="0", finished=True, epochs=4, layers=3, distributions=100, **values):
    """A run's directory as train.py leaves it, with small weights and checkpoints."""
    path = results / "runs" / f"resnet20-digits-pdp-random-0.866-{hash8}" / f"seed{seed}"
    directory = RunDirectory(path)
    directory.hold()
    directory.release()
    directory.config.write_text(CONFIG)
    for epoch in range(epochs):
        shares = {f"layer{number}.convolution": epoch / 7 for number in range(layers)}
        metrics = {"top1": epoch / 8, "loss": 1.0}
        directory.write_history(
            {"epoch": epoch, "metric": epoch / 8, "metrics": metrics, "layer_shares": shares, "layer_revived": shares}
        )
    directory.checkpoints.mkdir()
    (directory.checkpoints / "step-000000040.pt").write_bytes(b"c" * 1000)
    if finished:
        directory.layers.write_text("name,type\nfc,Linear\n")
        directory.distributions.write_bytes(np.random.default_rng(0).bytes(distributions))
        directory.weights.write_bytes(b"w" * 1000)
        write_record(Record(**record_values(**values)), path)
    return path
