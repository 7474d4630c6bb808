"""A finished run's model in forms that need nothing of this project: slim, 2:4, ONNX, safetensors."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from pdp.config.schema import Config
from pdp.config.stored import from_yaml
from pdp.cost import count_macs, count_parameters
from pdp.errors import Refusal, Stopped
from pdp.export import slim_loader
from pdp.export.slim import difference, slim
from pdp.layers import find_layers
from pdp.patterns.nm import obeys
from pdp.runs.record import Record, read_record, write_json
from pdp.tasks import build_task
from pdp.tasks.image_data import model_input
from pdp.tasks.language_models import positions
from pdp.tasks.task import Batch, Task
from pdp.tasks.text_task import TextTask
from pdp.training.assembly import make_model
from pdp.training.checkpoint import load_weights

FORMATS = ("slim", "nm", "onnx", "safetensors")
TOLERANCE = 1e-4  # of the largest output: float32 sums in another order


class ExportedRun:
    """A finished run: its record, configuration, task and hard model in evaluation mode."""

    def __init__(self, path: Path):
        self.path = path
        self.record: Record = read_record(path)
        self.config: Config = from_yaml((path / "config.yaml").read_text(encoding="utf-8"))
        self.task: Task = build_task(self.config)
        self.config.model.pretrained = "false"
        self.batch, self.inputs_note = self._real_inputs()
        self.inputs: Tensor = self.batch["image" if "image" in self.batch else "input_ids"]
        self.model: nn.Module = make_model(self.config, self.task).to(memory_format=torch.contiguous_format)
        load_weights(self.model, path / "model.safetensors")
        self.model.eval()

    def _real_inputs(self, size: int = 16) -> tuple[Batch, str]:
        """A batch of the test set, or noise where the data is not at hand."""
        try:
            self.task.open_data()
            batch = next(iter(self.task.evaluation_loader("test", size, 0)))
            if "image" in batch:
                batch["image"] = model_input(batch["image"])
            return batch, f"{len(batch['index'])} test samples of {self.task.data_name}"
        except (Refusal, Stopped) as error:
            example = self.task.example_input()
            if not example.is_floating_point():
                tokens = example.expand(size, -1).contiguous()
                return {"input_ids": tokens}, f"one token, as the data is not at hand ({error})"
            return {"image": torch.randn(size, *example.shape[1:])}, f"noise, as the data is not at hand ({error})"


def export(run: ExportedRun, form: str, folder: Path) -> list[tuple[str, str]]:
    """Writes `folder` and gives what was measured on the way, as lines of two texts; raises `Refusal`."""
    if form not in FORMATS:
        raise Refusal(f"format={form}: no such format; known: {', '.join(FORMATS)}")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return {"slim": _slim, "nm": _nm, "onnx": _onnx, "safetensors": _safetensors}[form](run, folder)
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()


def save_slim(model: nn.Module, example_input: Tensor, folder: Path, origin: dict[str, Any]) -> nn.Module:
    """Writes the slim model of a channel-pruned one and gives it.

    slim.json and model.safetensors, with load_slim.py that puts them into the model's own class, which goes on
    training. `origin` says in slim.json what the dense model was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    slimmed = slim(model, example_input)
    smaller = slimmed.model.eval()
    removed = {name: {"removed": gone, "of": units} for name, (gone, units) in slimmed.removed.items()}
    write_json(folder / "slim.json", {"model": origin, "modules": slimmed.modules, "channels": removed})
    save_model(smaller, str(folder / "model.safetensors"))
    shutil.copyfile(slim_loader.__file__, folder / "load_slim.py")
    return smaller


def save_program(model: nn.Module, example_inputs: Sequence[Tensor], path: Path) -> None:
    """Writes a `torch.export` program of any batch size, and of any length of text; it needs no class of anybody's."""
    # Two samples: a batch of one would be taken for a constant.
    batch = tuple(one[:1].expand(2, *one.shape[1:]).contiguous() for one in example_inputs)
    program = torch.export.export(model.eval(), batch, dynamic_shapes=_dynamic_shapes(model, len(batch)))
    torch.export.save(program, path)


