"""Files and models from strangers: refused in one line or decoded, never anything else."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import GOLDEN_MODEL, SHORT_PLAN, round_trip
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import diffcodec
from diffcodec import api, channel, chunks, extras
from diffcodec.bits import encode_varint
from diffcodec.chunks import Chunk
from diffcodec.cli import main
from diffcodec.container import DECODED_PIXELS, Header, Writer, read_header
from diffcodec.ddpm.store import read_process
from diffcodec.errors import DamageError, DiffcodecError, FormatError, ModelError
from diffcodec.model import CONFIG, EXACT, WEIGHTS, Model, ModelConfig, read_model, save_model
from diffcodec.model_check import check_exact, check_weights
from diffcodec.plans import PLANS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from fuzz import decoder_bound, make_decoder, read
from mutations import (
    Mutator,
    coded_pictures,
    golden_seeds,
    made_up_seeds,
    repaired,
    seed,
)

FINGERPRINT = b"\x01\x02\x03"


@pytest.fixture(scope="module")
def coded(exact_tiny: Model) -> dict[str, bytes]:
    return coded_pictures(exact_tiny)


# -- broken files ----------------------------------------------------------------------------

READER_SEEDS = golden_seeds() + made_up_seeds(Random(0))


@settings(max_examples=400)
@given(st.integers(0, 1 << 60))
def test_the_reader_reads_or_refuses(number: int) -> None:
    rng = Random(number)
    content = Mutator(READER_SEEDS, rng)()
    try:
        read(content, rng)
    except DiffcodecError as e:
        assert "\n" not in str(e)


@settings(max_examples=200)
@given(st.binary(max_size=80))
def test_the_reader_reads_or_refuses_noise_behind_a_beginning(tail: bytes) -> None:
    for beginning in (b"", b"\xde\x20", b"\xde\x20\x7b"):
        try:
            read(repaired(beginning + tail) if beginning else tail, Random(0))
        except FormatError as e:
            assert "\n" not in str(e)


@settings(max_examples=60)
@given(st.integers(0, 1 << 60))
def test_the_decoder_decodes_or_refuses(
    coded: dict[str, bytes], exact_tiny: Model, number: int
) -> None:
    rng = Random(number)
    seeds = [seed(content) for name, content in coded.items() if "lengths" not in name]
    content = Mutator(seeds, rng, beginning=0.1, repair=0.8)()
    try:
        make_decoder(exact_tiny)(content, rng)
    except DiffcodecError as e:
        assert "\n" not in str(e)
    assert decoder_bound(content) > 0


def test_repaired_changes_only_the_checks(coded: dict[str, bytes]) -> None:
    headers = {content: read_header(content) for content in coded.values()}
    assert {header.has_lengths for header, _ in headers.values()} == {False, True}
    for content, (header, start) in headers.items():
        assert repaired(content) == content
        if not header.has_lengths:  # it has no check
            continue
        broken = content[: start - 1] + bytes([content[start - 1] ^ 1]) + content[start:]
        assert repaired(broken) == content


# -- limits ----------------------------------------------------------------------------------


def large(width: int, height: int) -> bytes:
    """A header and nothing else."""
    return Header(width, height, FINGERPRINT, PLANS[0]).encode()


def test_more_pixels_than_the_limit_are_refused_before_anything_else(exact_tiny: Model) -> None:
    content = large(1 << 14, 1 << 14)
    for read_it in (diffcodec.decode, api.parse, api.describe):
        with pytest.raises(FormatError, match=rf"{DECODED_PIXELS} pixels; --max-pixels 268435456"):
            read_it(content)
    assert api.parse(content, max_pixels=1 << 28).layers == []


def test_the_limit_counts_pixels(coded: dict[str, bytes], exact_tiny: Model) -> None:
    content = coded["8x8"]
    assert diffcodec.decode(content, model=exact_tiny, max_pixels=64).exact
    with pytest.raises(FormatError, match="more than 63 pixels"):
        diffcodec.decode(content, model=exact_tiny, max_pixels=63)
    with pytest.raises(FormatError, match="more than 63 pixels"):
        diffcodec.api.decode_batch([content], model=exact_tiny, max_pixels=63)


@pytest.mark.parametrize("tail", [b"", bytes([200]) * 3000, b"\xfc\xff\xff\xff\xff\xff\xff"])
def test_a_large_picture_of_which_there_is_almost_nothing_is_refused(tail: bytes) -> None:
    header = Header(5000, 4000, FINGERPRINT, PLANS[3])
    content = header.encode() + tail
    end = len(header.encode())
    with pytest.raises(FormatError, match=r"ends after \d+ bytes; --max-pixels 20000000"):
        extras.check_presence(header, content, end, None)
    extras.check_presence(header, content, end, 20_000_000)
    extras.check_presence(header, content + bytes(5000), end, None)


def test_a_large_picture_without_content_may_be_short_if_it_is_complete() -> None:
    header = Header(5000, 4000, FINGERPRINT, PLANS[3])
    writer = Writer(header)
    for _ in header.plan.layers:
        writer.add_layer(b"", 0)
    for _ in range(63):
        writer.add_strip(b"\0", b"")
    content, end = writer.getvalue(), len(header.encode())
    assert len(content) < 1000
    extras.check_presence(header, content, end, None)
    with pytest.raises(FormatError, match="ends after"):
        extras.check_presence(header, content[:-1], end, None)


def test_a_header_alone_still_shows_a_picture_of_ordinary_size(exact_tiny: Model) -> None:
    content = Header(40, 30, exact_tiny.fingerprint, PLANS[0], model="golden").encode()
    assert diffcodec.decode(content, model=exact_tiny).pixels.shape == (30, 40, 3)


def test_corrections_of_impossible_length_are_damage() -> None:
    """The length stood for an allocation of eight times the rest of the file."""
    s_index = np.full(300, 8, dtype=np.int64)
    # 000: corrections follow; 1: scale 2; aligned; the length.
    code = bytes([0b00010000]) + encode_varint(8 * 302 + 1) + bytes(5000)
    with pytest.raises(FormatError, match="cannot take 2417 bytes"):
        channel.segment_size(code, s_index, eta=134)
    with pytest.raises(FormatError, match="cannot take 2417 bytes"):
        channel.receive_segment(code, s_index, 1, eta=134)


# -- damage ----------------------------------------------------------------------------------


def changed(content: bytes, place: int, change: int = 0x55) -> bytes:
    return content[:place] + bytes([content[place] ^ change]) + content[place + 1 :]


def test_an_impossible_length_does_not_hide_the_layers_before_it(
    coded: dict[str, bytes], exact_tiny: Model
) -> None:
    """The length of a layer was read even if the layer was not asked for."""
    content = coded["lengths 66x63"]
    second = api.parse(content).layers[1]
    broken = content[: second.start] + b"\xfe" + bytes([255]) * 8 + content[second.start :]
    with pytest.raises(DamageError, match=r"layer 2 .*impossible length.*--stop-t 40") as caught:
        diffcodec.decode(broken, model=exact_tiny)
    assert caught.value.sound == second.start
    np.testing.assert_array_equal(
        diffcodec.decode(broken, model=exact_tiny, stop_t=40).pixels,
        diffcodec.decode(content, model=exact_tiny, stop_t=40).pixels,
    )


@pytest.mark.parametrize("name", ["8x8", "grouped 7x9", "alpha 9x6"])
def test_what_is_left_of_a_damaged_file_is_the_file_up_to_the_damage(
    coded: dict[str, bytes], exact_tiny: Model, name: str
) -> None:
    content = coded[name]
    header, start = read_header(content)
    _, start = extras.front_chunks(header, content, start)
    found = 0
    for place in range(start, len(content), 8):
        broken = changed(content, place)
        try:
            diffcodec.decode(broken, model=exact_tiny)
        except DamageError as e:
            assert start <= e.sound <= place
            left = diffcodec.decode(broken, model=exact_tiny, salvage=True)
            cut = diffcodec.decode(content[: e.sound], model=exact_tiny)
            assert not left.exact
            assert left.damage == str(e)
            assert left.t == cut.t
            np.testing.assert_array_equal(left.pixels, cut.pixels)
            found += 1
    assert found > 5


def test_salvaging_a_sound_file_changes_nothing(coded: dict[str, bytes], exact_tiny: Model) -> None:
    for content in coded.values():
        shown = diffcodec.decode(content, model=exact_tiny, salvage=True)
        assert shown.exact
        assert shown.damage is None


def test_strips_before_a_damaged_one_are_what_they_were(tiny: Model) -> None:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (130, 5, 3), dtype=np.uint8)
    content = round_trip(pixels, tiny, plan=SHORT_PLAN)
    strips = api.parse(content, tiny).layers[-3:]
    broken = changed(content, strips[1].end - 9)  # the last bytes may mean nothing
    left = diffcodec.decode(broken, model=tiny, salvage=True)
    assert not left.exact
    assert left.t == 1
    assert api.parse(broken, tiny).layers[-1].end == strips[0].end
    np.testing.assert_array_equal(left.pixels[:64], pixels[:64])


def test_damage_of_what_comes_last_leaves_the_pixels(
    coded: dict[str, bytes], exact_tiny: Model
) -> None:
    for content in (changed(coded["mask 5x8"], -3), coded["8x8"] + b"more"):
        with pytest.raises(DamageError):
            diffcodec.decode(content, model=exact_tiny)
    left = diffcodec.decode(changed(coded["mask 5x8"], -3), model=exact_tiny, salvage=True)
    whole = diffcodec.decode(coded["mask 5x8"], model=exact_tiny)
    np.testing.assert_array_equal(left.pixels, whole.pixels)
    assert (left.exact, left.metadata_cut, left.metadata.exif) == (False, True, whole.metadata.exif)


@settings(max_examples=150)
@given(st.data())
def test_no_altered_file_is_exact_and_another_picture(
    coded: dict[str, bytes], exact_tiny: Model, data: st.DataObject
) -> None:
    content = coded[data.draw(st.sampled_from(["8x8", "alpha 9x6", "planes 6x6", "mask 5x8"]))]
    broken = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        shown = diffcodec.decode(bytes(broken), model=exact_tiny, max_pixels=1 << 12)
    except DiffcodecError:
        return
    if shown.exact:
        whole = diffcodec.decode(content, model=exact_tiny)
        assert np.array_equal(shown.pixels, whole.pixels)
        assert shown.metadata_cut or shown.metadata == whole.metadata


@pytest.mark.parametrize("name", ["mask 5x8", "grouped 7x9"])
def test_every_prefix_decodes_or_is_refused(
    coded: dict[str, bytes], exact_tiny: Model, name: str
) -> None:
    content = coded[name]
    header, start = read_header(content)
    _, start = extras.front_chunks(header, content, start)
    whole, reached = diffcodec.decode(content, model=exact_tiny), 1000
    for size in range(len(content)):
        if size < start:
            with pytest.raises(FormatError):
                diffcodec.decode(content[:size], model=exact_tiny)
            continue
        shown = diffcodec.decode(content[:size], model=exact_tiny)
        assert shown.t <= reached
        reached = shown.t
        if shown.exact:
            assert shown.metadata_cut
            np.testing.assert_array_equal(shown.pixels, whole.pixels)


def run(*arguments: object) -> tuple[int, str, list[str]]:
    """(exit code, stdout, lines of stderr) of the command."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr.splitlines()


