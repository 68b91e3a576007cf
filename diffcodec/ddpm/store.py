"""Model folders as reverse processes: for sampling and for the bound, whether they code or not."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from diffcodec.ddpm.process import CodecEps, Network, ReverseProcess
from diffcodec.ddpm.unet import UNet, UNetConfig
from diffcodec.model import (
    WEIGHTS,
    ModelConfig,
    load_codec_network,
    load_unet,
    read_config,
)
from diffcodec.model_check import read_tensors
from diffcodec.network import SIZE_MULTIPLE


def read_process(folder: Path) -> ReverseProcess:
    """The reverse process of a model folder, x̂_0 clipped; ModelError if it is malformed."""
    return make_process(read_config(folder), read_tensors(folder / WEIGHTS))


def make_process(config: ModelConfig, weights: dict[str, Tensor]) -> ReverseProcess:
    """The same from its parts; ModelError if the weights are not the network's."""
    shape = config.network
    network: Network
    if isinstance(shape, UNetConfig):
        network = load_unet(shape, weights)
    else:
        network = CodecEps(load_codec_network(config, weights), config.schedule)
    return ReverseProcess(
        network=network,
        schedule=config.schedule,
        prediction=config.prediction,
        variance=config.variance,
        clip=True,
    )


def size_multiple(process: ReverseProcess) -> int:
    """What both sides of a picture must be multiples of."""
    network = process.network
    return network.config.size_multiple if isinstance(network, UNet) else SIZE_MULTIPLE


def classes(process: ReverseProcess) -> int:
    """Number of classes of a class-conditional network, 0 for others."""
    network = process.network
    return network.config.classes if isinstance(network, UNet) else 0
