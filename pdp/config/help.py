"""The texts of --help: one screen, and pages for a group, a choice or a key, from the schema's comments."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pdp.config.groups import CONF, GROUPS, choices, default_choices, said
from pdp.config.keys import of_choice, of_group, of_the_run
from pdp.config.meanings import Meaning, typed
from pdp.errors import Refusal
from pdp.wording import did_you_mean

_WIDTH = 110
_SHOWN = 26  # if a group has more choices, the first screen gives only their number
_OF_MODELS = ("model", "data", "recipe", "experiment", "debug")  # the groups that evaluate.py has
_TRAIN = """\
Trains a network while pruning it; leaves a folder with history, hard weights, tables, pictures and a record.

  python train.py model=<name> sparsity=<fraction> [group=choice ...] [key=value ...]
  python train.py model=mobilenet_v1 prune=random sparsity=0.866             prune=none: the dense baseline
  python train.py model=resnet50 data=imagenet data.root=/data/imagenet sparsity=0.9
  python train.py model=timm model.name=resnet10t data=image_folder data.root=photos sparsity=0.8
  python train.py model=mypackage.models.MyNet sparsity=0.8                  a model of your own: module.Class
  python train.py from=results/runs/<run>/seed0 recipe.epochs=5              goes on under a run's zeros
  python train.py -m model=resnet20 method=pdp,gmp sparsity=0.8,0.9 seed=0,1,2     every combination
  python train.py experiment=imagenet/resnet50_random_90 dry_run=true        what it would do; trains nothing

Without data= vision models train on ImageNet where data.root or IMAGENET_DIR names it, else on digits; text
models on texts made on the spot. The same command again goes on, or returns the finished run.

Groups (* where nothing else is asked); --help <group> and --help <group>=<choice> say all keys of one:
{groups}

Keys of the run (--help recipe.lr says one; docs/configuration.md has all):
{keys}

Flags: -m every combination of comma-separated values; --cfg job prints the composed configuration.
Exit codes: 0 done; 1 an error of ours; 2 refused before work began; 3 stopped in work; 75 saved, start again.
"""
_EVALUATE = """\
Measures a model on every test sample once: metric, sparsity, parameters and MACs.

  python evaluate.py run=<folder of a finished run> [recipe.batch_size= device= data.root= data.workers=]
  python evaluate.py model=<name> model.pretrained=<true or a file> data=<name> [key=value ...]
  python evaluate.py run=results/runs/<run>/seed0
  python evaluate.py run=results/runs/<run>/seed0 lm_eval=[lambada_openai,piqa]
  python evaluate.py model=mobilenet_v2 model.pretrained=weights.pth data.root=/data/imagenet

Groups (* where nothing else is asked); --help <group> and --help <group>=<choice> say all keys of one:
{groups}

