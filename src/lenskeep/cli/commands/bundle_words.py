"""How the `bundle` verbs speak to people. Whatever stands in a bundle was written by a stranger and is cleaned."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from lenskeep.bundle.archive import VerifiedBundle
from lenskeep.bundle.diff import Change
from lenskeep.bundle.draft import Draft
from lenskeep.bundle.look import Look
from lenskeep.bundle.manifest import Manifest
from lenskeep.bundle.onnxcheck import OnnxFacts
from lenskeep.cli.output import Screen
from lenskeep.cli.words import clean, clean_lines, count, milliseconds, moment, plural, size
from lenskeep.messages.runner import TrialReport

LABELS_SHOWN = 12


def summary(seen: Look) -> dict[str, Any]:
    """The facts that every answer about a bundle carries."""
    return {
        "bundle": seen.manifest.ref, "title": seen.manifest.title, "digest": seen.digest, "key": seen.key_id,
        "signer": seen.signer, "signature": standing(seen), "size_bytes": seen.size_bytes,
    }  # fmt: skip


def misnamed(seen: Look) -> tuple[str, ...]:
    """Warn about a file whose name promises something else than what is in it."""
    name = f"{seen.manifest.name}-{seen.manifest.version}.lkb"
    if seen.source.is_dir() or seen.source.name == name:
        return ()
    return (f"The file is called {seen.source.name}; what it holds is {seen.manifest.ref}.",)


def standing(seen: Look) -> str:
    """Say in one word what the signature is worth here."""
    if seen.signer:
        return "verified"
    return "not checked" if seen.signature else "none"


def begun(screen: Screen, folder: Path, target: Path) -> None:
    """Say what `init` made."""
    screen.line(f"Wrote {target}, with every word and its meaning.")
    screen.line(f"Put golden pictures (png) and their answers (expected.json) into {folder / 'golden'}.")
    screen.next(f"edit it, then: lenskeep bundle pack {shlex.quote(str(folder))} --key KEY")


def drafted(screen: Screen, made: Draft, folder: Path) -> None:
    """Say what `pack` made without a key."""
    screen.line(f"{screen.style(made.manifest.ref, 'strong')}  draft, not signed  {folder}")
    _contract(screen, made.manifest)
    _inferred(screen, made.manifest)
    screen.next(f"lenskeep bundle test {shlex.quote(str(folder))}, then: lenskeep bundle sign … --key KEY")


def packed(screen: Screen, path: Path, verified: VerifiedBundle) -> None:
    """Say what was signed."""
    screen.line(f"{screen.style(verified.manifest.ref, 'strong')}  {path}  {size(verified.size_bytes)}")
    screen.line(f"  digest    sha256:{verified.digest}")
    screen.line(f"  signed    by key {verified.key_id[:16]}…, {plural(len(verified.files), 'file')}")
    _contract(screen, verified.manifest)
    _inferred(screen, verified.manifest)
    screen.next(f"lenskeep bundle test {shlex.quote(str(path))}")


def verified(screen: Screen, seen: Look, facts: OnnxFacts) -> None:
    """Say that a bundle is good."""
    good = screen.mark("good")
    screen.line(f"{good} signature  by {clean(seen.signer)}, key {seen.key_id[:16]}…")
    screen.line(f"{good} content    {plural(len(seen.files), 'file')}, {size(seen.size_bytes)}, sha256:{seen.digest}")
    screen.line(f"{good} manifest   {seen.manifest.ref} {clean(seen.manifest.title)}".rstrip())
    model = f"operator set {facts.opset}, {plural(facts.nodes, 'node')}, {count(facts.parameters)} weights"
    screen.line(f"{good} model      {model}")
    screen.next("copy it to the device and: lenskeep import FILE")


def inspected(screen: Screen, seen: Look, card: str, *, whole: bool) -> None:
    """Show everything that a person wants to know, or the signed text itself."""
    if whole:
        screen.line(clean_lines(seen.manifest_json.decode("utf-8", "replace")))
        return
    manifest = seen.manifest
    screen.line(f"{screen.style(manifest.ref, 'strong')}  {clean(manifest.title)}".rstrip())
    screen.line(f"  signature {_signature(screen, seen)}")
    screen.line(f"  digest    sha256:{seen.digest}")
    screen.line(f"  made      {moment(manifest.created)}, licence {clean(manifest.license)}")
    _contract(screen, manifest)
    _provenance(screen, manifest)
    _inferred(screen, manifest)
    screen.line()
    rows = [[file.name, size(file.size_bytes), file.sha256[:16]] for file in seen.files]
    screen.table(rows, ["FILE", "SIZE", "SHA256"])
    screen.line()
    screen.line(clean_lines(card))


def compared(screen: Screen, old: Look, new: Look, changes: list[Change]) -> None:
    """Show what changed, one line each."""
    screen.line(f"{screen.style(old.manifest.ref, 'strong')} -> {screen.style(new.manifest.ref, 'strong')}")
    if not changes:
        screen.line(f"{screen.mark('good')} no difference")
    for change in changes:
        screen.line(f"{screen.mark('warn' if change.breaking else 'info')} {clean(change.text)}")
    breaking = sum(change.breaking for change in changes)
    if breaking:
        screen.line(f"{plural(breaking, 'change')} to tell those who use the results or run the devices.")


def extracted(screen: Screen, seen: Look, folder: Path) -> None:
    """Say where the files are."""
    screen.line(f"{seen.manifest.ref}  {plural(len(seen.files), 'file')} in {folder}")
    screen.line(f"  signature {_signature(screen, seen)}")
    quoted = shlex.quote(str(folder))
    screen.next(f"model_signing verify key {quoted} --signature {quoted}/model.sig --public_key KEY.pub")


def tried(screen: Screen, seen: Look, report: TrialReport) -> None:
    """Show the checks of a trial."""
    screen.line(f"{screen.style(seen.manifest.ref, 'strong')} on this machine")
    for check in report.checks:
        screen.line(f"{screen.mark('good' if check.passed else 'bad')} {check.name:<10} {clean(check.text)}")
    if report.p99_ms:
        screen.line(f"  p50 {milliseconds(report.p50_ms)}, p99 {milliseconds(report.p99_ms)}, {report.memory_mb} MB")
    if report.passed:
        screen.line(f"{screen.mark('good')} passed; what counts is the same trial on each device")


def _signature(screen: Screen, seen: Look) -> str:
    if seen.signer:
        return f"{screen.mark('good')} by {clean(seen.signer)}, key {seen.key_id[:16]}…"
    if not seen.signature:
        return "none; this is a draft"
    return f"{screen.mark('warn')} NOT CHECKED; it claims the key {seen.key_id[:16]}… (give --key to check it)"


def _contract(screen: Screen, manifest: Manifest) -> None:
    spec, labels = manifest.input, manifest.labels.names
    shown = ", ".join(labels[:LABELS_SHOWN]) + (f", … ({len(labels)} in all)" if len(labels) > LABELS_SHOWN else "")
    shape = "x".join(map(str, spec.shape))
    screen.line(f"  task      {manifest.task}: {clean(shown)}")
    ok, ng = (", ".join(words) or "-" for words in (manifest.verdict.ok, manifest.verdict.ng))
    screen.line(f"  verdict   OK {clean(ok)}; NG {clean(ng)}")
    screen.line(f"  input     {clean(spec.name)} {spec.dtype} {spec.layout} {shape} {spec.color}")
    screen.line(f"  pixels    {spec.resize.mode}, {spec.resize.kernel}, times {spec.scale:.6g}")
    for output in manifest.outputs:
        screen.line(f"  output    {clean(output.name)} {output.dtype} {'x'.join(map(str, output.shape))}")
    screen.line(f"  budget    {manifest.budget.latency_p99_ms:g} ms, {manifest.budget.memory_mb} MB")
    golden = manifest.golden
    screen.line(f"  golden    {plural(len(golden.cases), 'picture')}, answers by {clean(golden.produced_by)}")


def _provenance(screen: Screen, manifest: Manifest) -> None:
    made = manifest.provenance
    told = {"source": made.source, "run": made.run_id, "commit": made.commit, "data": made.dataset}
    for what, text in (told | {"made from": made.parent}).items():
        if text:
            screen.line(f"  {what:<9} {clean(text)}")
    for name, value in made.metrics.items():
        screen.line(f"  metric    {clean(name)} {value:g}")


def _inferred(screen: Screen, manifest: Manifest) -> None:
    if not manifest.provenance.inferred:
        return
    screen.line("Not said by the maker, and where it was taken from:")
    for name, where in manifest.provenance.inferred.items():
        screen.line(f"  {clean(name):<24} {clean(where)}")
