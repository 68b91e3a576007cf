"""diffcodec: a progressive image codec, lossy to lossless, built on a diffusion model.

import diffcodec
data = diffcodec.encode(pixels)            # uint8 [H, W, 3] -> bytes
diffcodec.decode(data[:200]).pixels        # a lossy picture
diffcodec.decode(data).pixels              # the original, exactly
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffcodec.errors import DataError, DiffcodecError, FormatError, ModelError

if TYPE_CHECKING:
    from diffcodec.api import Decoded, decode, decode_batch, encode, encode_batch, truncate
    from diffcodec.registry import default_model, load_model

__version__ = "0.1.0"
__all__ = [
    "DataError",
    "Decoded",
    "DiffcodecError",
    "FormatError",
    "ModelError",
    "__version__",
    "decode",
    "decode_batch",
    "default_model",
    "encode",
    "encode_batch",
    "load_model",
    "truncate",
]

_HOMES = {"default_model": "registry", "load_model": "registry"}
"""Modules of the names that are not in ``api``."""


if not TYPE_CHECKING:  # a type checker would take any name for granted

    def __getattr__(name: str) -> Any:
        """The names of ``__all__`` when they are first used: PyTorch takes seconds to import."""
        if name == "api":
            return import_module("diffcodec.api")
        if name not in __all__:
            raise AttributeError(f"module 'diffcodec' has no attribute '{name}'")
        found = getattr(import_module(f"diffcodec.{_HOMES.get(name, 'api')}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