def test_the_command_shows_what_is_left_only_with_force(
    coded: dict[str, bytes], tmp_path: Path
) -> None:
    source, target = tmp_path / "a.ddc", tmp_path / "a.png"
    source.write_bytes(changed(coded["8x8"], -2))
    common = ("decode", source, "-o", target, "--model", GOLDEN_MODEL)
    code, _, errors = run(*common)
    assert (code, len(errors), target.exists()) == (1, 1, False)
    assert "--stop-t 40" in errors[0]  # in so small a file nothing vouches for t = 1
    assert "--force" in errors[0]
    code, out, errors = run(*common, "--force")
    assert (code, len(errors), target.exists()) == (3, 1, True)
    assert errors[0].startswith(f"warning: {source}: ")
    assert "damaged, t = 40" in out
    assert "exact" not in out
    source.write_bytes(coded["8x8"])
    assert run(*common, "--force")[0] == 0


def test_the_exit_code_of_many_files_is_that_of_the_worst(
    coded: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "sound.ddc").write_bytes(coded["8x8"])
    (folder / "damaged.ddc").write_bytes(changed(coded["8x8"], -2))
    common = ("decode", folder, "-o", tmp_path / "out", "--model", GOLDEN_MODEL)
    assert run(*common)[0] == 1
    assert run(*common, "--force")[0] == 3
    (folder / "other.ddc").write_bytes(b"nothing")
    assert run(*common, "--force")[0] == 1


