"""Hugging Face diffusers' folders of DDPMs: read and written without that library.

    model_index.json
    unet/config.json, unet/diffusion_pytorch_model.safetensors (or .bin)
    scheduler/scheduler_config.json

In the older layout the first file of unet/ and of scheduler/ stands at the top.  Settings that
:class:`~diffcodec.ddpm.unet.UNet` does not have are refused by name; one that is absent has
the default of ``UNet2DModel`` or ``DDPMScheduler``.  Their timesteps count from 0, which changes
no file: ``time_embedding`` knows.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from diffcodec.ddpm.process import Variance
from diffcodec.ddpm.unet import NORM_EPS, UNet, UNetConfig
from diffcodec.errors import DataError, ModelError
from diffcodec.files import make_folder, read_bytes, write_bytes
from diffcodec.model import ModelConfig
from diffcodec.model_check import check_shapes, read_tensors
from diffcodec.plans import SMALL_PIXELS
from diffcodec.schedule import Schedule

NETWORK_CONFIG = "config.json"
SCHEDULER_CONFIG = "scheduler_config.json"
INDEX = "model_index.json"
SAFETENSORS, PICKLE = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
SMALL_PLAN, PHOTO_PLAN = 2, 3

DOWN, UP, ATTENTION = "DownBlock2D", "UpBlock2D", "Attn"

VARIANCES: dict[str, Variance] = {
    "fixed_small": "posterior",
    "fixed_small_log": "posterior",
    "fixed_large": "beta",
    "learned_range": "learned",
}

NETWORK_FIXED: dict[str, tuple[Any, Any]] = {
    "_class_name": ("UNet2DModel", "UNet2DModel"),
    "in_channels": (3, 3),
    "center_input_sample": (False, False),
    "time_embedding_type": ("positional", "positional"),
    "time_embedding_dim": (None, None),
    "freq_shift": (1, 0),
    "flip_sin_to_cos": (False, True),
    "mid_block_type": ("UNetMidBlock2D", "UNetMidBlock2D"),
    "mid_block_scale_factor": (1, 1),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "conv"),
    "upsample_type": ("conv", "conv"),
    "act_fn": ("silu", "silu"),
    "attn_norm_num_groups": (None, None),
    "norm_eps": (NORM_EPS, 1e-5),
    "resnet_time_scale_shift": ("default", "default"),
    "add_attention": (True, True),
    "class_embed_type": (None, None),
}
"""Settings of which the network has one value, and what their absence means."""

NETWORK_READ: dict[str, Any] = {
    "block_out_channels": (224, 448, 672, 896),
    "down_block_types": (DOWN, *[ATTENTION + DOWN] * 3),
    "up_block_types": (*[ATTENTION + UP] * 3, UP),
    "layers_per_block": 2,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "attention_head_dim": 8,
    "out_channels": 3,
    "num_class_embeds": None,
}
"""Settings that are read, and what their absence means."""

NULLABLE = frozenset({"attention_head_dim", "num_class_embeds"})
NETWORK_IGNORED = frozenset({"sample_size", "num_train_timesteps"})

SCHEDULER_FIXED: dict[str, tuple[Any, Any]] = {
    "beta_schedule": ("linear", "linear"),
    "trained_betas": (None, None),
    "prediction_type": ("epsilon", "epsilon"),
    "clip_sample": (True, True),
    "clip_sample_range": (1.0, 1.0),
    "thresholding": (False, False),
    "rescale_betas_zero_snr": (False, False),
}

SCHEDULER_FORMER: dict[str, tuple[Any, Any]] = {"predict_epsilon": (True, True)}
"""Of the first versions, instead of prediction_type."""

SCHEDULER_READ: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
}
MAX_TRAINED = 10000

NAMES = [
    (r"^time_in\.", "time_embedding.linear_1."),
    (r"^time_out\.", "time_embedding.linear_2."),
    (r"^labels\.", "class_embedding."),
    (r"^norm\.", "conv_norm_out."),
    (r"^shrink\.(\d+)\.", r"down_blocks.\1.downsamplers.0.conv."),
    (r"^grow\.(\d+)\.", r"up_blocks.\1.upsamplers.0.conv."),
    (r"^middle_in\.", "mid_block.resnets.0."),
    (r"^middle_attention\.", "mid_block.attentions.0."),
    (r"^middle_out\.", "mid_block.resnets.1."),
    (r"^(down|up)\.(\d+)\.blocks\.", r"\1_blocks.\2.resnets."),
    (r"^(down|up)\.(\d+)\.attention\.", r"\1_blocks.\2.attentions."),
    (r"(resnets\.\d+)\.norm_in\.", r"\1.norm1."),
    (r"(resnets\.\d+)\.conv_in\.", r"\1.conv1."),
    (r"(resnets\.\d+)\.time\.", r"\1.time_emb_proj."),
    (r"(resnets\.\d+)\.norm_out\.", r"\1.norm2."),
    (r"(resnets\.\d+)\.conv_out\.", r"\1.conv2."),
    (r"(resnets\.\d+)\.skip\.", r"\1.conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.query\.", r"\1.to_q."),
    (r"(attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(attentions\.\d+)\.out\.", r"\1.to_out.0."),
]
"""From the UNet's parameter names to UNet2DModel's, one rule after the other."""

FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


# -- reading -------------------------------------------------------------------------------


def read_folder(folder: Path, name: str | None = None) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Configuration and float32 weights of a diffusers folder; name: the folder's by default.

    Raises ModelError, in one line that names setting, tensor or file, for anything that is not
    a network of the paper's kind.
    """
    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    try:
        network = _network(_settings(unet / NETWORK_CONFIG))
        found = [folder / "scheduler" / SCHEDULER_CONFIG, folder / SCHEDULER_CONFIG]
        found = [path for path in found if path.exists()] or found
        schedule, variance = _scheduler(_settings(found[0]))
        if (variance == "learned") != (network.out_channels == 6):
            raise ModelError(
                f"out_channels {network.out_channels} does not go with a {variance} variance"
            )
        small = network.usual_size**2 <= SMALL_PIXELS
        config = ModelConfig(
            name=name or folder.resolve().name,
            network=network,
            schedule=schedule,
            plan=SMALL_PLAN if small else PHOTO_PLAN,
            variance=variance,
        )
    except DataError as e:
        raise ModelError(f"{folder}: not a diffusers folder of a DDPM ({e})") from e
    except (ValueError, TypeError, ModelError) as e:
        raise ModelError(f"{folder}: {e}") from e
    return config, _weights(unet, network)


