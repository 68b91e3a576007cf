"""A trained model on disk and in memory: weights, configuration, fingerprint.

``models/NAME/`` holds ``config.json``, ``model.safetensors`` (half precision; those rounded
values are the model) and ``card.md``.  The fingerprint is the first bytes of a SHA-256 of the
configuration and of every parameter, so that a file names exactly the model it was written
with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from diffcodec.errors import DataError, ModelError
from diffcodec.files import read_bytes, write_bytes
from diffcodec.network import CodecUNet, NetworkConfig, Prediction
from diffcodec.schedule import Schedule

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FINGERPRINT_BYTES = 3


@dataclass(frozen=True)
class ModelConfig:
    """What, besides the weights, defines a model."""

    name: str
    network: NetworkConfig
    schedule: Schedule

    def to_json(self) -> str:
        return json.dumps(
            {
                "name": self.name,
                "network": self.network.to_dict(),
                "schedule": asdict(self.schedule),
            },
            indent=2,
        )

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        values: dict[str, Any] = json.loads(text)
        return cls(
            name=str(values["name"]),
            network=NetworkConfig.from_dict(values["network"]),
            schedule=Schedule(**values["schedule"]),
        )


def _fingerprint(config: ModelConfig, weights: dict[str, Tensor]) -> bytes:
    """SHA-256 over network and schedule (not the name) and all half-precision parameters."""
    digest = hashlib.sha256()
    settings = {"network": config.network.to_dict(), "schedule": asdict(config.schedule)}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for key in sorted(weights):
        digest.update(key.encode())
        digest.update(weights[key].to(torch.float16).contiguous().numpy().tobytes())
    return digest.digest()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Model:
    """A loaded model, ready to predict; immutable, reusable across pictures.

    Attributes: config, schedule, fingerprint (bytes), network (float32, eval mode).
    """

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor]) -> None:
        self.config, self.schedule = config, config.schedule
        self.fingerprint = _fingerprint(config, weights)[:FINGERPRINT_BYTES]
        self.network = CodecUNet(config.network)
        try:
            self.network.load_state_dict({k: v.float() for k, v in weights.items()})
        except RuntimeError as e:
            raise ModelError(f"weights do not fit the model's configuration ({e})") from e
        self.network.eval().requires_grad_(False)

    @property
    def exact(self) -> bool:
        """Whether predictions are integer arithmetic, the same on every machine."""
        return False

    @property
    def name(self) -> str:
        return self.config.name

    def predict(self, x_t: np.ndarray, t: int) -> Prediction:
        """Network outputs for x_t float32 [3, H, W], H and W multiples of 8.

        One picture and one thread at a time: a batch or another number of threads may take
        another path through the convolutions and round differently, and sender and receiver
        must agree to the last bit.
        """
        log_snr = torch.tensor([float(self.schedule.at(self.schedule.log_snr, t))])
        with torch.inference_mode(), _one_thread():
            out = self.network(torch.from_numpy(x_t)[None], log_snr)
        return Prediction(*(part[0] for part in out))


def save_model(folder: Path, config: ModelConfig, weights: dict[str, Tensor]) -> None:
    """Write config.json and model.safetensors (half precision) into ``folder``."""
    half = {k: v.detach().cpu().to(torch.float16).contiguous() for k, v in weights.items()}
    write_bytes(folder / WEIGHTS, save(half))
    write_bytes(folder / CONFIG, (config.to_json() + "\n").encode())


def read_model(folder: Path) -> Model:
    """Load a model folder; ModelError with one line when it is missing or malformed."""
    try:
        config = ModelConfig.from_json(read_bytes(folder / CONFIG).decode())
        weights = load_file(folder / WEIGHTS)
    except DataError as e:
        raise ModelError(f"{folder}: not a model folder ({e})") from e
    except (OSError, SafetensorError) as e:
        raise ModelError(f"{folder / WEIGHTS}: cannot be read ({e})") from e
    except (ValueError, KeyError, TypeError) as e:
        raise ModelError(f"{folder / CONFIG}: not a model configuration ({e})") from e
    return Model(config, weights)
