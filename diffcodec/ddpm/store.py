"""Model folders as reverse processes: for sampling and for the bound, whether they code or not."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from diffcodec.ddpm.process import CodecEps, ReverseProcess
from diffcodec.ddpm.unet import UNet, UNetConfig
from diffcodec.errors import ModelError
from diffcodec.model import WEIGHTS, ModelConfig, read_config
from diffcodec.model_check import read_tensors
from diffcodec.network import SIZE_MULTIPLE, CodecUNet


def read_process(folder: Path) -> ReverseProcess:
    """The reverse process of a model folder, x̂_0 clipped; ModelError if it is malformed."""
    return make_process(read_config(folder), read_tensors(folder / WEIGHTS))


def make_process(config: ModelConfig, weights: dict[str, Tensor]) -> ReverseProcess:
    """The same from its parts; weights float16 or float32."""
    shape = config.network
    network = UNet(shape) if isinstance(shape, UNetConfig) else CodecUNet(shape)
    check_shapes(network.state_dict(), weights)
    network.load_state_dict(weights)
    network.eval().requires_grad_(False)
    return ReverseProcess(
        network=CodecEps(network, config.schedule) if isinstance(network, CodecUNet) else network,
        schedule=config.schedule,
        prediction=config.prediction,
        variance=config.variance,
        clip=True,
    )


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


def size_multiple(process: ReverseProcess) -> int:
    """What both sides of a picture must be multiples of."""
    network = process.network
    return network.config.size_multiple if isinstance(network, UNet) else SIZE_MULTIPLE


def classes(process: ReverseProcess) -> int:
    """Number of classes of a class-conditional network, 0 for others."""
    network = process.network
    return network.config.classes if isinstance(network, UNet) else 0
