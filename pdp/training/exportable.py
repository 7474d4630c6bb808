"""What an export takes: a hard model with its task, inputs and scales, of a finished run or made for measuring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pdp.config.schema import Config
from pdp.errors import Refusal, Stopped
from pdp.export.compare import TOLERANCE, difference, steps_off
from pdp.export.inputs import Logits
from pdp.export.integers import with_integers
from pdp.export.onnx import save_onnx, save_onnx_integers
from pdp.export.slim import Slimmed, slim
from pdp.quantize.frozen import Frozen
from pdp.tasks.image_data import model_input
from pdp.tasks.kept_tokenizer import ForeignVocabulary
from pdp.tasks.task import Batch, Task
from pdp.tasks.text_task import TextTask


def real_inputs(task: Task, size: int = 16) -> tuple[Batch, str]:
    """A batch of the test set, or noise if the data is not available; and which of them it is."""
    try:
        task.open_data()
        batch = next(iter(task.evaluation_loader("test", size, 0)))
        if "image" in batch:
            batch["image"] = model_input(batch["image"])
        return batch, f"{len(batch['index'])} test samples of {task.data_name}"
    except ForeignVocabulary:
        raise  # the data is at hand, and would be read by wrong words
    except (Refusal, Stopped) as error:
        example = task.example_input()
        if not example.is_floating_point():
            tokens = example.expand(size, -1).contiguous()
            return {"input_ids": tokens}, f"one token, as the data is not at hand ({error})"
        return {"image": torch.randn(size, *example.shape[1:])}, f"noise, as the data is not at hand ({error})"


@dataclass
class Exportable:
    """A hard model in evaluation mode, if it is quantized its scales, and the task and inputs it is checked on."""

    config: Config
    task: Task
    model: nn.Module
    frozen: Frozen | None
    batch: Batch
    inputs_note: str
    trained: bool = True

    @property
    def inputs(self) -> Tensor:
        """The inputs without masks and types: images or tokens."""
        return self.batch["image" if "image" in self.batch else "input_ids"]

    def by_place(self, model: nn.Module, batch: Batch | None = None) -> tuple[nn.Module, dict[str, Tensor]]:
        """The model wrapped to take positional inputs and return a tensor, and a batch of its inputs by name."""
        batch = self.batch if batch is None else batch
        if not isinstance(self.task, TextTask):
            return model, {"input": batch["image"]}
        # The inputs are those of the task, so that the exported model gives the metric in the record.
        named = self.task.inputs_of(model, {"attention_mask": torch.ones_like(batch["input_ids"])} | batch)
        return Logits(model, tuple(named)), named

    def verified(self) -> tuple[Slimmed, float]:
        """The slim model and its difference from the masked one on the inputs; raises `Stopped` if that is large."""
        slimmed = slim(self.model, self.task.example_input())
        slimmed.model.eval()
        masked, named = self.by_place(self.model)
        off = difference(masked, self.by_place(slimmed.model)[0], *named.values())
        if not off <= TOLERANCE:
            raise Stopped(
                f"the slim model differs from the masked one by {off:.2g} of the largest output: not exported"
            )
        return slimmed, off

    def shipped(self) -> tuple[nn.Module, str]:
        """The hard model, slim where channels went, and what is said of it."""
        if self.config.prune.pattern != "channel" or self.config.method.name == "dense":
            return self.model, "the hard model"
        slimmed, off = self.verified()
        return slimmed.model, f"the slim model, {off:.2g} of the largest output from the masked one"

    def frozen_of(self, model: nn.Module) -> Frozen:
        """The scales for `model`, the hard one or its slim one."""
        assert self.frozen is not None
        if model is self.model:
            return self.frozen
        example = self.task.example_input()
        return self.frozen.of_slim(self.model, model, lambda one: slim(one, example).model)

    def quantized_outputs(self, model: nn.Module, frozen: Frozen) -> Tensor:
        """What fake quantization makes of the inputs: of the masked model, and of its slim one as well."""
        found: list[Tensor] = []
        for one, scales in ((self.model, self.frozen), (model, frozen)):
            assert scales is not None
            with torch.no_grad(), scales.applied(one):
                plain, named = self.by_place(one)
                found.append(plain(*named.values()))
        if not steps_off(found[1], found[0]) <= self.steps_allowed(found[0]):
            raise Stopped(
                "the slim model in integers differs from the masked one by more than roundings do: not exported"
            )
        return found[0]

    def steps_allowed(self, quantized: Tensor) -> float:
        """How far an export may be from these outputs of fake quantization, in steps of their range.

        A number near the middle of two integers may be rounded either way, which moves the outputs by a part of what
        rounding all numbers moves them: by a step at most, or by a quarter of that where a model that was trained for a
        short time has outputs close to each other. With weights of chance it may be all of it, for each of the models.
        """
        with torch.no_grad():
            plain, named = self.by_place(self.model)
            rounding = steps_off(plain(*named.values()), quantized)
        return max(1.0, rounding * (0.25 if self.trained else 2.0))

    def write_onnx(self, model: nn.Module, path: Path, weights: str = "uint8") -> float:
        """Writes what `shipped` gave, in QDQ form if it is quantized; returns how far onnxruntime is from torch.

        `weights` says how those of 8 bits are stored, see `save_onnx_integers`. Of floats the difference is relative to
        the largest output, of integers in steps of the outputs' range over 255. Raises `Stopped` where it is too large.
        """
        if self.frozen is None:
            return save_onnx(*self.by_place(model), path)
        frozen = self.frozen_of(model)
        expected = self.quantized_outputs(model, frozen)
        integers = with_integers(model, frozen, self.task.example_input(), onnx=True)
        most = self.steps_allowed(expected)
        return save_onnx_integers(*self.by_place(integers), expected, path, frozen.bits, most, weights)
