"""Configurations and small texts for the tests of language tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pdp.config.compose import compose
from pdp.config.schema import Config

SMALL_BERT = "model.sizes={hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}"
SMALL_GPT2 = "model.sizes={n_embd: 16, n_layer: 1, n_head: 2, n_positions: 64}"

ROWS = {
    "MNLI": (
        "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label",
        [
            "0\t1\tA man sleeps.\tHe \"rests\tneutral\tentailment",
            "1\t1\tA man sleeps.\tHe runs.\tneutral\tcontradiction",
            "2\t1\tA man sleeps.\tIt rains.\tentailment\tneutral",
            "3\t1\tA man sleeps.\tNobody agrees.\tentailment\t-",
        ],
        {"train": "train", "matched": "dev_matched", "mismatched": "dev_mismatched"},
    ),
    "QQP": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        ["0\t1\t2\tWho?\tWhat?\t0", "1\t3\t4\tWho is \"it?\tWho is it?\t1", "2\t5\t6\tbroken line"],
        {"train": "train", "dev": "dev"},
    ),
    "STS-B": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        [f"{k}\tg\tf\ty\to\ts\ts\tA dog.\tA cat {k}.\t{k / 2}" for k in range(10)],
        {"train": "train", "dev": "dev"},
    ),
    "SST-2": ("sentence\tlabel", ["good \"film\t1", "bad film\t0"] * 4, {"train": "train", "dev": "dev"}),
    "RTE": (
        "index\tsentence1\tsentence2\tlabel",
        ["0\tA.\tB.\tnot_entailment", "1\tC.\tC.\tentailment"] * 4,
        {"train": "train", "dev": "dev"},
    ),
    "QNLI": (
        "index\tquestion\tsentence\tlabel",
        ["0\tA?\tB.\tnot_entailment", "1\tC?\tC.\tentailment"] * 4,
        {"train": "train", "dev": "dev"},
    ),
    "WNLI": (
        "index\tsentence1\tsentence2\tlabel", ["0\tA.\tB.\t1", "1\tC.\tC.\t0"] * 4, {"train": "train", "dev": "dev"}
    ),
    "MRPC": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        ["1\t1\t2\tHe said \"so.\tHe said so.", "0\t3\t4\tA.\tB."] * 4,
        {"train": "train", "dev": "dev"},
    ),
    "CoLA": (None, ["gj04\t1\t\tThe sailors rode the breeze.", "gj04\t0\t*\tSailors the rode."] * 4,
             {"train": "train", "dev": "dev"}),
}  # fmt: skip


def write_glue(root: Path) -> Path:
    """Writes a few rows of each GLUE task as the original archive has them."""
    for folder, (header, rows, files) in ROWS.items():
        (root / folder).mkdir(parents=True)
        for name in files.values():
            lines = rows if header is None else [header, *rows]
            (root / folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def text_config(*overrides: str, model: str = "bert_tiny") -> Config:
    """A dense run of a model of one block of width 16, or what the overrides make of it."""
    sizes = SMALL_GPT2 if model == "gpt2_tiny" else SMALL_BERT
    return compose([f"model={model}", sizes, "prune=none", *overrides])


def opened(*overrides: str, model: str = "bert_tiny") -> Any:
    """The task of such a run, its data open."""
    from pdp.tasks import build_task

    task = build_task(text_config(*overrides, model=model))
    task.open_data()
    return task
