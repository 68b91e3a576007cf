"""Where models are found: the folder of shipped models, or a folder given by its path."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from diffcodec.catalogue import CATALOGUE, number_of
from diffcodec.catalogue import models_folder as models_folder
from diffcodec.catalogue import shipped as shipped
from diffcodec.ddpm.process import ReverseProcess
from diffcodec.ddpm.store import read_process
from diffcodec.errors import ModelError
from diffcodec.model import Model, read_model
from diffcodec.plans import SMALL_PIXELS

SMALL, LARGE = "cifar10", "photo"
"""The models for pictures up to, and beyond, plans.SMALL_PIXELS."""


@cache
def _load(folder: Path) -> Model:
    return read_model(folder)


def load_model(name: str) -> Model:
    """A model by the name of a shipped one or by the path of its folder; ModelError if absent."""
    return _load(model_folder(name))


def load_process(name: str) -> ReverseProcess:
    """The same for sampling and the bound, where models that do not code serve as well."""
    return read_process(model_folder(name))


def model_folder(name: str) -> Path:
    """The folder of a model; ModelError if there is none."""
    if name in shipped():
        return models_folder() / name
    if Path(name).is_dir():
        return Path(name).resolve()
    raise ModelError(
        f"unknown model '{name}': give a folder, or one of {', '.join(shipped()) or 'none shipped'}"
    )


def default_model(pixels: int = 0) -> Model:
    """The model used when none is named, for a picture of so many pixels."""
    return load_model(default_name(pixels))


def default_name(pixels: int) -> str:
    """Its name."""
    return SMALL if pixels <= SMALL_PIXELS else LARGE


def is_listed(model: Model) -> bool:
    """Whether a file may leave out the model's name: the catalogue has it."""
    return number_of(model.fingerprint) is not None


def find_model(fingerprint: bytes, name: str) -> Model:
    """The shipped model with this fingerprint; ModelError that says what is needed otherwise.

    name: of a model that is not listed, which may have been put beside the shipped ones.
    """
    number = number_of(fingerprint)
    name = CATALOGUE[number].name if number else name
    if name in shipped():
        model = load_model(name)
        if model.fingerprint == fingerprint:
            return model
    wanted = f"model '{name}'" if name else "a model"
    raise ModelError(
        f"the file needs {wanted} with fingerprint {fingerprint.hex()}, which is not installed; "
        "give its folder with --model"
    )
