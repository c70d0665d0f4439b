"""What changed between two bundles, in the order of what it may break.

A label that moved to another place is the change that hurts most and shows least: a line controller that reads numbers
would sort good parts out. So labels come first, then what a frame goes through, then what decides, then what it costs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from lenskeep.bundle.look import Look
from lenskeep.bundle.manifest import Manifest, Output

Kind = Literal[
    "labels", "input", "outputs", "decode", "verdict", "budget", "requires", "golden", "metrics", "files", "signer"
]
ROUGH_GOLDEN = 0.05  # a golden score that moved further is worth a line of its own


class Change(Struct, frozen=True, kw_only=True):
    """One thing that differs; `breaking` when whoever uses the results or runs the devices has to act on it."""

    kind: Kind
    text: str
    breaking: bool = False


def compare(old: Look, new: Look) -> list[Change]:
    """Say what changed from one bundle to another; empty when the content is the same."""
    a, b = old.manifest, new.manifest
    return [
        *_name(a, b),
        *_labels(a.labels.names, b.labels.names),
        *_fields("input", a.input, b.input),
        *_outputs(a.outputs, b.outputs),
        *_fields("decode", a.decode, b.decode),
        *_fields("verdict", a.verdict, b.verdict, breaking={"ok", "ng"}),
        *_fields("budget", a.budget, b.budget),
        *_fields("requires", a.requires, b.requires, breaking={"providers", "onnxruntime"}),
        *_golden(a, b),
        *_fields("metrics", a.provenance.metrics, b.provenance.metrics),
        *_files(old, new),
        *_signer(old, new),
    ]


def _name(a: Manifest, b: Manifest) -> Iterable[Change]:
    if a.name != b.name:
        yield Change(kind="files", text=f"another model: {a.ref} and {b.ref}", breaking=True)
    if a.task != b.task:
        yield Change(kind="decode", text=f"task {a.task} -> {b.task}", breaking=True)


def _labels(a: list[str], b: list[str]) -> Iterable[Change]:
    added = [label for label in b if label not in a]
    removed = [label for label in a if label not in b]
    kept_a, kept_b = [label for label in a if label in b], [label for label in b if label in a]
    if removed:
        yield Change(kind="labels", text=f"labels removed: {', '.join(removed)}", breaking=True)
    if added:
        yield Change(kind="labels", text=f"labels added: {', '.join(added)}", breaking=True)
    if kept_a != kept_b:
        moved = [
            f"{label} {a.index(label)} -> {b.index(label)}" for label in kept_b if a.index(label) != b.index(label)
        ]
        yield Change(kind="labels", text=f"labels RE-ORDERED: {', '.join(moved)}", breaking=True)


def _outputs(a: list[Output], b: list[Output]) -> Iterable[Change]:
    old, new = ({output.name: output for output in outputs} for outputs in (a, b))
    return _fields("outputs", old, new)


def _fields(kind: Kind, a: Any, b: Any, *, breaking: Iterable[str] = ()) -> Iterable[Change]:
    """Compare two structs leaf by leaf."""
    old, new = _leaves(msgspec.to_builtins(a)), _leaves(msgspec.to_builtins(b))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            text = f"{kind}.{name}: {_shown(old.get(name))} -> {_shown(new.get(name))}".replace(
                "outputs.outputs", "outputs"
            )
            yield Change(kind=kind, text=text, breaking=name.split(".")[0] in breaking)


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, item in value.items():
        leaves |= _leaves(item, f"{prefix}{name}.") if isinstance(item, dict) else {f"{prefix}{name}": item}
    return leaves


def _golden(a: Manifest, b: Manifest) -> Iterable[Change]:
    old, new = ({case.image: case for case in manifest.golden.cases} for manifest in (a, b))
    if old.keys() != new.keys():
        added, removed = len(new.keys() - old.keys()), len(old.keys() - new.keys())
        yield Change(kind="golden", text=f"golden pictures: {added} added, {removed} removed")
    for image in sorted(old.keys() & new.keys()):
        before, after = old[image], new[image]
        if before.scores is not None and after.scores is not None:
            yield from _scores(image, before.scores, after.scores)
        elif len(before.boxes or []) != len(after.boxes or []):
            counts = f"{len(before.boxes or [])} -> {len(after.boxes or [])} boxes"
            yield Change(kind="golden", text=f"{image}: {counts}", breaking=True)
    yield from _fields("golden", {"tolerance": a.golden.tolerance}, {"tolerance": b.golden.tolerance})


def _scores(image: str, before: dict[str, float], after: dict[str, float]) -> Iterable[Change]:
    best_before, best_after = (max(scores, key=lambda label: scores[label]) for scores in (before, after))
    if best_before != best_after:
        yield Change(kind="golden", text=f"{image}: best label {best_before} -> {best_after}", breaking=True)
    elif abs(before[best_before] - after[best_after]) > ROUGH_GOLDEN:
        yield Change(kind="golden", text=f"{image}: {best_before} {before[best_before]:.3f} -> {after[best_after]:.3f}")


def _files(old: Look, new: Look) -> Iterable[Change]:
    a, b = ({file.name: file for file in look.files} for look in (old, new))
    for name in sorted(a.keys() | b.keys()):
        before, after = a.get(name), b.get(name)
        if before is None or after is None:
            yield Change(kind="files", text=f"{name} {'added' if before is None else 'removed'}")
        elif before.sha256 != after.sha256 and name != "model.json":
            yield Change(kind="files", text=f"{name} changed, {before.size_bytes} -> {after.size_bytes} bytes")


def _signer(old: Look, new: Look) -> Iterable[Change]:
    if old.key_id != new.key_id:
        yield Change(kind="signer", text=f"key {old.key_id[:16] or 'none'} -> {new.key_id[:16] or 'none'}")


def _shown(value: Any) -> str:
    return "nothing" if value is None else msgspec.json.encode(value).decode()
