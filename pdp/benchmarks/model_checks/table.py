"""Writes the documentation page that lists the results of all checks for every model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_HEAD = """# Models that were tried

`python scripts/check_models.py` builds each model with random weights, prunes single weights (60 %) and 2:4, and holds
every number against something independent: the share that was asked, outputs and gradients of the model with the masked
weights of the paper's formula in its parameters, `hard()` against `finalize()`, multiply-adds against PyTorch's own
counter. Written by `python scripts/check_models.py --table`; the lines are in `results/models/`.
"""


_LEAST_SALIENT = (
    "half of the units of every coupling are gone, as asked, but its least salient ones are in fewer layers than others"
)
_INTRODUCED = {
    "channel": """Half of the channels of every coupling go, the stem's too. `hard()`, `finalize()` and `pdp.slim` must be
one function to 1e-3 of the largest output (float32). Beside it stands what torch-pruning's own pruner leaves of the
parameters at the same ratio, where its result runs. It takes channels before a LayerNorm away as well, after which the
model is another function: a zero changes the mean and the variance of all channels, so no mask can be exact there, and
here they stay.

""",  # noqa: E501
    "language": """Hugging Face's transformers, one of each architecture with small random weights, by
`python scripts/check_models.py --language`. Single weights (60 %) and 2:4: outputs and gradients against the paper's
formula in the parameters, `hard()`, `finalize()`, and the folder of `save_pretrained` opened again. Channels: half of
each coupling's heads and hidden units; `hard()`, `finalize()` and `pdp.slim` must be one function, and what opens from
the slim folder too, by the loader in it and, where a configuration of transformers can say the sizes, by
`from_pretrained`. What decoders write must be the same from all of these, with a cache of past keys and without.
Multiply-adds are held against PyTorch's counter and, layer by layer, against outputs times inputs; with experts the
second number is of all of them.

""",
}


def write_table(parts: Mapping[str, Mapping[str, dict[str, Any]]], page: Path) -> None:
    """Writes the page for all checks that have results."""
    text = _HEAD
    for part, lines in parts.items():
        if lines:
            table = _TABLES[part](lines) if part in _TABLES else rows(part, lines)
            said = f"{summary(lines)} {reach(lines)}" if part == "channel" else summary(lines)
            text += f"\n## {part}\n\n{_INTRODUCED.get(part, '')}{said}\n\n{table}\n"
    page.write_text(text, encoding="utf-8")


def summary(lines: Mapping[str, dict[str, Any]]) -> str:
    """How many models have each status, in words."""
    counts: dict[str, int] = {}
    for line in lines.values():
        counts[line["status"]] = counts.get(line["status"], 0) + 1
    return f"{len(lines)} models: " + ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) + "."


def rows(part: str, lines: Mapping[str, dict[str, Any]]) -> str:
    """The table of a check, one row per model."""
    table = ["| model | input | status | prunable, random | prunable, 2:4 | left dense and why | seconds |"]
    table.append("|---|---|---|---|---|---|---|")
    for name in sorted(lines):
        line = lines[name]
        kinds = [line.get(pattern, {}) for pattern in ("random", "2:4")]
        shares = [f"{one['prunable']:.1%}" if "prunable" in one else one.get("refused", "")[:120] for one in kinds]
        left = "; ".join(f"{count} x {reason}" for reason, count in kinds[0].get("left", {}).items())
        if kinds[0].get("unused"):
            left += f"; not used at this input: {', '.join(kinds[0]['unused'][:3])}"
        if line.get("wrong"):
            left = "; ".join(line["wrong"])
        left = line.get("why", left) + ("; held in float64" if "dtype" in line else "")
        size = "x".join(map(str, line.get("input", [])))
        cells = (name, size, line["status"], *shares, left, f"{line['seconds']:.0f}")
        table.append("| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(table)


def less(line: Mapping[str, Any]) -> bool:
    """Whether it removes less than 0.9 of what torch-pruning removes."""
    return "left" in line and 1 - line["left"] < 0.9 * (1 - line.get("peer_left", 1))


def reach(lines: Mapping[str, dict[str, Any]]) -> str:
    """What the rows say together: of torchvision how many prune, and beside torch-pruning."""
    own = [line for name, line in lines.items() if name.startswith("torchvision/")]
    beside = [line for line in lines.values() if "peer_left" in line and "left" in line]
    short = sum(map(less, beside))
    return (
        f"{sum(line.get('left', 1) < 0.95 for line in own)} of torchvision's {len(own)} lose channels. torch-pruning's "
        f"result runs for {len(beside)}: {len(beside) - short} of them lose at least 0.9 of what it removes here too, "
        f"and {short} say why not."
    )


def channel_rows(lines: Mapping[str, dict[str, Any]]) -> str:
    """The table of the channel check, one row per model."""
    table = ["| model | input | status | parameters left | torch-pruning | left dense and why | CPU seconds |"]
    table.append("|---|---|---|---|---|---|---|")
    for name in sorted(lines):
        line = lines[name]
        left = "; ".join(f"{count} x {reason}" for reason, count in line.get("left_dense", []))
        left = "; ".join(line.get("wrong") or []) or line.get("why", left)
        if less(line):
            left = f"**less than torch-pruning**: {left if len(line['left_dense']) > 1 else _LEAST_SALIENT}"
        own = f"{line['left']:.2f}" if "left" in line else ""
        peer = f"{line['peer_left']:.2f}" if "peer_left" in line else line.get("peer_why", "")[:60]
        size = "x".join(map(str, line.get("input", [])))
        cells = (name, size, line["status"], own, peer, left[:300], f"{line.get('cpu', 0):.1f}")
        table.append("| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(table)


def language_rows(lines: Mapping[str, dict[str, Any]]) -> str:
    """One row an architecture."""
    table = [
        "| architecture | kind | status | prunable, random | 2:4 | heads | parameters left | slim opens with | MACs "
        "| generate | left dense and why, random | and in channels |"
    ]
    table.append("|" + "---|" * 12)
    for name in sorted(lines):
        line = lines[name]
        weights, groups, channel = (line.get(pattern, {}) for pattern in ("random", "2:4", "channel"))
        shares = [
            f"{one['prunable']:.1%}" if "prunable" in one else one.get("refused", "")[:80] for one in (weights, groups)
        ]
        left = f"{channel['parameters']:.2f}" if "parameters" in channel else "refused"
        opens = "" if "parameters" not in channel else "from_pretrained" if channel["opens"] else "its own loader"
        macs = f"{line.get('macs', 0):,}"
        if line.get("macs_all_experts") not in (None, line.get("macs")):
            macs += f" of {line['macs_all_experts']:,}"
        why = ["; ".join(f"{count} x {reason}" for reason, count in one.get("left", [])) for one in (weights, channel)]
        why[1] = "; ".join(line.get("wrong") or []) or channel.get("refused", why[1])
        cells = (name, line.get("kind", ""), line["status"], *shares, channel.get("heads", 0), left, opens, macs)
        cells += (line.get("generate", ""), why[0][:300], why[1][:400])
        table.append("| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(table)


_TABLES = {"channel": channel_rows, "language": language_rows}
