"""What the experiment files need in order to be composed in tests, and which of them differ in more than a number."""

from pathlib import Path

import torch

from pdp.config.groups import choices

EXPERIMENTS = choices("experiment")
# Of cells that differ in the model, N:M, sparsity or task alone, one: every method with every pattern, PDP on every model.
_OTHERS = ("resnet50_nm", "nm_1_4", "nm_2_8", "nm_4_8", "qqp", "optg_budget")
_MODELS = ("resnet50_random", "mobilenet_v1_random", "mobilenet_v2_random")
_LAYERS = {"mobilenet_v1": "classifier", "mobilenet_v2": "classifier.1", "resnet": "fc"}
DISTINCT = [
    name
    for name in EXPERIMENTS
    if not any(part in name for part in _OTHERS)
    and not (any(part in name for part in _MODELS) and not name[-1].isdigit())
]


def needed(experiment: str, folder: Path) -> list[str]:
    """The words that a user has to add to `experiment`, with files made in `folder`."""
    if experiment.endswith("_budget") and experiment != "imagenet/resnet50_random_90_pdp_str_budget":
        path = folder / "budget.csv"
        layer = next(layer for part, layer in _LAYERS.items() if part in experiment)
        path.write_text(f"layer,share\n{layer},0.9\n", encoding="utf-8")
        return [f"allocation.path={path}"]
    if "pofa_finetune" in experiment:
        return [f"model.pretrained={pruned_bert(folder / 'pruned')}"]
    if experiment.endswith("_asp"):
        model, path = ("resnet50" if "resnet50" in experiment else "resnet18"), folder / "dense.pt"
        if not path.exists():
            from torchvision import models

            torch.save(getattr(models, model)(weights=None).state_dict(), path)
        return [f"model.pretrained={path}"]
    return []


def pruned_bert(folder: Path) -> Path:
    """A small BERT with half of each linear layer zero, as save_pretrained leaves it."""
    from transformers import BertConfig, BertForSequenceClassification

    if not folder.exists():
        small = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        model = BertForSequenceClassification(small)
        with torch.no_grad():
            for module in model.bert.encoder.modules():
                if isinstance(module, torch.nn.Linear):
                    module.weight[:, ::2] = 0
        model.save_pretrained(folder)
    return folder
