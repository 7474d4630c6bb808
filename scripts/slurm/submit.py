"""Submits a sweep to Slurm and returns: one job array, a run per task, and a job at its end that makes the tables.

    python scripts/slurm/submit.py model=resnet20 method=pdp,gmp sparsity=0.8,0.9 seed=0,1,2
    python scripts/slurm/submit.py --sweep baselines model=resnet50 data.root=/data/imagenet --partition gpu
    python scripts/slurm/submit.py --nodes 2 --processes 8 model=resnet50 method=pdp,gmp sparsity=0.9

The arguments are those of `train.py -m`. Every combination is checked first; if one is refused, it is listed and
nothing is submitted. The same command given again submits only runs that are neither finished nor in the queue. A run
that is preempted, or whose time limit is near, saves, returns to the queue and is resumed.

The sweep's folder, <output_dir>/.sweeps/<name>, holds the manifest (a line per run), the job scripts, the logs and the
tables. `scripts/slurm/status.py` shows its progress. Exit codes: 0 done; 2 refused; 3 Slurm refused.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pdp.cluster.batch import LAUNCHES, Resources
from pdp.cluster.manifest import Run, SweepFolder, name_of
from pdp.errors import Refusal
from pdp.scripting import Parser, guarded

if TYPE_CHECKING:
    from pdp.cluster.plan import Plan


def make_parser() -> Parser:
    """The command line."""
    default = Resources()
    parser = Parser("submit.py", __doc__)
    parser.add_argument("words", nargs="*", metavar="key=value[,value]", help="the sweep, as after train.py -m")
    parser.add_argument("--sweep", help="a sweep of conf/sweep, whose words come before the typed ones")
    parser.add_argument("--name", help="of the sweep's folder (a hash of the words)")
    parser.add_argument("--dry-run", action="store_true", help="check and list the runs, submit nothing")
    of_run = parser.add_argument_group("what each run gets")
    of_run.add_argument("--time", default=default.time, help=f"limit of one job; longer runs go on ({default.time})")
    of_run.add_argument("--partition", help="Slurm's partition (its default)")
    of_run.add_argument("--nodes", type=int, default=default.nodes, help=f"nodes ({default.nodes})")
    of_run.add_argument("--processes", type=int, default=default.processes, help="on each node (1)")
    of_run.add_argument("--gpus", type=int, default=default.gpus, help=f"of each process, 0 for none ({default.gpus})")
    of_run.add_argument("--cpus", type=int, default=default.cpus, help=f"of each process ({default.cpus})")
    of_run.add_argument("--mem", help="of each node, such as 64G (Slurm's default)")
    of_run.add_argument(
        "--launch",
        choices=LAUNCHES,
        default=default.launch,
        help="how processes are started (auto: torchrun on one node, srun on several)",
    )
    of_sweep = parser.add_argument_group("how the sweep goes")
    of_sweep.add_argument("--at-once", type=int, metavar="N", help="at most N runs at a time (as many as Slurm lets)")
    of_sweep.add_argument("--warn", type=int, default=default.warn, help="seconds before the limit to save at (120)")
    of_sweep.add_argument("--restarts", type=int, default=default.restarts, help="of a run in one submission (100)")
    of_sweep.add_argument("--retries", type=int, default=default.retries, help="of a run that lost a process (1)")
    of_sweep.add_argument("--sbatch", action="append", default=[], metavar="=--OPTION=VALUE", help="further option")
    of_sweep.add_argument("--setup", action="append", default=[], metavar="LINE", help="shell before the run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Checks, submits, and prints what it did."""
    arguments = make_parser().parse_intermixed_args(argv)
    resources = Resources(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Resources)})
    resources.check()
    words = list(arguments.words)
    if arguments.sweep:
        from pdp.config.sweep import stored_words

        words = stored_words(arguments.sweep, words)
    if not words:
        raise Refusal("no words were given: model=resnet20 method=pdp,gmp sparsity=0.8,0.9, or --sweep NAME")
    plan = planned(words, resources.world_size)
    for line in plan.refused:
        print(f"refused: {line}", file=sys.stderr)
    if plan.refused:
        count = len(plan.refused)
        raise Refusal(f"{count} of {count + len(plan.runs) + len(plan.twice)} cells are refused: nothing is submitted")
    for line in plan.twice:
        print(f"once only: {line}")
    name = arguments.name or name_of(words)
    folder = SweepFolder(plan.folder / name)
    if arguments.dry_run:
        for run in plan.runs:
            print(f"{run.number:4d}  {'finished' if run.finished else 'missing '}  {' '.join(run.overrides)}")
        print(f"{len(plan.runs)} runs; nothing is submitted; the sweep's folder would be {folder.path}")
        return 0
    return submitted(folder, plan.runs, resources, f"pdp-{name}", words)


def planned(words: Sequence[str], processes: int) -> Plan:
    """The checked plan; shows a progress bar while it is made."""
    from rich.progress import MofNCompleteColumn, Progress

    from pdp.cluster.plan import make_plan

    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, transient=True, disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task("checking the cells", total=None)
        return make_plan(words, processes, lambda done, cells: progress.update(bar, completed=done, total=cells))


def submitted(folder: SweepFolder, runs: list[Run], resources: Resources, name: str, words: Sequence[str]) -> int:
    """Submits the missing runs; returns 3 if Slurm accepted only some of them."""
    from pdp.cluster.plan import tracked_by_wandb
    from pdp.cluster.submission import submit_missing

    folder.make(runs)
    done = submit_missing(folder, runs, resources, name, tracked_by_wandb(words))
    for array in done.arrays:
        print(f"job {array.job}: {len(array.runs)} runs; logs {array.log}")
    if done.gather:
        print(f"job {done.gather.job}: makes the tables when all have ended; log {done.gather.log}")
    print(
        f"{len(runs)} runs: {len(done.finished)} finished, {len(done.queued)} in the queue from before, "
        f"{len(done.missing)} submitted now; python scripts/slurm/status.py {folder.path}"
    )
    if done.failure:
        print(f"submit: Slurm took no more ({done.failure}): the same command submits the rest", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(guarded("submit", main))
