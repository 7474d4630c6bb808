"""The texts of --help: what the commands do, examples, groups with their choices, options with their defaults."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from pdp.config import schema
from pdp.config.groups import GROUPS, choices, default_choices
from pdp.methods.checks import PATTERNS_OF
from pdp.methods.options import OPTIONS, PdpOptions


@dataclass
class _AnyPrune(schema.NmPruneConfig, schema.ChannelPruneConfig):
    """The options of all patterns in one place."""


@dataclass
class _AnyData(schema.TextClassificationDataConfig, schema.LanguageModellingDataConfig, schema.ImagesDataConfig):
    """The options of all data in one place."""


_NODES: dict[str, Any] = {
    "model": schema.ModelConfig,
    "data": _AnyData,
    "recipe": schema.RecipeConfig,
    "prune": _AnyPrune,
    "method": PdpOptions,
    "allocation": schema.AllocationConfig,
    "schedule": schema.ScheduleConfig,
    "distill": schema.TeacherConfig,
    "tracker": schema.WandbConfig,
}
_OPTIONS = {
    "sparsity": "fraction of the prunable weights to prune, such as 0.866; implied by nm and none",
    "seed": "of everything random",
    "resume": "go on with an unfinished run of the same configuration; false refuses one",
    "rerun": "move such a run aside and start over",
    "dry_run": "show model, budget, MACs and schedule; train nothing",
    "output_dir": "where runs are kept",
    "device": "auto, cpu or cuda (gpu means cuda)",
    "data.root": "folder of the data; ImageNet's may come from IMAGENET_DIR",
    "data.validation": "share of train held out for every choice",
    "data.workers": "loader processes",
    "data.limit": "at most so many samples",
    "data.task": "data=glue: mnli, qqp, qnli, sst2, rte, mrpc, cola, stsb or wnli",
    "data.tokenizer": "texts: a folder or a hub's name; null: the checkpoint's own, else trained on the spot",
    "data.max_length": "classified texts: tokens of the longest",
    "data.context": "running text: tokens of a window",
    "data.stride": "running text: tokens between two measured windows; null: context - 1",
    "model.name": "with model=timm: any timm model; with model=huggingface: any encoder or causal model",
    "model.pretrained": "false, true (the hub's weights), a file, or for transformers a folder",
    "recipe.epochs": "length of the run",
    "recipe.batch_size": "global: processes x accumulation x micro-batch",
    "recipe.lr": "peak learning rate",
    "recipe.weight_decay": "on weights only",
    "recipe.layer_decay": "factor on the rate from each block to the one below; null: one rate",
    "recipe.precision": "fp32, bf16 or fp16",
    "recipe.gradient_checkpointing": "transformers: less memory, more time",
    "recipe.evaluate_every": "a time between two measurements: 0.1, 2000it, 2ep; null: every epoch",
    "recipe.checkpoint_minutes": "between two checkpoints within an epoch; 0: at the ends of epochs alone",
    "recipe.on_nonfinite": "at a loss that is not finite: stop, or skip the step and count it",
    "recipe.history_steps": "steps between two lines of steps.jsonl; 0: none",
    "recipe.recalibrate_bn": "batches of new BatchNorm statistics for the hard model; 0: none",
    "prune.exclude": "names or fnmatch patterns of layers never pruned: prune.exclude=[fc,'layer1.*']",
    "prune.n": "prune=nm: weights kept of each prune.m consecutive inputs",
    "prune.m": "prune=nm: length of a group",
    "prune.target": "prune=channel: what sparsity is a share of: channels or macs",
    "method.temperature": "method=pdp: tau of the soft mask",
    "method.temperature_mode": "absolute: tau is method.temperature; relative: kappa * t^2; auto: the pattern's",
    "method.kappa": "relative mode's factor; null: 0.02, for channels 0.002",
    "schedule.warmup": "dense until then: 16ep, 2000it, 0.16 (of the run) or auto",
    "schedule.ramp": "time from the first pruning to the target; null: 0.4 of the run",
    "schedule.rate": "the other spelling: share of the target per epoch",
    "schedule.unit": "the share changes each epoch or each step",
    "allocation.path": "with allocation=file: a CSV of layer,share, another run, or a CSV's name in conf/allocation",
    "distill.teacher": "distill=teacher: a run's directory, weights or hub; null: the dense run of this cell and seed",
    "distill.temperature": "of both softmaxes",
    "distill.weight": "the teacher's share of the loss; null: the method's own",
    "distill.hidden": "weight of the hidden states' difference; distill.attention likewise",
    "distill.cache": "disk: the teacher's logits are computed once, before training",
    "tracker.mode": "tracker=wandb: auto (online where a key is configured), online or offline",
    "tracker.project": "tracker=wandb: where the run is filed; null: WANDB_PROJECT, else pdp",
}
_EVALUATION = ("data.root", "data.workers", "device", "recipe.batch_size", "model.name", "model.pretrained")
_EXIT_CODES = """\
Exit codes: 0 done; 1 an error of ours, with a traceback; 2 refused before work began; 3 stopped in work (non-finite
loss, disk full, unreadable data); 75 saved, start the same command again. Under -m the worst one is returned."""


def help_text(program: str) -> str:
    """What `train.py --help` or `evaluate.py --help` prints."""
    return _train_help() if program == "train" else _evaluate_help()


def _train_help() -> str:
    return f"""\
