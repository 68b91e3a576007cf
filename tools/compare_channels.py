"""The codec's channel beside other ways of conveying the same steps.

    python tools/compare_channels.py --data train_4.webp --first 9488 --limit 4

Every way gets the same model, plan and pictures.  In every step it conveys y ≈ d + N(0, 1) of
shifts d under the prior N(0, 1 + s), and what it conveyed is the state that the next step starts
from.  Afterwards the final layer is coded, so that the sum is what a lossless file would take
(without header and framing).

- trellis: the codec's own channel (diffcodec/channel.py).
- Poisson functional representation, by chunks: Li and El Gamal, *Strong functional
  representation lemma*, 2018; Theis and Yosri, *Algorithms for the communication of samples*,
  2022.  The index of the chosen candidate is coded with their Zipf distribution.
- best of N, by chunks: the index of the likeliest of N = 2**bits candidates, written as it is.
- minimal random coding, by chunks: the same, but the candidate is drawn in proportion to q/p;
  Havasi, Peharz and Hernández-Lobato, *Minimal random code learning*, 2019.
- dithered quantisation: Ziv, *On universal quantization*, 1985; Theis and Agustsson, *On the
  advantages of stochastic encoders*, 2021.  Its noise is uniform, of variance 1.

The last four are baselines for study: their candidates are floats of numpy's generators, good
on the machine that wrote them.  They leave out coefficients of negligible variance and send one
scale of all variances per segment, as the codec does, but correct no outliers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import click
import constriction
import numpy as np
import torch
from numpy.typing import NDArray

from diffcodec import channel, final_layer, tables
from diffcodec.data import load_images
from diffcodec.entropy import (
    Decoder,
    Encoder,
    SymbolModel,
    Uniform,
    categorical,
    integer_probabilities,
)
from diffcodec.image import from_array
from diffcodec.model import Model
from diffcodec.noise import derive_key, permutation, shared_normal
from diffcodec.plans import Plan, search_for
from diffcodec.registry import load_model
from diffcodec.reverse import start
from diffcodec.steps import Final, Settings, Step
from diffcodec.tables import OCTAVE, RATE_UNIT, S_MAX, S_MIN, Y_UNIT

F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]

MOST_CANDIDATES = 1 << 18
"""No chunk is searched further."""

BLOCK = 1 << 10
"""Candidates are drawn so many at a time; the receiver draws one block."""

# Purposes of derived keys.
_ORDER, _CANDIDATES, _FILL, _DITHER, _SENDER = 11, 12, 13, 14, 15


class Channel(Protocol):
    """One way of conveying a segment; both sides know s_index (log2 s in 1/8) and the key."""

    def send(self, d: F64, s_index: I64, key: int) -> bytes:
        """The code of the shifts d [n], in standard deviations of q."""

    def receive(self, code: bytes, s_index: I64, key: int) -> I64:
        """y [n] in units of 2**-12."""


@dataclass(frozen=True)
class Trellis:
    """diffcodec/channel.py; eta in 1/128."""

    eta: int
    survivors: int

    def send(self, d: F64, s_index: I64, key: int) -> bytes:
        return channel.send_segment(d, s_index, key, eta=self.eta, survivors=self.survivors)[0]

    def receive(self, code: bytes, s_index: I64, key: int) -> I64:
        return channel.receive_segment(code, s_index, key, eta=self.eta).y


@dataclass(frozen=True)
class Shared:
    """What both sides know of a segment once its scale is told.

    own: places of the coded coefficients, shuffled; s: their variances; bits: ½ log2(1 + s) of
    each; y: of all coefficients, shared noise where nothing is coded, in standard deviations.
    """

    own: I64
    s: F64
    bits: F64
    y: F64

    def chunks(self, chunk_bits: float) -> list[slice]:
        """Neighbours in ``own`` whose bits add up to ``chunk_bits`` or a little more or less."""
        number = ((np.cumsum(self.bits) - self.bits / 2) // chunk_bits).astype(np.int64)
        edges = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(number)]
        return [slice(a, b) for a, b in pairwise(edges) if a < b]

    def conveyed(self, y: F64) -> I64:
        """``y`` of the coded coefficients put to their places, in 2**-12."""
        whole = self.y.copy()
        whole[self.own] = y
        return np.rint(whole * (1 << Y_UNIT)).astype(np.int64)


def shared(s_index: I64, key: int, scale: int) -> Shared:
    index = np.clip(np.clip(s_index, S_MIN, S_MAX) + channel.SCALE_STEP * scale, S_MIN, S_MAX)
    order = permutation(derive_key(key, _ORDER), len(index))
    own = order[index[order] >= channel.NEGLIGIBLE]
    fill = shared_normal(derive_key(key, _FILL), len(index)) / (1 << Y_UNIT)
    bits = tables.rates()[index[own] - S_MIN] / (1 << RATE_UNIT)
    return Shared(own, np.exp2(index[own] / OCTAVE), bits, fill)


@lru_cache(maxsize=1)
def _scales() -> SymbolModel:
    """A segment's scale j, counted from the lowest, has probability ∝ 2**-|j|."""
    low, high = channel.SCALE_RANGE
    return categorical(integer_probabilities(np.exp2(-np.abs(np.arange(low, high + 1.0)))))