Exit codes: 0 done; 1 an error of ours; 2 refused before work; 3 stopped, or not what the record says.
"""


def help_text(program: str, words: Sequence[str] = ()) -> str:
    """What `train.py --help` or `evaluate.py --help` prints.

    With words, such as recipe, method=str or seed, the page of each. Raises `Refusal` for a word that is neither a
    group, a choice nor a key.
    """
    if words:
        return "\n".join(_page(word.strip()).rstrip("\n") + "\n" for word in words)
    if program == "train":
        return _TRAIN.format(groups=_groups(GROUPS), keys=_keys(of_the_run(), ""))
    return _EVALUATE.format(groups=_groups(_OF_MODELS))


def _page(word: str) -> str:
    key, _, value = word.partition("=")
    if key in GROUPS:
        if value and value in choices(key):
            return _choice(key, value)
        if value:
            raise Refusal(f"--help {word}: no such choice of {key}; {did_you_mean(value, choices(key))}")
        return _group(key)
    known = _known()
    if key not in known:
        names = [*GROUPS, *known]
        raise Refusal(f"--help {word}: neither a group nor a key; {did_you_mean(key, names)}")
    return "\n".join(
        _line(one, key.rpartition(".")[0]) + (f"  [{label}]" if label else "") for label, one in known[key]
    )


def _known() -> dict[str, list[tuple[str, Meaning]]]:
    found: dict[str, list[tuple[str, Meaning]]] = {one.name: [("", one)] for one in of_the_run()}
    for group in GROUPS:
        for label, options in of_group(group):
            for one in options:
                found.setdefault(f"{group}.{one.name}", []).append((label, one))
    return found


def _group(group: str) -> str:
    names = choices(group)
    lines = [f"{group}=: {GROUPS[group]}", ""]
    if group == "experiment":
        lines += [f"{len(names)} files in conf/experiment; python scripts/plan.py lists them with their commands.", ""]
        by_folder: dict[str, int] = {}
        for name in names:
            by_folder[name.partition("/")[0]] = by_folder.get(name.partition("/")[0], 0) + 1
        lines += [f"  experiment={folder}/...   {count}" for folder, count in by_folder.items()]
        return "\n".join(lines) + "\n"
    chosen = default_choices().get(group)
    wide = max(map(len, names))
    for name in names:
        lines.append(_wrapped(f"  {'*' if name == chosen else ' '}{name:<{wide}}  ", _first_comment(group, name)))
    if group == "method":
        lines += ["", "Each has options of its own: --help method=<name>; its card is docs/methods/<name>.md."]
        return "\n".join(lines) + "\n"
    for label, options in of_group(group):
        if options:
            lines += ["", f"Keys{f' ({label})' if label else ''}:", _keys(options, group)]
    return "\n".join(lines) + "\n"


def _choice(group: str, choice: str) -> str:
    lines = [_wrapped(f"{group}={choice}: ", _first_comment(group, choice) or GROUPS[group]), ""]
    values = _flat(said(group, choice))
    own = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{group}.")}
    others = [f"{key}={typed(value)}" for key, value in values.items() if not key.startswith((f"{group}.", "defaults"))]
    options = [one for one in of_choice(group, choice) if one.name != "name"]
    if options:
        lines += ["Keys, with what they are here:", _keys(options, group, own)]
    else:
        lines.append("It has no keys of its own.")
    overrides = re.findall(r"override /(\S+): (\S+)", (CONF / group / f"{choice}.yaml").read_text(encoding="utf-8"))
    others = [*(f"{key}={value}" for key, value in overrides), *others]
    if others:
        lines += ["", _wrapped("It also chooses, unless you do: ", " ".join(others))]
    return "\n".join(lines) + "\n"


def _first_comment(group: str, choice: str) -> str:
    """The first sentences of a choice's file, which describe it."""
    words: list[str] = []
    for line in (CONF / group / f"{choice}.yaml").read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        words.append(line.lstrip("# "))
    return " ".join(words)


def _keys(options: Iterable[Meaning], group: str, here: Mapping[str, Any] | None = None) -> str:
    return "\n".join(_line(one, group, here) for one in options)


def _line(one: Meaning, group: str, here: Mapping[str, Any] | None = None) -> str:
    value = typed(here[one.name]) if here and one.name in here else one.default
    name = f"{group}.{one.name}" if group else one.name
    shown = f"{name}={value}" if value else f"{name}=<to be given>"
    return _wrapped(f"  {shown:<34} ", one.text)


def _wrapped(head: str, text: str) -> str:
    width = max(_WIDTH, len(head) + 40)
    indent = " " * min(len(head), 37)
    return textwrap.fill(head + text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def _groups(groups: Iterable[str]) -> str:
    chosen = default_choices()
    lines = []
    for group in groups:
        names = choices(group)
        shown = [f"*{name}" if name == chosen.get(group) else name for name in names]
        words = ", ".join(shown) if len(names) <= _SHOWN + 3 else f"{len(names)} files; --help {group} counts them"
        lines.append(_wrapped(f"  {group:<11} ", f"{GROUPS[group]}: {words}"))
    return "\n".join(lines)


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping) or not node:
        return {path.removesuffix("."): node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(value, f"{path}{key}.")
    return found
