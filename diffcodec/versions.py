"""The versions that decide what a file's bytes mean and how fast they are found."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from diffcodec import __version__
from diffcodec.catalogue import CATALOGUE, shipped
from diffcodec.container import VERSION

LIBRARIES = ("torch", "constriction", "numpy", "numba", "pillow")


def versions() -> dict[str, str]:
    """Of diffcodec, the format, Python, the libraries, and the shipped models' fingerprints.

    Quick: neither PyTorch nor a model is loaded.
    """
    found = {"diffcodec": __version__, "format": str(VERSION), "python": platform.python_version()}
    found |= {name: _installed(name) for name in LIBRARIES}
    # Later entries of the same name are what ships now.
    listed = {entry.name: entry.fingerprint.hex() for entry in CATALOGUE.values()}
    return found | {f"model {name}": listed.get(name, "not listed") for name in shipped()}


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
