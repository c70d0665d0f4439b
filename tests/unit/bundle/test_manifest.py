"""`model.json`: what a manifest must be, and the ways in which it may not be wrong."""

import copy
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lenskeep.bundle import manifest
from lenskeep.errors import BundleError, BundleFormatError, ManifestError
from tests import tinybundle
from tests.attacks import named


def text_of(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts).encode()


def changed(*path: str, value: Any) -> bytes:
    return text_of(replaced(tinybundle.facts(), path, value))


def replaced(facts: Any, path: tuple[str, ...], value: Any) -> Any:
    facts = copy.deepcopy(facts)
    place = facts
    for key in path[:-1]:
        place = place[int(key) if isinstance(place, list) else key]
    place[int(path[-1]) if isinstance(place, list) else path[-1]] = value
    return facts


def relabelled(names: list[str]) -> bytes:
    facts = copy.deepcopy(tinybundle.facts())
    facts["labels"] = {"names": names, "sha256": manifest.labels_digest(names)}
    facts["outputs"][0]["shape"] = [1, len(names)]
    facts["verdict"], facts["golden"]["cases"][0]["scores"] = {}, {}
    return text_of(facts)


GOOD = text_of(tinybundle.facts())


def test_a_good_manifest_is_read_and_written_in_one_form() -> None:
    parsed = manifest.parse(GOOD)
    assert parsed.ref == "cap-inspect@1.0.0"
    written = manifest.encode(parsed)
    assert manifest.parse(written) == parsed
    assert manifest.encode(manifest.parse(written)) == written


def deep(levels: int) -> bytes:
    return GOOD[:-1] + b', "x": ' + b"[" * levels + b"]" * levels + b"}"


TEXTS: dict[str, bytes] = {
    "37 duplicate key": GOOD.replace(b'{"schema"', b'{"name": "other", "schema"', 1),
    "37 duplicate key deep inside": GOOD.replace(b'"mode": "stretch"', b'"mode": "stretch", "mode": "none"'),
    "38 NaN": GOOD.replace(b'"latency_p99_ms": 50', b'"latency_p99_ms": NaN'),
    "38 Infinity": GOOD.replace(b'"latency_p99_ms": 50', b'"latency_p99_ms": Infinity'),
    "38 a number that becomes infinite": GOOD.replace(b'"latency_p99_ms": 50', b'"latency_p99_ms": 1e999'),
    "40 number of 30 digits": GOOD.replace(b'"memory_mb": 100', b'"memory_mb": ' + b"1" * 30),
    "41 200,000 levels": deep(200_000),
    "42 lone surrogate": GOOD.replace(b'"hand"', b'"\\ud800"'),
    "43 byte order mark": b"\xef\xbb\xbf" + GOOD,
    "43 UTF-16": GOOD.decode().encode("utf-16"),
    "NUL": GOOD.replace(b'"hand"', b'"ha\\u0000nd"'),
    "empty": b"",
    "not an object": b"[]",
    "trailing": GOOD + b"{}",
    "over 1 MiB": GOOD + b" " * (1 << 20),
}


@pytest.mark.parametrize("case", named(TEXTS))
def test_what_two_readers_could_read_differently_is_refused(case: str) -> None:
    with pytest.raises((BundleFormatError, ManifestError)):
        manifest.parse(TEXTS[case])