def _begin(d: F64, s_index: I64, key: int) -> tuple[Encoder, Shared]:
    scale = channel.choose_scale(d, s_index)
    coder = Encoder()
    coder.encode(np.array([scale - channel.SCALE_RANGE[0]]), _scales())
    return coder, shared(s_index, key, scale)


def _resume(code: bytes, s_index: I64, key: int) -> tuple[Decoder, Shared]:
    coder = Decoder(code)
    scale = int(coder.decode(1, _scales())[0]) + channel.SCALE_RANGE[0]
    return coder, shared(s_index, key, scale)


def candidates(key: int, chunk: int, block: int, size: int) -> F32:
    """Standard normal candidates [BLOCK, size] of a chunk that both sides can draw."""
    seed = np.random.SeedSequence([key, _CANDIDATES, chunk, block])
    rng = np.random.Generator(np.random.SFC64(seed))
    return rng.standard_normal((BLOCK, size), dtype=np.float32)


def candidate(key: int, chunk: int, index: int, s: F64) -> F64:
    """The candidate ``index`` = 0, 1, … of a chunk, y in standard deviations of q."""
    block, row = divmod(index, BLOCK)
    return np.sqrt(1.0 + s) * candidates(key, chunk, block, len(s))[row].astype(np.float64)


def log_weights(key: int, chunk: int, d: F64, s: F64, count: int) -> Iterator[F64]:
    """ln q/p of the first ``count`` candidates but for a constant, block by block.

    With y = √(1+s) g:  −½(y − d)² + ½ y²/(1+s) = −½ s g² + √(1+s) d g − ½ d².
    """
    linear, square = (np.sqrt(1.0 + s) * d).astype(np.float32), (0.5 * s).astype(np.float32)
    for block in range(-(-count // BLOCK)):
        g = candidates(key, chunk, block, len(s))
        weights = g @ linear - np.square(g) @ square
        yield weights[: count - block * BLOCK].astype(np.float64)


def divergence_bits(d: F64, s: F64) -> F64:
    """KL(N(d, 1) ‖ N(0, 1 + s)) of every coefficient, in bits."""
    return 0.5 * (np.log2(1.0 + s) + (np.square(d) - s) / (1.0 + s) / math.log(2.0))


@lru_cache(maxsize=512)
def _zipf(quarter_bits: int) -> SymbolModel:
    """P(k) ∝ k**-λ, λ = 1 + 1/(I + e⁻¹ log2 e + 1), for I known to both sides, in ¼ bit."""
    exponent = 1.0 + 1.0 / (quarter_bits / 4 + math.log2(math.e) / math.e + 1.0)
    return categorical(integer_probabilities(np.arange(1.0, MOST_CANDIDATES + 1) ** -exponent))


def _zipf_of(bits: F64) -> SymbolModel:
    return _zipf(round(4 * float(bits.sum())))


@dataclass(frozen=True)
class PoissonFunctional:
    """Of candidates that arrive at times T_1 < T_2 < … choose the one with least T_k·p/q.

    That is a draw from q, exactly if the search ends where no later candidate can win; it also
    ends after 2**(KL + spare_bits) candidates and after MOST_CANDIDATES.
    """

    chunk_bits: float
    spare_bits: float = 6.0

    def send(self, d: F64, s_index: I64, key: int) -> bytes:
        coder, known = _begin(d, s_index, key)
        rng = np.random.default_rng([key, _SENDER])
        shifts = d[known.own]
        for number, part in enumerate(known.chunks(self.chunk_bits)):
            index = self._choose(key, number, shifts[part], known.s[part], rng)
            coder.encode(np.array([index]), _zipf_of(known.bits[part]))
        return coder.getvalue()

    def _choose(self, key: int, number: int, d: F64, s: F64, rng: np.random.Generator) -> int:
        kl = float(divergence_bits(d, s).sum())
        count = math.ceil(2.0 ** min(kl + self.spare_bits, math.log2(MOST_CANDIDATES)))
        most = float(np.sum(np.square(d) * (1.0 + s) / (2.0 * s)))  # no weight is above this
        best, chosen, seen, arrived = math.inf, 0, 0, 0.0
        for weights in log_weights(key, number, d, s, max(1, count)):
            times = arrived + np.cumsum(rng.standard_exponential(len(weights)))
            scores = np.log(times) - weights
            k = int(np.argmin(scores))
            if scores[k] < best:
                best, chosen = float(scores[k]), seen + k
            seen, arrived = seen + len(weights), float(times[-1])
            if math.log(arrived) - most > best:
                break
        return chosen

    def receive(self, code: bytes, s_index: I64, key: int) -> I64:
        coder, known = _resume(code, s_index, key)
        y = np.empty(len(known.own))
        for number, part in enumerate(known.chunks(self.chunk_bits)):
            index = int(coder.decode(1, _zipf_of(known.bits[part]))[0])
            y[part] = candidate(key, number, index, known.s[part])
        return known.conveyed(y)


@dataclass(frozen=True)
class BestOf:
    """Of 2**bits candidates the likeliest under q/p or, ``drawn``, one drawn in proportion to it.

    Chunks get ``rate`` times their ½ log2(1 + s), rounded so that the sum stays right, as whole
    bits.
    """

    chunk_bits: float
    rate: float
    drawn: bool = False

    def _chunks(self, known: Shared) -> list[tuple[int, slice, int]]:
        """(number, coefficients, bits) of every chunk."""
        parts = known.chunks(self.chunk_bits)
        total = np.cumsum([self.rate * float(known.bits[part].sum()) for part in parts])
        bits = np.diff(np.rint(total), prepend=0.0).astype(np.int64)
        most = MOST_CANDIDATES.bit_length() - 1
        return [(n, part, min(most, int(bits[n]))) for n, part in enumerate(parts)]

    def send(self, d: F64, s_index: I64, key: int) -> bytes:
        coder, known = _begin(d, s_index, key)
        rng = np.random.default_rng([key, _SENDER])
        shifts = d[known.own]
        for number, part, bits in self._chunks(known):
            blocks = log_weights(key, number, shifts[part], known.s[part], 1 << bits)
            weights = np.concatenate(list(blocks))
            if self.drawn:  # the largest of ln w + Gumbel noise is a draw with probability ∝ w
                weights += rng.gumbel(size=len(weights))
            if bits:
                coder.encode(np.array([np.argmax(weights)]), Uniform(1 << bits))
        return coder.getvalue()

    def receive(self, code: bytes, s_index: I64, key: int) -> I64:
        coder, known = _resume(code, s_index, key)
        y = np.empty(len(known.own))
        for number, part, bits in self._chunks(known):
            index = int(coder.decode(1, Uniform(1 << bits))[0]) if bits else 0
            y[part] = candidate(key, number, index, known.s[part])
        return known.conveyed(y)


@dataclass(frozen=True)
class Dithered:
    """y = Δ(K − u), K = round(d/Δ + u), with shared u in [−½, ½) and Δ = √12.

    y − d is uniform and of variance 1 whatever d.  Given u, K is coded with the mass that
    N(0, s) puts on its cell, which is N(0, s) convolved with the uniform noise, at y.
    """

    limit: int = 1 << 12
    step: float = field(default=math.sqrt(12.0), init=False)

    def _dither(self, key: int, count: int) -> F64:
        return np.random.default_rng([key, _DITHER]).random(count) - 0.5

    def _family(self) -> SymbolModel:
        return constriction.stream.model.QuantizedGaussian(-self.limit, self.limit)

    def send(self, d: F64, s_index: I64, key: int) -> bytes:
        coder, known = _begin(d, s_index, key)
        u = self._dither(key, len(known.own))
        k = np.rint(d[known.own] / self.step + u).astype(np.int64)
        if np.any(np.abs(k) > self.limit):
            raise ValueError(f"shifts beyond {self.limit * self.step:.0f} cannot be sent")
        coder.encode(k, self._family(), u, np.sqrt(known.s) / self.step)
        return coder.getvalue()

    def receive(self, code: bytes, s_index: I64, key: int) -> I64:
        coder, known = _resume(code, s_index, key)
        u = self._dither(key, len(known.own))
        k = coder.decode(len(u), self._family(), u, np.sqrt(known.s) / self.step)
        return known.conveyed(self.step * (k - u))


@dataclass
class Outcome:
    """A channel over one or more pictures, summed.

    dims: values of the pictures; step_bits: 8 × the bytes of the segments' codes; final_bits:
    8 × the bytes of the final layer; kl_bits: KL(q ‖ p) of the steps on this very path, an
    ideal; error: Σ (y − d)² over so many shifts; seconds: processor time of the channel alone.
    """

    dims: int = 0
    step_bits: int = 0
    final_bits: int = 0
    kl_bits: float = 0.0
    error: float = 0.0
    shifts: int = 0
    send_seconds: float = 0.0
    receive_seconds: float = 0.0


def run_chain(
    model: Model, levels: U8, plan: Plan, way: Channel | None, seed: int, total: Outcome
) -> None:
    """Convey levels uint8 [3, H, W] step by step and add up what it took.

    Without a channel y is an exact sample of q; with one, what its receiver made of the code.
    """
    height, width = levels.shape[1:]
    settings = Settings(plan, height, width, seed)
    rng = np.random.default_rng(seed)
    x = start(plan.timesteps[0], seed, height, width)
    for a, b in plan.steps:
        step, number = Step(model, x, a, b, settings), 0
        for rows in settings.bands:
            prior = step.prior(rows)
            d = prior.shifts(levels[:, rows])
            s = np.exp2(prior.s_index / OCTAVE)
            total.kl_bits += float(divergence_bits(d, s).sum())
            y = np.rint((d + rng.standard_normal(d.shape)) * (1 << Y_UNIT)).astype(np.int64)
            for own in prior.layout.segments:
                key, number = derive_key(settings.key(b), number), number + 1
                if way:
                    y[own] = _convey(way, d[own], prior.s_index[own], key, total)
            total.error += float(np.sum(np.square(y / (1 << Y_UNIT) - d)))
            total.shifts += d.size
            step.move(rows, prior, y)
        x = step.arrive()
    final = Final(model, x, settings)
    for rows in settings.strips:
        own_levels = levels[:, rows].astype(np.int64)
        code = final_layer.send_strip(own_levels, final.distribution(rows), lessons=final.lessons)
        total.final_bits += 8 * len(code)
    total.dims += levels.size


def _convey(way: Channel, d: F64, s_index: I64, key: int, total: Outcome) -> I64:
    begun = time.process_time()
    code = way.send(d, s_index, key)
    sent = time.process_time()
    y = way.receive(code, s_index, key)
    total.receive_seconds += time.process_time() - sent
    total.send_seconds += sent - begun
    total.step_bits += 8 * len(code)
    return y


HEAD = """\
| channel | ideal: KL of its path | real: steps | real: final layer | real: sum | noise ratio \
| send, s | receive, s |
|---|---|---|---|---|---|---|---|"""


def row(name: str, o: Outcome, pictures: int) -> str:
    """Of a Markdown table; real bits are bytes that were decoded, the ideal stands apart."""
    steps, final = o.step_bits / o.dims, o.final_bits / o.dims
    seconds = f"{o.send_seconds / pictures:.2f} | {o.receive_seconds / pictures:.2f}"
    real = f"{steps:.3f} | {final:.3f} | {steps + final:.3f}"
    if not o.step_bits:
        real, seconds = f"– | {final:.3f} | –", "– | –"
    ratio = o.error / o.shifts
    return f"| {name} | {o.kl_bits / o.dims:.3f} | {real} | {ratio:.3f} | {seconds} |"


def ways(
    plan: Plan, survivors: int, chunk_bits: float, index_bits: float
) -> dict[str, Channel | None]:
    """The channels by the names they have in the table; None: exact samples."""
    rate = plan.eta / channel.ETA_UNIT
    chunks = f"chunks of {index_bits:g} bits"
    return {
        "exact samples of q": None,
        f"trellis, {survivors} survivors": Trellis(plan.eta, survivors),
        f"Poisson functional representation, chunks of {chunk_bits:g} bits": PoissonFunctional(
            chunk_bits
        ),
        f"best of N, {chunks}": BestOf(index_bits, rate),
        f"minimal random coding, {chunks}": BestOf(index_bits, rate, drawn=True),
        "dithered quantisation": Dithered(),
    }


@click.command()
@click.option("--model", "name", default="cifar10", show_default=True, help="name or folder")
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--first", default=0, show_default=True, help="number of the first picture")
@click.option("--limit", default=4, show_default=True, type=click.IntRange(min=1))
@click.option("--effort", default=5, show_default=True, type=click.IntRange(1, 9))
@click.option(
    "--chunk-bits",
    default=8.0,
    show_default=True,
    type=click.FloatRange(1, 16),
    help="½ log2(1 + s) of a chunk of the Poisson functional representation",
)
@click.option(
    "--index-bits",
    default=12.0,
    show_default=True,
    type=click.FloatRange(1, 16),
    help="the same of best of N and of minimal random coding",
)
@click.option("--seed", default=0, show_default=True)
def main(
    name: str,
    data: Path,
    first: int,
    limit: int,
    effort: int,
    chunk_bits: float,
    index_bits: float,
    seed: int,
) -> None:
    """Print one table; bits are per value of the picture, seconds per picture."""
    torch.set_num_threads(1)
    model = load_model(name)
    pictures = load_images([data])[first : first + limit]
    if not pictures:
        raise click.UsageError(f"there is no picture {first}")
    survivors = search_for(effort, pictures[0].shape[0] * pictures[0].shape[1]).survivors
    channels = ways(model.plan, survivors, chunk_bits, index_bits)
    Trellis(model.plan.eta, 1).send(np.ones(64), np.zeros(64, dtype=np.int64), 0)  # compiles it
    click.echo(HEAD)
    for label, way in channels.items():
        outcome = Outcome()
        for number, pixels in enumerate(pictures):
            levels = from_array(pixels).levels
            run_chain(model, levels, model.plan, way, seed + number, outcome)
        click.echo(row(label, outcome, len(pictures)))


if __name__ == "__main__":
    main()
