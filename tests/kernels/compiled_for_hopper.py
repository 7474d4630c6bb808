"""Compiles kernels for an H100 and fails if they do not read and write sixteen bytes at a time."""

import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pdp.kernels.gpu import grouping, joining, unit_columns


def wide(kernel, constants, rest, **types):
    """Whether it loads and stores four words at once; arguments are of the types named, or of the one of the rest."""
    kinds = {name: "constexpr" if name in constants else types.get(name, rest) for name in kernel.arg_names}
    whole = {(at,): [["tt.divisibility", 16]] for at, kind in enumerate(kinds.values()) if kind[0] in "*i"}
    source = ASTSource(fn=kernel, signature=kinds, constexprs=constants, attrs=whole)
    text = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    return [bool(re.search(one + r"[.]global[\w.]*[.]v4[.]b32", text)) for one in ("ld", "st")]


JOINT = {"TYPE": tl.float32, "OUT": tl.bfloat16, "MEMBERS": 4, "HELD": True, "EVEN": True, "SLOTS": 16, "BLOCK": 1024}
for flat in (True, False):
    for joint in (joining.write_effective_of_many, joining.write_slopes_of_many):
        assert wide(joint, JOINT | {"FLAT": flat}, "i64", table="*i64", temperature="fp32") == [True, True]
    cuts = {"FREE": 2, "MEMBERS": 4, "TYPE": tl.float32, "FLAT": flat, "BLOCK": 256}
    wide(grouping.write_full_cuts_of_many, cuts, "*i32", table="*i64", layers="i32", cuts="*fp32")

NUMBERS = {"rows": "i32", "columns": "i32", "PER": "i32"}
SIZES = {"VECTOR": 1, "LEFT": 128, "BLOCK": 16}
SLOPES = SIZES | {"GIVEN": True, "WEIGHS": True}
assert wide(unit_columns.write_masked_columns, SIZES, "*fp32", effective="*bf16", **NUMBERS) == [True, True]
assert wide(unit_columns.write_column_sums, SIZES, "*fp32", gradients="*bf16", **NUMBERS)[0]
assert wide(unit_columns.write_column_slopes, SLOPES, "*fp32", gradients="*bf16", **NUMBERS) == [True, True]