def _dynamic_shapes(model: nn.Module, inputs: int) -> Any:
    """What may differ from the inputs that a model is exported with: the number of samples, and of tokens."""
    dimensions = {0: torch.export.Dim("batch")}
    if not isinstance(model, Logits):
        return (dimensions,) * inputs
    dimensions[1] = torch.export.Dim("tokens", max=positions(model.model))
    # A model of *inputs takes them as one argument.
    return (tuple(dimensions for _ in range(inputs)),)


def _slim(run: ExportedRun, folder: Path) -> list[tuple[str, str]]:
    example = run.task.example_input()
    plain = save_slim(run.model, example, folder, _origin(run))
    masked, named = _by_place(run, run.model)
    smaller, values = _by_place(run, plain)[0], tuple(named.values())
    off = difference(masked, smaller, *values)
    if off > TOLERANCE:
        raise Stopped(f"the slim model differs from the masked one by {off:.2g} of the largest output: not exported")
    save_program(smaller, values, folder / "model.pt2")
    program: Any = torch.export.load(folder / "model.pt2").module()
    with torch.no_grad():
        again = float((program(*values) - smaller(*values)).abs().max())
    dense, slimmed = (int(count_macs(one, example).macs.sum()) for one in (run.model, plain))
    return [
        ("compared on", run.inputs_note),
        ("difference to the masked model", f"{off:.2g} of the largest output"),
        ("difference of model.pt2", f"{again:.2g}"),
        ("MACs", f"{dense:,} -> {slimmed:,} ({slimmed / dense:.1%})"),
        ("parameters", f"{count_parameters(run.model)[0]:,} -> {count_parameters(plain)[0]:,}"),
        ("loads with", "load_slim.py (torch and safetensors), or torch.export.load('model.pt2').module()"),
    ]


def _origin(run: ExportedRun) -> dict[str, Any]:
    model = run.config.model
    return {
        "name": model.name,
        "library": model.library,
        "arguments": dict(model.arguments),
        "input_shape": list(run.task.example_input().shape),
        "run_id": run.record.run_id,
    }


def check_nm(model: nn.Module, n: int, m: int, names: set[str]) -> list[str]:
    """Of the layers called `names` those with a group of M that holds more than N numbers."""
    return [one.name for one in find_layers(model) if one.name in names and not obeys(one.weight.detach(), one, n, m)]


def refuse_without_semi_structured(device: str = "cuda") -> None:
    """Raises `Refusal` where no GPU runs torch's semi-structured format."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        raise Refusal(
            "format=nm stores 2:4 weights as NVIDIA GPUs of compute capability 8.0 and up compute with them, and none "
            "is at hand: export there, or give format=onnx or format=safetensors"
        )


def _nm(run: ExportedRun, folder: Path) -> list[tuple[str, str]]:
    prune = run.config.prune
    n, m = getattr(prune, "n", None), getattr(prune, "m", None)
    if n is None or m is None:
        raise Refusal(f"run={run.path} was pruned with prune={prune.pattern}: format=nm is for prune=nm")
    from pdp.training.assembly import make_pruner

    pruner = make_pruner(run.config, run.task, run.model, steps_per_epoch=1)
    for handle in pruner._handles:
        handle.remove()
    names = {layer.name for layer in pruner.layers}
    wrong = check_nm(run.model, n, m, names)
    if wrong:
        raise Stopped(f"{len(wrong)} layers do not obey {n}:{m}, the first {wrong[0]}: not exported")
    if (n, m) != (2, 4):
        raise Refusal(
            f"every group obeys {n}:{m}, but hardware knows 2:4 alone: give format=onnx or format=safetensors"
        )
    refuse_without_semi_structured()
    return save_semi_structured(run.model, names, folder)


def save_semi_structured(model: nn.Module, names: set[str], folder: Path) -> list[tuple[str, str]]:
    """Linear weights of 2:4 in torch's semi-structured format (float16), checked against dense products; needs CUDA."""
    from torch.sparse import to_sparse_semi_structured

    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    worst, kind = 0.0, ""
    for name, value in model.state_dict().items():
        module_name, _, key = name.rpartition(".")
        module = model.get_submodule(module_name)
        half = value.cuda().half() if value.is_floating_point() else value
        rows, columns = value.shape if value.dim() == 2 else (0, 0)
        if (
            isinstance(module, nn.Linear)
            and key == "weight"
            and module_name in names
            and not (rows % 32 or columns % 64)
        ):
            sparse = to_sparse_semi_structured(half)
            inputs = torch.randn(64, columns, device="cuda", dtype=torch.float16)
            dense = nn.functional.linear(inputs, half)
            off = float((nn.functional.linear(inputs, sparse) - dense).abs().max() / dense.abs().max())
            worst = max(worst, off)
            for part in ("packed", "meta"):
                stored = getattr(sparse, part)
                if stored is not None:
                    tensors[f"{name}.{part}"] = stored.cpu()
            shapes[name], kind = [rows, columns], type(sparse).__name__
        else:
            tensors[name] = half.cpu()
    save_file({key: value.contiguous() for key, value in tensors.items()}, str(folder / "model-2-4.safetensors"))
    # What a tensor is built from again, besides its parts: class and shape; the parts are of this version's making.
    described = {"class": kind, "torch": torch.__version__, "shapes": shapes}
    (folder / "model-2-4.json").write_text(json.dumps(described, indent=1), encoding="utf-8")
    return [
        ("linear layers packed", f"{len(shapes)}; convolutions stay dense with their zeros"),
        ("difference of the products", f"{worst:.2g} of the largest"),
    ]


