"""Training: Algorithm 1 for the codec's network and for the paper's, on one process or many."""

from diffcodec.train.loop import Trainer, train

__all__ = ["Trainer", "train"]
