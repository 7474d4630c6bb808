"""The dry run: what a command would train and prune, without training or writing anything."""

from __future__ import annotations

from pdp.assembly import make_model, make_pruner
from pdp.config.schema import Config
from pdp.cost import count_macs, count_parameters
from pdp.display import Display, percent
from pdp.tasks.task import Task


def preview(config: Config, task: Task) -> None:
    """A dry run: model, prunable layers, budget preview, MACs and schedule; trains nothing, writes nothing."""
    display = Display()
    model = make_model(config, task)
    pruner = make_pruner(config, task, model, steps_per_epoch=None)
    frame = count_macs(model, task.example_input())
    params, _ = count_parameters(model)
    shares = {}
    if pruner.method.prunes:
        budget = pruner.preview_budget()
        densities = pruner.pattern.densities(pruner.layers, budget)
        shares = {name: 1 - density for name, density in densities.items()}
    rows = [
        (
            row.name,
            row.type,
            f"{row.params:,}",
            percent(shares[row.name]) if row.name in shares else pruner.skipped.get(row.name, "dense"),
            f"{row.macs:,}",
            f"{row.macs * (1 - shares.get(row.name, 0.0)):,.0f}",
        )
        for row in frame.itertuples()
    ]
    pattern = pruner.pattern.label if shares else "dense"
    title = f"{config.model.name} on {config.data.name}: {config.method.name}, {pattern}"
    display.table(title, ("layer", "type", "weights", "share", "MACs", "sparse MACs"), rows)
    total = int(frame.params.sum())
    pruned = sum(row.params * shares.get(row.name, 0.0) for row in frame.itertuples())
    display.say(f"parameters {params:,}; convolution and linear weights {total:,}; MACs {int(frame.macs.sum()):,}")
    if pruner.schedule:
        schedule = pruner.schedule
        start = "auto" if schedule.start is None else f"{schedule.unit} {schedule.start}"
        display.say(
            f"sparsity over all convolution and linear weights {percent(pruned / total)}; the budget is a preview from"
        )
        display.say("the initial weights, the run fixes it where pruning begins")
        display.say(
            f"schedule {schedule.name}: begins at {start}, {schedule.length} {schedule.unit}s to the target, "
            f"run of {schedule.moments} {schedule.unit}s"
        )
    display.say("dry run: nothing was trained or written")
