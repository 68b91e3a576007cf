"""The command line: arguments and printing, nothing else.

Exit codes: 0 done, 1 something is wrong with the data (one line says what), 2 usage.
"""

from diffcodec.cli import evaluation as evaluation
from diffcodec.cli import files as files
from diffcodec.cli import layers as layers
from diffcodec.cli import models as models
from diffcodec.cli import sampling as sampling
from diffcodec.cli import show as show
from diffcodec.cli import training as training
from diffcodec.cli.base import main as main
