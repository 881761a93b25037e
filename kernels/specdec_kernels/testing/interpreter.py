"""bfloat16 support for Triton's interpreter, which otherwise treats bfloat16 as raw 16-bit words.

Only for tests: products, arithmetic and casts give torch's results, rounded to nearest even. Booleans broadcast to a block
stay booleans, as Triton 3.9 requires of masks.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def widen(words: Any) -> Any:
    """Turn bfloat16 words (uint16) into float32 numbers."""
    return (words.astype(np.uint32) << 16).view(np.float32)


def narrow(numbers: Any) -> Any:
    """Round numbers to bfloat16 words (uint16), to nearest even."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32).astype(np.uint64)
    words = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(numbers), np.uint16(0x7FC0), words)


def teach_bfloat16() -> None:
    """Patch the interpreter of this process; needs `TRITON_INTERPRET=1` and Triton 3.6 to 3.9."""
    import triton.language as tl
    from triton.runtime import interpreter

    handle, builder = interpreter.TensorHandle, interpreter.InterpreterBuilder
    if getattr(builder, "knows_bfloat16", False):
        return
    builder.knows_bfloat16 = True
    dot, cast, binary = builder.create_dot, builder.cast_impl, builder.binary_op
    splat = builder.create_splat
    bf16, fp32 = tl.bfloat16, tl.float32

    def wide(x: Any) -> Any:
        return handle(widen(x.data), fp32) if x.dtype.scalar == bf16 else x

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, wide(a), wide(b), *rest)

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        has, wants = source.dtype.scalar, to.scalar
        if has == fp32 and wants == bf16:
            return handle(narrow(source.data), bf16)
        if has == bf16 and wants != bf16:
            return handle(widen(source.data).astype(interpreter._get_np_dtype(wants)), wants)
        return cast(self, source, to)

    def binary_op(self: Any, left: Any, right: Any, op: Any) -> Any:
        if left.dtype.scalar == bf16 and right.dtype.scalar == bf16:
            out = op(widen(left.data), widen(right.data))
            flags = out.dtype == np.bool_
            return handle(out, tl.int1) if flags else handle(narrow(out), bf16)
        return binary(self, left, right, op)

    def create_splat(self: Any, block: Any, scalar: Any) -> Any:
        # A comparison's result has the numbers' type, and would be broadcast with it.
        is_flag = scalar.data.dtype == np.bool_
        return splat(self, block, handle(scalar.data, tl.int1) if is_flag else scalar)

    builder.create_dot, builder.cast_impl, builder.binary_op = create_dot, cast_impl, binary_op
    builder.create_splat = create_splat
    if not hasattr(builder, "get_bf16"):
        builder.get_bf16 = lambda self, value: handle(narrow(np.array([value], np.float32)), bf16)
    for name in (
        "create_si_to_fp", "create_ui_to_fp", "create_fp_to_si", "create_fp_to_ui",
        "create_fp_ext", "create_fp_trunc",
    ):  # fmt: skip
        setattr(builder, name, lambda self, source, to: self.cast_impl(source, to))
