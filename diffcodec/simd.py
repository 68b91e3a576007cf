"""Which instructions the compiled loops may name that compilers do not find by themselves."""

from __future__ import annotations

from typing import Any

from numba.core.registry import cpu_target


def target_has(feature: str) -> bool:
    """Whether numba compiles for a machine with such instructions, named as LLVM names them.

    What numba will compile for is asked, not what the machine has: NUMBA_CPU_NAME,
    NUMBA_CPU_FEATURES and NUMBA_ENABLE_AVX can ask for less, and LLVM ends the process over an
    instruction that its target lacks.  There is no public way to ask; without an answer: no.
    """
    codegen: Any = cpu_target.target_context.codegen()
    return f"+{feature}" in getattr(codegen, "_tm_features", "").split(",")
