"""A second decoder of .ddc files, written from docs/format.md.

    python tools/reference_decoder.py photo.ddc photo.ppm --model models/photo

It needs numpy and the standard library, takes nothing from diffcodec, and follows the
specification section by section, plainly and slowly: the network is evaluated in int64.  That it
finds the same pixels shows that the specification is complete, and that the codec's float32,
8-bit and tiled convolutions are the integers they are meant to be.

Output: .npy (uint8 [H, W], [H, W, 2], [H, W, 3] or [H, W, 4]), .pgm, .ppm, or .pam.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import math
import sys
import zlib
from bisect import bisect_right
from dataclasses import dataclass, field, replace
from decimal import Decimal, localcontext
from functools import cache
from itertools import groupby, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class RefusedError(Exception):
    """The file is not one, is damaged, or needs another model."""


class EndOfFileError(Exception):
    """The file ends here: it is cut, which is no error."""


# ---- 1. Conventions ---------------------------------------------------------------------------


def varint(content: bytes, place: int) -> tuple[int, int]:
    """(value, place after it)."""
    if place >= len(content):
        raise EndOfFileError
    b = content[place]
    more = 0 if b < 240 else 1 if b < 248 else b - 246
    rest = content[place + 1 : place + 1 + more]
    if len(rest) < more:
        raise EndOfFileError
    if b < 240:
        return b, place + 1
    value = int.from_bytes(rest, "big")
    return (240 + 256 * (b - 240) + value if b < 248 else value), place + 1 + more


class Bits:
    """Reads a bit string from the most significant end."""

    def __init__(self, content: bytes) -> None:
        self.content, self.place = content, 0

    def number(self, count: int) -> int:
        value = 0
        for _ in range(count):
            if self.place >= 8 * len(self.content):
                raise EndOfFileError
            value = 2 * value + (self.content[self.place >> 3] >> (7 - self.place % 8) & 1)
            self.place += 1
        return value

    def signed_gamma(self) -> int:
        zeros = 0
        while self.number(1) == 0:
            zeros += 1
            if zeros > 32:
                raise RefusedError("an impossible signed gamma number")
        m = (1 << zeros) + self.number(zeros)
        return (m - 1) // 2 if m % 2 else -(m // 2)

    def align(self) -> None:
        self.place = -(-self.place // 8) * 8


def crc8(content: bytes) -> int:
    crc = 0xFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ (0x07 if crc & 0x80 else 0)) & 0xFF
    return crc


# ---- 3. Plans ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    timesteps: tuple[int, ...]
    eta: int
    grouped: int
    mirrored: int = 0
    adaptive: int = 0
    passes: int = 2

    @property
    def layers(self) -> list[list[tuple[int, int]]]:
        """The steps a → b of every layer."""
        steps = list(pairwise(self.timesteps))
        return [steps[: self.grouped], *([step] for step in steps[self.grouped :])]


PLANS = {
    0: Plan((680, 450, 290, 180, 115, 70, 40, 22, 11, 6, 4, 2, 1), 134, 6),
    1: Plan((680, 290, 140, 70, 40, 25, 15, 9, 6, 4, 2, 1), 134, 1),
    2: Plan((680, 330, 190, 120, 80, 54, 36, 23, 13, 7, 4, 2, 1), 130, 6),
    3: Plan((680, 450, 290, 180, 115, 70, 45, 28, 18, 13, 9, 6, 4, 3, 2, 1), 131, 1),
    4: Plan((680, 400, 260, 170, 115, 80, 56, 39, 26, 17, 11, 8, 6, 4, 3, 2, 1), 130, 6),
}
PLANS |= {n: replace(PLANS[same], mirrored=1000) for n, same in ((5, 4), (6, 3), (7, 0))}
PLANS |= {n: replace(PLANS[same], adaptive=1) for n, same in ((8, 3), (9, 6), (10, 0), (11, 7))}
PLANS |= {n: replace(PLANS[same], mirrored=4) for n, same in ((12, 4), (13, 0))}
PLANS |= {n: replace(PLANS[same], adaptive=2) for n, same in ((14, 3), (15, 6), (16, 0), (17, 7))}
for number, same, end in (
    *((17 + end, 14, end) for end in (1, 2, 3)),
    *((20 + end, 15, end) for end in (1, 2, 3)),
    (24, 16, 2),
    (25, 17, 1),
):
    ending = tuple(t for t in PLANS[same].timesteps if t >= end)
    PLANS[number] = replace(PLANS[same], timesteps=ending, passes=4)
PLANS |= {n: replace(PLANS[n - 8], mirrored=3) for n in (26, 27, 28)}
PLANS[29] = replace(PLANS[4], mirrored=39)
NUMBERED_MODELS = {
    1: (bytes.fromhex("bc6636"), 4),
    2: (bytes.fromhex("fbfe52"), 3),
    3: (bytes.fromhex("bc6636"), 5),
    4: (bytes.fromhex("fbfe52"), 6),
    5: (bytes.fromhex("946956"), 4),
    6: (bytes.fromhex("946956"), 5),
    7: (bytes.fromhex("41dcd2"), 4),
    8: (bytes.fromhex("41dcd2"), 5),
    9: (bytes.fromhex("fbfe52"), 8),
    10: (bytes.fromhex("fbfe52"), 9),
    11: (bytes.fromhex("bffe67"), 12),
    12: (bytes.fromhex("bffe67"), 5),
    13: (bytes.fromhex("fbfe52"), 14),
    14: (bytes.fromhex("fbfe52"), 15),
    **{number: (bytes.fromhex("56b59e"), number + 3) for number in range(15, 21)},
    **{number: (bytes.fromhex("741d91"), number - 3) for number in range(21, 27)},
    **{number: (bytes.fromhex("fd72fb"), number - 9) for number in range(27, 33)},
    33: (bytes.fromhex("aac467"), 12),
    34: (bytes.fromhex("aac467"), 5),
    **{number: (bytes.fromhex("fd72fb"), number - 9) for number in range(35, 38)},
    38: (bytes.fromhex("f44e74"), 29),
    39: (bytes.fromhex("f44e74"), 5),
}
"""Fingerprint and own plan (§8)."""


# ---- 2. Header --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    width: int
    height: int
    fingerprint: bytes
    plan: Plan
    seed: int
    grey: bool
    planes: bool
    float_arithmetic: bool
    chunks: bool
    trailer: bool
    lattice: int
    own: bytes
    """The header itself, without its check."""


def read_header(content: bytes) -> tuple[Header, int]:
    """(header, place after it)."""
    place = 0

    def take(count: int = 1) -> bytes:
        nonlocal place
        place += count
        if place > len(content):
            raise EndOfFileError
        return content[place - count : place]

    def number(low: int, high: int) -> int:
        nonlocal place
        value, place = varint(content, place)
        if not low <= value <= high:
            raise RefusedError(f"a field of the header is {value}")
        return value

    try:
        if take() != b"\xde":
            raise RefusedError("no .ddc file of version 8")
        flags, size = divmod(take()[0], 16)
        options = take()[0] if flags & 2 else 0
        grey, planes = bool(flags & 1), bool(options & 64)
        if flags & 12 or (planes and not grey):
            raise RefusedError("a flag that must be 0")
        width = height = 8 * size
        if size in (0, 15):
            width = height = number(1, 1 << 20)
        if size == 0:
            height = number(1, 1 << 20)
        if width * height > 1 << 28:
            raise RefusedError("too many pixels")
        model = take()[0]
        if model not in {0, *NUMBERED_MODELS}:
            raise RefusedError(f"model number {model}")
        fingerprint, own_plan = NUMBERED_MODELS[model] if model else (take(3), 0)
        plan_number = take()[0] if options & 1 else own_plan
        if plan_number == 255:
            steps, eta, grouped = take(3)
            t = [number(1, 1000)]
            for _ in range(steps):
                t.append(t[-1] - number(1, 1000))
            if not (steps and eta >= 64 and 1 <= grouped <= steps and t[-1] == 1):
                raise RefusedError("an impossible plan")
            plan = Plan(tuple(t), eta, grouped)
        elif plan_number in PLANS:
            plan = PLANS[plan_number]
        else:
            raise RefusedError(f"plan number {plan_number}")
        seed = number(0, 2**32 - 1) if options & 2 else 0
        lattice = take()[0] if options & 128 else 0
        if options & 128 and (lattice not in LATTICES or grey or width * height <= 4096):
            raise RefusedError(f"lattice {lattice}")
        if options & 8:
            take(number(1, 255)).decode()
        own, check = content[:place], crc8(content[:place] + (fingerprint if model else b""))
        if width * height > 4096 and take()[0] != check:
            raise RefusedError("the header's check does not match")
    except (EndOfFileError, UnicodeDecodeError) as e:
        raise RefusedError("the header is cut or damaged") from e
    booleans = (bool(options & bit) for bit in (4, 16, 32))
    what = Header(width, height, fingerprint, plan, seed, grey, planes, *booleans, lattice, own)
    return what, place


# ---- 5. Derived keys and hashing --------------------------------------------------------------

WORD = 0xFFFFFFFF


def mix(x: Any) -> Any:
    """Of a Python integer or an array of uint64, all below 2³²."""
    x ^= x >> 16
    x = x * 0x7FEB352D & WORD
    x ^= x >> 15
    x = x * 0x846CA68B & WORD
    return x ^ x >> 16


def key(*parts: int) -> int:
    k = 0
    for p in parts:
        k = mix((k ^ p) + 0x9E3779B9 & WORD)
    return k


def words(k: int, n: int) -> Array:
    return mix(np.arange(n, dtype=np.uint64) * 0x9E3779B9 + k & WORD)


def byte_sum(w: Array) -> Array:
    """bytes(w), int64."""
    total = (w & 255) + (w >> 8 & 255) + (w >> 16 & 255) + (w >> 24)
    return total.astype(np.int64) - 510


def normal(k: int, n: int) -> Array:
    w = byte_sum(words(k, 2 * n))
    return (w[:n] + w[n:]) * 20547966 + (1 << 19) >> 20


def permutation(k: int, n: int) -> Array:
    return np.argsort(words(k, n), kind="stable")


# ---- 7. Schedule and reverse step -------------------------------------------------------------


@dataclass(frozen=True)
class Reverse:
    """The constants of a step a → b, rounded to binary64."""

    coef_x0: float
    coef_xa: float
    variance: float
    gain_index: int


class Schedule:
    def __init__(self, timesteps: int, beta_start: float, beta_end: float) -> None:
        delta = (beta_end - beta_start) / (timesteps - 1)
        betas = [beta_start + (t - 1) * delta for t in range(1, timesteps)] + [beta_end]
        self.exact = [Decimal(1)]
        with localcontext(prec=40):
            for beta in betas:
                self.exact.append(self.exact[-1] * (1 - Decimal(beta)))

    def alphas_cumprod(self, t: int) -> float:
        return float(self.exact[t])

    def rest(self, t: int) -> float:
        with localcontext(prec=40):
            return float(1 - self.exact[t])

    def step(self, a: int, b: int) -> Reverse:
        with localcontext(prec=40):
            abar_a, abar_b = self.exact[a], self.exact[b]
            r_a, r_b = 1 - abar_a, 1 - abar_b
            alpha = abar_a / abar_b
            beta = 1 - alpha
            gain = 8 * (abar_b / abar_a * beta / r_b).ln() / Decimal(2).ln()
            return Reverse(
                float(abar_b.sqrt() * beta / r_a),
                float(alpha.sqrt() * r_b / r_a),
                float(r_b / r_a * beta),
                round(gain),
            )

    def sigma_index(self, t: int) -> int:
        """round(8 log2 σ_t) of §11."""
        with localcontext(prec=40):
            sigma2 = (1 - self.exact[t]) / self.exact[t] * Decimal("127.5") ** 2
            return round(4 * sigma2.ln() / Decimal(2).ln())

    def predict_x0(self, x: Array, t: int, eps: Array, grey: bool) -> Array:
        top = x / 65536 - math.sqrt(self.rest(t)) * (eps / 16384)
        x_0 = np.clip(top / math.sqrt(self.alphas_cumprod(t)), -4.0, 4.0)
        if grey:
            x_0 = np.stack([(x_0[0] + x_0[1] + x_0[2]) / 3.0] * 3)
        return x_0


def to_levels(x_0: Array) -> Array:
    return np.clip(np.rint((x_0 + 1.0) * 127.5), 0, 255).astype(np.int64)


# ---- 8. The network ---------------------------------------------------------------------------

SIGNED = {"stem", "to1", "to2", "from2", "from1"}
TYPES = {"F32": ("<f4", "torch.float32"), "I16": ("<i2", "torch.int16")}
TYPES |= {"I64": ("<i8", "torch.int64")}
F32 = np.float32


@dataclass(frozen=True)
class Output:
    """eps: [3, H, W]; coef_index: [192, ⌈H/8⌉, ⌈W/8⌉]; scale_index, coefs: [3, H, W]; features
    [c₀, 4 ⌈H/8⌉, 4 ⌈W/8⌉]; int64."""

    eps: Array
    coef_index: Array
    scale_index: Array
    coefs: Array
    features: Array


def read_safetensors(path: Path) -> dict[str, tuple[str, Array]]:
    """Name → (type, values)."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    tensors = {}
    for name, entry in json.loads(content[8 : 8 + size]).items():
        if name != "__metadata__":
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            values = np.frombuffer(content[start:end], TYPES[entry["dtype"]][0])
            tensors[name] = entry["dtype"], values.reshape(entry["shape"])
    return tensors


