"""Models of others against diffusers itself: the same outputs, samples and folders."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from test_cli import DATA_ERROR, USAGE_ERROR, assert_refused, files, run
from torch import Tensor

from diffcodec.ddpm.interchange import (
    FORMER_NAMES,
    NETWORK_CONFIG,
    PICKLE,
    SAFETENSORS,
    SCHEDULER_CONFIG,
    read_folder,
    write_folder,
)
from diffcodec.ddpm.process import ReverseProcess
from diffcodec.ddpm.store import make_process, read_process
from diffcodec.ddpm.unet import UNet, UNetConfig
from diffcodec.errors import ModelError
from diffcodec.model import ModelConfig, save_model
from diffcodec.network import NetworkConfig
from diffcodec.schedule import Schedule

PUBLISHED: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 4,
    "out_channels": 3,
    "time_embedding_type": "positional",
}
"""What the published checkpoints of the paper's networks say, but for 32 groups there."""

CIFAR10: dict[str, Any] = PUBLISHED | {
    "block_out_channels": [8, 16, 16, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "sample_size": 32,
}
"""google/ddpm-cifar10-32, a sixteenth as wide."""

LARGE: dict[str, Any] = PUBLISHED | {
    "block_out_channels": [8, 8, 16, 16, 32, 32],
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
    "sample_size": 256,
}
"""google/ddpm-celebahq-256, ddpm-church-256, ddpm-bedroom-256 and ddpm-cat-256, likewise."""

SCHEDULER: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}

SMALL = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(1,), groups=4)
LEARNED = UNetConfig(
    channels=8, multipliers=(1, 2), blocks=2, attention=(), groups=2, out_channels=6, classes=3
)


