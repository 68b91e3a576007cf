"""Figure 5 of the paper: distortion and rate along the reverse process, and against each other."""

from __future__ import annotations

import io
from typing import Any

from diffcodec.errors import DataError, DiffcodecError


def require_matplotlib(suffix: str) -> None:
    """DiffcodecError that says what to do when no plot of this suffix can be made."""
    try:
        from matplotlib.figure import Figure
    except ImportError as e:
        raise DiffcodecError("plots need matplotlib: pip install 'diffcodec[plots]'") from e
    if suffix.removeprefix(".") not in Figure().canvas.get_supported_filetypes():
        raise DataError(f"cannot write plots of type '{suffix}'; use .png")


def rate_distortion(summary: dict[str, Any], timesteps: int, suffix: str) -> bytes:
    """The plot as the bytes of a file of this suffix (.png, .svg, .pdf).

    summary: of :func:`diffcodec.ddpm.bound.summarise`.
    """
    require_matplotlib(suffix)
    from matplotlib.figure import Figure

    curve = summary["curve"]
    steps = [timesteps - row["t"] for row in curve]
    rate, distortion = ([row[key][0] for row in curve] for key in ("rate_bpd", "rmse"))
    figure = Figure(figsize=(12.0, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    labels = ("reverse process steps (T − t)", "rate (bits/dim)", "distortion (RMSE, 0–255)")
    for axes, (x, y), (across, up) in zip(
        panels,
        ((steps, distortion), (steps, rate), (rate, distortion)),
        ((0, 2), (0, 1), (1, 2)),
        strict=True,
    ):
        axes.plot(x, y)
        axes.set_xlabel(labels[across])
        axes.set_ylabel(labels[up])
        axes.grid(alpha=0.3)
    stream = io.BytesIO()
    figure.savefig(stream, format=suffix.removeprefix("."))
    return stream.getvalue()
