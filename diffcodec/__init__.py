"""diffcodec: a progressive image codec, lossy to lossless, built on a diffusion model.

import diffcodec
data = diffcodec.encode(pixels)            # uint8 [H, W, 3] -> bytes
diffcodec.decode(data[:200]).pixels        # a lossy picture
diffcodec.decode(data).pixels              # the original, exactly
"""

from diffcodec.api import Decoded, decode, decode_batch, encode, encode_batch, truncate
from diffcodec.errors import DataError, DiffcodecError, FormatError, ModelError
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