def test_the_commands_limit_pixels(coded: dict[str, bytes], tmp_path: Path) -> None:
    source = tmp_path / "a.ddc"
    source.write_bytes(coded["8x8"])
    common = (source, "--model", GOLDEN_MODEL, "--max-pixels")
    for command in (("decode", "-o", tmp_path / "a.png"), ("info",)):
        code, _, errors = run(*command, *common, 63)
        assert (code, len(errors)) == (1, 1)
        assert "more than 63 pixels; --max-pixels 64" in errors[0]
        assert run(*command, *common, 64)[0] == 0


# -- models ----------------------------------------------------------------------------------


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """A copy of the exact model."""
    return Path(shutil.copytree(GOLDEN_MODEL, tmp_path / "model"))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_model(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    return str(caught.value)


def change_config(folder: Path, part: str, key: str, value: object) -> None:
    values = json.loads((folder / CONFIG).read_text())
    values[part][key] = value
    (folder / CONFIG).write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("network", "channels", [10**9, 10**9, 10**9]),
        ("network", "channels", [4096, 4096, 4096]),
        ("network", "channels", [10**400, 1, 1]),
        ("network", "channels", [1e300, 1, 1]),
        ("network", "blocks", [10**9, 1, 1]),
        ("network", "embedding", 1 << 40),
        ("schedule", "timesteps", 10**12),
        ("schedule", "timesteps", 1000.5),
        ("schedule", "timesteps", [1000]),
        ("schedule", "beta_start", float("nan")),
        ("schedule", "beta_end", float("inf")),
        ("schedule", "beta_end", "0.02"),
    ],
)
def test_absurd_configurations_are_refused_at_once(
    folder: Path, part: str, key: str, value: object
) -> None:
    change_config(folder, part, key, value)
    refusal(folder)