def _settings(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_bytes(path))
    except ValueError as e:
        raise ModelError(f"{path.name} is not JSON ({e})") from e
    if not isinstance(values, dict):
        raise ModelError(f"{path.name} holds no settings")
    return values


def _check(values: dict[str, Any], fixed: dict[str, tuple[Any, Any]]) -> None:
    for key, (needed, default) in fixed.items():
        value = values.get(key, default)
        if value != needed:
            raise ModelError(f"{key} {_show(value)} is not supported, only {_show(needed)}")


def _show(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _network(values: dict[str, Any]) -> UNetConfig:
    _check(values, NETWORK_FIXED)
    known = {*NETWORK_FIXED, *NETWORK_READ, *NETWORK_IGNORED}
    for key, value in values.items():
        if key not in known and not key.startswith("_") and value not in (None, False):
            raise ModelError(f"{key} {_show(value)} is not supported")
    get = {key: values.get(key, default) for key, default in NETWORK_READ.items()}
    for key, value in get.items():
        if not _is_like(key, value):
            raise ModelError(f"{key} {_show(value)} is not supported")
    widths, down = list(get["block_out_channels"]), list(get["down_block_types"])
    for kind in down:
        if kind not in (DOWN, ATTENTION + DOWN):
            raise ModelError(f"down_block_types {_show(kind)} is not supported")
    attention = tuple(level for level, kind in enumerate(down) if kind != DOWN)
    up = [ATTENTION + UP if level in attention else UP for level in range(len(down))][::-1]
    if list(get["up_block_types"]) != up:
        raise ModelError(f"up_block_types {_show(get['up_block_types'])} do not mirror those down")
    if len(widths) != len(down) or widths[0] < 1 or any(width % widths[0] for width in widths):
        raise ModelError(f"block_out_channels {_show(widths)} are not multiples of the first")
    head = get["attention_head_dim"]
    if head is not None and any(
        head < 1 or widths[level] // head != 1 for level in {*attention, -1}
    ):
        raise ModelError(f"attention_head_dim {_show(head)} is not supported, only one head (null)")
    classes = get["num_class_embeds"]
    if classes is not None and classes < 2:
        raise ModelError(f"num_class_embeds {_show(classes)} is not supported, only 2 or more")
    return UNetConfig(
        channels=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=get["layers_per_block"],
        attention=attention,
        dropout=float(get["dropout"]),
        groups=get["norm_num_groups"],
        out_channels=get["out_channels"],
        classes=0 if classes is None else classes - 1,
    )


def _is_like(key: str, value: Any) -> bool:
    """Whether a setting has the type of its default, or is null where that means something."""
    default = NETWORK_READ[key]
    if key in NULLABLE:
        return value is None or type(value) is int
    if isinstance(default, tuple):
        whole = isinstance(value, list | tuple) and len(value) > 0
        return whole and all(type(v) is type(default[0]) for v in value)
    return type(value) is type(default) or (type(default) is float and type(value) is int)


def _scheduler(values: dict[str, Any]) -> tuple[Schedule, Variance]:
    _check(values, SCHEDULER_FIXED | SCHEDULER_FORMER)
    kind = values.get("variance_type", "fixed_small")
    if kind not in VARIANCES:
        raise ModelError(
            f"variance_type {_show(kind)} is not supported, only {', '.join(VARIANCES)}"
        )
    numbers = {key: values.get(key, default) for key, default in SCHEDULER_READ.items()}
    for key, value in numbers.items():
        if type(value) not in (int, type(SCHEDULER_READ[key])):
            raise ModelError(f"{key} {_show(value)} is not supported")
    if not 2 <= numbers["num_train_timesteps"] <= MAX_TRAINED:
        raise ModelError(
            f"num_train_timesteps {numbers['num_train_timesteps']} is not supported, "
            f"only 2 to {MAX_TRAINED}"
        )
    schedule = Schedule(
        timesteps=numbers["num_train_timesteps"],
        beta_start=float(numbers["beta_start"]),
        beta_end=float(numbers["beta_end"]),
    )
    return schedule, VARIANCES[kind]


def _weights(unet: Path, network: UNetConfig) -> dict[str, Tensor]:
    path = unet / SAFETENSORS
    if path.exists():
        found = read_tensors(path.resolve())
    elif (unet / PICKLE).exists():
        path = unet / PICKLE
        found = _read_pickle(path)
    else:
        raise ModelError(f"{unet}: neither {SAFETENSORS} nor {PICKLE} is there")
    named = {_present_name(key): value for key, value in found.items()}
    with torch.device("meta"):
        own = UNet(network).state_dict()
    foreign = {key: foreign_name(key) for key in own}
    try:
        check_shapes({foreign[k]: _as_foreign(foreign[k], v) for k, v in own.items()}, named)
    except ModelError as e:
        raise ModelError(f"{path}: {e}") from e
    return {k: named[foreign[k]].float().reshape(v.shape).contiguous() for k, v in own.items()}


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """Tensors by name; a pickle can hold code, and one with anything else is refused unread."""
    refusal = ModelError(f"{path}: not a file of tensors and nothing else; it is refused")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as e:
        raise refusal from e
    if not isinstance(found, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()
    ):
        raise refusal
    return found


def _present_name(name: str) -> str:
    """A parameter name of attention's former version in today's."""
    place = re.fullmatch(r"(.*attentions\.\d+)\.(query|key|value|proj_attn)\.(.*)", name)
    return f"{place[1]}.{FORMER_NAMES[place[2]]}.{place[3]}" if place else name


# -- writing -------------------------------------------------------------------------------


def write_folder(folder: Path, config: ModelConfig, weights: dict[str, Tensor]) -> None:
    """Write a folder that diffusers' ``DDPMPipeline.from_pretrained`` opens.

    Raises ModelError for a model of another kind, or one that has or predicts what no
    UNet2DModel does.
    """
    network = config.network
    if not isinstance(network, UNetConfig):
        raise ModelError(f"model '{config.name}' is the codec's own kind; diffusers has no such")
    if config.prediction != "eps":
        raise ModelError(f"model '{config.name}' predicts the mean; diffusers has no such")
    if network.multipliers[0] != 1:
        raise ModelError(
            f"model '{config.name}' has other widths at full size than in its embedding; "
            "diffusers has no such"
        )
    named = {
        foreign_name(k): _as_foreign(foreign_name(k), v.float()).contiguous()
        for k, v in weights.items()
    }
    for part in ("unet", "scheduler"):
        make_folder(folder / part)
    write_bytes(folder / "unet" / SAFETENSORS, save(named, metadata={"format": "pt"}))
    _write_json(folder / "unet" / NETWORK_CONFIG, _network_settings(network))
    scheduler = {
        "_class_name": "DDPMScheduler",
        **{key: needed for key, (needed, _) in SCHEDULER_FIXED.items()},
        "num_train_timesteps": config.schedule.timesteps,
        "beta_start": config.schedule.beta_start,
        "beta_end": config.schedule.beta_end,
        "variance_type": {v: k for k, v in reversed(VARIANCES.items())}[config.variance],
    }
    _write_json(folder / "scheduler" / SCHEDULER_CONFIG, scheduler)
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    _write_json(folder / INDEX, index)


def _network_settings(network: UNetConfig) -> dict[str, Any]:
    levels = range(len(network.multipliers))
    kinds = [ATTENTION * (level in network.attention) for level in levels]
    return {
        **{key: needed for key, (needed, _) in NETWORK_FIXED.items()},
        "sample_size": network.usual_size,
        "block_out_channels": [network.channels * m for m in network.multipliers],
        "down_block_types": [kind + DOWN for kind in kinds],
        "up_block_types": [kind + UP for kind in reversed(kinds)],
        "layers_per_block": network.blocks,
        "dropout": network.dropout,
        "norm_num_groups": network.groups,
        "attention_head_dim": None,
        "out_channels": network.out_channels,
        "num_class_embeds": network.classes + 1 if network.classes else None,
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_bytes(path, (json.dumps(values, indent=2) + "\n").encode())


def foreign_name(name: str) -> str:
    """UNet2DModel's name of one of the UNet's parameters."""
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _as_foreign(name: str, tensor: Tensor) -> Tensor:
    """Attention's convolutions 1×1 [C, C, 1, 1] are matrices [C, C] there."""
    return tensor.flatten(1) if ".to_" in name and tensor.ndim == 4 else tensor
