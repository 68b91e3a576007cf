"""What a model folder must be before anything in it is used: it may come from anyone.

A folder is data only: JSON and safetensors.  Everything that later code relies on (which tensors
there are, their shapes and types, finite numbers) is checked here, before memory is taken for
more than the files themselves hold.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffcodec.errors import DataError, ModelError
from diffcodec.files import read_bytes
from diffcodec.lessons import REGRESSORS, WEIGHT_MAX
from diffcodec.network import CodecUNet, Conv2d, NetworkConfig

NEIGHBOURS = "neighbours"
"""Of a final layer in two passes, for the second one, [3, 6]; with ".T" behind it of one in four
passes that begins at t = T, [4, 3, 11] (the first weights of lessons.Lessons)."""
MAX_CONFIG = 1 << 20
"""Bytes of a configuration."""
FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a plain file; ModelError if it is none."""
    _check_plain(path, MAX_CONFIG)
    try:
        values = json.loads(read_bytes(path).decode())
    except DataError as e:
        raise ModelError(f"{path.parent}: not a model folder ({e})") from e
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{path}: not a model configuration ({e})") from e
    if not isinstance(values, dict):
        raise ModelError(f"{path}: not a model configuration (it is not an object)")
    return values


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ModelError if it is none."""
    _check_plain(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as e:
        raise ModelError(f"{path.parent}: weights cannot be read ({_line(e)})") from e


def _check_plain(path: Path, most: int | None = None) -> None:
    """ModelError unless there is a file at ``path`` itself: a link could lead anywhere, and a
    pipe or device has no end."""
    kind = "weights cannot be read" if most is None else "not a model folder"
    try:
        found = path.lstat()
    except OSError as e:
        raise ModelError(f"{path.parent}: {kind} ({path}: {(e.strerror or str(e)).lower()})") from e
    if not stat.S_ISREG(found.st_mode):
        what = "a link" if stat.S_ISLNK(found.st_mode) else "something else"
        raise ModelError(f"{path.parent}: {kind} ({path.name} is {what}, not the file)")
    if most is not None and found.st_size > most:
        raise ModelError(f"{path}: not a model configuration (it is larger than {most} bytes)")


def check_size(config: NetworkConfig, weights: dict[str, Tensor]) -> None:
    """ModelError if a network of this shape has more parameters than ``weights`` can be.

    To be asked before it is built: a configuration may want any amount of memory.
    """
    c0, c1, c2 = config.channels
    n0, n1, n2 = config.blocks
    least = 18 * (2 * n0 * c0**2 + 2 * n1 * c1**2 + n2 * c2**2) + 4 * config.embedding**2
    found = sum(value.numel() for value in weights.values())
    if found < least:
        raise _unfit(f"it asks for more than {least} numbers, there are {found}")


def check_shapes(expected: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    """ModelError that names the first tensor that is missing, of another shape, or too many."""
    for name, tensor in expected.items():
        if name not in weights:
            raise ModelError(f"the weights lack the tensor {name} {list(tensor.shape)}")
        if weights[name].shape != tensor.shape:
            raise ModelError(
                f"tensor {name} has shape {list(weights[name].shape)}, "
                f"the network needs {list(tensor.shape)}"
            )
    extra = sorted(weights.keys() - expected.keys())
    if extra:
        raise ModelError(f"the weights hold a tensor that the network has not: {extra[0]}")


def check_weights(network: nn.Module, weights: dict[str, Tensor], half: bool = True) -> None:
    """ModelError unless ``weights`` are those of ``network``, finite (also in half precision)."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    _check_names(weights, expected)
    for name, value in weights.items():
        if value.dtype not in FLOATS:
            raise _unfit(f"{name} holds {value.dtype}")
        _check_shape(name, value, expected[name])
        if not bool(torch.isfinite(value.to(torch.float16) if half else value).all()):
            raise ModelError(
                f"{name} holds numbers that are not finite{' in half precision' if half else ''}"
            )


def check_exact(network: CodecUNet, exact: dict[str, Tensor]) -> None:
    """ModelError unless ``exact`` has all that :class:`diffcodec.exact.ExactNetwork` uses."""
    timesteps = exact.get("timesteps")
    if timesteps is None or timesteps.dtype != torch.int64 or timesteps.ndim != 1:
        raise _unfit("timesteps are not a list of integers")
    if len(set(timesteps.tolist())) != len(timesteps) or not len(timesteps):
        raise _unfit("timesteps are repeated, or there are none")
    expected = _exact_tensors(network, len(timesteps))
    required = {name: shape for name, (shape, _) in expected.items()}
    _check_names({k: v for k, v in exact.items() if not is_neighbours(k)}, required)
    for name, (shape, dtype) in expected.items():
        if exact[name].dtype != dtype:
            raise _unfit(f"{name} holds {exact[name].dtype} instead of {dtype}")
        _check_shape(name, exact[name], shape)
    check_neighbours(exact)


def is_neighbours(name: str) -> bool:
    """Whether a tensor holds the final layer's weights of neighbours."""
    return name == NEIGHBOURS or name.startswith(f"{NEIGHBOURS}.")


def check_neighbours(tensors: dict[str, Tensor]) -> None:
    """ModelError unless the final layer's weights, if there are any, are small integers."""
    for name in filter(is_neighbours, tensors):
        found = tensors[name].numpy()
        if (
            found.shape != ((3, 6) if name == NEIGHBOURS else (4, 3, REGRESSORS))
            or found.dtype != np.int64
            or found.max() > WEIGHT_MAX
            or found.min() < -WEIGHT_MAX
        ):
            raise ModelError("the weights of the final layer's neighbours are not usable")


def _exact_tensors(
    network: CodecUNet, count: int
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Name → (shape, type) of every tensor of an exact network for ``count`` timesteps."""
    found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "timesteps": ((count,), torch.int64),
        "eps": ((count, 2), torch.float32),
    }
    for name, conv in network.named_modules():
        if not isinstance(conv, Conv2d):
            continue
        found[f"{name}.weight"] = conv.shape, torch.int16
        if name not in _SHARED_INPUT:
            for part in ("in_mul", "in_add"):
                found[f"{name}.{part}"] = (count, conv.shape[1]), torch.float32
        if name not in _PLAIN_OUTPUT and not name.endswith(".conv_in"):
            for part in ("out_mul", "out_add"):
                found[f"{name}.{part}"] = (count, conv.shape[0]), torch.float32
    return found


_SHARED_INPUT = {"pixel_head", "coef_local"}
"""Convolutions of the input that eps_head has."""
_PLAIN_OUTPUT = {"coef_local", "coef_hidden"}
"""Convolutions whose output is scaled where it is used."""


def _check_names(found: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    for what, names in (
        ("are missing", sorted(expected.keys() - found.keys())),
        ("are not known", sorted(found.keys() - expected.keys())),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise _unfit(f"{_line(names[0])}{more} {what}")


def _check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise _unfit(f"{name} is {list(value.shape)} instead of {list(shape)}")


def _unfit(what: str) -> ModelError:
    return ModelError(f"weights do not fit the model's configuration ({what})")


def _line(what: object) -> str:
    """On one line, not too long."""
    return " ".join(str(what).split())[:200]
