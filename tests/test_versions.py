"""--version: what it says is so, and it is said without loading PyTorch."""

from __future__ import annotations

import subprocess
import sys

import numpy
import torch

import diffcodec
from diffcodec.container import VERSION
from diffcodec.versions import versions


def test_the_versions_are_those_of_what_runs() -> None:
    found = versions()
    assert found["diffcodec"] == diffcodec.__version__
    assert found["format"] == str(VERSION)
    assert found["numpy"] == numpy.__version__
    assert torch.__version__.startswith(found["torch"].partition("+")[0])
    for name in ("cifar10", "photo"):
        assert found[f"model {name}"] == diffcodec.load_model(name).fingerprint.hex()


def test_the_command_line_starts_without_pytorch() -> None:
    code = (
        "import sys\n"
        "from diffcodec.cli import main\n"
        "try: main(['--version'])\n"
        "finally: assert not {'torch', 'numba', 'PIL'} & set(sys.modules), sys.modules.keys()\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0] == f"diffcodec {diffcodec.__version__}"


def test_every_public_name_is_there() -> None:
    for name in diffcodec.__all__:
        assert getattr(diffcodec, name) is not None
        assert name in dir(diffcodec)
    assert not hasattr(diffcodec, "no_such_name")
