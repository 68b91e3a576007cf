"""``python -m diffcodec.train``: the same as ``diffcodec train``, for torchrun."""

import sys

from diffcodec.cli import main

main(["train", *sys.argv[1:]])