def shaken(network: torch.nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Its weights with noise, so that nothing stays at zero or one, as it starts."""
    generator = torch.Generator().manual_seed(seed)
    weights = network.state_dict()
    for value in weights.values():
        value += 0.1 * torch.randn(value.shape, generator=generator)
    network.eval()
    return weights


def random_weights(shape: UNetConfig) -> dict[str, Tensor]:
    """Of a UNet; the same in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return shaken(UNet(shape))


def foreign(settings: dict[str, Any]) -> UNet2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DModel.from_config(settings)
    shaken(network)
    return network


def write_json(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def write_new(folder: Path, settings: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """The layout of today."""
    write_json(folder / "unet" / NETWORK_CONFIG, settings)
    write_json(folder / "scheduler" / SCHEDULER_CONFIG, SCHEDULER)
    save_file(weights, folder / "unet" / SAFETENSORS)


def write_old(folder: Path, settings: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """The flat layout, a pickle, and attention's former names."""
    write_json(folder / NETWORK_CONFIG, settings)
    write_json(folder / SCHEDULER_CONFIG, SCHEDULER)
    renamed = dict(weights)
    for name in weights:
        for former, present in FORMER_NAMES.items():
            if f".{present}." in name:
                renamed[name.replace(f".{present}.", f".{former}.")] = renamed.pop(name)
    assert renamed.keys() != weights.keys()
    torch.save(renamed, folder / PICKLE)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small_model(shape: UNetConfig = SMALL) -> tuple[ModelConfig, dict[str, Tensor]]:
    variance = "learned" if shape.out_channels == 6 else "beta"
    config = ModelConfig("small", shape, Schedule(1000, 1e-4, 0.02), plan=2, variance=variance)
    return config, random_weights(shape)


@pytest.mark.parametrize("settings", [CIFAR10, LARGE], ids=["cifar10", "256"])
@pytest.mark.parametrize("write", [write_new, write_old])
@torch.inference_mode()
def test_an_imported_network_computes_the_same(
    settings: dict[str, Any], write: Any, tmp_path: Path
) -> None:
    theirs = foreign(settings)
    write(tmp_path, settings, theirs.state_dict())
    config, weights = read_folder(tmp_path)
    assert config.name == tmp_path.name
    assert config.variance == "beta"
    assert config.schedule == Schedule(1000, 1e-4, 0.02)
    assert config.network.usual_size == settings["sample_size"]
    ours = UNet(config.network).eval()
    ours.load_state_dict(weights)
    x, t = noise(2, 3, 32, 64), torch.tensor([1, 1000])
    expected = theirs(x, t - 1).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(x, t), expected, rtol=1e-5, atol=1e-5)


def test_the_published_shapes_are_the_paper_s() -> None:
    from diffcodec.ddpm.interchange import _network
    from diffcodec.ddpm.unet import CONFIGS

    wide = {"norm_num_groups": 32, "dropout": 0.1}
    small = CIFAR10 | wide | {"block_out_channels": [128, 256, 256, 256]}
    assert _network(small) == CONFIGS["ddpm-cifar10"]
    large = LARGE | wide | {"block_out_channels": [128, 128, 256, 256, 512, 512], "dropout": 0.0}
    assert _network(large) == CONFIGS["ddpm-256"]


@pytest.mark.parametrize("shape", [SMALL, LEARNED], ids=["small", "learned"])
@torch.inference_mode()
def test_diffusers_opens_what_is_exported(shape: UNetConfig, tmp_path: Path) -> None:
    config, weights = small_model(shape)
    write_folder(tmp_path, config, weights)
    again, same = read_folder(tmp_path, name="small")
    assert again == config
    assert same.keys() == weights.keys()
    assert all(torch.equal(same[k], v) for k, v in weights.items())

    pipeline = DDPMPipeline.from_pretrained(tmp_path, local_files_only=True)
    ours, theirs = make_process(config, weights), pipeline.unet.eval()
    x, t = noise(2, 3, 32, 32), torch.tensor([3, 700])
    labels = torch.tensor([0, 2]) if shape.classes else None
    expected = theirs(x, t - 1, class_labels=labels).sample
    torch.testing.assert_close(ours.network(x, t, labels), expected, rtol=1e-5, atol=1e-5)
    assert pipeline.scheduler.config.variance_type == (
        "learned_range" if shape.out_channels == 6 else "fixed_large"
    )


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("times", [[*range(12, 0, -1)], [12, 8, 5, 4, 2, 1]], ids=["all", "some"])
@torch.inference_mode()
def test_the_same_noise_makes_the_same_sample(kind: str, times: list[int], tmp_path: Path) -> None:
    shape = UNetConfig(
        channels=8,
        multipliers=(1, 1),
        blocks=1,
        attention=(1,),
        groups=4,
        out_channels=6 if kind == "learned_range" else 3,
    )
    # Of larger β than usual, because diffusers has them as differences of float32 from 1.
    theirs = DDPMScheduler(
        num_train_timesteps=12, beta_start=0.01, beta_end=0.3, variance_type=kind
    )
    config = ModelConfig("a", shape, Schedule(12, 0.01, 0.3))
    write_folder(tmp_path, config, random_weights(shape))
    theirs.save_pretrained(tmp_path / "scheduler")
    process: ReverseProcess = make_process(*read_folder(tmp_path))
    network = UNet2DModel.from_pretrained(tmp_path / "unet").eval()
    theirs.set_timesteps(timesteps=[t - 1 for t in times])
    x = y = noise(2, 3, 8, 8)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    for a, b in zip(times, [*times[1:], 0], strict=True):
        out = network(x, a - 1).sample
        x = theirs.step(out, torch.tensor(a - 1), x, generator=generators[0]).prev_sample
        p = process(y, torch.full((2,), a), torch.full((2,), b))
        y = p.mean
        if b:
            y = y + (0.5 * p.log_variance).exp() * torch.randn(y.shape, generator=generators[1])
        torch.testing.assert_close(y, x, rtol=5e-5, atol=5e-5)  # errors add up


def change(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    write_json(path, json.loads(path.read_text()) | values)


NETWORK, SCHEDULE = f"unet/{NETWORK_CONFIG}", f"scheduler/{SCHEDULER_CONFIG}"


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        (NETWORK, "attention_head_dim", 8, "attention_head_dim 8"),
        (NETWORK, "class_embed_type", "timestep", "class_embed_type timestep"),
        (NETWORK, "downsample_padding", 1, "downsample_padding 1"),
        (NETWORK, "freq_shift", 0, "freq_shift 0"),
        (NETWORK, "flip_sin_to_cos", True, "flip_sin_to_cos true"),
        (NETWORK, "norm_eps", 1e-5, "norm_eps 1e-05"),
        (NETWORK, "act_fn", "gelu", "act_fn gelu"),
        (NETWORK, "in_channels", 4, "in_channels 4"),
        (NETWORK, "_class_name", "UNet2DConditionModel", "UNet2DConditionModel"),
        (NETWORK, "down_block_types", ["DownBlock2D", "SkipDownBlock2D"], "SkipDownBlock2D"),
        (NETWORK, "up_block_types", ["UpBlock2D", "UpBlock2D"], "up_block_types"),
        (NETWORK, "block_out_channels", [8, 12], "block_out_channels [8, 12]"),
        (NETWORK, "block_out_channels", "wide", "block_out_channels wide"),
        (NETWORK, "layers_per_block", 1.5, "layers_per_block 1.5"),
        (NETWORK, "norm_num_groups", None, "norm_num_groups null"),
        (NETWORK, "num_class_embeds", 1, "num_class_embeds 1"),
        (NETWORK, "norm_num_groups", 3, "multiples of the 3 groups"),
        (NETWORK, "cross_attention_dim", 768, "cross_attention_dim 768"),
        (NETWORK, "out_channels", 6, "out_channels 6"),
        (NETWORK, "layers_per_block", 2, "down_blocks.0.resnets.1.norm1.weight"),
        (SCHEDULE, "prediction_type", "v_prediction", "prediction_type v_prediction"),
        (SCHEDULE, "predict_epsilon", False, "predict_epsilon false"),
        (SCHEDULE, "beta_schedule", "squaredcos_cap_v2", "beta_schedule squaredcos_cap_v2"),
        (SCHEDULE, "trained_betas", [0.1, 0.2], "trained_betas"),
        (SCHEDULE, "variance_type", "learned", "variance_type learned"),
        (SCHEDULE, "variance_type", "learned_range", "out_channels 3"),
        (SCHEDULE, "clip_sample", False, "clip_sample false"),
        (SCHEDULE, "beta_end", 2.0, "betas"),
        (SCHEDULE, "num_train_timesteps", "many", "num_train_timesteps many"),
        (SCHEDULE, "num_train_timesteps", 10**9, "num_train_timesteps 1000000000"),
        (SCHEDULE, "beta_start", None, "beta_start null"),
    ],
)
def test_what_cannot_be_represented_is_named(
    file: str, key: str, value: Any, message: str, tmp_path: Path
) -> None:
    write_folder(tmp_path / "a", *small_model())
    change(tmp_path / "a", file, **{key: value})
    with pytest.raises(ModelError) as refused:
        read_folder(tmp_path / "a")
    assert message in str(refused.value)


def test_the_first_tensor_that_differs_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, *small_model())
    path = tmp_path / "unet" / SAFETENSORS
    weights = load_file(path)
    key = "mid_block.attentions.0.to_q.weight"
    for changed, message in [
        (weights | {key: torch.zeros(16, 8)}, rf"{key} has shape \[16, 8\]"),
        ({k: v for k, v in weights.items() if k != key}, f"lack the tensor {key}"),
        (weights | {"extra": torch.zeros(1)}, "extra"),
    ]:
        save_file(changed, path)
        with pytest.raises(ModelError, match=message):
            read_folder(tmp_path)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    "content",
    [pickle.dumps(Evil(), protocol=2), pickle.dumps([1, 2], protocol=2), b"", b"PK\x03"],
    ids=["code", "list", "nothing", "cut"],
)
def test_a_pickle_of_anything_but_tensors_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "a", *small_model())
    (tmp_path / "a" / "unet" / SAFETENSORS).unlink()
    (tmp_path / "a" / "unet" / PICKLE).write_bytes(content)
    with pytest.raises(ModelError, match="it is refused"):
        read_folder(tmp_path / "a")
    assert not (tmp_path / "pwned").exists()