def _by_place(run: ExportedRun, model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model as one that takes its inputs by place and gives a tensor, and a batch of them by name."""
    if not isinstance(run.task, TextTask):
        return model, {"input": run.inputs}
    # What the task gives the model, so that what is measured with it is what the record says.
    named = run.task.inputs_of(model, {"attention_mask": torch.ones_like(run.inputs)} | run.batch)
    return Logits(model, tuple(named)), named


def _onnx(run: ExportedRun, folder: Path) -> list[tuple[str, str]]:
    off = save_onnx(*_by_place(run, run.model), folder / "model.onnx")
    return [("compared on", run.inputs_note), ("difference to torch", f"{off:.2g} of the largest output")]


class Logits(nn.Module):
    """A transformer that takes its inputs by place and gives, of a record of several things, the logits alone."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """(N, tokens) each to (N, classes), or (N, tokens, vocabulary)."""
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


def save_onnx(model: nn.Module, inputs: Tensor | dict[str, Tensor], path: Path) -> float:
    """Writes ONNX of any batch size, and of any length of text; `inputs` by their names there, one alone is "input".

    Gives onnxruntime's difference to torch on `inputs`, over the largest output.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise Refusal(f"format=onnx needs {name}: pip install 'pdp-pruning[export]'")
    import onnxruntime

    model.eval()
    named = inputs if isinstance(inputs, dict) else {"input": inputs}
    values = tuple(named.values())
    with torch.no_grad():
        torch.onnx.export(
            model,
            values,
            path,
            dynamo=True,
            external_data=False,
            input_names=list(named),
            output_names=["output"],
            dynamic_shapes=_dynamic_shapes(model, len(values)),
            verbose=False,
        )
        expected = model(*values)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {name: value.numpy() for name, value in named.items()})
    off = float((torch.from_numpy(output) - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    if off > TOLERANCE:
        raise Stopped(f"onnxruntime differs from torch by {off:.2g} of the largest output: {path} is not to be used")
    return off


def _safetensors(run: ExportedRun, folder: Path) -> list[tuple[str, str]]:
    model: Any = run.model
    if hasattr(model, "save_pretrained"):
        return save_transformer(model, getattr(run.task, "tokenizer", None), run.inputs, folder)
    save_model(run.model, str(folder / "model.safetensors"))
    write_json(folder / "model.json", _origin(run))
    params, nonzero = count_parameters(run.model)
    return [("parameters", f"{params:,}, not zero {nonzero:,}"), ("loads into", f"the plain {run.config.model.name}")]


def save_transformer(model: Any, tokenizer: Any, inputs: Tensor, folder: Path) -> list[tuple[str, str]]:
    """Writes a transformer and its tokenizer as transformers does, and compares what opens with what was there."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    again = type(model).from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        off = float((again(inputs).logits - model(inputs).logits).abs().max())
    if off:
        raise Stopped(f"the model in {folder} differs from the run's by {off:.2g}: not to be used")
    return [("opens with", f"transformers.{type(model).__name__}.from_pretrained('{folder}')"), ("difference", "0")]
