"""The dry run: shows what a command would train and prune, without training or writing anything."""

from __future__ import annotations

from pdp.config.data_schema import data_label
from pdp.config.schema import Config
from pdp.cost import count_macs, count_parameters
from pdp.distill.teacher import describe
from pdp.tasks.task import Task
from pdp.training.assembly import make_pruner, steps_in_epoch
from pdp.training.display import Display
from pdp.training.shipping import said_of
from pdp.training.start import make_first_model, note_times, note_zeros
from pdp.wording import percent


def preview(config: Config, task: Task) -> None:
    """Prints the model, its prunable layers, a preview of the budget, MACs and schedule; trains and writes nothing."""
    display = Display()
    model = make_first_model(config, task)
    pruner = make_pruner(config, task, model, steps_in_epoch(config, task))
    task.notes += note_zeros(config, model, pruner) + note_times(config, pruner)
    frame = count_macs(model, task.example_input())
    params, _ = count_parameters(model)
    shares = {}
    if pruner.method.prunes:
        targeted = pruner.target is not None or pruner.allocation == "file"
        budget = pruner.preview_budget() if targeted else [layer.pruned for layer in pruner.layers]
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
    title = f"{config.model.name} on {data_label(config.data)}: {config.method.name}, {pattern}"
    display.table(title, ("layer", "type", "weights", "share", "MACs", "sparse MACs"), rows)
    total = int(frame.params.sum())
    pruned = sum(row.params * shares.get(row.name, 0.0) for row in frame.itertuples())
    display.say(f"parameters {params:,}; convolution and linear weights {total:,}; MACs {int(frame.macs.sum()):,}")
    if frame.attrs["macs_all_experts"] != frame.macs.sum():
        display.say(f"MACs if every token went through all experts {frame.attrs['macs_all_experts']:,}")
    prunable = frame[frame.name.isin(pruner.prunable_weights)]
    weights, macs, attention = prunable.params.sum(), prunable.macs.sum(), frame.attrs["macs_attention"]
    display.say(f"prunable weights {weights:,}, their MACs {macs:,}; attention products {attention:,}")
    if pruner.method.prunes:
        display.say(
            f"{percent(pruner.prunable_share)} of all weights (parameters of two or more dimensions) are prunable"
        )
    for name, reason in pruner.skipped.items():
        if name not in set(frame.name):
            display.say(f"dense: {name}, {reason}")
    for note in task.notes:
        display.say(note)
    if pruner.schedule:
        schedule = pruner.schedule
        start = "auto" if schedule.start is None else f"{schedule.unit} {schedule.start}"
        said = (
            ("the budget is a preview from", "the initial weights, the run fixes it where pruning begins")
            if targeted
            else ("there are no shares to share out: these", "are the zeros that the weights have, which are held")
            if pruner.method.locked
            else ("there is no target: these", "are the zeros the method starts with, it finds its shares itself")
        )
        display.say(f"sparsity over all convolution and linear weights {percent(pruned / total)}; {said[0]}")
        display.say(said[1])
        display.say(
            f"schedule {schedule.name}: begins at {start}, {schedule.length} {schedule.unit}s to the target, "
            f"run of {schedule.moments} {schedule.unit}s"
        )
    if (quantizer := pruner.quantizer) is not None:
        display.say(said_of(quantizer))
    if config.distill.name != "none":
        display.say(describe(config))
    display.say("dry run: nothing was trained or written")
