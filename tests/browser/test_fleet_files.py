"""The fleet's pages as they are shipped: small, self-contained, in four languages, and nothing made out of strings."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from lenskeep.fleet.pages import HEADERS, WEB, pages
from tests.browser.test_files import LANGUAGES, NAMESPACES

OWN = WEB / "fleet"
FILES = sorted(set(pages().values()))
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
GZIPPED_BYTES_MAX = 150_000
SHARED_WITH_THE_DEVICE_PAGE = {"error.upload", "error.upload_stopped"}


def catalogue(language: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((OWN / "i18n" / f"{language}.json").read_text(encoding="utf-8"))
    return found


def test_every_file_that_is_served_is_there_and_every_own_file_is_served() -> None:
    assert all(path.is_file() for path in FILES)
    assert {path for path in OWN.rglob("*") if path.is_file()} <= set(FILES)


def test_whole_pages_are_small() -> None:
    assert sum(len(gzip.compress(path.read_bytes())) for path in FILES) <= GZIPPED_BYTES_MAX


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_an_address_elsewhere(path: Path) -> None:
    named = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w{2,}[^\s\"'<>)]*", path.read_text(encoding="utf-8")))
    assert named <= NAMESPACES


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_markup_or_code_out_of_text(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|\.style\b", text)


def test_page_has_no_inline_script_or_style_and_the_policy_allows_none() -> None:
    text = (OWN / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text)
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_catalogue_has_every_sentence_with_its_places(language: str) -> None:
    english, other = catalogue("en"), catalogue(language)
    assert set(other) == set(english)
    for key, sentence in english.items():
        assert set(re.findall(r"\{\w+\}", other[key])) == set(re.findall(r"\{\w+\}", sentence)), key
        assert other[key].strip(), key


def test_every_sentence_that_the_pages_say_is_written() -> None:
    said = set(re.findall(r'data-t="([^"]+)"', (OWN / "index.html").read_text()))
    for path in SCRIPTS:
        said |= set(re.findall(r'\bt\("([\w.]+)"', path.read_text()))
    assert said - set(catalogue("en")) == set()
    states = {"healthy", "behind", "refused", "silent", "invited", "revoked"}
    assert {f"health.{name}" for name in states} <= set(catalogue("en"))


def test_every_state_of_a_rollout_and_of_a_device_in_it_has_its_word() -> None:
    from lenskeep.fleet.rollouts.lifecycle import MemberState, RolloutState

    words = {f"member.{one}" for one in MemberState} | {f"rollout.{one}" for one in RolloutState}
    assert words <= set(catalogue("en"))
