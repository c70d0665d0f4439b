"""Does the model file keep what the manifest promises about it?

Rules. The model is scanned, never loaded. An open size in the model (a name or nothing where a number could
be) is no contradiction: the trial on the device sees the real one. Outputs that the manifest leaves out are
not used and may be there.
"""

from __future__ import annotations

from collections.abc import Sequence

from lenskeep.bundle import onnxcheck
from lenskeep.bundle.manifest import Input, Manifest, Output
from lenskeep.bundle.onnxcheck import OnnxFacts, TensorFacts
from lenskeep.errors import ManifestError


def check_model(manifest: Manifest, data: bytes | memoryview) -> OnnxFacts:
    """Scan the model's bytes and compare them with the manifest.

    Raises: ModelRefusedError for what is never run here, ManifestError for a broken promise.
    Cost: one walk over the nodes; the weights are not touched.
    """
    facts = onnxcheck.scan(data, control_flow_allowed=manifest.requires.control_flow)
    if facts.opset != manifest.requires.opset:
        raise ManifestError(
            f"model.json: requires.opset is {manifest.requires.opset}; the model uses opset {facts.opset}"
        )
    if len(facts.inputs) != 1:
        names = ", ".join(value.name for value in facts.inputs) or "none"
        raise ManifestError(f"The model must have one input, the image; it has {len(facts.inputs)} ({names}).")
    _compare("input", manifest.input, facts.inputs)
    for output in manifest.outputs:
        _compare("output", output, facts.outputs)
    return facts


def _compare(kind: str, promised: Input | Output, found: Sequence[TensorFacts]) -> None:
    tensor = next((tensor for tensor in found if tensor.name == promised.name), None)
    if tensor is None:
        names = ", ".join(tensor.name for tensor in found)
        raise ManifestError(f"model.json: the model has no {kind} {promised.name!r}; it has {names}")
    if tensor.dtype != promised.dtype:
        raise ManifestError(f"model.json: {kind} {promised.name!r} is {promised.dtype}; the model has {tensor.dtype}")
    if not fits(promised.shape, tensor):
        raise ManifestError(
            f"model.json: {kind} {promised.name!r} has shape {promised.shape}; the model has {tensor.shape}"
        )


def fits(shape: Sequence[int], tensor: TensorFacts) -> bool:
    """Say whether an exact shape is one that the tensor can have."""
    if tensor.shape is None:
        return True
    if len(shape) != len(tensor.shape):
        return False
    return all(size == dim or not isinstance(dim, int) for size, dim in zip(shape, tensor.shape, strict=True))
