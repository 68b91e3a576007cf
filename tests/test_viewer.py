"""The page that shows a file: one picture a layer, nothing from outside, and a browser's word."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import DATA, load_picture
from PIL import Image, ImageOps, ImageSequence

import diffcodec
from diffcodec.cli import main
from diffcodec.errors import DataError, FormatError
from diffcodec.image import Metadata, from_array, orientation_exif
from diffcodec.model import Model
from diffcodec.quality import psnr
from diffcodec.viewer import Frame, animation, frames, page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


class Page(HTMLParser):
    """Elements with their attributes, and the text of the facts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.facts = ""
        self._reading = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._reading = dict(attrs).get("id") == "facts"

    def handle_endtag(self, tag: str) -> None:
        self._reading = False

    def handle_data(self, data: str) -> None:
        if self._reading:
            self.facts += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def picture_of(image: dict[str, str | None]) -> np.ndarray:
    kind, _, data = (image["src"] or "").partition(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


@pytest.fixture(scope="module")
def content(exact_tiny: Model, bird: np.ndarray) -> bytes:
    return diffcodec.encode(bird, model=exact_tiny, effort=1)


@pytest.fixture(scope="module")
def shown(content: bytes, exact_tiny: Model) -> list[Frame]:
    return frames(content, exact_tiny)


def test_a_frame_is_what_a_cut_file_decodes_to(
    content: bytes, shown: list[Frame], exact_tiny: Model, bird: np.ndarray
) -> None:
    assert [frame.t for frame in shown] == [layer[-1][1] for layer in exact_tiny.plan.layers] + [0]
    assert [frame.exact for frame in shown] == [False] * (len(shown) - 1) + [True]
    assert shown[-1].size == len(content)
    noise = [frame.noise_levels for frame in shown]
    assert noise == sorted(noise, reverse=True)
    for frame in shown:
        decoded = diffcodec.decode(content[: frame.size], model=exact_tiny).pixels
        np.testing.assert_array_equal(frame.pixels, decoded)
        assert frame.psnr == psnr(decoded, bird)


def test_frames_of_a_larger_picture() -> None:
    """Its layers have lengths, and are gone through in one pass."""
    model = diffcodec.load_model("photo")
    pixels = load_picture("budgerigar.png")[100:157, 150:230]
    content = diffcodec.encode(pixels, model=model, effort=1, stop_t=70)[:-5]
    shown = frames(content, model, pixels)
    assert [frame.cut for frame in shown] == [False] * (len(shown) - 1) + [True]
    for frame in shown:
        decoded = diffcodec.decode(content[: frame.size], model=model).pixels
        np.testing.assert_array_equal(frame.pixels, decoded)


def test_transparency_is_in_every_frame(exact_tiny: Model, bird: np.ndarray) -> None:
    alpha = np.arange(32 * 32, dtype=np.uint32).reshape(32, 32, 1) // 5
    pixels = np.concatenate([bird, alpha.astype(np.uint8)], axis=2)
    content = diffcodec.encode(pixels, model=exact_tiny, effort=1)
    for frame in frames(content, exact_tiny):
        np.testing.assert_array_equal(frame.pixels[..., 3], pixels[..., 3])


def test_what_cannot_be_shown(content: bytes, exact_tiny: Model, bird: np.ndarray) -> None:
    with pytest.raises(DataError, match="the original is 31×32, the file 32×32"):
        frames(content, exact_tiny, bird[:, :31])
    damaged = bytearray(content)
    damaged[60] ^= 255
    with pytest.raises(FormatError):
        frames(bytes(damaged), exact_tiny)


def test_the_page_holds_everything(content: bytes, shown: list[Frame], bird: np.ndarray) -> None:
    text = page("a <b> & c", content, shown)
    found = Page(text)
    assert "http:" not in text
    assert "https:" not in text
    assert "<title>a &lt;b&gt; &amp; c" in text
    layers = [image for image in found.all("img") if image.get("class") == "layer"]
    assert len(layers) == len(shown)
    for image, frame in zip(layers, shown, strict=True):
        np.testing.assert_array_equal(picture_of(image), frame.pixels)
    (original,) = (image for image in found.all("img") if image.get("id") == "original")
    np.testing.assert_array_equal(picture_of(original), bird)
    (place,) = (box for box in found.all("input") if box.get("id") == "place")
    assert (place["min"], place["max"]) == ("0", str(len(shown) - 1))
    sources = [a[key] for _, a in found.found for key in ("src", "href") if key in a]
    assert all((source or "").startswith("data:") for source in sources)
    facts = json.loads(found.facts)
    assert [row["bytes"] for row in facts["layers"]] == [frame.size for frame in shown]
    assert facts["size"] == len(content)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_shown_upright(shown: list[Frame], orientation: int) -> None:
    """As Pillow turns a file with this EXIF."""
    turned = [
        replace(frame, pixels=frame.pixels[:24], orientation=orientation) for frame in shown[-2:]
    ]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(turned[0].pixels).save(stream, "PNG", exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(stream))
    assert wanted
    image, _, original = Page(page("turned", b"", turned)).all("img")
    np.testing.assert_array_equal(picture_of(image), np.asarray(wanted))
    size = (str(wanted.width), str(wanted.height))
    assert (image["width"], image["height"]) == size == (original["width"], original["height"])
    with Image.open(io.BytesIO(animation(turned))) as gif:
        scale = 256 // 32
        assert gif.size == (wanted.width * scale, wanted.height * scale + 18)


def test_the_orientation_comes_from_the_file(exact_tiny: Model, bird: np.ndarray) -> None:
    picture = replace(from_array(bird[:16, :8]), metadata=Metadata(exif=orientation_exif(6)))
    content = diffcodec.encode(picture, model=exact_tiny, effort=1, stop_t=100)
    assert {frame.orientation for frame in frames(content, exact_tiny)} == {6}


def test_a_cut_file_has_no_original(content: bytes, exact_tiny: Model) -> None:
    shown = frames(content[:-40], exact_tiny)
    assert shown[-1].cut
    assert shown[-1].psnr is None
    found = Page(page("cut", content[:-40], shown))
    assert not [image for image in found.all("img") if image.get("id") == "original"]


def test_the_animation(shown: list[Frame]) -> None:
    with Image.open(io.BytesIO(animation(shown))) as gif:
        assert (gif.width, gif.height) == (256, 256 + 18)
        times = [frame.info["duration"] for frame in ImageSequence.Iterator(gif)]
    assert len(times) == len(shown)
    assert times[-1] > times[0] > 0


def test_the_command(tmp_path: Path, content: bytes) -> None:
    source, golden = tmp_path / "bird.ddc", DATA.parent / "golden" / "model"
    source.write_bytes(content)
    arguments = ["view", source, "--model", golden, "--gif", tmp_path / "bird.gif"]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    assert "bird.html: " in result.output
    assert (tmp_path / "bird.html").stat().st_size > 1000
    assert (tmp_path / "bird.gif").read_bytes()[:3] == b"GIF"
    again = CliRunner().invoke(main, [str(a) for a in arguments])
    assert again.exit_code == 1
    assert "exists; name the output with -o" in again.output


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_shows_the_layer_that_is_asked_for(
    tmp_path: Path, content: bytes, shown: list[Frame]
) -> None:
    assert BROWSER
    target = tmp_path / "page.html"
    target.write_text(page("bird", content, shown), encoding="utf-8")
    image = tmp_path / "page.png"
    size = "--window-size=400,900"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size]
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    dump = [BROWSER, *options, profile, "--dump-dom", f"{target.as_uri()}#2"]
    result = subprocess.run(dump, capture_output=True, text=True, timeout=120, check=True)
    found = Page(result.stdout)
    visible = [a.get("id") for a in found.all("img") if "on" in (a.get("class") or "").split()]
    assert visible == ["layer-1"]
    assert f"{shown[1].size:,} (" in result.stdout
    shot = [BROWSER, *options, profile, f"--screenshot={image}", f"{target.as_uri()}#2"]
    subprocess.run(shot, capture_output=True, timeout=120, check=True)
    pixels = np.asarray(Image.open(image).convert("RGB"))
    assert pixels.shape == (900, 400, 3)
    # Below the title is the picture, across the page: not one colour, and none of the page's.
    assert len(np.unique(pixels[80:300, 60:340].reshape(-1, 3), axis=0)) > 20
