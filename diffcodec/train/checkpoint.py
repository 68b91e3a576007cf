"""What a training run leaves on disk, so that a reader never finds half of it."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch

from diffcodec.errors import DataError
from diffcodec.files import atomic_path

CHECKPOINT = "checkpoint.pt"
PLATEAU = "plateau.pt"
"""The checkpoint from which a run can be made longer: its learning rates had not fallen yet."""
LOG = "log.jsonl"

PARTS = {"config", "schedule", "step", "model", "ema", "optimizers"}


def read_checkpoint(folder: Path, name: str = CHECKPOINT) -> dict[str, Any]:
    """A checkpoint of a run folder, by weights-only loading; DataError if unusable."""
    path = folder / name
    if not path.exists():
        raise DataError(f"{path}: no checkpoint to resume from")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise DataError(
            f"{path}: not a readable checkpoint (it must hold tensors and plain values only; "
            "a pickle of anything else is refused)"
        ) from e
    except Exception as e:  # torch raises many kinds for a damaged file
        raise DataError(f"{path}: not a readable checkpoint ({e})") from e
    if not isinstance(state, dict) or not state.keys() >= PARTS:
        raise DataError(f"{path}: not a checkpoint of a training run")
    return state


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a state in one piece; DataError, and the file before stays, if that fails."""
    with atomic_path(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as e:  # torch's writer, on a full disk
            raise DataError(f"{path}: cannot be written ({e})") from e


def append_log(folder: Path, step: int, kind: str, values: dict[str, float]) -> None:
    """A line of the run's log; DataError if it cannot be written."""
    try:
        with (folder / LOG).open("a") as stream:
            stream.write(json.dumps({"step": step, "kind": kind, **values}) + os.linesep)
    except OSError as e:
        raise DataError(f"{folder / LOG}: cannot be written ({e.strerror or e})") from e
