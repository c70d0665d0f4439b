"""Every hostile bundle of the attack list's groups A to C and E as a whole file, for doors that take whole files.

The unit tests hold the same spoiled parts against the part's own reader; here each is wrapped so that everything around
it is right, and signed rightly wherever somebody who holds the key could have made it.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from onnx import ModelProto, helper

from lenskeep.bundle import archive, signing
from lenskeep.bundle.keys import PrivateKey, generate_key
from lenskeep.trust import envelope
from tests import tinybundle
from tests.unit.bundle import onnxmodels, test_attacks_archive, test_manifest, test_signing

FILES = tinybundle.parts()
ORDER = test_signing.ORDER


@functools.cache
def weld_key() -> PrivateKey:
    """A key that a device trusts for `weld-*` alone."""
    return generate_key()


def bundles() -> dict[str, bytes]:
    """Every hostile bundle by its name, which begins with its numbers in the attack list."""
    return {
        **_archives(),
        **{f"{name} (manifest)": _with_manifest(text) for name, text in test_manifest.TEXTS.items()},
        **{f"{name} (manifest)": _with_manifest(text) for name, text in test_manifest.VALUES.items()},
        **{f"{name} (signature)": _with_document(change) for name, change in test_signing.ATTACKS.items()},
        **{f"{name} (signature)": tinybundle.pack(sig=data) for name, data in test_signing.NO_STRICT_JSON.items()},
        **{f"{name} (statement)": _with_statement(change) for name, change in test_signing.STATEMENTS.items()},
        **{name: tinybundle.pack(sig=_with_der(change)) for name, change in _DER.items()},
        **_signers(),
        **models(),
    }


# --- archives ---------------------------------------------------------------------------------------------------------


def _archives() -> dict[str, bytes]:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as writer:
        writer.writestr("model.json", FILES["model.json"])
    front = tinybundle.member("model.sig", tinybundle.signature(FILES))
    large = {**FILES, "big": bytes(3 << 20)}
    spoiled = {**large, "big": bytes((3 << 20) - 1) + b"x"}
    return {
        **test_attacks_archive.ATTACKS,
        "24 octal size of 8 GiB": test_attacks_archive.patched(124, b"77777777777\0"),
        "28 zip": packed.getvalue(),
        "30 over 4 GiB announced": front + archive.header("golden/a.png", (4 << 30) + 100) + bytes(4096),
        "30 over 2 GiB announced": front + archive.header("golden/a.png", (2 << 30) + 100) + bytes(4096),
        "30 last byte of a large file": tinybundle.pack(spoiled, sig=tinybundle.signature(large)),
        "31 100,000 members": _listing([archive.SignedFile(f"f{number}", "00" * 32) for number in range(100_000)]),
        "31 members: 65": _listing([archive.SignedFile(f"f{number}", "00" * 32) for number in range(65)]),
        **{f"36 name with {case}": _named(name) for case, name in test_attacks_archive.NAMES.items() if name},
    }


def _listing(files: list[archive.SignedFile]) -> bytes:
    return tinybundle.member("model.sig", signing.sign(files, tinybundle.key(), "many")) + archive.END


def _named(name: str) -> bytes:
    listed = [*tinybundle.signed_files(FILES), archive.SignedFile(name, "00" * 32)]
    return tinybundle.pack(sig=signing.sign(listed, tinybundle.key(), "x"))


def _with_manifest(text: bytes) -> bytes:
    return tinybundle.pack({**FILES, "model.json": text})


# --- signatures -------------------------------------------------------------------------------------------------------


def _with_document(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(tinybundle.signature(FILES))
    change(document)
    return tinybundle.pack(sig=json.dumps(document).encode())


def _with_statement(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(tinybundle.signature(FILES))
    statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
    payload = json.dumps(change(statement) or statement).encode()
    return tinybundle.pack(sig=test_signing.with_payload(document, payload))


def _with_der(change: Callable[[bytes], bytes]) -> bytes:
    return tinybundle.respelled(tinybundle.signature(FILES), change)


def _pair(change: Callable[[int, int], tuple[int, int]]) -> Callable[[bytes], bytes]:
    return lambda der: utils.encode_dss_signature(*change(*utils.decode_dss_signature(der)))


_DER: dict[str, Callable[[bytes], bytes]] = {
    "65 r is 0": _pair(lambda r, s: (0, s)),
    "65 s is 0": _pair(lambda r, s: (r, 0)),
    "65 r is the order": _pair(lambda r, s: (ORDER, s)),
    "65 s over the order": _pair(lambda r, s: (r, s + ORDER)),
    "66 a byte behind": lambda der: der + b"\0",
    "66 a length in the long form": lambda der: b"\x30\x81" + der[1:],
    "66 an open length": lambda der: b"\x30\x80" + der[2:] + b"\0\0",
    "66 a zero in front": lambda der: bytes([0x30, der[1] + 1, 2, der[3] + 1, 0]) + der[4:],
    "66 the raw pair": lambda der: der[4:36] + der[-32:],
}


def _signers() -> dict[str, bytes]:
    stranger = tinybundle.signature(FILES, tinybundle.other_key())
    borrowed = stranger.replace(tinybundle.other_key().public.id.encode(), tinybundle.key().public.id.encode())
    statement = base64.b64decode(json.loads(tinybundle.signature(FILES))["dsseEnvelope"]["payload"])
    report = envelope.seal(statement, envelope.REPORT, tinybundle.key())
    inside = json.loads(tinybundle.signature(FILES))
    inside["dsseEnvelope"]["signatures"][0]["sig"] = json.loads(report)["signatures"][0]["sig"]
    return {
        "53 54 a stranger's key": tinybundle.pack(sig=stranger),
        "59 key id of one, signature of another": tinybundle.pack(sig=borrowed),
        "61 a report in place of the signature": tinybundle.pack(sig=report),
        "61 a report's signature inside": tinybundle.pack(sig=json.dumps(inside).encode()),
        "63 a P-384 signature under a P-256 key's id": tinybundle.pack(sig=_by_p384()),
        "69 content of another version": tinybundle.pack(
            {**FILES, "model.onnx": FILES["model.onnx"] + b"\0"}, sig=tinybundle.signature(FILES)
        ),
        "71 key of another model name": tinybundle.pack(sig=tinybundle.signature(FILES, weld_key())),
    }


def _by_p384() -> bytes:
    document = json.loads(tinybundle.signature(FILES))
    payload = base64.b64decode(document["dsseEnvelope"]["payload"])
    pae = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
    der = ec.generate_private_key(ec.SECP384R1()).sign(pae, ec.ECDSA(hashes.SHA384()))
    document["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(der).decode()
    return json.dumps(document).encode()


# --- models -----------------------------------------------------------------------------------------------------------


def models() -> dict[str, bytes]:
    """Bundles that are right in all but their model, which the static scan refuses (group E)."""
    broken = tinybundle.model_bytes()
    laughs = {f"f{level}": [f"f{level + 1}"] * 2 for level in range(28)} | {"f28": ["Relu"]}
    chain = {f"f{level}": [f"f{level + 1}"] for level in range(3000)} | {"f3000": ["Relu"]}
    foreign = helper.make_node("Surprise", ["x"], ["y"], domain="evil")
    made: dict[str, bytes | ModelProto] = {
        "104 external data with dot dot": _external("../../secret"),
        "105 external data at an absolute path": _external("/etc/shadow"),
        "106 107 external data beside the model, where a link may lie": _external("soft.bin"),
        "108 external data from a device": _external("/dev/zero"),
        "109 external data with an offset that lies": _external("weights.bin", offset="-1", length="9" * 30),
        "110 dims that lie": _dims(2, 4),
        "110 negative dims": _dims(-2, -3),
        "110 dims of 2^33": _dims(1 << 33),
        "113 endless loop": onnxmodels.loop(growing=False),
        "114 loop that grows memory": onnxmodels.loop(growing=True),
        "115 If in If, thirty times": onnxmodels.branch(30),
        "116 function that calls itself": onnxmodels.functions({"f": ["f"]}),
        "117 billion laughs of functions": onnxmodels.functions(laughs),
        "118 chain of functions, three thousand deep": onnxmodels.functions(chain),
        "119 operator of a foreign domain": onnxmodels.model([foreign], opsets=onnxmodels.OPSETS | {"evil": 1}),
        "121 future opset": onnxmodels.model(opsets={"": 99}),
        "122 garbage for a model": b"\x08\x07garbage" * 50,
        "122 model cut short": broken[:-1],
        "122 bytes behind the model": broken + b"\xff\xff",
        "122 empty model": b"",
    }
    data = {name: model if isinstance(model, bytes) else model.SerializeToString() for name, model in made.items()}
    return {name: tinybundle.pack({**FILES, "model.onnx": model}) for name, model in data.items()}


def _external(location: str, **entries: str) -> ModelProto:
    return onnxmodels.with_tensor(onnxmodels.external(onnxmodels.weight(), location, **entries))


def _dims(*dims: int) -> ModelProto:
    tensor = onnxmodels.weight()
    del tensor.dims[:]
    tensor.dims.extend(dims)
    return onnxmodels.with_tensor(tensor)
