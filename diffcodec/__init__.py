"""diffcodec: a progressive image codec, lossy to lossless, built on a diffusion model.

import diffcodec
data = diffcodec.encode(pixels)            # uint8 [H, W, 3] -> bytes
diffcodec.decode(data[:200]).pixels        # a lossy picture
diffcodec.decode(data).pixels              # the original, exactly
"""

from importlib import import_module
from typing import TYPE_CHECKING

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

_HOMES = dict.fromkeys(
    ("Decoded", "decode", "decode_batch", "encode", "encode_batch", "truncate"), "diffcodec.api"
) | dict.fromkeys(("default_model", "load_model"), "diffcodec.registry")


def __getattr__(name: str) -> object:
    """Load what needs PyTorch when it is first used, so that the command line starts at once."""
    if name == "api":
        return import_module("diffcodec.api")
    if name not in _HOMES:
        raise AttributeError(f"module 'diffcodec' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
