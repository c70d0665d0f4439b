"""From a recipe to everything that is signed: the manifest and the files beside it.

Rules. The same recipe over the same files gives the same bytes: nothing is taken from the clock or the machine. The
manifest that is written is read back by the device's own parser before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from lenskeep.bundle import card, disk, golden, onnxcheck, strictjson
from lenskeep.bundle import manifest as manifests
from lenskeep.bundle.archive import Limits, check_names, check_presence
from lenskeep.bundle.disk import Part
from lenskeep.bundle.exports import Contract, infer
from lenskeep.bundle.golden import Answers
from lenskeep.bundle.manifest import MANIFEST_NAME, Manifest
from lenskeep.bundle.onnxcheck import OnnxFacts
from lenskeep.bundle.recipe import Recipe
from lenskeep.bundle.signing import SIGNATURE_NAME
from lenskeep.clock import rfc3339
from lenskeep.errors import BundleFormatError, RequestError

MODEL_NAME = "model.onnx"
CARD_NAME = "readme.md"
LICENSE_NAME = "license.txt"
FACTS_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Draft:
    """All that a bundle consists of, before it is signed."""

    manifest: Manifest
    parts: dict[str, Part]
    warnings: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """What the bundle file is called, without its ending."""
        return f"{self.manifest.name}-{self.manifest.version}"


def examine(path: Path, *, control_flow_allowed: bool = False) -> OnnxFacts:
    """Scan an ONNX file on the disk. Raises: RequestError, ModelRefusedError."""
    with disk.mapped(path) as data:
        return onnxcheck.scan(data, control_flow_allowed=control_flow_allowed)


def from_recipe(recipe: Recipe, answers: Answers | None, answered_by: str) -> Draft:
    """Make a draft.

    Args:
        answers: of the golden pictures; without them the draft is whole but for its proof.
        answered_by: who gave the answers, for the manifest.
    Raises: RequestError naming the flag; BundleError when a device would refuse the result.
    """
    facts = examine(Path(recipe.model), control_flow_allowed=recipe.control_flow)
    contract = infer(facts, recipe)
    pictures = golden.pictures(Path(recipe.golden))
    check_names([golden.member(picture) for picture in pictures], Limits())
    cases = golden.cases(pictures, answers or golden.blank(pictures, contract.task))
    manifest = _manifest(recipe, facts, contract, cases, answered_by)
    manifest_json = manifests.encode(manifest)
    parts: dict[str, Part] = {
        MANIFEST_NAME: manifest_json,
        MODEL_NAME: Path(recipe.model),
        CARD_NAME: Path(recipe.card) if recipe.card else card.write_card(manifest).encode(),
        LICENSE_NAME: Path(recipe.license_file) if recipe.license_file else card.write_license(recipe.license).encode(),
        **{golden.member(picture): picture for picture in pictures},
    }
    check_names(list(parts), Limits())
    return Draft(manifests.parse(manifest_json), parts, (*contract.warnings, *_doubts(manifest)))


def from_folder(folder: Path) -> Draft:
    """Take a folder as it is, with a `model.json` that its maker has written. Raises: BundleError."""
    parts: dict[str, Part] = dict(disk.list_folder(folder))
    parts.pop(SIGNATURE_NAME, None)
    if MANIFEST_NAME not in parts:
        raise BundleFormatError(f"{folder} has no {MANIFEST_NAME}; it is not the folder of a bundle.")
    check_names(list(parts), Limits())
    manifest = manifests.parse(b"".join(disk.contents(parts[MANIFEST_NAME])))
    check_presence(manifest, list(parts))
    return Draft(manifest, parts, _doubts(manifest))


def _manifest(
    recipe: Recipe, facts: OnnxFacts, contract: Contract, cases: list[manifests.GoldenCase], answered_by: str
) -> Manifest:
    words = {
        "schema": manifests.SCHEMA,
        "name": recipe.name,
        "version": recipe.version,
        "title": recipe.title,
        "description": recipe.description,
        "created": recipe.created or rfc3339(Path(recipe.model).stat().st_mtime),
        "task": contract.task,
        "input": contract.input,
        "outputs": contract.outputs,
        "decode": contract.decode,
        "labels": {"names": contract.labels, "sha256": manifests.labels_digest(contract.labels)},
        "verdict": _said(ok=recipe.ok, ng=recipe.ng, certain_from=recipe.certain_from,
                         uncertain_from=recipe.uncertain_from, ok_count_min=recipe.ok_count_min),
        "budget": {"latency_p99_ms": _needed(recipe, "latency_ms"), "memory_mb": _needed(recipe, "memory_mb")},
        "requires": {"opset": facts.opset, "control_flow": recipe.control_flow}
        | ({"providers": recipe.providers} if recipe.providers else {}),
        "golden": {"cases": cases, "produced_by": answered_by,
                   "tolerance": _said(score_abs=recipe.tolerance_score, box_iou_min=recipe.tolerance_iou)},
        "provenance": _provenance(recipe, contract.notes),
        "license": _needed(recipe, "license"),
        "model": MODEL_NAME,
        "card": CARD_NAME,
        "license_file": LICENSE_NAME,
    }  # fmt: skip
    try:
        return msgspec.convert(msgspec.to_builtins(words), Manifest, strict=True)
    except msgspec.ValidationError as error:
        raise RequestError(f"The recipe does not give a right manifest: {error}.") from error


def _said(**words: Any) -> dict[str, Any]:
    """Leave out what was not said, so that the manifest's own defaults hold."""
    return {name: value for name, value in words.items() if value is not None}


def _needed(recipe: Recipe, name: str) -> Any:
    value = getattr(recipe, name)
    if value in (None, ""):
        flag = name.replace("_", "-")
        raise RequestError(f"Say --{flag}: it cannot be read from the model.", hint=f"Add --{flag} and pack again.")
    return value


def _provenance(recipe: Recipe, notes: dict[str, str]) -> manifests.Provenance:
    """Read the facts file; the flag for the parent goes before it. Raises: RequestError."""
    made = manifests.Provenance()
    if recipe.facts:
        try:
            words = strictjson.loads(Path(recipe.facts).read_bytes(), bytes_max=FACTS_BYTES_MAX, floats=True)
            made = msgspec.convert(words, manifests.Provenance, strict=True)
        except (OSError, BundleFormatError, msgspec.ValidationError) as error:
            raise RequestError(f"The facts {recipe.facts} cannot be read: {error}") from error
    return msgspec.structs.replace(made, parent=recipe.parent or made.parent, inferred=notes)


def _doubts(manifest: Manifest) -> tuple[str, ...]:
    """Say what is allowed and yet rarely meant."""
    undecided = [label for label in manifest.labels.names if label not in (*manifest.verdict.ok, *manifest.verdict.ng)]
    doubts = []
    if undecided:
        doubts.append(f"Neither OK nor NG: {', '.join(undecided)}.")
    if not manifest.verdict.ok and manifest.task == "classify":
        doubts.append("No label means OK.")
    return tuple(doubts)
