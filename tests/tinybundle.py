"""A whole bundle of a few kilobytes, good or spoiled at will, for the tests."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from lenskeep.bundle import archive, manifest, signing
from lenskeep.bundle.archive import BundleReader, Limits, VerifiedBundle
from lenskeep.bundle.authority import TrustedKey, TrustStore
from lenskeep.bundle.keys import PrivateKey, generate_key
from lenskeep.bundle.signing import SignedFile

NOW_S = 1_800_000_000.0
LABELS = ["good", "scratched", "missing"]


@functools.cache
def key() -> PrivateKey:
    return generate_key()


@functools.cache
def other_key() -> PrivateKey:
    return generate_key()


def trusted(private: PrivateKey, name: str = "plant-release", **changes: Any) -> TrustedKey:
    facts: dict[str, Any] = {"id": private.public.id, "name": name, "pem": private.public.pem, "patterns": ("*",)}
    return TrustedKey(**(facts | changes))


def trust(*keys: TrustedKey) -> TrustStore:
    return TrustStore(keys or [trusted(key())])


@functools.cache
def model_bytes() -> bytes:
    """Mean of each colour channel, softmax: three scores."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Softmax", ["flat"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@functools.cache
def png(value: int = 100) -> bytes:
    return cv2.imencode(".png", np.full((4, 4, 3), value, np.uint8))[1].tobytes()


def facts() -> dict[str, Any]:
    """The manifest as plain values, to be spoiled by a test."""
    return {
        "schema": "lenskeep.model/1",
        "name": "cap-inspect",
        "version": "1.0.0",
        "created": "2026-11-01T00:00:00Z",
        "task": "classify",
        "input": {"name": "image", "shape": [1, 3, 4, 4], "resize": {"mode": "stretch"}},
        "outputs": [{"name": "scores", "shape": [1, 3]}],
        "decode": {"kind": "classify"},
        "labels": {"names": LABELS, "sha256": manifest.labels_digest(LABELS)},
        "verdict": {"ok": ["good"], "ng": ["scratched", "missing"]},
        "budget": {"latency_p99_ms": 50, "memory_mb": 100},
        "requires": {"opset": 17},
        "golden": {
            "cases": [{"image": "golden/a.png", "scores": {"good": 0.333, "scratched": 0.333, "missing": 0.333}}],
            "produced_by": "hand",
        },
        "license": "Apache-2.0",
    }


def parts(changed: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """The files of a good bundle, in no particular order."""
    return {
        "model.json": msgspec.json.encode(facts() | dict(changed or {})),
        "model.onnx": model_bytes(),
        "readme.md": b"# A card\n",
        "license.txt": b"Apache-2.0\n",
        "golden/a.png": png(),
    }


def signed_files(files: Mapping[str, bytes]) -> list[SignedFile]:
    return [SignedFile(name, hashlib.sha256(data).hexdigest()) for name, data in files.items()]


def signature(files: Mapping[str, bytes], private: PrivateKey | None = None) -> bytes:
    return signing.sign(signed_files(files), private or key(), "cap-inspect-1.0.0")


def respelled(sig: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Change the DER bytes inside a signature document."""
    document = json.loads(sig)
    one = document["dsseEnvelope"]["signatures"][0]
    one["sig"] = base64.b64encode(change(base64.b64decode(one["sig"]))).decode()
    return json.dumps(document).encode()


def member(name: str, data: bytes) -> bytes:
    return archive.header(name, len(data)) + data + bytes(-len(data) % 512)


def pack(
    files: Mapping[str, bytes] | None = None,
    *,
    sig: bytes | None = None,
    order: Callable[[Iterable[str]], Iterable[str]] = sorted,
) -> bytes:
    """Put an archive together member by member, however wrong the members are."""
    files = parts() if files is None else files
    sig = signature(files) if sig is None else sig
    return member("model.sig", sig) + b"".join(member(name, files[name]) for name in order(files)) + archive.END


class Kept:
    """Sinks in memory: what was written, and whether it was proven."""

    def __init__(self) -> None:
        self.written: dict[str, bytearray] = {}
        self.proven: dict[str, bytes] = {}

    def open_member(self, name: str, size_bytes: int) -> _KeptSink:
        assert name not in self.written
        self.written[name] = bytearray()
        return _KeptSink(self, name, size_bytes)


class _KeptSink:
    def __init__(self, kept: Kept, name: str, size_bytes: int) -> None:
        self._kept, self._name, self._size_bytes = kept, name, size_bytes

    def write(self, data: memoryview, /) -> None:
        self._kept.written[self._name] += data

    def close(self) -> None:
        assert len(self._kept.written[self._name]) == self._size_bytes
        self._kept.proven[self._name] = bytes(self._kept.written[self._name])


def read(
    data: bytes,
    store: TrustStore | None = None,
    *,
    chunk: int = 1 << 20,
    kept: Kept | None = None,
    limits: Limits | None = None,
    now_s: float = NOW_S,
) -> VerifiedBundle:
    """Push an archive through a reader."""
    reader = BundleReader(store or trust(), now_s, limits or Limits(), (kept or Kept()).open_member)
    for start in range(0, len(data), chunk):
        reader.feed(data[start : start + chunk])
    return reader.finish()


def unpack(folder: Path, data: bytes) -> Path:
    """Write what an archive holds as plain files, as any tar tool does."""
    kept = Kept()
    verified = read(data, kept=kept)
    for name, content in {**kept.proven, "model.sig": verified.signature}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
