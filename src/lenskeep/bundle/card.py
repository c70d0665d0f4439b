"""The two texts that travel with a model when its maker has not written them: a model card and a licence note."""

from __future__ import annotations

from lenskeep.bundle.manifest import Manifest


def write_card(manifest: Manifest) -> str:
    """Write a model card in Markdown from what the manifest says."""
    made = manifest.provenance
    lines = [
        f"# {manifest.title or manifest.name} {manifest.version}",
        "",
        manifest.description or f"A model for the task '{manifest.task}'.",
        "",
        "## What it does",
        "",
        f"- Labels: {', '.join(manifest.labels.names)}",
        f"- OK: {', '.join(manifest.verdict.ok) or 'none named'}; NG: {', '.join(manifest.verdict.ng) or 'none named'}",
        f"- Input: {_input(manifest)}",
        f"- Budget on the device: {manifest.budget.latency_p99_ms:g} ms, {manifest.budget.memory_mb} MB",
        "",
        "## Where it comes from",
        "",
        *_told("Source", made.source),
        *_told("Run", made.run_id),
        *_told("Commit", made.commit),
        *_told("Data", made.dataset),
        *_told("Made from", made.parent),
        f"- Licence: {manifest.license}",
        "",
        "## How well it does",
        "",
        *[f"- {name}: {value:g}" for name, value in made.metrics.items()],
        f"- Golden pictures: {len(manifest.golden.cases)}, answers by {manifest.golden.produced_by}",
    ]
    return "\n".join(lines) + "\n"


def write_license(identifier: str) -> str:
    """Name a licence by its SPDX identifier, and say where its text stands."""
    return f"SPDX-License-Identifier: {identifier}\n\nThe text: https://spdx.org/licenses/{identifier}.html\n"


def _input(manifest: Manifest) -> str:
    spec = manifest.input
    resize = f"{spec.resize.mode}, {spec.resize.kernel}"
    return f"{spec.width_px} x {spec.height_px} {spec.color}, {resize}, pixel times {spec.scale:.6g}"


def _told(what: str, value: str) -> list[str]:
    return [f"- {what}: {value}"] if value else []
