"""A trained model on disk and in memory: weights, configuration, fingerprint.

``models/NAME/`` holds ``config.json``, ``model.safetensors`` (half precision, for training and
sampling), ``exact.safetensors`` (the integers that code, see exact.py) and ``card.md``; a U-Net
of the paper has ``calibration.safetensors`` instead of the integers (see calibrated.py).  The
fingerprint is the first bytes of a SHA-256 of the configuration and of every parameter that
codes, so that a file names exactly the model it was written with.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save
from torch import Tensor

from diffcodec.adaptation import Adaptation, Rule
from diffcodec.calibrated import CalibratedUNet, plan_at
from diffcodec.catalogue import CONFIG as CONFIG
from diffcodec.correction import Correction
from diffcodec.ddpm.process import Prediction, ReverseProcess, Variance
from diffcodec.ddpm.unet import UNet, UNetConfig
from diffcodec.device import DeviceNetwork, find_device
from diffcodec.errors import ModelError
from diffcodec.exact import (
    NOTHING,
    X_UNIT,
    ExactNetwork,
    Integers,
    mean,
    round_outputs,
)
from diffcodec.experts import SINGLE, ceilings, check_floors, expert_at, join, split
from diffcodec.files import write_bytes
from diffcodec.final_layer import no_lessons
from diffcodec.lattice import Colours
from diffcodec.lessons import Lessons
from diffcodec.model_check import (
    NEIGHBOURS,
    check_exact,
    check_neighbours,
    check_shapes,
    check_size,
    check_weights,
    is_neighbours,
    read_json,
    read_tensors,
)
from diffcodec.network import CodecUNet, Experts, NetworkConfig
from diffcodec.parallel import one_torch_thread
from diffcodec.plans import PLANS, Plan
from diffcodec.schedule import Schedule
from diffcodec.transform import BANDS, BLOCK

UNET = "unet"
"""Kind of a model whose network is one of the paper's; the codec's own has none."""

WEIGHTS = "model.safetensors"
EXACT = "exact.safetensors"
CALIBRATION = "calibration.safetensors"
FINGERPRINT_BYTES = 3
TILE = 768
"""Larger pictures are evaluated in tiles of this side, in bounded memory."""

CPU = "cpu"

_THREADS = threading.Lock()


@dataclass(frozen=True)
class ModelConfig:
    """What, besides the weights, defines a model; plan: number of the plan it codes with.

    network: the codec's own or a U-Net of the paper's; of the latter prediction and variance
    say what its outputs are (see diffcodec/ddpm/process.py).  experts: of several networks of
    this shape, the lowest timestep of each (see diffcodec/experts.py).
    """

    name: str
    network: NetworkConfig | UNetConfig
    schedule: Schedule
    plan: int = 0
    prediction: Prediction = "eps"
    variance: Variance = "posterior"
    experts: tuple[int, ...] = SINGLE

    def to_json(self) -> str:
        values: dict[str, Any] = {
            "name": self.name,
            "network": self.network.to_dict(),
            "schedule": asdict(self.schedule),
            "plan": self.plan,
        }
        if isinstance(self.network, UNetConfig):
            values["kind"] = UNET
            values["prediction"], values["variance"] = self.prediction, self.variance
        if self.experts != SINGLE:
            values["experts"] = self.experts
        return json.dumps(values, indent=2)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Rebuild from what :meth:`to_json` wrote; ValueError, KeyError or TypeError otherwise."""
        kinds: dict[object, Any] = {None: NetworkConfig, UNET: UNetConfig}
        return cls(
            name=str(values["name"]),
            network=kinds[values.get("kind")].from_dict(values["network"]),
            schedule=Schedule(**values["schedule"]),
            plan=_plan_number(values.get("plan", 0)),
            prediction=_one_of(get_args(Prediction), values.get("prediction", "eps")),
            variance=_one_of(get_args(Variance), values.get("variance", "posterior")),
            experts=_floors(values),
        )


