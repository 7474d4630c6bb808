"""A GPT-2 of two tiny blocks on a text of a few lines, for tests with several processes."""

TINY = [
    "model=gpt2_tiny",
    "model.sizes={n_embd: 16, n_layer: 2, n_head: 2, n_positions: 16, resid_pdrop: 0, embd_pdrop: 0, attn_pdrop: 0}",
    "data=text",
    "data.context=16",
    "data.vocabulary=300",
    "data.validation=0.1",
    "recipe.epochs=4",
    "recipe.batch_size=4",
    "recipe.lr=1e-3",
    "schedule.warmup=0.1",
    "schedule.ramp=0.4",
    "sparsity=0.6",
    "device=cpu",
]


def write_text(folder, pairs=60):
    """train.txt with two lines a number, and test.txt; the test's windows do not divide by two."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"the {one} number {number} sat on mat {number % 7}" for number in range(pairs) for one in ("cat", "dog")]
    (folder / "train.txt").write_text("\n".join(lines))
    (folder / "test.txt").write_text("\n".join(lines[5:38]))
    return folder