def test_only_what_diffusers_has_is_exported(tmp_path: Path) -> None:
    config, weights = small_model()
    mean = replace(config, prediction="mean")
    codec = replace(config, network=NetworkConfig())
    wide = replace(config, network=replace(SMALL, multipliers=(2, 2)))
    for refused in (mean, codec, wide):
        with pytest.raises(ModelError, match="diffusers has no such"):
            write_folder(tmp_path / "out", refused, weights)
    assert not (tmp_path / "out").exists()


def test_the_commands(tmp_path: Path) -> None:
    config, weights = small_model()
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", config, weights)
    exported, imported = tmp_path / "hf", tmp_path / "again"
    assert run("export", tmp_path / "model", "-o", exported).exit_code == 0
    result = run("import", exported, "-o", imported, "--name", "small")
    assert result.exit_code == 0, result.output
    assert files(imported) == files(tmp_path / "model")
    assert read_process(imported).variance == "beta"
    assert_refused(run("import", exported, "-o", exported), USAGE_ERROR, "another folder")
    assert_refused(run("import", tmp_path, "-o", imported), DATA_ERROR, "not a diffusers folder")
    assert_refused(run("export", exported, "-o", imported), DATA_ERROR, "not a model")
    (exported / SCHEDULE).unlink()
    assert_refused(run("import", exported, "-o", imported), DATA_ERROR, SCHEDULER_CONFIG)
