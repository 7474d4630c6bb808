"""Tries the library on every classification model of torchvision and a small one of each of timm's families.

    python scripts/check_models.py --channel                          # all, a line each; goes on where it was stopped
    python scripts/check_models.py --channel --models torchvision/resnet18 timm/convnext_atto
    python scripts/check_models.py --channel --table docs/models.md   # writes the page from what was found

Weights are random, images as small as the model takes. Exit code 1 where any is wrong, crashed or hanging.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

BAD = ("wrong", "crashed", "hanging", "killed")


def main(arguments: list[str]) -> int:
    """Checks what is not yet in the file; gives the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channel", action="store_true", help="channel pruning, beside torch-pruning's own pruner")
    parser.add_argument("--models", nargs="*", help="names, as torchvision/resnet18; default: all")
    parser.add_argument("--results", type=Path, default=Path("results/benchmarks/models_channel.jsonl"))
    parser.add_argument("--most", type=float, default=100e6, help="parameters; larger models are left out")
    parser.add_argument("--no-peer", action="store_true", help="without torch-pruning's own pruner")
    parser.add_argument("--table", type=Path, help="write the page from the results instead")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        return _one(given.one, not given.no_peer, given.most)
    if given.table:
        from pdp.benchmarks.model_page import page

        rows = [json.loads(line) for line in given.results.read_text(encoding="utf-8").splitlines()]
        given.table.write_text(page(rows), encoding="utf-8")
        return 0
    if not given.channel:
        parser.error("give --channel")
    from pdp.benchmarks.model_zoo import timm_names, torchvision_names

    names = given.models or [*torchvision_names(), *timm_names()]
    given.results.parent.mkdir(parents=True, exist_ok=True)
    known = given.results.read_text(encoding="utf-8") if given.results.exists() else ""
    done = {json.loads(line)["name"] for line in known.splitlines()}
    bad = 0
    for name in names:
        if name in done and not given.models:
            continue
        row = _apart(name, given)
        bad += row["result"] in BAD
        with given.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(_said(row), flush=True)
    return int(bad > 0)


def _apart(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """A process each: what one model does to memory or the interpreter is no other's."""
    command = [sys.executable, __file__, "--one", name, "--most", str(given.most)]
    command += ["--no-peer"] if given.no_peer else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
        return json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"name": name, "result": "hanging", "seconds": 1500}
    except (IndexError, json.JSONDecodeError):
        return {"name": name, "result": "killed", "why": done.stderr[-200:]}


def _one(name: str, peer: bool, most: float) -> int:
    import torch

    from pdp.benchmarks.channel_check import check

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(json.dumps(check(name, peer=peer, most=most)))
    return 0


def _said(row: dict[str, Any]) -> str:
    left = f"{row['left']:.2f} left" if "left" in row else ""
    peer = f"{row['peer_left']:.2f} torch-pruning" if "peer_left" in row else row.get("peer_why", "")[:60]
    return f"{row['name']:40} {row['result']:9} {row.get('seconds', 0):5.1f} s  {left:10} {peer:16} {row.get('why', '')[:90]}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
