"""How an ONNX file of integers stores its weights: 8 bits without or with a sign, 4 bits, and nothing of its making."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from pdp.errors import Refusal

STORED = ("uint8", "int8")


def store_weights(path: Path, bits: int, weights: str) -> None:
    """Rewrites the file: weights of 8 bits as `weights` says, of 4 bits as such, and without an exporter's notes.

    An exporter's notes of its work take more than small weights do. Raises `Refusal` for `weights="int8"` of a layer
    that is called more than once.
    """
    import onnx

    model = onnx.load(path)
    for node in model.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    for value in model.graph.value_info:
        value.ClearField("metadata_props")
    for tensor in model.graph.initializer:
        tensor.ClearField("metadata_props")
    if bits == 4:
        # torch has no type of 4 bits: they are the integers that DequantizeLinear reads.
        _replace(model, onnx.TensorProto.INT4, 0)
    elif weights == "uint8" and any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        # An x86 processor without VNNI adds products of 8 bits in pairs, in 16 bits with a sign: those of a weight with
        # a sign may not fit and are cut off without a word. onnxruntime computes those of weights without a sign in 32.
        _replace(model, onnx.TensorProto.UINT8, 128)
    else:
        _unshare(model)
    onnx.save(model, path)


def _replace(model: Any, kind: int, zero: int) -> None:
    """Makes the int8 tensors that DequantizeLinear reads, weights and zero points, ones of `kind`, `zero` added."""
    import onnx

    read = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.input}
    for tensor in list(model.graph.initializer):
        if tensor.name in read and tensor.data_type == onnx.TensorProto.INT8:
            values = onnx.numpy_helper.to_array(tensor).astype("int16") + zero
            if kind == onnx.TensorProto.INT4:
                made = onnx.helper.make_tensor(tensor.name, kind, values.shape, values.reshape(-1))
            else:
                made = onnx.numpy_helper.from_array(values.astype("uint8"), tensor.name)
            model.graph.initializer.remove(tensor)
            model.graph.initializer.append(made)
    for one in list(model.graph.value_info):
        if one.name in read:
            model.graph.value_info.remove(one)


def _unshare(model: Any) -> None:
    """Gives each weight a zero point of its own: onnxruntime's exact sessions fail where two read the same one.

    They fail as well where several products read the same weight, which only a copy for each would mend.
    """
    import onnx

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = Counter(name for node in model.graph.node for name in node.input)
    for node in model.graph.node:
        weight = stored.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if weight is not None and weight.data_type == onnx.TensorProto.INT8 and readers[node.output[0]] > 1:
            raise Refusal(
                f"weights=int8: {weight.name} is of a layer that is called {readers[node.output[0]]} times, which "
                "onnxruntime's exact sessions cannot read: give weights=uint8"
            )
    seen: set[str] = set()
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or len(node.input) < 3 or node.input[0] not in stored:
            continue
        zero_point = node.input[2]
        if zero_point in seen:
            own = model.graph.initializer.add()
            own.CopyFrom(stored[zero_point])
            own.name = node.input[2] = f"{node.input[0]}.zero_point"
        seen.add(zero_point)