def unshuffle(x: Array, n: int) -> Array:
    """n×n pixels become channels, [C, H, W] → [C·n², H/n, W/n]."""
    c, h, w = x.shape
    return x.reshape(c, h // n, n, w // n, n).transpose(0, 2, 4, 1, 3).reshape(-1, h // n, w // n)


def shuffle(x: Array, n: int) -> Array:
    c, h, w = x.shape
    return x.reshape(c // n**2, n, n, h, w).transpose(0, 3, 1, 4, 2).reshape(-1, h * n, w * n)


def convolve(a: Array, weight: Array) -> Array:
    """int64 [in, H, W] with weight [out, in, k, k]; zeros beyond the edges."""
    k, (_, h, w) = weight.shape[2], a.shape
    padded = np.pad(a, [(0, 0), (k // 2, k // 2), (k // 2, k // 2)])
    total = np.zeros((len(weight), h * w), np.int64)
    for y, x in product(range(k), repeat=2):
        total += weight[:, :, y, x] @ padded[:, y : y + h, x : x + w].reshape(len(a), -1)
    return total.reshape(-1, h, w)


def limited_residual(r: Array) -> Array:
    return np.clip(r, -(1 << 22), 1 << 22)


class Network:
    """A model folder: its schedule and its networks in integers."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        typed = read_safetensors(folder / "exact.safetensors")
        self.schedule = Schedule(*(config["schedule"][k] for k in SCHEDULE))
        self.fingerprint = fingerprint(config, typed)
        tensors = {name: values for name, (_, values) in typed.items()}
        names = [name for name in tensors if name.partition(".")[0] == "neighbours"]
        self._neighbours = {name: tensors.pop(name) for name in names}
        self.floors: list[int] = config.get("experts", [1])
        self.members = [
            Integers(config["network"]["blocks"], own_tensors(tensors, k, len(self.floors)))
            for k in range(len(self.floors))
        ]

    def first_weights(self, plan: Plan) -> Array:
        """n of §11 for the first strip, [passes, 3, 11]."""
        if plan.passes == 4:
            none = np.zeros((4, 3, 11), np.int64)
            return self._neighbours.get(f"neighbours.{plan.timesteps[-1]}", none)
        n = self._neighbours.get("neighbours", np.zeros((3, 6), np.int64))
        return np.pad(n[None], [(1, 0), (0, 0), (0, 5)])

    def at(self, x: Array, t: int) -> Output:
        """Of a state whose sides are multiples of 8, by the network whose timestep it is."""
        return next(m for m, low in zip(self.members, self.floors, strict=True) if t >= low)(x, t)

    def evaluate(
        self, x: Array, t: int, both: bool = False, adaptation: Adaptation | None = None
    ) -> Output:
        """Of a state int64 [3, H, W]; sides are extended to multiples of 8 and cut off again.

        With ``both`` it is the mean with what the network says of the mirror image.
        """
        _, h, w = x.shape
        rows, columns = (mirrored(n) for n in (h, w))
        x = x[:, rows][:, :, columns]
        out = self.at(x, t)
        features = out.features
        if adaptation is not None:
            out = replace(out, eps=adaptation.corrected(out, t, 1 + both))
        if both:
            other = self.at(x[:, :, ::-1], t)
            pairs = zip(vars(out).items(), vars(other).values(), strict=True)
            out = Output(**{name: (u + v[:, :, ::-1]) >> 1 for (name, u), v in pairs})
        own = np.s_[:, :h, :w]
        return Output(out.eps[own], out.coef_index, out.scale_index[own], out.coefs[own], features)


def own_tensors(tensors: dict[str, Array], number: int, count: int) -> dict[str, Array]:
    """Those of one of several networks, by the names that a single one's have."""
    start = "" if count == 1 else f"{number}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


class Integers:
    """One network (§8.3)."""

    def __init__(self, blocks: list[int], constants: dict[str, Array]) -> None:
        self.blocks, self.constants = blocks, constants
        self.weights = {
            name.removesuffix(".weight"): values.astype(np.int64)
            for name, values in constants.items()
            if name.endswith(".weight")
        }
        self.rows = {int(t): row for row, t in enumerate(constants["timesteps"])}

    def __call__(self, x: Array, t: int) -> Output:
        row = self.rows[t]

        def constant(name: str, kind: type = F32) -> Array:
            return self.constants[name][row].astype(kind)[:, None, None]

        def quantized(v: Array, name: str) -> Array:
            v = v.astype(F32) * constant(f"{name}.in_mul") + constant(f"{name}.in_add")
            if name in SIGNED:
                return np.clip(np.rint(v), -2047, 2047).astype(np.int64)
            v = np.where(v > 0, v, v * F32(0.25))
            return np.clip(np.rint(v), -512, 2047).astype(np.int64)

        def conv(v: Array, name: str) -> Array:
            return convolve(quantized(v, name), self.weights[name])

        def step(v: Array, name: str) -> Array:
            y = conv(v, name).astype(F32)
            y = y * constant(f"{name}.out_mul") + constant(f"{name}.out_add")
            return np.rint(y).astype(np.int64)

        def stage(r: Array, name: str, count: int) -> Array:
            for k in range(count):
                y = conv(r, f"{name}.{k}.conv_in")
                r = limited_residual(r + step(y, f"{name}.{k}.conv_out"))
            return r

        def real(sums: Array, name: str) -> Array:
            y = sums.astype(np.float64) * constant(f"{name}.out_mul", np.float64)
            return y + constant(f"{name}.out_add", np.float64)

        n0, n1, n2 = self.blocks
        inputs = unshuffle(np.concatenate([x, x - local_mean(x)]), 2)
        r0 = stage(limited_residual(step(inputs, "stem")), "down0", n0)
        r1 = stage(limited_residual(step(unshuffle(r0, 2), "to1")), "down1", n1)
        r2 = stage(limited_residual(step(unshuffle(r1, 2), "to2")), "middle", n2)
        r1 = stage(limited_residual(r1 + shuffle(step(r2, "from2"), 2)), "up1", n1)
        r0 = stage(limited_residual(r0 + shuffle(step(r1, "from1"), 2)), "up0", n0)

        features = quantized(r0, "eps_head")
        out = real(convolve(features, self.weights["eps_head"]), "eps_head")
        pixel = shuffle(real(convolve(features, self.weights["pixel_head"]), "pixel_head"), 2)
        local = unshuffle(convolve(features, self.weights["coef_local"]), 4)
        hidden = conv(np.concatenate([local, r2]), "coef_hidden")
        coef = real(conv(hidden, "coef_head"), "coef_head")

        skip, gain = (float(v) for v in self.constants["eps"][row])
        eps = x.astype(np.float64) * skip + shuffle(out, 2) * gain
        octaves = 8 * (1 / math.log(2))
        rounded = (
            np.clip(np.rint(eps * 16384), -(1 << 30), 1 << 30),
            np.rint(np.clip(coef, -14.0, 4.0) * octaves),
            np.rint(np.clip(pixel[:3], -3.0, 6.0) * (octaves / 2)),
            np.rint(np.clip(pixel[3:], -2.0, 2.0) * 64),
            np.rint(r0 / 256),
        )
        return Output(*(v.astype(np.int64) for v in rounded))


SCHEDULE = ("timesteps", "beta_start", "beta_end")


class Adaptation:
    """§8.4: what the steps of a picture teach of the errors of ε̂."""

    def __init__(self, rule: int, height: int, width: int) -> None:
        cells, most, strides = (height // 2, width // 2), 1 << 18, [1, 2, 4]
        self.sizes, self.around, self.learnt_from, self.corrected_from = False, [(0, 0)], 1000, 1000
        self.own_ridge = self.other_ridge = 1e4
        if rule == 2:
            most, strides = 1 << 17, [1, 2, 4, 8]
            self.sizes = True
            self.around += [(-1, 0), (1, 0), (0, -1), (0, 1)]
            self.learnt_from, self.corrected_from = 180, 70
            self.own_ridge, self.other_ridge = 7e3, 3e4
        every = next((p for p in strides if math.prod(cells) <= p * p * most), strides[-1])
        self.learnt = np.s_[:, : cells[0] : every, : cells[1] : every]
        self.w: Array | None = None

    def corrected(self, out: Output, t: int, times: int) -> Array:
        if self.w is None or t > self.corrected_from:
            return out.eps
        phi = self._phi(out.features)
        sums = (self.w.T @ phi.reshape(len(phi), -1)).reshape(12, *phi.shape[1:])
        return np.clip(out.eps - ((times * shuffle(sums, 2) + 512) >> 10), -(1 << 30), 1 << 30)

    def _phi(self, features: Array) -> Array:
        _, h, w = features.shape
        rows, columns = np.arange(h), np.arange(w)
        parts = [
            features[:, np.clip(rows + y, 0, h - 1)][:, :, np.clip(columns + x, 0, w - 1)]
            for y, x in self.around
        ]
        parts += [np.abs(features)] * self.sizes
        return np.concatenate([*parts, np.full_like(features[:1], 128)])

    def learn(self, features: Array, z: Array, g: float, a: int, b: int) -> None:
        """z: float64 [3, H, W]; a, b: timesteps of the step."""
        if a > self.learnt_from:
            return
        own, phi = len(features), self._phi(features)[self.learnt]
        psi = np.clip(np.rint(z * 256), -32767, 32767).astype(np.int64)
        psi = unshuffle(psi[:, : psi.shape[1] // 2 * 2, : psi.shape[2] // 2 * 2], 2)[self.learnt]
        count = math.prod(phi.shape[1:])
        phi, psi = phi.reshape(len(phi), count), psi.reshape(12, count)
        if self.w is None:
            self.w = np.zeros((len(phi), 12), np.int64)
            self.a, self.b = np.zeros((len(phi), len(phi))), np.zeros((len(phi), 12))
        p, q = (phi @ phi.T).astype(np.float64), (phi @ psi.T).astype(np.float64)
        more, told = p * (g * g), q * (g / 256)
        for k in range(len(phi)):
            told += more[:, k : k + 1] * (self.w[k] / (1 << 24))
        self.a, self.b = self.a / 2 + more, self.b / 2 + told
        if b > self.corrected_from:
            return
        m, x = self.a.copy(), self.b.copy()
        for k in range(len(phi)):
            ridge = self.own_ridge if k < own or k == len(phi) - 1 else self.other_ridge
            m[k, k] += p[k, k] * (ridge / count) + 1.0
        for j in range(len(m)):
            for i in range(j + 1, len(m)):
                quotient = m[i, j] / m[j, j]
                m[i, j + 1 :] -= quotient * m[j, j + 1 :]
                x[i] -= quotient * x[j]
        for j in reversed(range(len(m))):
            x[j] = x[j] / m[j, j]
            for i in range(j):
                x[i] -= m[i, j] * x[j]
        self.w = np.clip(np.rint(x * (1 << 24)), -(1 << 20), 1 << 20).astype(np.int64)


def mirrored(n: int) -> Array:
    """Which rows the extended state has."""
    m = np.arange(-(-n // 8) * 8) % (2 * n)
    return np.where(m < n, m, 2 * n - 1 - m)


def local_mean(x: Array) -> Array:
    """The mean of each value and those of its eight neighbours that exist, rounded."""

    def sums(v: Array) -> Array:
        h, w = v.shape[1:]
        padded = np.pad(v, [(0, 0), (1, 1), (1, 1)])
        return sum(padded[:, y : y + h, c : c + w] for y, c in product(range(3), repeat=2))

    quotient = sums(x).astype(F32) / sums(np.ones_like(x)).astype(F32)
    return np.rint(quotient).astype(np.int64)


def fingerprint(config: dict[str, Any], tensors: dict[str, tuple[str, Array]]) -> bytes:
    network = {k: config["network"][k] for k in ("channels", "blocks", "embedding")}
    schedule = {k: config["schedule"][k] for k in SCHEDULE}
    settings = {"network": network, "schedule": schedule}
    if len(config.get("experts", [1])) > 1:
        settings["experts"] = config["experts"]
    digest = hashlib.sha256()
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        kind, values = tensors[name]
        digest.update(f"{name} {TYPES[kind][1]} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.digest()[:3]


# ---- 9. Coefficients --------------------------------------------------------------------------

COLOUR = ((1 / math.sqrt(3),) * 3, (1 / math.sqrt(2), 0.0, -1 / math.sqrt(2)))
COLOUR += ((1 / math.sqrt(6), -2 / math.sqrt(6), 1 / math.sqrt(6)),)


@cache
def block_matrix(h: int, w: int) -> Array:
    """[3hw, 3hw], rows (c, v, u), columns (p, y, x), in 2⁻¹⁴, int64."""

    def dct(n: int) -> Array:
        k, x = np.mgrid[:n, :n]
        d = math.sqrt(2 / n) * np.cos(math.pi * (2 * x + 1) * k / (2 * n))
        d[0] /= math.sqrt(2)
        return d

    entries = np.einsum("cp,vy,ux->cvupyx", np.array(COLOUR), dct(h), dct(w))
    return np.rint(entries.reshape(3 * h * w, 3 * h * w) * 16384).astype(np.int64)


@dataclass(frozen=True)
class Block:
    """A block's place, its row and column among the blocks, and that of its coefficients."""

    top: int
    left: int
    height: int
    width: int
    row: int
    column: int
    first: int

    @property
    def pixels(self) -> tuple[slice, ...]:
        rows = slice(self.top, self.top + self.height)
        return slice(None), rows, slice(self.left, self.left + self.width)

    @property
    def own(self) -> slice:
        return slice(self.first, self.first + 3 * self.height * self.width)

    @property
    def channels(self) -> Array:
        """Of the network's v̂, for each coefficient."""
        c, v, u = np.mgrid[:3, : self.height, : self.width]
        return (64 * c + 8 * (8 * v // self.height) + 8 * u // self.width).ravel()


@cache
def blocks(height: int, width: int) -> list[Block]:
    """All blocks in the order of their coefficients."""
    found: list[Block] = []
    first = 0
    for bottom, right in product((False, True), repeat=2):
        rows = [height // 8] if bottom else range(height // 8)
        columns = [width // 8] if right else range(width // 8)
        h = height % 8 if bottom else 8
        w = width % 8 if right else 8
        if h and w:
            for i, j in product(rows, columns):
                found.append(Block(8 * i, 8 * j, h, w, i, j, first))
                first += 3 * h * w
    return found


@cache
def segments(height: int, width: int) -> list[Array]:
    """The coefficients of each segment."""
    n_rows, n_columns = -(-height // 8), -(-width // 8)
    m_rows, m_columns = -(-n_rows // 8), -(-n_columns // 8)
    members: list[list[Array]] = [[] for _ in range(m_rows * m_columns)]
    for block in blocks(height, width):
        i, j = block.row * m_rows // n_rows, block.column * m_columns // n_columns
        members[i * m_columns + j].append(np.arange(block.own.start, block.own.stop))
    return [np.concatenate(part) for part in members]


# ---- 10. The code of a step -------------------------------------------------------------------


@cache
def tables() -> tuple[Array, Array]:
    """rate and scale for s = −96 … 96."""
    rate, scale = [], []
    with localcontext(prec=40):
        two = Decimal(2)
        for s in range(-96, 97):
            total = 1 + two ** (Decimal(s) / 8)
            rate.append(round((1 << 16) * total.ln() / two.ln() / 2))
            scale.append(round((1 << 13) * total.sqrt()))
    return np.array(rate, np.int64), np.array(scale, np.int64)


@dataclass(frozen=True)
class Segment:
    """n coefficients in coded order: limited indices, which are muted, the segment's key."""

    s: Array
    mute: Array
    key: int
    eta: int

    def scaled(self, j: int) -> tuple[Array, Array, int]:
        """(s', R, budget)."""
        s = np.clip(self.s + 2 * j, -96, 96)
        rate = np.where((s >= -64) & ~self.mute, tables()[0][s + 96], 0)
        return s, rate, int(rate.sum()) * self.eta // 128 >> 16


@dataclass(frozen=True)
class Received:
    """y in coded order, and where it is certain; whether all of the code was there."""

    y: Array
    certain: Array
    complete: bool


def read_scale(bits: Bits) -> tuple[int, bool]:
    """(j, whether there are escapes)."""
    if bits.number(1):
        return 0, False
    if bits.number(1):
        return 1, False
    escapes = bits.number(1) == 0
    j = 2 + bits.signed_gamma()
    if not -24 <= j <= 48:
        raise RefusedError(f"a segment's scale is {j}")
    return j, escapes


LEVELS = [-264, -167, -125, -96, -72, -50, -29, -11, 11, 29, 50, 72, 96, 125, 167, 264]


def run_values(state: int, keys: list[int]) -> list[int]:
    """g of the coefficients of one run, whose keys these are."""
    words = [mix((state | 1) ^ k) for k in keys[::8]]
    shifts = [0, 8, 16, 24, 4, 12, 20, 28]
    nibbles = [words[i // 8] >> shifts[i % 8] & 15 for i in range(len(keys))]
    return [LEVELS[n] if state & 1 else -LEVELS[n] for n in nibbles]


def receive_segment(content: bytes, place: int, segment: Segment) -> tuple[Received, int]:
    """(y, place after the code that begins at ``place``)."""
    n = len(segment.s)
    fill = normal(key(segment.key, 4), n)
    if segment.scaled(0)[2] < 4:
        return Received(fill, np.ones(n, bool), True), place
    bits, corrections = Bits(content[place:]), np.zeros(n, np.int64)
    nothing = Received(np.zeros(n, np.int64), np.zeros(n, bool), False), len(content)
    try:
        j, has_escapes = read_scale(bits)
        if has_escapes:
            bits.align()
            m, start = varint(bits.content, bits.place // 8)
            if m > 8 * (n + 2):
                raise RefusedError("corrections that are too long")
            if start + m > len(bits.content):
                return nothing
            corrections = read_escapes(bits.content[start : start + m], n)
            bits.place = 8 * (start + m)
    except EndOfFileError:
        return nothing
    s, rate, budget = segment.scaled(j)
    head, total = bits.place, int(rate.sum())
    size = 8 * max(-(-head // 8), (head + (budget if total else 0) + 4) // 8)
    ends = np.zeros(n, np.int64)
    if total:
        ends = np.minimum(size - head, 7 + np.cumsum(rate) * (size - head) // total)
    present = min(size, 8 * len(bits.content)) - head
    whole = present == size - head

    string = key(segment.key, 3) << present | bits.number(present)
    use = np.flatnonzero((rate > 0) & (ends <= present))
    coded = np.flatnonzero(rate)[: len(use)]
    keys = words(key(segment.key, 2), n)[coded].tolist()
    g: list[int] = []
    for end, run in groupby(coded.tolist(), lambda i: int(ends[i])):
        stop = len(g) + len(list(run))
        g += run_values(string >> present - end & WORD, keys[len(g) : stop])
    _, scale = tables()
    y = fill if whole else np.zeros(n, np.int64)
    y[use] = np.array(g, np.int64) * scale[s[use] + 96] + 128 >> 8
    y += corrections * scale[s + 96]
    certain = np.full(n, whole)
    certain[use] = True
    return Received(y, certain, whole), place + (size // 8 if whole else len(bits.content))


def read_escapes(message: bytes, n: int) -> Array:
    coder = RangeDecoder(message)
    gamma = categorical(np.exp2(-np.arange(21.0)))

    def gamma_number() -> int:
        z = coder.symbol(gamma)
        return (1 << z) + coder.uniform(1 << z) if z else 1

    corrections = np.zeros(n, np.int64)
    count, start = gamma_number(), 0
    if count > n:
        raise RefusedError("too many corrections")
    for left in range(count, 0, -1):
        q = n - start - left + 1
        place = coder.uniform(max(2, q))
        if place >= q:
            raise RefusedError("a correction of no coefficient")
        magnitude = gamma_number()
        corrections[start + place] = -magnitude if coder.uniform(2) else magnitude
        start += place + 1
    return corrections


ONE = 1 << 24


@dataclass(frozen=True)
class Categorical:
    """L_0 … L_n and c_0 … c_{n−1}."""

    bounds: list[int]
    counts: list[int]


def categorical(weights: Array) -> Categorical:
    q = (ONE - len(weights)) / math.fsum(weights)
    c = [math.floor(w * q) + 1 for w in weights]
    c[int(np.argmax(weights))] += ONE - sum(c)
    return of_counts(c)


def of_counts(c: list[int]) -> Categorical:
    n, bounds, total = len(c), [], 0
    for i in range(n):
        bounds.append(i + (total * (ONE - n) >> 24))
        total += c[i]
    return Categorical([*bounds, ONE], c)


class RangeDecoder:
    def __init__(self, message: bytes) -> None:
        self.message, self.place = message, 8
        self.low, self.range = 0, (1 << 64) - 1
        self.information = 0.0  # bits of the categorical symbols so far
        self.point = int.from_bytes(message[:8].ljust(8, b"\0"), "big")

    def _quantile(self) -> int:
        quantile = ((self.point - self.low) % (1 << 64)) // (self.range >> 24)
        if quantile >= ONE:
            raise RefusedError("an impossible symbol")
        return quantile

    def _take(self, left: int, right: int) -> None:
        scale = self.range >> 24
        self.low = (self.low + scale * left) % (1 << 64)
        self.range = scale * (right - left)
        if self.range < 1 << 32:
            self.low = (self.low << 32) % (1 << 64)
            self.range <<= 32
            more = self.message[self.place : self.place + 4].ljust(4, b"\0")
            self.point = (self.point << 32) % (1 << 64) + int.from_bytes(more, "big")
            self.place += 4

    def symbol(self, model: Categorical) -> int:
        i = bisect_right(model.bounds, self._quantile()) - 1
        self._take(model.bounds[i], model.bounds[i + 1])
        self.information += 24 - math.log2(model.counts[i])
        return i

    def uniform(self, n: int) -> int:
        width = ONE // n
        i = min(self._quantile() // width, n - 1)
        self._take(i * width, (i + 1) * width if i < n - 1 else ONE)
        return i


# ---- 11. The final layer, 12. Grey pictures ---------------------------------------------------


@cache
def normal_table() -> Array:
    """Φ_0 … Φ_6144."""
    with localcontext(prec=25):
        two_pi = 2 * Decimal("3.14159265358979323846264338327950288")

        def density(x: Decimal) -> Decimal:
            return (-x * x / 2).exp() / two_pi.sqrt()

        above, left = [Decimal("0.5")], density(Decimal(0))
        for i in range(3072):
            middle, right = (density(Decimal(2 * i + k) / 512) for k in (1, 2))
            above.append(above[-1] + (left + 4 * middle + right) / 1536)
            left = right
        below = [1 - p for p in reversed(above[1:])]
    return np.array([float(p) for p in below + above])


def distribution_function(z: Array) -> Array:
    p = np.clip((z + 12) * 256, 0, 6143)
    i = np.floor(p).astype(np.int64)
    table = normal_table()
    return table[i] + (p - i) * (table[i + 1] - table[i])


@cache
def width_of(scale: int) -> float:
    """S."""
    with localcontext(prec=40):
        return round(Decimal(2) ** (Decimal(scale) / 8) * (1 << 40)) / (1 << 40)


@cache
def pixel_model(scale: int, phase: int, floor: int | None) -> Categorical:
    """Of a pixel's symbols; floor: only near an edge."""
    j = np.arange(512)
    c = distribution_function((j - 255.5 - phase / 16) / width_of(scale))
    c[0], c[511] = 0.0, 1.0
    if floor is not None:
        c[j <= 255 - floor], c[j >= 511 - floor] = 0.0, 1.0
    return categorical(np.maximum(np.diff(c), 0.0))


@dataclass
class Strip:
    """Values of a strip: mean [3, h, w] in 1/16, scale, coefs [3, h, w]; planes R, G, B."""

    mean: Array
    scale: Array
    coefs: Array


def divide(a: Array, n: int) -> Array:
    """a / n, halves rounded upwards."""
    return (a + n // 2) // n


class Lessons:
    """§11.1: what the strips of a picture teach of the next."""

    def __init__(self, first: Array, learns: bool) -> None:
        self.first, self.n, self.learns = first, first.copy(), learns
        places = first.shape[:2]
        self.e = np.zeros((*places, 41), np.int64)
        self.a, self.b = np.zeros((*places, 11, 11)), np.zeros((*places, 11))
        self.count, self.v = np.zeros(places), np.zeros((3, *places, 41))
        self.colours: Colours | None = None

    def learn(self, k: int, c: int, z: Array, missing: Array, rho: Array, scale: Array) -> None:
        """From channel c of pass k: z [11, pixels], the others [pixels], in reading order."""
        if not self.learns or not z.shape[1]:
            return
        own = k, c
        missing, count = np.clip(missing, -96, 96), z.shape[1]
        self.a[own] = self.a[own] / 2 + (z @ z.T)
        self.b[own] = self.b[own] / 2 + z @ missing
        self.count[own] = self.count[own] / 2 + count
        self.v[:, *own] /= 2
        for bin in range(41):
            here = (scale + 24) // 2 == bin
            with localcontext(prec=40):
                squares = [
                    int((256 * Decimal(2) ** (Decimal(int(s)) / 4)).to_integral_value())
                    for s in (2 * bin - 24, 2 * bin - 23)
                ]
            expected = sum(
                int(np.count_nonzero(scale == 2 * bin - 24 + i)) * squares[i] for i in (0, 1)
            )
            values = (int(np.sum(rho[here] ** 2)), expected, int(np.count_nonzero(here)))
            self.v[:, *own, bin] += values
        m, x = self.a[own].copy(), self.b[own].copy()
        for j in range(11):
            ridge = m[j, j] * (1000 / self.count[own]) + 1.0
            x[j] += ridge * (self.first[own][j] / 1024)
            m[j, j] += ridge
        for j in range(11):
            for i in range(j + 1, 11):
                quotient = m[i, j] / m[j, j]
                m[i, j + 1 :] -= quotient * m[j, j + 1 :]
                x[i] -= quotient * x[j]
        for j in reversed(range(11)):
            x[j] = x[j] / m[j, j]
            x[:j] -= m[:j, j] * x[j]
        self.n[own] = np.clip(np.rint(x * 1024), -4096, 4096).astype(np.int64)
        with localcontext(prec=40):
            bounds = [float(Decimal(2) ** (Decimal(2 * j - 1) / 8)) for j in range(-3, 9)]
        for bin in range(41):
            square, expected, pixels = (float(v) for v in self.v[:, *own, bin])
            ratio = (3 * square - pixels * 64) / (3 * expected) if expected else 0.0
            ratio = (ratio * pixels + 256) / (pixels + 256)
            self.e[own][bin] = sum(ratio > bound for bound in bounds) - 4


def decode_strip(
    message: bytes, strip: Strip, grey: bool, lessons: Lessons, whole: bool
) -> tuple[Array, Array]:
    """(levels int64, which of them are certain), both [3, h, w]."""
    mean = strip.mean.copy()
    _, h, w = mean.shape
    if grey:
        mean[1] = divide(mean.sum(axis=0), 3)
    coder = RangeDecoder(message)
    limit = math.inf if whole else 8 * len(message) - 40
    levels, certain = np.zeros_like(mean), np.zeros(mean.shape, bool)
    passes, learnt = len(lessons.n), []
    row, column = np.indices((h, w)) % 2
    order = row ^ column if passes == 2 else np.array([[0, 2], [3, 1]])[row, column]
    largest = 48 if passes == 2 else 96
    rho = np.zeros_like(mean)
    for k in range(passes):
        own = order == k
        r = np.pad(np.clip(rho, -largest, largest), [(0, 0), (1, 1), (1, 1)])
        above_below = r[:, :-2] + r[:, 2:]
        left_right = r[:, 1:-1, :-2] + r[:, 1:-1, 2:]
        diagonal = above_below[:, :, :-2] + above_below[:, :, 2:]
        around = np.concatenate([above_below[:, :, 1:-1], left_right, diagonal])[:, own]
        joint = None
        if lessons.colours is not None:
            joint = Joint(mean, strip, lessons, k, own, around)
        for c in [1] if grey else (1, 0, 2):
            here = np.clip(rho[[1, 0]][:, own], -largest, largest)
            z = np.concatenate([around, here])
            plain, scale = mean[c][own], strip.scale[c][own] - (6 if grey else 0)
            if c == 0:
                plain = plain + divide(strip.coefs[0] * rho[1], 64)[own]
            if c == 2:
                both = strip.coefs[1] * rho[1] + strip.coefs[2] * rho[0]
                plain = plain + divide(both, 64)[own]
            scale = np.clip(scale, -24, 56)
            corrected = plain + divide(lessons.n[k, c] @ z, 1024)
            wider = np.clip(scale + lessons.e[k, c][(scale + 24) // 2], -24, 56)
            if joint is None:
                found = decode_channel(coder, corrected, wider, limit)
            else:
                found = joint.decode_channel(coder, c, levels[:, own], limit)
            levels[c][own], certain[c][own] = found
            rho[c][own] = 16 * levels[c][own] - corrected
            learnt.append((k, c, z, 16 * levels[c][own] - plain, rho[c][own], scale))
        if lessons.colours is not None and certain[:, own].all():
            lessons.colours.look(levels[:, own])
    for lesson in learnt:
        lessons.learn(*lesson)
    if grey:
        levels[[0, 2]], certain[[0, 2]] = levels[1], certain[1]
    return levels, certain


def decode_channel(
    coder: RangeDecoder, mean: Array, scale: Array, limit: float
) -> tuple[Array, Array]:
    """(levels, certainty) of the pixels of a channel in a pass, given in reading order."""
    mean, scale = np.clip(mean, 0, 4095), np.clip(scale, -24, 56)
    models = []
    for m, s in zip(mean.tolist(), scale.tolist(), strict=True):
        floor, phase = divmod(m, 16)
        reach = min(64, math.floor(5 * width_of(s)) + 2)
        edge = floor < reach or floor > 255 - reach
        order = 257 * (16 * (s + 24) + phase) + (floor + 1 if edge else 0)
        models.append((order, s, phase, floor if edge else None))
    levels, certain = np.zeros(len(mean), np.int64), np.zeros(len(mean), bool)
    for i in sorted(range(len(mean)), key=lambda i: models[i][0]):
        if coder.information >= limit:
            break
        level = coder.symbol(pixel_model(*models[i][1:])) + int(mean[i]) // 16 - 255
        if not 0 <= level <= 255:
            raise RefusedError("an impossible level")
        levels[i], certain[i] = level, coder.information < limit
    return levels, certain


# ---- 11.2 Colours on a lattice ----------------------------------------------------------------

LATTICES = {
    1: ((313524, 615514, 119538), (-176932, -347356, 524288), (524288, -439026, -85262)),
    2: ((269262, 528618, 102662), (-155423, -305128, 460551), (460551, -385654, -74897)),
    3: ((191455, 644067, 65019), (-105533, -355018, 460551), (460551, -418321, -42230)),
    4: ((230804, 453117, 87999), (-141361, -277521, 418882), (403542, -337916, -65626)),
}


class Colours:
    """Which colours a picture has, and what each of them weighs."""

    def __init__(self, lattice: int) -> None:
        self.matrix = np.array(LATTICES[lattice], np.int64)
        self.counts, self.heeded = np.zeros(32**3, np.int64), 0
        self.places = np.full(32**3, 256, np.int64)
        self.seen = np.zeros((256, 256, 256), bool)

    def place(self, r: Array, g: Array, b: Array) -> Array:
        found = np.zeros(np.broadcast(r, g, b).shape, np.int64)
        for k in self.matrix:
            found = found * 32 + (k[0] * r + k[1] * g + k[2] * b) % (1 << 20) // (1 << 15)
        return found

    def weights(self, r: Array, g: Array, b: Array) -> Array:
        """Of these colours; levels outside 0 … 255 stand for the nearest."""
        r, g, b = (np.clip(levels, 0, 255) for levels in (r, g, b))
        edge = (np.minimum(np.minimum(r, g), b) == 0) | (np.maximum(np.maximum(r, g), b) == 255)
        weight = np.where(edge, 256, self.places[self.place(r, g, b)])
        return np.where(self.seen[r, g, b], np.maximum(weight, 12 * 256), weight)

    def look(self, pixels: Array) -> None:
        """After a pass: levels [3, n]."""
        self.seen[tuple(pixels)] = True
        within = pixels[:, (pixels.min(axis=0) > 0) & (pixels.max(axis=0) < 255)]
        self.counts += np.bincount(self.place(*within), minlength=32**3)
        total = int(self.counts.sum())
        if 4 * total < 5 * self.heeded:
            return
        self.heeded = total
        around = self.counts.reshape((8, 4) * 3).sum(axis=(1, 3, 5), keepdims=True)
        a = 256 * 512 * (around + 1) // (total + 512)
        own = 32**3 * (256 * self.counts.reshape((8, 4) * 3) + a) // (total + 32**3)
        self.places = np.clip(own, 1, 64 * 256).reshape(-1)


def masses(mean: Array, scale: int, levels: Array) -> Array:
    """q of levels [..., m] under means [..., 1], in 2⁻²⁰; 0 for those not considered."""
    mean = np.clip(mean, 0, 4095)
    floor, phase = mean // 16, mean % 16
    width = width_of(scale)

    def below(level: Array) -> Array:
        edge = distribution_function((level - floor - 0.5 - phase / 16) / width)
        return np.rint(edge * (1 << 20)).astype(np.int64)

    low = np.where(levels <= 0, 0, below(levels))
    high = np.where(levels >= 255, 1 << 20, below(levels + 1))
    near = np.abs(levels - floor) <= math.floor(4 * width) + 2
    return (high - low) * (near & (levels >= 0) & (levels <= 255))


class Joint:
    """The pixels of a pass, whose channels are expected together."""

    def __init__(
        self, mean: Array, strip: Strip, lessons: Lessons, k: int, own: Array, around: Array
    ) -> None:
        self.mean, self.coefs = mean[:, own], strip.coefs[:, own]
        scale = np.clip(strip.scale[:, own], -24, 56)
        wider = [s + lessons.e[k, c][(s + 24) // 2] for c, s in enumerate(scale)]
        self.scale = np.clip(wider, -24, 16)
        self.told = lessons.n[k, :, :9] @ around
        self.n, self.largest = lessons.n[k, :, 9:], 48 if len(lessons.n) == 2 else 96
        assert lessons.colours is not None
        self.colours = lessons.colours

    def corrected(self, i: int, c: int, green: Array, red: Array) -> Array:
        """A channel's mean where G and R have these residuals."""
        k, mean = self.coefs[:, i], self.mean[c, i]
        if c == 0:
            mean = mean + divide(k[0] * green, 64)
        if c == 2:
            mean = mean + divide(k[1] * green + k[2] * red, 64)
        limits = -self.largest, self.largest
        own = self.n[c, 0] * np.clip(green, *limits) + self.n[c, 1] * np.clip(red, *limits)
        return mean + divide(self.told[c, i] + own, 1024)

    def window(self, c: int, i: int, mean: Array) -> Array:
        """Levels about means [...], [..., m], those outside 0 … 255 included."""
        reach = math.floor(4 * width_of(int(self.scale[c, i]))) + 2
        return np.clip(mean, 0, 4095)[..., None] // 16 + np.arange(-reach, reach + 1)

    def masses(self, c: int, i: int, mean: Array, levels: Array) -> Array:
        return masses(mean[..., None], int(self.scale[c, i]), levels)

    def blue(self, i: int, g: Array, r: Array) -> tuple[Array, Array]:
        """(levels of B, q w), [..., m], for levels [...] of G and R."""
        zero = np.zeros(1, np.int64)
        green = 16 * g - self.corrected(i, 1, zero, zero)
        red = 16 * r - self.corrected(i, 0, green, zero)
        mean = self.corrected(i, 2, green, red)
        b = self.window(2, i, mean)
        weights = self.colours.weights(r[..., None], g[..., None], b)
        return b, self.masses(2, i, mean, b) * weights

    def red(self, i: int, g: Array) -> tuple[Array, Array]:
        """(levels of R, q Σ q w), [..., m], for levels [...] of G."""
        zero = np.zeros(1, np.int64)
        mean = self.corrected(i, 0, 16 * g - self.corrected(i, 1, zero, zero), zero)
        r = self.window(0, i, mean)
        rest = self.blue(i, np.broadcast_to(g[..., None], r.shape), r)[1].sum(axis=-1)
        return r, self.masses(0, i, mean, r) * rest

    def green(self, i: int) -> tuple[Array, Array]:
        zero = np.zeros(1, np.int64)
        mean = self.corrected(i, 1, zero, zero)
        g = self.window(1, i, mean)
        return g, self.masses(1, i, mean, g) * (self.red(i, g)[1].sum(axis=-1) >> 16)

    def chances(self, i: int, c: int, levels: Array) -> Array:
        """In proportion to the probabilities of the levels of channel c, [256]."""
        g, r = levels[1, i : i + 1], levels[0, i : i + 1]
        if c == 1:
            own, chance = self.green(i)
        else:
            own, chance = self.red(i, g) if c == 0 else self.blue(i, g, r)
        inside, found = (own >= 0) & (own <= 255), np.zeros(256, np.int64)
        found[own[inside]] = chance[inside]
        return found

    def decode_channel(
        self, coder: RangeDecoder, c: int, levels: Array, limit: float
    ) -> tuple[Array, Array]:
        """(levels, certainty) of channel c in reading order; levels: of all, as far as known."""
        found, certain = np.zeros(levels.shape[1], np.int64), np.zeros(levels.shape[1], bool)
        for i in range(levels.shape[1]):
            if coder.information >= limit:
                break
            chances = [int(p) for p in self.chances(i, c, levels)]
            shift = max(0, sum(chances).bit_length() - 38)
            chances = [p >> shift for p in chances] if any(chances) else [1] * 256
            counts = [p * (ONE - 256) // sum(chances) + 1 for p in chances]
            counts[chances.index(max(chances))] += ONE - sum(counts)
            found[i] = coder.symbol(of_counts(counts))
            certain[i] = coder.information < limit
        return found, certain


# ---- 13. Transparency and metadata ------------------------------------------------------------

FRONT, TRAILER = {1, 2, 3}, {2, 4, 5}


def read_block(
    content: bytes, place: int, known: set[int], header: Header
) -> tuple[dict[int, bytes], int]:
    """({kind: content}, place after the block)."""
    found: dict[int, bytes] = {}
    plain = b""
    while True:
        if place >= len(content):
            raise EndOfFileError
        kind, start = content[place], place
        if kind == 0:
            break
        size, place = varint(content, place + 1)
        length, place = varint(content, place)
        if length > 1 << 32:
            raise RefusedError("an impossible chunk")
        place += 4
        payload = content[place : place + length]
        if len(payload) < length:
            raise EndOfFileError
        plain += content[start:place]
        place += length
        if kind in known:
            if kind in found:
                raise RefusedError("two chunks of a kind")
            found[kind] = unpack(kind, size, payload, header)
            if zlib.crc32(found[kind]) != int.from_bytes(plain[-4:], "big"):
                raise RefusedError("a chunk's check does not match")
    if place + 2 > len(content):
        raise EndOfFileError
    if crc8(plain + b"\0") != content[place + 1]:
        raise RefusedError("a block's check does not match")
    return found, place + 2


def unpack(kind: int, size: int, payload: bytes, header: Header) -> bytes:
    area = header.width * header.height
    if size != {1: area, 3: 1}.get(kind, size) or (kind in {2, 4, 5} and size > 1 << 24):
        raise RefusedError("a chunk of an impossible size")
    try:
        if kind == 1:
            content = unpack_alpha(payload, header.height, header.width)
        elif kind == 3:
            content = payload
        else:
            stream = zlib.decompressobj(-15)
            content = stream.decompress(payload, size + 1)
            if not stream.eof or stream.unused_data:
                raise RefusedError("a chunk that is not one stream")
    except (zlib.error, lzma.LZMAError, EOFError) as e:
        raise RefusedError(f"a chunk cannot be unpacked ({e})") from e
    if len(content) != size or (kind == 3 and not 2 <= content[0] <= 8):
        raise RefusedError("a chunk of impossible contents")
    return content


def unpack_alpha(payload: bytes, height: int, width: int) -> bytes:
    area, method, data = height * width, payload[:1], payload[1:]
    if method == b"\0" and len(data) == 1:
        return data * area
    if method not in {b"\1", b"\2"}:
        raise RefusedError("an impossible payload of alpha")
    stream = lzma.LZMADecompressor(
        lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 23}]
    )
    content = stream.decompress(data, area + 1)
    if len(content) != area or not stream.eof or stream.unused_data:
        raise RefusedError("alpha that is not one stream of its size")
    return content if method == b"\1" else undo_prediction(content, height, width)


def undo_prediction(residuals: bytes, height: int, width: int) -> bytes:
    v = np.zeros((height, width), np.uint8)
    for (y, x), rho in zip(product(range(height), range(width)), residuals, strict=True):
        left, up = int(v[y, x - 1]) if x else 0, int(v[y - 1, x]) if y else 0
        c = int(v[y - 1, x - 1])
        if x == 0 or y == 0:
            p = left + up  # one of them, or none
        elif c >= max(left, up):
            p = min(left, up)
        elif c <= min(left, up):
            p = max(left, up)
        else:
            p = left + up - c
        v[y, x] = (rho + p) % 256
    return v.tobytes()


# ---- 4. Layers, 6. The state, 14. Verification ------------------------------------------------


@dataclass(frozen=True)
class Decoded:
    """pixels: uint8 [H, W], [H, W, 2], [H, W, 3] or [H, W, 4]; t: of the last whole layer."""

    pixels: Array
    t: int
    exact: bool
    metadata: dict[int, bytes] = field(default_factory=dict)


class Reader:
    """A place in the file; where layers have lengths, ``end`` is that of the present one."""

    def __init__(self, content: bytes, place: int, header: Header) -> None:
        self.content, self.place, self.end = content, place, len(content)
        self.header = header
        self.has_lengths = header.width * header.height > 4096
        self.first, self.closed = place, 0
        self.adaptation: Adaptation | None = None
        if header.plan.adaptive and self.has_lengths:
            rule = header.plan.adaptive
            self.adaptation = Adaptation(rule, header.height, header.width)

    def open(self) -> None:
        """Begin a layer of steps; EndOfFileError if it is absent."""
        self.end = len(self.content)
        if self.has_lengths:
            length, self.place = varint(self.content, self.place)
            if length > 1 << 32:
                raise RefusedError("an impossible length")
            self.end = self.place + length
        elif self.place == self.end:
            raise EndOfFileError

    @property
    def code(self) -> bytes:
        """The rest of the present layer, as far as it is there, or more."""
        return self.content[self.place : self.end]

    @property
    def is_cut(self) -> bool:
        """Whether what is missing of the present layer may be so because the file ends."""
        return self.end >= len(self.content)

    def close(self, x: Array) -> bool:
        """End a layer; False if it has a check byte that is not there."""
        if self.has_lengths and self.place != self.end:
            raise RefusedError("a layer's length is not that of its codes")
        self.closed += 1
        if self.closed > 1 and not self.has_lengths:
            return True
        if self.place >= len(self.content):
            return False
        self.place += 1
        check = zlib.crc32(x.astype(">i4").tobytes()) & 255
        if not self.has_lengths:
            check = crc8(self.header.own + self.header.fingerprint + bytes([check]))
        if check != self.content[self.place - 1]:
            raise RefusedError("a layer's check does not match the state it leads to")
        return True


def first_state(header: Header) -> Array:
    shape = 3, header.height, header.width
    noise = normal(key(header.seed, 0, header.plan.timesteps[0]), math.prod(shape))
    return noise.reshape(shape) * 16


def receive_step(
    reader: Reader, network: Network, header: Header, x: Array, a: int, b: int
) -> tuple[Array, bool]:
    """(x_b, whether all of its code was there); what was not follows the flow (appendix A)."""
    adaptation = reader.adaptation
    out = network.evaluate(x, a, a <= header.plan.mirrored, adaptation)
    reverse = network.schedule.step(a, b)
    size = header.height, header.width
    x0_hat = network.schedule.predict_x0(x, a, out.eps, header.grey)
    mean = reverse.coef_x0 * x0_hat + reverse.coef_xa * (x / 65536)
    deviation = math.sqrt(reverse.variance)
    s, y = np.empty(x.size, np.int64), np.empty(x.size, np.int64)
    mute = np.zeros(x.size, bool)
    for block in blocks(*size):
        s[block.own] = out.coef_index[block.channels, block.row, block.column]
        if header.grey:
            mute[block.own] = block.channels >= 64
    s = np.where(mute, -96, np.clip(s + reverse.gain_index, -95, 96))
    complete, step_key = True, key(header.seed, 1, b)
    flow: Array | None = None
    for g, own in enumerate(segments(*size)):
        k = key(step_key, g)
        order = own[permutation(key(k, 1), len(own))]
        segment = Segment(s[order], mute[order], k, header.plan.eta)
        code = reader.code
        received, used = receive_segment(code, 0, segment)
        reader.place += used
        y[order] = received.y
        if not received.complete:
            if not reader.is_cut:
                raise RefusedError("a layer is shorter than its codes")
            complete = False
            flow = flow_values(network, reverse, out, a, b, size) if flow is None else flow
            missing = order[~received.certain]
            y[missing] = np.rint((0.5 if code else 1.0) * flow[missing])
    z = np.empty(x.shape)
    for block in blocks(*size):
        values = block_matrix(block.height, block.width).T @ y[block.own]
        z[block.pixels] = values.reshape(3, block.height, block.width)
    z /= 1 << 26
    if complete and adaptation is not None:
        schedule = network.schedule
        ratio = math.sqrt(schedule.rest(a)) / math.sqrt(schedule.alphas_cumprod(a))
        adaptation.learn(out.features, z, reverse.coef_x0 / deviation * ratio, a, b)
    x_b = np.rint((mean + deviation * z) * 65536)
    return x_b.astype(np.int64), complete


def decode(content: bytes, network: Network, stop_t: int = 0, recon: str = "mean") -> Decoded:
    """Decode what there is, down to the smallest coded timestep ≥ ``stop_t``.

    recon: of a lossy picture, x̂_0 of the last state ("x0") or what appendix A says ("mean").
    """
    header, place = read_header(content)
    if header.fingerprint != network.fingerprint:
        raise RefusedError(f"written with model {header.fingerprint.hex()}")
    if header.float_arithmetic:
        raise RefusedError("written in floating point")
    metadata: dict[int, bytes] = {}
    if header.chunks:
        try:
            metadata, place = read_block(content, place, FRONT, header)
        except EndOfFileError:
            raise RefusedError("the file ends inside its front block") from None
    reader = Reader(content, place, header)
    x, at, t = receive_steps(reader, network, header, stop_t)
    if t > header.plan.timesteps[-1] or stop_t:
        shown = shown_after(reader, network, header, x, at, recon)
        return Decoded(pixels_of(shown, header, metadata), t, False, metadata)
    shown, exact = receive_strips(reader, network, header, x)
    if exact:
        t = 0
        try:
            if header.trailer:
                more, reader.place = read_block(content, reader.place, TRAILER, header)
                metadata |= more
            if reader.place != len(content):
                raise RefusedError("bytes after the end")
        except EndOfFileError:
            pass  # the metadata are missing
    return Decoded(pixels_of(shown, header, metadata), t, exact, metadata)


def receive_steps(
    reader: Reader, network: Network, header: Header, stop_t: int
) -> tuple[Array, int, int]:
    """(the last state, its timestep, the timestep of the last whole step)."""
    x, t = first_state(header), header.plan.timesteps[0]
    for layer in header.plan.layers:
        for number, (a, b) in enumerate(layer):
            if b < stop_t:
                return x, t, t
            try:
                if number == 0:
                    reader.open()
            except EndOfFileError:
                return x, t, t
            if reader.is_cut and not reader.code:
                return x, t, t
            x, complete = receive_step(reader, network, header, x, a, b)
            if not complete:
                return x, b, t
            t = b
        reader.close(x)
    return x, t, t


def receive_strips(
    reader: Reader, network: Network, header: Header, x: Array
) -> tuple[Array, bool]:
    """(levels [3, H, W], whether all strips are whole)."""
    content, grey = reader.content, header.grey
    t = header.plan.timesteps[-1]
    out = network.evaluate(x, t, header.plan.mirrored >= t, reader.adaptation)
    x0_hat = network.schedule.predict_x0(x, t, out.eps, grey)
    shown, means = to_levels(x0_hat), np.rint((x0_hat + 1.0) * 2040).astype(np.int64)
    scales = out.scale_index + network.schedule.sigma_index(t)
    expected = expected_length(header, reader.place - reader.first)
    check_bytes = 4 if expected is None else 2
    learns = header.plan.passes == 4 and header.width * header.height > 4096
    lessons = Lessons(network.first_weights(header.plan), learns)
    lessons.colours = Colours(header.lattice) if header.lattice else None
    tops = [*range(0, header.height, 64), header.height]
    if learns and header.height > 16:
        tops.insert(1, 16)
    for top, end in pairwise(tops):
        try:
            length, place = varint(content, reader.place)
        except EndOfFileError:
            return shown, False
        if expected is not None:
            length = expected + (-(length + 1) // 2 if length % 2 else length // 2)
        if not 0 <= length <= 1 << 32:
            raise RefusedError("an impossible length")
        begin = place + check_bytes
        payload = content[begin : begin + length]
        if begin > len(content):
            return shown, False
        whole, rows = len(payload) == length, np.s_[:, top:end]
        strip = Strip(means[rows], scales[rows], out.coefs[rows])
        levels, certain = decode_strip(payload, strip, grey, lessons, whole)
        shown[rows] = np.where(certain, levels, shown[rows])
        if not whole:
            return shown, False
        pixels = (levels[1] if grey else levels.transpose(1, 2, 0)).astype(np.uint8).tobytes()
        check = zlib.crc32(pixels).to_bytes(4, "big")[-check_bytes:]
        if check != content[place:begin]:
            raise RefusedError("a strip's check does not match its pixels")
        reader.place = begin + length
    return shown, True


def expected_length(header: Header, steps: int) -> int | None:
    """E of §4 after so many bytes of layers of steps, None where lengths are told as they are."""
    area = header.width * header.height
    if area > 4096:
        return None
    values = area * (1 if header.grey else 3)
    return (steps // 3 + values // 48) // -(-header.height // 64)


def pixels_of(levels: Array, header: Header, metadata: dict[int, bytes]) -> Array:
    planes = list(levels[:1] if header.grey and not header.planes else levels)
    if 1 in metadata:
        planes.append(np.frombuffer(metadata[1], np.uint8).reshape(header.height, header.width))
    pixels = np.stack(planes, axis=2).astype(np.uint8)
    return pixels[..., 0] if len(planes) == 1 else pixels


# ---- Appendix A. Showing a cut file -----------------------------------------------------------


def flow_values(
    network: Network, reverse: Reverse, out: Output, a: int, b: int, size: tuple[int, int]
) -> Array:
    """y of the probability flow in 2⁻¹², reals."""
    schedule, y = network.schedule, np.empty(out.eps.size)
    gain = math.sqrt(schedule.rest(b)) - reverse.coef_xa * math.sqrt(schedule.rest(a))
    for block in blocks(*size):
        eps = out.eps[block.pixels].ravel() / 16384
        y[block.own] = block_matrix(block.height, block.width) @ eps / 16384
    return y * (gain / math.sqrt(reverse.variance) * 4096)


def shown_after(
    reader: Reader, network: Network, header: Header, x: Array, t: int, recon: str
) -> Array:
    """Levels [3, H, W] that show the state x_t."""
    schedule = network.schedule
    upto, adaptation = header.plan.mirrored, reader.adaptation
    eps = network.evaluate(x, t, t <= upto, adaptation).eps
    if recon == "mean" and t > header.plan.timesteps[-1]:
        b = max(s for s in header.plan.timesteps if s < t)
        x_b = math.sqrt(schedule.alphas_cumprod(b)) * schedule.predict_x0(x, t, eps, header.grey)
        x = np.rint((x_b + math.sqrt(schedule.rest(b)) * (eps / 16384)) * 65536)
        x, t = x.astype(np.int64), b
        eps = network.evaluate(x, t, t <= upto or x[0].size <= 4096, adaptation).eps
    return to_levels(schedule.predict_x0(x, t, eps, header.grey))


# ---- The program ------------------------------------------------------------------------------


SUFFIXES = (".npy", ".pgm", ".ppm", ".pam")


def write_picture(path: Path, pixels: Array) -> None:
    if path.suffix == ".npy":
        np.save(path, pixels)
        return
    height, width, *rest = pixels.shape
    depth = rest[0] if rest else 1
    if path.suffix in {".pgm", ".ppm"} and depth == {".pgm": 1, ".ppm": 3}[path.suffix]:
        head = f"P{5 if depth == 1 else 6}\n{width} {height}\n255\n"
    elif path.suffix == ".pam":
        kind = ("GRAYSCALE", "GRAYSCALE_ALPHA", "RGB", "RGB_ALPHA")[depth - 1]
        head = f"P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH {depth}\nMAXVAL 255\n"
        head += f"TUPLTYPE {kind}\nENDHDR\n"
    else:
        sys.exit(f"{path}: {depth} values a pixel go into .npy, .pam, .pgm (1) or .ppm (3)")
    path.write_bytes(head.encode() + pixels.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description="Decode a .ddc file as docs/format.md says.")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, help=", ".join(SUFFIXES))
    parser.add_argument("--model", type=Path, required=True, help="model folder")
    parser.add_argument("--stop-t", type=int, default=0, help="stop at the smallest t >= STOP_T")
    parser.add_argument("--max-bytes", type=int, help="use only the first bytes")
    parser.add_argument("--recon", choices=("mean", "x0"), default="mean")
    own = parser.parse_args()
    if own.target.suffix not in SUFFIXES:  # decoding takes long enough to say so before
        parser.error(f"{own.target}: not {', '.join(SUFFIXES)}")
    content = own.source.read_bytes()[: own.max_bytes]
    try:
        decoded = decode(content, Network(own.model), own.stop_t, own.recon)
    except RefusedError as e:
        sys.exit(f"{own.source}: {e}")
    write_picture(own.target, decoded.pixels)
    found = "exact" if decoded.exact else f"lossy, t = {decoded.t}"
    digest = hashlib.sha256(decoded.pixels.tobytes()).hexdigest()
    print(f"{own.target}: {found}, {decoded.pixels.shape}, SHA-256 {digest}")


if __name__ == "__main__":
    main()