def _one_of(choices: tuple[Any, ...], value: object) -> Any:
    if value not in choices:
        raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
    return value


def _floors(values: dict[str, Any]) -> tuple[int, ...]:
    floors = tuple(values.get("experts", SINGLE))
    check_floors(floors)
    if floors != SINGLE and "kind" in values:
        raise ValueError("only the codec's own network can be several")
    return floors


def _plan_number(value: object) -> int:
    if not isinstance(value, int) or value not in PLANS:
        raise ValueError(f"there is no plan {value!r}")
    return value


def _fingerprint(config: ModelConfig, tensors: dict[str, Tensor]) -> bytes:
    """SHA-256 over network and schedule (not the name) and all tensors, bit by bit."""
    digest = hashlib.sha256()
    settings: dict[str, Any] = {
        "network": config.network.to_dict(),
        "schedule": asdict(config.schedule),
    }
    if isinstance(config.network, UNetConfig):
        settings["prediction"] = config.prediction
    if config.experts != SINGLE:
        settings["experts"] = config.experts
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for key in sorted(tensors):
        digest.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}".encode())
        digest.update(tensors[key].contiguous().numpy().tobytes())
    return digest.digest()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit torch to one thread inside the block, which only one thread enters at a time."""
    with _THREADS, one_torch_thread():
        yield


class Model:
    """A loaded model, ready to predict; immutable, reusable across pictures.

    Attributes: config, schedule, fingerprint, device (see :meth:`on`), adaptation (of
    :meth:`adapted` models; these change while they code).
    With integer tensors ``exact`` (from :func:`diffcodec.quantize.quantize`) coding uses these and
    the fingerprint is theirs; without, coding is in floating point.  A U-Net of the paper codes
    with a ``calibration`` (from :func:`diffcodec.calibrate.calibrate`), in floating point.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        exact: dict[str, Tensor] | None = None,
        calibration: dict[str, Tensor] | None = None,
    ) -> None:
        self.config, self.schedule = config, config.schedule
        self.adaptation: Adaptation | None = None
        self.device = CPU
        self._exact: list[ExactNetwork] = []
        self._places: dict[str, Model] = {CPU: self}
        self._calibrated: CalibratedUNet | None = None
        self._network: CodecUNet | Experts | None = None
        codes = {k: v.to(_stored_as(config)) for k, v in weights.items()}
        if isinstance(config.network, UNetConfig):
            self._calibrated = _calibrated(config, weights, calibration)
        else:
            self._network = load_codec_network(config, weights)
        if self._network is not None and exact is not None:
            self._exact = _exact_networks(config, self.networks, exact)
            codes = exact
        self._evaluated: Sequence[ExactNetwork | DeviceNetwork] = self._exact
        if calibration is not None:
            codes = codes | {f"calibration.{k}": v for k, v in calibration.items()}
        self.fingerprint = _fingerprint(config, codes)[:FINGERPRINT_BYTES]
        tensors = exact or calibration or {}
        self._neighbours = {k: v.numpy() for k, v in tensors.items() if is_neighbours(k)}

    @property
    def network(self) -> CodecUNet | Experts:
        """The codec's network in float32, for training; ModelError if this is a U-Net."""
        if self._network is None:
            raise ModelError(f"model '{self.name}' is a U-Net of the paper, not the codec's own")
        return self._network

    @property
    def networks(self) -> list[CodecUNet]:
        """It, or the several that it is, from noise to picture."""
        network = self.network
        return [network] if isinstance(network, CodecUNet) else network.members

    @property
    def exact(self) -> bool:
        """Whether coding is integer arithmetic, the same on every machine."""
        return bool(self._exact)

    @property
    def name(self) -> str:
        return self.config.name

    def lessons(self, plan: Plan, learns: bool, lattice: int = 0) -> Lessons:
        """What the final layer of ``plan`` begins with, a new object; lattice: of the colours."""
        first = no_lessons(plan.passes).weights
        name = NEIGHBOURS if plan.passes == 2 else f"{NEIGHBOURS}.{plan.end}"
        if name in self._neighbours:
            known = self._neighbours[name]
            if plan.passes == 2:
                first[1, :, : known.shape[1]] = known
            else:
                first[:] = known
        return Lessons(first, learns, Colours(lattice) if lattice else None)

    @property
    def plan(self) -> Plan:
        """The plan that files of this model use unless another one is asked for."""
        plan = PLANS[self.config.plan]
        return plan if self._calibrated is None else plan_at(plan, self.schedule)

    def check_plan(self, plan: Plan) -> None:
        """ModelError if the model cannot be evaluated at all timesteps of ``plan``."""
        if plan.timesteps[0] > self.schedule.timesteps:
            raise ModelError(f"the plan begins at t = {plan.timesteps[0]}, beyond the model's T")
        missing = [t for t in plan.timesteps if self._exact and not self._exact_at(t)]
        if missing:
            raise ModelError(f"the model has no exact constants for timesteps {missing}")
        missing = self._calibrated.missing(plan.timesteps) if self._calibrated else []
        if missing:
            raise ModelError(
                f"model '{self.name}' is not calibrated for timesteps {missing}; run diffcodec "
                "calibrate"
            )
        if plan.adaptive and not self._exact:
            raise ModelError(
                f"model '{self.name}' codes in floating point, its plan needs integers; run "
                "diffcodec quantize"
            )

    def on(self, device: str | None) -> Model:
        """The same model, its network evaluated on "cpu" or "cuda"; None: where it is now.

        The integers are the same everywhere.  ModelError for a model that codes in floating point
        and for a device that this machine has not.
        """
        if device is None or device == self.device:
            return self
        if not self._exact:
            raise ModelError(f"model '{self.name}' codes in floating point, on no device but cpu")
        if device not in self._places:
            found, own = find_device(device), copy.copy(self)
            own.device = device
            own._evaluated = [DeviceNetwork(network, found) for network in self._exact]
            self._places[device] = own
        return self._places[device]

    def adapted(self, height: int, width: int, rule: Rule) -> Model:
        """The same model, to learn about one picture of height × width pixels while coding it."""
        own = copy.copy(self)
        features = self.network.config.channels[0]
        own.adaptation = Adaptation(features, height, width, rule, self.device)
        return own

    def _exact_at(self, t: int) -> ExactNetwork | DeviceNetwork | None:
        """The integers for timestep ``t``, if there are any."""
        network = self._evaluated[expert_at(self.config.experts, t)]
        return network if t in network.rows else None

    def evaluate(
        self,
        x: Tensor,
        t: int,
        tile: int = TILE,
        correction: Correction | None = None,
        final: bool = False,
        mirrored: bool = False,
    ) -> Integers:
        """The network's outputs for one state x int32 [3, H, W] in 2**-16, H, W multiples of 8:
        those for a step from t, or with ``final`` for the final layer; with ``mirrored`` their mean
        with those for its mirror image.

        A picture longer or wider than ``tile`` (a multiple of 8, and of the correction's pitch) is
        evaluated tile by tile, each with all around it that it depends on; of an exact model that
        changes nothing.  A U-Net of the paper sees all of a picture at once; ModelError if that is
        too much.
        ``correction``: of an exact model's ε̂ for the picture itself, whose features are returned;
        see :mod:`diffcodec.adaptation`.
        """
        _, height, width = x.shape
        evaluate = self._mirrored if mirrored else self._evaluate
        if max(height, width) <= tile or self._calibrated is not None:
            return evaluate(x, t, correction, final)
        whole, halo = _empty(height, width, final, correction), self.network.config.halo
        for top, left in product(range(0, height, tile), range(0, width, tile)):
            above, before = min(top, halo), min(left, halo)
            rows = slice(top - above, top + tile + halo)
            columns = slice(left - before, left + tile + halo)
            part = evaluate(x[:, rows, columns], t, correction, final)
            pitch = correction.pitch if correction else 1
            sides = (1, BLOCK, 1, 1, pitch)  # of the outputs' cells, in pixels
            for target, found, side in zip(whole, part, sides, strict=True):
                if not target.numel():
                    continue
                own = slice(above // side, (above + tile) // side)
                across = slice(before // side, (before + tile) // side)
                target[
                    :, top // side : (top + tile) // side, left // side : (left + tile) // side
                ] = found[:, own, across]
        return whole

    def _mirrored(self, x: Tensor, t: int, correction: Correction | None, final: bool) -> Integers:
        """The mean of both; the correction is of the first alone, and so counts half in it."""
        one = self._evaluate(x, t, correction, final)
        other = self._evaluate(x.flip(-1), t, None, final)
        return Integers(
            eps=mean(one.eps, other.eps.flip(-1)),
            coef_index=mean(one.coef_index, other.coef_index.flip(-1)),
            scale_index=mean(one.scale_index, other.scale_index.flip(-1)),
            coefs=mean(one.coefs, other.coefs.flip(-1)),
            features=one.features,
        )

    def _evaluate(self, x: Tensor, t: int, correction: Correction | None, final: bool) -> Integers:
        """In floating point one thread is used: another number of threads may take another path
        through the convolutions and round differently."""
        if self._exact:
            network = self._exact_at(t)
            assert network is not None  # check_plan has been asked
            return network(x, t, correction, final)
        if self._calibrated is not None:
            with _one_thread():
                return self._calibrated(x, t)
        log_snr = torch.tensor([float(self.schedule.at(self.schedule.log_snr, t))])
        with torch.inference_mode(), _one_thread():
            out = self.network((x / (1 << X_UNIT)).float()[None], log_snr)
        # Finite weights, however large, can still lead to numbers that are not.
        return round_outputs(*(torch.nan_to_num(part[0].double()) for part in out))


def _stored_as(config: ModelConfig) -> torch.dtype:
    """Half precision for what was trained for coding; a U-Net keeps what it was trained with."""
    return torch.float32 if isinstance(config.network, UNetConfig) else torch.float16


def load_codec_network(config: ModelConfig, weights: dict[str, Tensor]) -> CodecUNet | Experts:
    """The codec's network in float32, with weights as they are stored; ModelError if not its."""
    shape = config.network
    assert isinstance(shape, NetworkConfig)
    for part in split(weights, len(config.experts)):
        check_size(shape, part)
    with torch.device("meta"):  # no memory before the weights are checked, no initial weights
        network = CodecUNet(shape) if config.experts == SINGLE else _experts(config, shape)
    check_weights(network, weights)
    stored = {k: v.to(torch.float16).float() for k, v in weights.items()}
    network.load_state_dict(stored, assign=True)
    return network.eval().requires_grad_(False)


def _experts(config: ModelConfig, shape: NetworkConfig) -> Experts:
    return Experts(shape, ceilings(config.schedule, config.experts))


def _exact_networks(
    config: ModelConfig, networks: list[CodecUNet], tensors: dict[str, Tensor]
) -> list[ExactNetwork]:
    """The integer networks, each for its own timesteps; ModelError unless they are usable."""
    check_neighbours(tensors)
    parts = split({k: v for k, v in tensors.items() if not is_neighbours(k)}, len(networks))
    found = []
    for network, part in zip(networks, parts, strict=True):
        check_exact(network, part)
        found.append(ExactNetwork(part, network.config.blocks))
    return found


def join_models(
    parts: list[tuple[ModelConfig, dict[str, Tensor]]], floors: tuple[int, ...], name: str | None
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """One model of several networks, from noise to picture (see diffcodec/experts.py).

    floors: the lowest timestep of each; name: instead of the last one's.  Raises ModelError if
    they do not go together.
    """
    last = parts[-1][0]
    if len(floors) != len(parts):
        raise ModelError(f"{len(parts)} networks need as many lowest timesteps, not {len(floors)}")
    for config, _ in parts:
        if isinstance(config.network, UNetConfig) or config.experts != SINGLE:
            raise ModelError(f"model '{config.name}' is not one network of the codec's own")
        if (config.network, config.schedule) != (last.network, last.schedule):
            raise ModelError(f"model '{config.name}' has another shape or schedule than the last")
    try:
        check_floors(floors)
    except ValueError as e:
        raise ModelError(str(e)) from e
    config = replace(last, name=name or last.name, experts=floors)
    weights = join([weights for _, weights in parts])
    load_codec_network(config, weights)  # refuses what does not fit
    return config, weights


def load_unet(shape: UNetConfig, weights: dict[str, Tensor]) -> UNet:
    """A U-Net of the paper in float32; ModelError names the first tensor that is not its."""
    with torch.device("meta"):  # no memory before the weights are checked, no initial weights
        network = UNet(shape)
    check_shapes(network.state_dict(), weights)
    check_weights(network, weights, half=False)
    network.load_state_dict({k: v.float() for k, v in weights.items()}, assign=True)
    return network.eval().requires_grad_(False)


def _calibrated(
    config: ModelConfig, weights: dict[str, Tensor], calibration: dict[str, Tensor] | None
) -> CalibratedUNet:
    if calibration is None:
        raise ModelError(
            f"model '{config.name}' has no variances to code with; measure them with diffcodec "
            "calibrate"
        )
    assert isinstance(config.network, UNetConfig)
    check_neighbours(calibration)
    network = load_unet(config.network, weights)
    process = ReverseProcess(network, config.schedule, config.prediction, config.variance, True)
    return CalibratedUNet(config.network, process, calibration)


def _empty(height: int, width: int, final: bool, correction: Correction | None = None) -> Integers:
    """Outputs to be filled in for a picture of this size: of the final layer or of a step."""

    def empty(channels: int, side: int, dtype: torch.dtype = torch.int16) -> Tensor:
        return torch.empty((channels, -(-height // side), -(-width // side)), dtype=dtype)

    features = empty(len(correction.weights) - 1, correction.pitch) if correction else NOTHING
    whole = Integers(empty(3, 1, torch.int32), features=features)
    if final:
        return whole._replace(scale_index=empty(3, 1), coefs=empty(3, 1))
    return whole._replace(coef_index=empty(BANDS, BLOCK))


def save_model(folder: Path, config: ModelConfig, weights: dict[str, Tensor]) -> None:
    """Write config.json and model.safetensors into ``folder``: in half precision what codes."""
    dtype = _stored_as(config)
    stored = {k: v.detach().cpu().to(dtype).contiguous() for k, v in weights.items()}
    write_bytes(folder / WEIGHTS, save(stored))
    write_bytes(folder / CONFIG, (config.to_json() + "\n").encode())


def save_exact(folder: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """Write the integer network of a model folder, and the configuration it is for."""
    write_bytes(folder / EXACT, save(tensors))
    write_bytes(folder / CONFIG, (config.to_json() + "\n").encode())


def save_calibration(folder: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """Write the calibration of a U-Net's folder, and the configuration it is for."""
    write_bytes(folder / CALIBRATION, save(tensors))
    write_bytes(folder / CONFIG, (config.to_json() + "\n").encode())


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a model folder; ModelError if it is missing or malformed."""
    values = read_json(folder / CONFIG)
    try:
        return ModelConfig.from_dict(values)
    except (ValueError, KeyError, TypeError, OverflowError) as e:
        raise ModelError(f"{folder / CONFIG}: not a model configuration ({e})") from e


def read_model(folder: Path) -> Model:
    """Load a model folder; ModelError with one line when it is missing or malformed."""
    config, weights = read_config(folder), read_tensors(folder / WEIGHTS)

    def read(name: str) -> dict[str, Tensor] | None:
        return read_tensors(folder / name) if os.path.lexists(folder / name) else None

    try:
        if isinstance(config.network, UNetConfig):
            return Model(config, weights, calibration=read(CALIBRATION))
        return Model(config, weights, read(EXACT))
    except ModelError as e:
        raise ModelError(f"{folder}: {e}") from e
