"""Models that files name by number, as they name coding plans.

The numbers are part of the format: an entry is never changed, only new ones are added, also for
a model that is trained further.  A number names a plan, too, so that files of either plan of a
model need not.  A model that is not listed is named by its fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CONFIG = "config.json"
"""In the folder of every model."""


@dataclass(frozen=True)
class Entry:
    """name: of the folder it ships in; fingerprint: of what codes; plan: of the files that name no
    other."""

    name: str
    fingerprint: bytes
    plan: int


CATALOGUE: dict[int, Entry] = {
    1: Entry("cifar10", bytes.fromhex("bc6636"), 4),
    2: Entry("photo", bytes.fromhex("fbfe52"), 3),
    3: Entry("cifar10", bytes.fromhex("bc6636"), 5),
    4: Entry("photo", bytes.fromhex("fbfe52"), 6),
    5: Entry("cifar10", bytes.fromhex("946956"), 4),
    6: Entry("cifar10", bytes.fromhex("946956"), 5),
    7: Entry("cifar10", bytes.fromhex("41dcd2"), 4),
    8: Entry("cifar10", bytes.fromhex("41dcd2"), 5),
    9: Entry("photo", bytes.fromhex("fbfe52"), 8),
    10: Entry("photo", bytes.fromhex("fbfe52"), 9),
    11: Entry("cifar10", bytes.fromhex("bffe67"), 12),
    12: Entry("cifar10", bytes.fromhex("bffe67"), 5),
    13: Entry("photo", bytes.fromhex("fbfe52"), 14),
    14: Entry("photo", bytes.fromhex("fbfe52"), 15),
}
CATALOGUE |= {n: Entry("photo", bytes.fromhex("56b59e"), n + 3) for n in range(15, 21)}
CATALOGUE |= {n: Entry("photo", bytes.fromhex("741d91"), n - 3) for n in range(21, 27)}
CATALOGUE |= {n: Entry("photo", bytes.fromhex("fd72fb"), n - 9) for n in range(27, 33)}
CATALOGUE |= {
    33: Entry("cifar10", bytes.fromhex("aac467"), 12),
    34: Entry("cifar10", bytes.fromhex("aac467"), 5),
}
CATALOGUE |= {n: Entry("photo", bytes.fromhex("fd72fb"), n - 9) for n in range(35, 38)}
CATALOGUE |= {
    38: Entry("cifar10", bytes.fromhex("f44e74"), 29),
    39: Entry("cifar10", bytes.fromhex("f44e74"), 5),
}


def number_of(fingerprint: bytes, plan: int | None = None) -> int | None:
    """The number of the model with this fingerprint, if it is listed; with this plan, if any is."""
    found = [n for n, entry in CATALOGUE.items() if entry.fingerprint == fingerprint]
    return min(found, key=lambda n: (CATALOGUE[n].plan != plan, n), default=None)


def models_folder() -> Path:
    """The shipped models: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def shipped() -> list[str]:
    """Names of the models that come with diffcodec."""
    folder = models_folder()
    return sorted(p.parent.name for p in folder.glob(f"*/{CONFIG}"))
