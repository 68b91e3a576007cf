"""Called by MkDocs: of the navigation only the pages that exist, and formulas as MathML.

So the pages need nothing from the network.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</(?:span|div)>', re.DOTALL
)
"""What the extension arithmatex makes of $…$ and $$…$$."""


def on_config(config: Any) -> Any:
    """The settings of mkdocs.yml without pages that are not there."""
    folder = Path(config["docs_dir"])
    config["nav"] = [
        entry for entry in config["nav"] if all((folder / page).exists() for page in entry.values())
    ]
    return config


def on_page_content(text: str, **_: Any) -> str:
    """A page's HTML with MathML for TeX."""
    from latex2mathml.converter import convert

    def mathml(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        return str(convert(html.unescape(match[2]), display=display))

    return FORMULA.sub(mathml, text)
