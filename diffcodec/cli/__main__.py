"""``python -m diffcodec.cli``."""

from diffcodec.cli import main

main()
