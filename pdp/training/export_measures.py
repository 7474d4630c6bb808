"""What an exported model takes: bytes, and a forward of one sample beside the dense model's, for every format alike."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdp.export.latency import in_turn, processor
from pdp.export.onnx import onnx_runner, save_onnx
from pdp.quantize.frozen import Frozen
from pdp.quantize.sizes import bytes_on_disk

Runner = Callable[[dict[str, Tensor]], Callable[[], Any]]  # of inputs by name: a call that runs what was written


def runner_of(model: Any) -> Runner:
    """Runs a model of torch."""

    def runner(named: dict[str, Tensor]) -> Callable[[], Any]:
        def call() -> Any:
            with torch.no_grad():
                return model(*named.values())

        return call

    return runner


def measured(
    model: nn.Module,
    frozen: Frozen | None,
    plain: nn.Module,
    named: dict[str, Tensor],
    folder: Path,
    runner: Runner | None,
) -> list[tuple[str, str]]:
    """Bytes of what was written, and a forward of one sample beside the dense float32 model's, in turn in one runtime.

    `plain` is `model` as it takes the inputs `named` by place; `runner` runs what was written.
    """
    largest = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    forms = bytes_on_disk(model, frozen)
    lines = [("bytes", f"{largest.name} {largest.stat().st_size:,}; dense float32 {forms['fp32']:,}")]
    others = [f"{form.replace('_', ' ')} {count:,}" for form, count in forms.items() if form != "fp32"]
    lines.append(("bytes in other forms", ", ".join(others)))
    if runner is None:
        return [*lines, ("latency", "that of the model it is loaded into: no runtime reads this format by itself")]
    one = {name: value[:1].contiguous() for name, value in named.items()}
    with tempfile.TemporaryDirectory() as beside:
        if largest.suffix == ".onnx":
            save_onnx(plain, named, Path(beside) / "dense.onnx")
            calls = {"dense float32": onnx_runner(Path(beside) / "dense.onnx", one)}
        else:
            calls = {"dense float32": runner_of(plain)(one)}
        times = in_turn(calls | {"exported": runner(one)})
    words = f"{times['exported']:.3f} ms exported, {times['dense float32']:.3f} ms dense float32"
    ratio = times["dense float32"] / times["exported"]
    where = "onnxruntime" if largest.suffix == ".onnx" else "torch"
    return [*lines, (f"latency of one sample, {where}", f"{words}: {ratio:.2f} times as fast; {processor()}")]
