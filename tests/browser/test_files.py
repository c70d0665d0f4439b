"""The page's files as they are shipped: small, self-contained, in four languages, readable."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

import lenskeep

WEB = Path(lenskeep.__file__).parent / "web"
FILES = sorted(path for path in WEB.rglob("*") if path.is_file() and "fleet" not in path.relative_to(WEB).parts)
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
NAMESPACES = {"http://www.w3.org/2000/svg"}
GZIPPED_BYTES_MAX = 150_000
LANGUAGES = ("de", "en", "es", "zh")
CONTRAST_MIN = 4.5  # WCAG 2.2 AA for text

# Text colour, ground colour; the names of app.css.
PAIRS = [
    ("text", "card"), ("text", "ground"), ("text", "sunk"), ("quiet", "card"), ("quiet", "ground"), ("quiet", "sunk"),
    ("on-strong", "strong"), ("on-warn", "warn"), ("on-stop", "stop"), ("warn-text", "card"), ("stop-text", "card"),
]  # fmt: skip


def catalogue(language: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((WEB / "i18n" / f"{language}.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_an_address_elsewhere(path: Path) -> None:
    named = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w{2,}[^\s\"'<>)]*", path.read_text(encoding="utf-8")))
    assert named <= NAMESPACES


def test_whole_page_is_small() -> None:
    assert sum(len(gzip.compress(path.read_bytes())) for path in FILES) <= GZIPPED_BYTES_MAX


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_markup_or_code_out_of_text(path: Path) -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|\.style\b", path.read_text()
    )


def test_page_has_no_inline_script_or_style() -> None:
    text = (WEB / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_catalogue_has_every_sentence_with_its_places(language: str) -> None:
    english, other = catalogue("en"), catalogue(language)
    assert set(other) == set(english)
    for key, sentence in english.items():
        assert set(re.findall(r"\{\w+\}", other[key])) == set(re.findall(r"\{\w+\}", sentence)), key
        assert other[key].strip(), key


def test_every_sentence_that_the_page_says_is_written() -> None:
    said = set(re.findall(r'data-t="([^"]+)"', (WEB / "index.html").read_text()))
    for path in SCRIPTS:
        said |= set(re.findall(r'"([a-z_]+(?:\.[a-z_]+)*\.[a-zA-Z_]+)"', path.read_text()))
        said |= set(re.findall(r'\bt\("([\w.]+)"', path.read_text()))
    said -= {"lenskeep.token", "lenskeep.language"}  # names in the browser's storage
    assert said - set(catalogue("en")) == set()


def palettes() -> list[dict[str, str]]:
    """The light palette, and the dark one on top of it."""
    blocks = re.findall(r":root \{(.*?)\}", (WEB / "app.css").read_text(), re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks)
    return [light, light | dark]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark"])
@pytest.mark.parametrize(("text", "ground"), PAIRS)
def test_text_can_be_read_on_its_ground(palette: dict[str, str], text: str, ground: str) -> None:
    light, dark = sorted((luminance(palette[text]), luminance(palette[ground])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= CONTRAST_MIN


def test_signs_of_outcomes_can_be_read() -> None:
    for palette in palettes():
        assert (1.05) / (luminance(palette["ng"]) + 0.05) >= CONTRAST_MIN