Trains a network while pruning it and leaves a run's directory: history, hard weights, per-layer table, record.

  python train.py model=<name> sparsity=<fraction> [group=choice ...] [key=value ...]

Examples:
  python train.py model=mobilenet_v1 prune=random sparsity=0.866
  python train.py model=mobilenet_v1 prune=none                            the dense baseline
  python train.py model=resnet50 data=imagenet data.root=/data/imagenet sparsity=0.9
  python train.py -m model=resnet18 method=pdp,gmp sparsity=0.8,0.9 seed=0,1,2   every combination
  python train.py model=bert_tiny sparsity=0.9                             text, without network
  python train.py model=bert_base data=glue data.task=mnli sparsity=0.9
  python train.py experiment=imagenet/mobilenet_v1_random_866 dry_run=true
  python train.py debug=smoke experiment=imagenet/resnet50_random_90       any experiment in seconds

Without data= vision models train on ImageNet where data.root or IMAGENET_DIR names it, else on scikit-learn's
handwritten digits; text models on inference made from a grammar, or on Python's docstrings. The same command again
resumes an unfinished run and returns a finished one at once.

Groups (group=choice; * is taken where neither you nor an experiment, model, data set or method asks for another):
{_groups(tuple(GROUPS))}

Options people change (key=value), with their defaults; (recipe): the data's recipe says:
{_options(tuple(_OPTIONS))}

Methods, with their own options (method.<option>=...) and the patterns they know:
{_methods()}

Flags: -m, --multirun runs every combination of comma-separated values; --cfg job prints the composed configuration,
--cfg job --resolve without references; --info says how Hydra composed it; more files: hydra.searchpath=[file://<dir>].

{_EXIT_CODES}
"""


def _evaluate_help() -> str:
    return f"""\
Measures a model on every test sample once: metric, sparsity, parameters and MACs.

  python evaluate.py run=<directory of a finished run> [recipe.batch_size=.. device=.. data.root=.. data.workers=..]
  python evaluate.py model=<name> model.pretrained=<true or a file> data=<name> [group=choice ...] [key=value ...]

Examples:
  python evaluate.py run=results/runs/<run>/seed0
  python evaluate.py model=mobilenet_v2 model.pretrained=weights.safetensors data=imagenet data.root=/data/imagenet

Groups (group=choice; * is taken where nothing else is asked):
{_groups(("model", "data", "recipe", "experiment", "debug"))}

Options (key=value), with their defaults; (recipe): the data's recipe says:
{_options(_EVALUATION)}

{_EXIT_CODES}
"""


def _groups(groups: tuple[str, ...]) -> str:
    chosen = default_choices()
    lines = []
    for group in groups:
        names = [f"*{name}" if name == chosen.get(group) else name for name in choices(group)]
        head = f"  {group:<11} {GROUPS[group]}: "
        lines.append(textwrap.fill(head + ", ".join(names), 118, subsequent_indent=" " * 14, break_on_hyphens=False))
    return "\n".join(lines)


def _methods() -> str:
    lines = []
    for name, options in OPTIONS.items():
        own = [f"{key}={_typed(value)}" for key, value in vars(options()).items() if key != "name"]
        patterns = "/".join(PATTERNS_OF.get(name, ("random", "nm", "channel"))) if name != "dense" else ""
        head = f"  {name:<9} {f'[{patterns}] ' if patterns else ''}"
        text = textwrap.fill(head + ", ".join(own), 118, subsequent_indent=" " * 12, break_on_hyphens=False)
        lines.append(text.rstrip())
    return "\n".join(lines)


def _options(keys: tuple[str, ...]) -> str:
    return "\n".join(f"  {f'{key}={_default(key)}':<33} {_OPTIONS[key]}" for key in keys)


def _default(key: str) -> str:
    """The schema's default as it is typed."""
    group, _, name = key.rpartition(".")
    value = getattr(_NODES[group]() if group else schema.Config(), name)
    if value == "???":
        return "(recipe)" if group == "recipe" else "<name>"
    return _typed(value)


def _typed(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