VALUES: dict[str, bytes] = {
    "44 unknown field": changed("extra", value=1),
    "44 unknown field inside": changed("input", "extra", value=1),
    "44 unknown field of a decode": changed("decode", "iou_max", value=0.5),
    "46 truth value as integer": changed("budget", "memory_mb", value=True),
    "46 integer as truth value": changed("decode", "softmax", value=1),
    "45 text as number": changed("budget", "memory_mb", value="100"),
    "39 float as integer": changed("budget", "memory_mb", value=100.5),
    "45 null": changed("name", value=None),
    "another schema": changed("schema", value="lenskeep.model/2"),
    "unknown decode": changed("decode", "kind", value="pickle"),
    "unknown task": changed("task", value="segment"),
    "47 Cyrillic letter in the name": changed("name", value="c\u0430p-inspect"),
    "upper case in the name": changed("name", value="Cap"),
    "dot dot in the name": changed("name", value=".."),
    "newline after the name": changed("name", value="cap-inspect\n"),
    "version without a patch": changed("version", value="1.0"),
    "version with a leading zero": changed("version", value="01.0.0"),
    "version with a slash": changed("version", value="1.0.0-a/b"),
    "version in other digits": changed("version", value="1.\u0661.0"),
    "time in other digits": changed("created", value="2026-11-0\u0661T00:00:00Z"),
    "newline after the version": changed("version", value="1.0.0\n"),
    "time without a zone": changed("created", value="2026-11-01T00:00:00"),
    "51 upper-case digest": changed("labels", "sha256", value="A" * 64),
    "labels digest of another order": changed("labels", "names", value=["scratched", "good", "missing"]),
    "label twice": relabelled(["good", "good", "missing"]),
    "no labels": changed("labels", "names", value=[]),
    "48 bidirectional override in a label": relabelled(["good", "bad\u202e", "x"]),
    "zero-width space in a label": relabelled(["good", "go\u200bod", "x"]),
    "49 terminal escape in a label": relabelled(["good", "\x1b[2J", "x"]),
    "49 terminal escape in the title": changed("title", value="\x1b]0;owned\x07"),
    "49 terminal escape in the description": changed("description", value="\x1b[31m"),
    "line separator in the licence": changed("license", value="MIT\u2028"),
    "verdict on an unknown label": changed("verdict", "ok", value=["perfect"]),
    "label both OK and NG": changed("verdict", "ng", value=["good"]),
    "uncertain above certain": changed("verdict", "uncertain_from", value=0.9),
    "batch of two": changed("input", "shape", value=[2, 3, 4, 4]),
    "four channels": changed("input", "shape", value=[1, 4, 4, 4]),
    "grey with three channels": changed("input", "color", value="GRAY"),
    "zero in the shape": changed("input", "shape", value=[1, 3, 0, 4]),
    "rank three": changed("input", "shape", value=[3, 4, 4]),
    "two means for three channels": changed("input", "mean", value=[0.5, 0.5]),
    "std of zero": changed("input", "std", value=[0.0, 1.0, 1.0]),
    "scale of zero": changed("input", "scale", value=0),
    "output that does not fit the labels": changed("outputs", "0", value={"name": "scores", "shape": [1, 4]}),
    "decode that does not fit the task": changed("task", value="detect"),
    "golden picture with losses": changed("golden", "cases", "0", value={"image": "golden/a.jpg", "scores": {}}),
    "golden picture outside": changed("golden", "cases", "0", value={"image": "../a.png", "scores": {}}),
    "golden boxes for a classifier": changed("golden", "cases", "0", value={"image": "golden/a.png", "boxes": []}),
    "golden label unknown": changed("golden", "cases", "0", value={"image": "golden/a.png", "scores": {"x": 1}}),
    "golden score above one": changed("golden", "cases", "0", value={"image": "golden/a.png", "scores": {"good": 2}}),
    "no golden picture": changed("golden", "cases", value=[]),
    "model file with a space": changed("model", value="my model.onnx"),
    "card file outside": changed("card", value="/etc/passwd"),
    "latency of zero": changed("budget", "latency_p99_ms", value=0),
    "negative memory": changed("budget", "memory_mb", value=-1),
    "no provider": changed("requires", "providers", value=[]),
    "unknown provider": changed("requires", "providers", value=["Quantum"]),
    "runtime version in words": changed("requires", "onnxruntime", value="newest"),
    "tolerance above one": changed("golden", "tolerance", value={"score_abs": 1.5}),
}


@pytest.mark.parametrize("case", named(VALUES))
def test_a_value_that_is_not_right_is_refused(case: str) -> None:
    with pytest.raises(ManifestError):
        manifest.parse(VALUES[case])


def test_the_message_names_the_field() -> None:
    with pytest.raises(ManifestError, match=r"\$\.budget\.memory_mb"):
        manifest.parse(VALUES["45 text as number"])


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list) and value:
        return [leaf for number, item in enumerate(value) for leaf in leaves(item, (*path, str(number)))]
    return [path]


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**15), 10**15), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=10), st.just([]), st.just({}), st.lists(st.integers(-5, 5), max_size=4),
)  # fmt: skip


@pytest.mark.attack(45)
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(leaves(tinybundle.facts())), scalars)
def test_45_any_value_in_any_place_is_read_or_refused_and_never_crashes(path: tuple[str, ...], value: Any) -> None:
    try:
        parsed = manifest.parse(text_of(replaced(tinybundle.facts(), path, value)))
    except BundleError:
        return
    assert manifest.parse(manifest.encode(parsed)) == parsed


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_to_the_text_is_read_or_refused_and_never_crashes(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(GOOD)))
    cut = data.draw(st.integers(0, 20))
    text = GOOD[:at] + data.draw(st.binary(max_size=8)) + GOOD[at + cut :]
    try:
        manifest.parse(text)
    except BundleError:
        return


@pytest.mark.attack(46)
@pytest.mark.parametrize("path", [path for path in leaves(tinybundle.facts()) if path != ("title",)], ids=".".join)
def test_46_no_truth_value_passes_for_anything_else(path: tuple[str, ...]) -> None:
    with pytest.raises(BundleError):
        manifest.parse(text_of(replaced(tinybundle.facts(), path, True)))


@pytest.mark.parametrize(
    ("older", "newer"),
    [("1.9.0", "1.10.0"), ("1.0.0-rc1", "1.0.0"), ("0.9.9", "1.0.0"), ("1.0.0-a", "1.0.0-b"), ("1.0.9", "1.1.0")],
)
def test_versions_are_ordered_as_people_expect(older: str, newer: str) -> None:
    assert manifest.version_key(older) < manifest.version_key(newer)


def test_labels_digest_is_what_sha256sum_says_about_a_labels_file() -> None:
    assert manifest.labels_digest(["a", "b"]) == hashlib.sha256(b"a\nb\n").hexdigest()
