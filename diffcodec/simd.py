"""The instructions that compiled loops may name and compilers do not find by themselves."""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils
from numba.core.registry import cpu_target

_tools: Any = cgutils  # which has no types


def target_has(feature: str) -> bool:
    """Whether numba compiles for a machine with such instructions, named as LLVM names them.

    What numba will compile for is asked, not what the machine has: NUMBA_CPU_NAME,
    NUMBA_CPU_FEATURES and NUMBA_ENABLE_AVX can ask for less, and LLVM ends the process over an
    instruction that its target lacks.  There is no public way to ask; without an answer: no.
    """
    codegen: Any = cpu_target.target_context.codegen()
    return f"+{feature}" in getattr(codegen, "_tm_features", "").split(",")


def instruction(builder: Any, name: str, result: Any, *operands: Any) -> Any:
    """One of the machine's own, by the name of LLVM's function for it."""
    kind = ir.FunctionType(result, [x.type for x in operands])
    return builder.call(_tools.get_or_insert_function(builder.module, kind, name), operands)


def data_of(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Where the numbers of an array of numba's type ``kind`` begin."""
    return context.make_array(kind)(context, builder, array).data


def at(builder: Any, pointer: Any, place: Any, kind: Any) -> Any:
    """Where what stands ``place`` numbers behind a pointer is, as something of this ``kind``."""
    return builder.bitcast(builder.gep(pointer, [place]), kind.as_pointer())
