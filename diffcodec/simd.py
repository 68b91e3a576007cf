"""Which paths of the search survive: the one loop of it that compilers do not vectorise.

They do not find the instruction that packs the chosen lanes of a vector.  Where the machine has
it (AVX-512) it is named here, and the loop takes a quarter of its time; elsewhere it is written
without a branch.  Both give the same places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

LANES = 16
"""Arrays of places need so many more elements than there are places."""


def target_has(feature: str) -> bool:
    """Whether numba compiles for a machine with such instructions, named as LLVM names them.

    What numba will compile for is asked, not what the machine has: NUMBA_CPU_NAME,
    NUMBA_CPU_FEATURES and NUMBA_ENABLE_AVX can ask for less, and LLVM ends the process over an
    instruction that its target lacks.  There is no public way to ask; without an answer: no.
    """
    codegen: Any = cpu_target.target_context.codegen()
    return f"+{feature}" in getattr(codegen, "_tm_features", "").split(",")


def _packing(comparison: str) -> Any:
    """An intrinsic that stores the places p … p + 15 where ``comparison`` holds; the next n."""
    word, long, lanes = ir.IntType(32), ir.IntType(64), ir.VectorType(ir.IntType(32), LANES)
    floats, mask_type = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(1), LANES)
    insert: Any = cgutils.get_or_insert_function

    def splat(builder: Any, value: Any, vector: Any) -> Any:
        none = ir.Constant(vector, ir.Undefined)
        first = builder.insert_element(none, value, ir.Constant(word, 0))
        return builder.shuffle_vector(first, none, ir.Constant(lanes, [0] * LANES))

    @intrinsic
    def pack(typing_context, values, p, threshold, places, n):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            values, p, threshold, places, n = arguments
            source = context.make_array(signature.args[0])(context, builder, values).data
            target = context.make_array(signature.args[3])(context, builder, places).data
            here = builder.bitcast(builder.gep(source, [p]), floats.as_pointer())
            limit = splat(builder, threshold, floats)
            mask = builder.fcmp_ordered(comparison, builder.load(here, align=4), limit)
            start = splat(builder, builder.trunc(p, word), lanes)
            all_places = builder.add(start, ir.Constant(lanes, list(range(LANES))))
            name = "llvm.x86.avx512.mask.compress.v16i32"
            kind = ir.FunctionType(lanes, [lanes, lanes, mask_type])
            compress = insert(builder.module, kind, name)
            packed = builder.call(compress, [all_places, ir.Constant(lanes, None), mask])
            there = builder.bitcast(builder.gep(target, [n]), lanes.as_pointer())
            builder.store(packed, there, align=4)  # all 16: the next ones go over the surplus
            number = builder.ctpop(builder.bitcast(mask, ir.IntType(LANES)))
            return builder.add(n, builder.zext(number, long))

        return types.int64(values, types.int64, types.float32, places, types.int64), generate

    return pack


@njit(nogil=True, cache=True)
def _above(first, n, count, values, threshold, places):  # type: ignore[no-untyped-def]
    """Go on at ``first`` with n places found, without a branch: every place is written, and the
    target moves on past those that are meant."""
    for p in range(first, count):
        places[n] = p
        n += np.int64(values[p] > threshold)
    return n


@njit(nogil=True, cache=True)
def _within(first, n, count, values, threshold, places):  # type: ignore[no-untyped-def]
    """The same where values do not exceed the threshold.

    Not one function with :func:`_above`: which way to compare, as an argument, takes half as long
    again (0.72 instead of 0.46 ns a value).
    """
    for p in range(first, count):
        places[n] = p
        n += np.int64(values[p] <= threshold)
    return n


if target_has("avx512f"):
    _pack_above, _pack_within = _packing(">"), _packing("<=")

    @njit(nogil=True, cache=True)
    def places_above(count, values, threshold, places):  # type: ignore[no-untyped-def]
        """Write where the first ``count`` values exceed the threshold: their number.

        values: float32, contiguous; threshold: float32; places: int32, LANES longer than needed.
        """
        n = 0
        whole = count // LANES * LANES
        for p in range(0, whole, LANES):
            n = _pack_above(values, p, threshold, places, n)
        return _above(whole, n, count, values, threshold, places)

    @njit(nogil=True, cache=True)
    def places_within(count, values, threshold, places):  # type: ignore[no-untyped-def]
        """Write where the first ``count`` values do not exceed the threshold: their number."""
        n = 0
        whole = count // LANES * LANES
        for p in range(0, whole, LANES):
            n = _pack_within(values, p, threshold, places, n)
        return _within(whole, n, count, values, threshold, places)

else:

    @njit(nogil=True, cache=True)
    def places_above(count, values, threshold, places):  # type: ignore[no-untyped-def]
        """Write where the first ``count`` values exceed the threshold: their number."""
        return _above(0, 0, count, values, threshold, places)

    @njit(nogil=True, cache=True)
    def places_within(count, values, threshold, places):  # type: ignore[no-untyped-def]
        """Write where the first ``count`` values do not exceed the threshold: their number."""
        return _within(0, 0, count, values, threshold, places)
