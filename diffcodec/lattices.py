"""The conversions to R, G, B whose colours lie on a lattice that files may name (lattice.py).

A number is part of the format: what it stands for is never changed, only new ones are added.
"""

from __future__ import annotations

from dataclasses import dataclass

COORDINATE_UNIT = 20
"""Coordinates of colours are in 2**-20 of a lattice's cell."""


@dataclass(frozen=True)
class Lattice:
    """Where a conversion's colours come from; coordinates: int64 [3, 3], of levels R, G, B in
    2**-20, those of luminance, of the difference of blue and of that of red."""

    name: str
    coordinates: tuple[tuple[int, int, int], ...]


LATTICES: dict[int, Lattice] = {
    1: Lattice(
        "JPEG", ((313524, 615514, 119538), (-176932, -347356, 524288), (524288, -439026, -85262))
    ),
    2: Lattice(
        "BT.601 video",
        ((269262, 528618, 102662), (-155423, -305128, 460551), (460551, -385654, -74897)),
    ),
    3: Lattice(
        "BT.709 video",
        ((191455, 644067, 65019), (-105533, -355018, 460551), (460551, -418321, -42230)),
    ),
    4: Lattice(
        "Photo CD", ((230804, 453117, 87999), (-141361, -277521, 418882), (403542, -337916, -65626))
    ),
}