@pytest.mark.parametrize(
    "text",
    ["[" * 200_000, '{"a":' * 100_000, '"' + "x" * (1 << 20) + '"', "[1]", '{"network": []}'],
    ids=["deep lists", "deep objects", "large", "a list", "a list inside"],
)
def test_configurations_that_are_traps_are_refused(folder: Path, text: str) -> None:
    (folder / CONFIG).write_text(text)
    assert "not a model configuration" in refusal(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, EXACT])
@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_only_plain_files_are_opened(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    moved = path.rename(folder / "elsewhere")
    if kind == "link":
        path.symlink_to(moved)
    elif kind == "dangling link":
        path.symlink_to(folder / "nowhere")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert name in refusal(folder)


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", [WEIGHTS, EXACT])
def test_a_pickle_is_refused_and_not_executed(folder: Path, tmp_path: Path, name: str) -> None:
    trap = Trap(tmp_path / "executed")
    torch.save({"stem.weight": trap}, folder / name)
    assert "cannot be read" in refusal(folder)
    (folder / name).write_bytes(pickle.dumps(trap))
    assert "cannot be read" in refusal(folder)
    assert not trap.path.exists()


@pytest.mark.parametrize("name", [WEIGHTS, EXACT])
@pytest.mark.parametrize("shape", [[1 << 40, 1 << 40], [1 << 62], [-1], [1 << 80], []], ids=str)
def test_shapes_that_the_file_does_not_hold_are_refused(
    folder: Path, name: str, shape: list[int]
) -> None:
    header = json.dumps({"stem.weight": {"dtype": "F16", "shape": shape, "data_offsets": [0, 8]}})
    content = struct.pack("<Q", len(header)) + header.encode() + bytes(8)
    (folder / name).write_bytes(content)
    refusal(folder)
    (folder / name).write_bytes(struct.pack("<Q", 1 << 62) + header.encode())
    refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6], ids=str)
@pytest.mark.parametrize("name", [WEIGHTS, EXACT])
def test_numbers_that_are_not_finite_are_refused(folder: Path, name: str, value: float) -> None:
    tensors = load_file(folder / name)
    key = {WEIGHTS: "stem.bias", EXACT: "stem.in_mul"}[name]
    tensors[key] = tensors[key].float()
    tensors[key].view(-1)[1] = value
    save_file(tensors, folder / name)
    if name == EXACT and value == 1e6:
        assert read_model(folder).exact  # large is no harm: activations are limited
    else:
        assert "not finite" in refusal(folder)


def test_every_tensor_is_needed_in_its_shape_and_type(folder: Path) -> None:
    network = read_model(folder).network
    weights, exact = load_file(folder / WEIGHTS), load_file(folder / EXACT)
    for check, tensors in ((check_weights, weights), (check_exact, exact)):
        check(network, tensors)
        for name, value in tensors.items():
            rest = {k: v for k, v in tensors.items() if k != name}
            for other in (None, value.reshape(1, *value.shape), value.to(torch.complex64)):
                if other is None and name == "neighbours":
                    continue
                with pytest.raises(ModelError, match=r"do not fit|not usable"):
                    check(network, rest if other is None else {**rest, name: other})
        with pytest.raises(ModelError, match="a_stranger are not known"):
            check(network, {**tensors, "a_stranger": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timesteps", torch.full((13,), 40)),
        ("timesteps", torch.zeros(0, dtype=torch.int64)),
        ("neighbours", torch.full((3, 6), -(2**63))),
        ("stem.weight", torch.full((16, 24, 3, 3), 32767, dtype=torch.int16)),
    ],
    ids=["one timestep", "no timesteps", "smallest integer", "sums that are not exact"],
)
def test_integers_that_break_the_rules_are_refused(
    exact_tiny: Model, name: str, value: torch.Tensor
) -> None:
    weights, exact = load_file(GOLDEN_MODEL / WEIGHTS), load_file(GOLDEN_MODEL / EXACT)
    with pytest.raises(ModelError):
        Model(exact_tiny.config, weights, {**exact, name: value})


@pytest.mark.parametrize("most", [1e3, 6e4])
def test_weights_that_overflow_still_code(tiny_folder: Path, tmp_path: Path, most: float) -> None:
    """Floats beyond all bounds inside the network come out as numbers."""
    rng = torch.Generator().manual_seed(1)
    weights = {
        name: (torch.rand(value.shape, generator=rng) * 2 - 1) * most
        for name, value in load_file(tiny_folder / WEIGHTS).items()
    }
    config = read_model(tiny_folder).config
    save_model(tmp_path, ModelConfig("wild", config.network, config.schedule), weights)
    pixels = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    round_trip(pixels, read_model(tmp_path), plan=SHORT_PLAN)


def test_constants_that_overflow_still_code(folder: Path) -> None:
    exact = load_file(folder / EXACT)
    wild = {k: v * 1e30 if "_mul" in k else v for k, v in exact.items()}
    save_file(
        {k: v.nan_to_num() if v.is_floating_point() else v for k, v in wild.items()}, folder / EXACT
    )
    pixels = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    round_trip(pixels, read_model(folder), plan=SHORT_PLAN)


def test_a_file_without_its_model_says_which_it_needs_and_how_to_give_it(
    coded: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"'golden' with fingerprint [0-9a-f]{6}.*--model"):
        diffcodec.decode(coded["8x8"])
    listed = Header(8, 8, diffcodec.load_model("photo").fingerprint, PLANS[3]).encode()
    monkeypatch.setattr("diffcodec.catalogue.models_folder", lambda: tmp_path)
    with pytest.raises(ModelError, match=r"'photo' with fingerprint fd72fb.*not inst.*--model"):
        diffcodec.decode(listed)


def test_pictures_of_all_kinds_are_among_the_coded_ones(coded: dict[str, bytes]) -> None:
    headers = [read_header(content)[0] for content in coded.values()]
    for kind in ("grey", "planes", "chunks", "trailer", "has_lengths"):
        assert {getattr(h, kind) for h in headers} == {False, True}
    assert {h.plan.grouped for h in headers} == {1, 2}


def test_transparency_larger_than_the_limit_is_never_unpacked(
    exact_tiny: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A constant plane takes two bytes in the file and a quarter of a gigabyte in memory."""
    unpacked: list[Chunk] = []
    monkeypatch.setattr(chunks, "unpack_alpha", lambda chunk, *_: unpacked.append(chunk))
    for side, message in ((1 << 14, "more than"), (1 << 12, "ends after")):
        header = Header(side, side + 8, exact_tiny.fingerprint, PLANS[0], chunks=True)
        block = chunks.encode_block([Chunk(chunks.ALPHA, side * (side + 8), 0, b"\0\7")])
        with pytest.raises(FormatError, match=message):
            diffcodec.decode(header.encode() + block, model=exact_tiny)
    assert not unpacked


def test_a_u_net_too_large_for_its_weights_takes_no_memory(folder: Path) -> None:
    """A configuration that asks for terabytes is compared with the weights before it is built."""
    values = json.loads((folder / CONFIG).read_text())
    shape = {"channels": 4096, "multipliers": [64, 64, 64], "attention": [0], "blocks": 64}
    (folder / CONFIG).write_text(json.dumps({**values, "kind": "unet", "network": shape}))
    with pytest.raises(ModelError, match="lack the tensor"):
        read_process(folder)
    shape = {"channels": [4096] * 3, "blocks": [64] * 3, "embedding": 128}
    (folder / CONFIG).write_text(json.dumps({**values, "network": shape}))
    with pytest.raises(ModelError, match="it asks for more than"):
        read_process(folder)
