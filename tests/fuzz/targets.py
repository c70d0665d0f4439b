"""Every parser that reads what a stranger wrote, with good inputs to begin from.

Where a signature stands before a parser, the input is signed rightly here: a stolen key is a stranger too.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from lenskeep import config
from lenskeep.bundle import keys, look, manifest, modelcheck, onnxcheck, signing, strictjson
from lenskeep.daemon import pointers
from lenskeep.daemon.control import requests
from lenskeep.daemon.control.answers import FieldError
from lenskeep.daemon.places import Places
from lenskeep.errors import LenskeepError
from lenskeep.fleet import config as fleet_config
from lenskeep.fleet import reports as fleet_reports
from lenskeep.fleet.store.store import Listed
from lenskeep.messages import control as control_messages
from lenskeep.messages import fleet as fleet_messages
from lenskeep.messages.runner import (
    BundleRef,
    CameraPlan,
    FromRunner,
    SlotPlan,
    Swap,
    SwapFailed,
    decoder,
    frame,
)
from lenskeep.messages.trust import FromTrust, Look, Refusal, Verdict, Want
from lenskeep.runner.wire import Channel, HungUpError
from lenskeep.trust import (
    assignment,
    certificates,
    chain,
    client,
    envelope,
    invitation,
    names,
    recordfile,
    recordpiece,
    source,
    stick,
    strict,
)
from lenskeep.trust.chain import Entry, Head
from lenskeep.trust.keeping import documents
from tests import hostile, tinybundle
from tests.forger import Forger
from tests.fuzz.watch import SCRATCH, Target
from tests.unit.bundle import onnxmodels


@functools.cache
def scratch() -> Path:
    """A folder in memory, removed at the end (by whoever gave it, if it was given)."""
    if given := os.environ.get(SCRATCH):
        return Path(given)
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="lk-fuzz-", dir=shared if shared.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def in_file(read: Callable[[Path], object], name: str = "input") -> Callable[[bytes], object]:
    """Give a parser its input as a file."""

    def feed(data: bytes) -> object:
        path = scratch() / name
        path.write_bytes(data)
        return read(path)

    return feed


CONFIG = Path(__file__).parents[2] / "config" / "device.toml"


def every(*reads: Callable[[], object]) -> None:
    """Read in several ways; refused only when every one of them refuses."""
    refused: LenskeepError | None = None
    read = 0
    for way in reads:
        try:
            way()
            read += 1
        except LenskeepError as error:
            refused = error
    if refused is not None and not read:
        raise refused


# --- bundles ----------------------------------------------------------------------------------------------------------

FILES = tinybundle.parts()
SIGNATURE = tinybundle.signature(FILES)


@functools.cache
def small_bundle() -> bytes:
    return tinybundle.pack()


def bundles() -> list[bytes]:
    return [small_bundle(), tinybundle.pack(FILES | {"empty": b""}), *list(hostile.bundles().values())[:60:6]]


def feed_statement(payload: bytes) -> object:
    envelope_ = signing.Envelope(tinybundle.key().public.id, payload, tinybundle.key().sign(_model_pae(payload)))
    return signing.verify(envelope_, tinybundle.key().public)


def _model_pae(payload: bytes) -> bytes:
    return b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)


def feed_manifest(data: bytes) -> None:
    parsed = manifest.parse(data)
    assert manifest.parse(manifest.encode(parsed)) == parsed


def feed_signed_manifest(data: bytes) -> None:
    """A whole bundle around a manifest that somebody with the key wrote."""
    files = {**FILES, "model.json": data}
    verified = tinybundle.read(tinybundle.pack(files))
    modelcheck.check_model(verified.manifest, FILES["model.onnx"])


def feed_model(data: bytes) -> None:
    every(lambda: onnxcheck.scan(data), lambda: onnxcheck.scan(data, control_flow_allowed=True))


def models() -> list[bytes]:
    made = [onnxmodels.cnn(), onnxmodels.everything(), onnxmodels.many_kinds(), onnxmodels.loop(growing=True)]
    return [tinybundle.model_bytes(), onnxmodels.packed(), *(bytes(model.SerializeToString()) for model in made)]


def feed_json(data: bytes) -> None:
    def read(floats: bool) -> None:
        assert strictjson.loads(data, bytes_max=1 << 22, floats=floats) == json.loads(data)

    every(lambda: read(False), lambda: read(True))


def feed_key(data: bytes) -> None:
    every(lambda: keys.admit(data), lambda: keys.load_private_key(data))


# --- identity, record, reports ----------------------------------------------------------------------------------------

KEY = tinybundle.key()


def feed_envelope(data: bytes) -> None:
    opened = envelope.open_envelope(data)
    every(
        *(
            lambda kind=kind: envelope.verify(opened, kind, KEY.public)
            for kind in (envelope.REPORT, envelope.RECORD_HEAD)
        )
    )


def report() -> bytes:
    return msgspec.json.encode(
        fleet_messages.DeviceReport(
            device="cam-1", counter=3, at_ms=1_800_000_000_000, clock_trusted=True, clock_floor_s=1_799_999_999,
            trusted=fleet_messages.TrustedVersions(),
            refusal=fleet_messages.LastRefusal(at_ms=1, code="LK-4107", text="no"), record_head=head().decode(),
        )
    )  # fmt: skip


def feed_report(data: bytes) -> None:
    """A report's payload, signed by a device that is listed; and the same bytes as an envelope."""
    listed = Listed(device="cam-1", key_id=KEY.public.id, pem=KEY.public.pem, current=True)
    every(
        *(
            lambda sealed=sealed: fleet_reports._verified(fleet_reports._open(sealed), listed, sealed)
            for sealed in (data, envelope.seal(data, envelope.REPORT, KEY))
        )
    )


@functools.cache
def head() -> bytes:
    return chain.sign_head(_head(_entries()[-1]), KEY)


def _head(entry: Entry) -> Head:
    at = "2026-11-20T00:00:00Z"
    return Head(device="cam-1", sequence=entry.sequence, hash=entry.hash, at=at, counter=1)


@functools.cache
def _entries() -> list[Entry]:
    entries: list[Entry] = []
    for number in range(4):
        facts = chain.Facts(
            at_ms=number, monotonic_ms=number, boot="b", clock_trusted=True, actor="unix:root",
            action=chain.BEGIN if not number else "activate", subject="cam-1", reason="ä", before="", after="x",
        )  # fmt: skip
        entries.append(chain.put(entries[-1].point if entries else chain.BEFORE_ALL, facts))
    return entries


def record() -> bytes:
    return b"".join(
        [
            recordfile.header_line("cam-1", KEY.public),
            *(recordfile.entry_line(entry, entry.sequence != 2) for entry in _entries()),
            recordfile.head_line(head()),
        ]
    )


def record_piece() -> bytes:
    return b"".join([*(recordfile.entry_line(entry, True) for entry in _entries()), recordfile.head_line(head())])


def feed_record(data: bytes) -> None:
    lines = data.splitlines(keepends=True)
    verdict = recordfile.verify(lines, key=KEY.public)
    # the signed head may be spelled in more than one way, everything that it vouches for in one only
    assert not verdict.whole or lines[:-1] == record().splitlines(keepends=True)[:-1]
    recordfile.verify(lines)


def feed_record_piece(data: bytes) -> None:
    """What a device or a stick brings its fleet of a record."""
    parsed = recordpiece.parse(data)
    recordpiece.follow(parsed, chain.BEFORE_ALL, "", "cam-1", KEY.public)


def feed_head(payload: bytes) -> None:
    sealed = envelope.seal(payload, envelope.RECORD_HEAD, KEY)
    every(lambda: chain.open_head(payload, KEY.public), lambda: chain.open_head(sealed, KEY.public))


def csr() -> bytes:
    return certificates.write_request(KEY, "cam-1").encode()


@functools.cache
def certificate() -> bytes:
    from lenskeep.trust import ca

    authority = ca.make_authority(time.time(), KEY)
    return ca.certify_device(authority, "cam-1", KEY.public, time.time()).encode()


def feed_csr(data: bytes) -> None:
    certificates.read_request(data.decode("latin-1"), "cam-1")


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """A library that only warns has not crashed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@without_warnings()
def feed_certificate(data: bytes) -> None:
    text = data.decode("latin-1")
    every(lambda: certificates.split_chain(text), lambda: certificates.read(data))
    certificates.device_of(certificates.read(text))


def feed_invitation(data: bytes) -> None:
    invitation.read(data.decode("utf-8", "replace"))


# --- the repository ---------------------------------------------------------------------------------------------------


@functools.cache
def forger() -> Forger:
    made = Forger(scratch() / "repository")
    made.add("cap-team", "models/cap-inspect/1.0.0.lkb", b"bundle")
    made.assign("cam-1")
    made.publish()
    return made


@functools.cache
def metadata() -> dict[str, bytes]:
    folder = forger().folder
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def feed_metadata(data: bytes) -> None:
    roles = ("root", "timestamp", "snapshot", "targets", "cap-team")
    every(*(lambda role=role, rules=rules: strict.read(role, data, rules) for role in roles for rules in strict.Rules))


class _One:
    """A repository in which one file is another."""

    def __init__(self, name: str, data: bytes) -> None:
        self._files = metadata() | {name: data}

    def read(self, name: str, bytes_max: int) -> bytes | None:
        return None if (data := self._files.get(name)) is None else data[: bytes_max + 1]


def feed_repository(data: bytes) -> None:
    """The first byte says which file of a repository the rest stands for."""
    files = sorted(metadata())
    name = files[(data[0] if data else 0) % len(files)]
    request = Look(
        bootstrap=forger().root(), stored={}, now_s=forger().now_s, device="cam-1", paths=["models/x/1.0.0.lkb"]
    )
    folder = scratch() / "look"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    said = client.look(request, _One(name, data[1:]), folder)
    assert isinstance(said, Verdict | Refusal)


def repository_files() -> list[bytes]:
    return [bytes([number]) + data for number, (_, data) in enumerate(sorted(metadata().items()))]


def feed_stored(data: bytes) -> None:
    """What a damaged registry gives back as the metadata that was trusted before."""
    names_ = ("root.json", "timestamp.json", "snapshot.json", "targets.json", "cap-team.json")
    name = names_[(data[0] if data else 0) % len(names_)]
    request = Look(bootstrap=forger().root(), stored={name: data[1:]}, now_s=forger().now_s, offline=True)
    folder = scratch() / "look"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    client.look(request, _One("", b""), folder)


def feed_assignment(data: bytes) -> None:
    read = assignment.read(data, "cam-1")
    assert assignment.read(assignment.write(read), "cam-1") == read


def assignments() -> list[bytes]:
    return [data for name, data in metadata().items() if name.startswith("targets/devices")]


def feed_names(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    names.model_of(text)
    source.FolderSource(forger().folder).read(text, 1 << 16)


def feed_stick(data: bytes) -> None:
    """Each line is a file of a stick: what kind it is, its name, and what is in it."""
    place = scratch() / "stick"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for line in data.split(b"\n")[:20]:
        kind, _, rest = line.partition(b" ")
        name, _, content = rest.partition(b" ")
        _plant(place, kind, name.decode("utf-8", "surrogateescape"), content)
    found: list[str] = [*_STICK_NAMES]
    every(
        lambda: found.extend(file for _, file in stick.csrs(place)),
        lambda: found.extend(file for _, _, file in stick.reports(place)),
        lambda: found.extend(batch.file for batch in stick.batches(place)),
        lambda: found.extend(stick.receipts(place, "cam-1")),
        lambda: found.extend(stick.record_file(device) for device in stick.records(place)),
    )
    every(*(lambda name=name: stick.read(place, name, 1 << 12) for name in found))


def _plant(place: Path, kind: bytes, name: str, content: bytes) -> None:
    """Put something on a stick. Nothing is ever written through a link, and links lead to a decoy alone."""
    decoy = scratch() / "decoy"
    decoy.mkdir(exist_ok=True)
    path = place / name.replace("\0", "").lstrip("/")
    with contextlib.suppress(OSError):
        if ".." in path.parts or os.path.lexists(path) or not path.parent.resolve().is_relative_to(place.resolve()):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == b"link":
            path.symlink_to(decoy)
        elif kind == b"pipe":
            os.mkfifo(path)
        elif kind == b"folder":
            path.mkdir()
        else:
            path.write_bytes(content)


_STICK_NAMES = ("csr/cam-1.csr", "reports/cam-1/1.json", "record/cam-1.jsonl", "metadata/timestamp.json")
STICK = b"""file csr/cam-1.csr x
file reports/cam-1/1.json {}
file outbox/cam-1/abababababababababababababababab-0-9.json {}
file receipts/cam-1/abababababababababababababababab.json {}
file record/cam-1.jsonl {}
file metadata/timestamp.json {}"""
ODD_STICK = b"""file csr/cam-1.csr x
file reports/cam-1/1.json {}
link reports/cam-1/2.json
pipe reports/cam-1/3.json
folder reports/cam-2
link reports/cam-3
file metadata/timestamp.json {}
file certificates/cam-1.pem x"""


def feed_keepers_document(data: bytes) -> None:
    """What a holder of keys is handed in a file."""
    roles = ("root", "timestamp", "snapshot", "targets", "cap-team")
    every(*(lambda role=role: documents.read(role, data) for role in roles))


# --- wires ------------------------------------------------------------------------------------------------------------


def feed_to_runner(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(theirs)
    try:
        ours.sendall(data[:60_000])
        channel.receive()
    finally:
        ours.close()
        channel.close()


def feed_from_runner(data: bytes) -> None:
    decoder(FromRunner).decode(data)


def feed_from_trust(data: bytes) -> None:
    msgspec.msgpack.decode(data, type=FromTrust)


def verdict() -> Verdict:
    unlisted = ["models/a/1.0.0.lkb"]
    return Verdict(roles=[], issued_s=0.0, stored={"root.json": b"{}"}, delegations=[], listings=[], unlisted=unlisted)


def feed_body(data: bytes) -> None:
    def read(type_: Any) -> None:
        with contextlib.suppress(FieldError):  # which the door turns into LK-1100
            requests.decode_body(data, type_)

    every(*(lambda type_=type_: read(type_) for type_ in _BODIES))


_BODIES: list[Any] = [
    control_messages.ActivationRequest, control_messages.KeyRequest, control_messages.TokenRequest, control_messages.CheckRequest,
]  # fmt: skip


def feed_fleet_body(data: bytes) -> None:
    for type_ in (fleet_messages.EnrolmentRequest, fleet_messages.CertificateAsk, fleet_messages.InvitationAsk):
        try:
            msgspec.json.decode(data, type=type_)
        except (msgspec.DecodeError, UnicodeDecodeError):  # what the fleet's door turns into LK-1100
            continue


def feed_pointer(data: bytes) -> None:
    places = Places(scratch(), scratch())
    path = places.pointer("main")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    pointers.read_pointer(places, "main")


def bundle() -> BundleRef:
    return BundleRef(
        name="cap-inspect", version="1.0.0", digest="0" * 64, manifest_json=FILES["model.json"], model_path="/x",
        model_sha256="0" * 64,
    )  # fmt: skip


def plan() -> SlotPlan:
    cameras = [CameraPlan(name="cam-1", source="synthetic:ticks")]
    return SlotPlan(slot="main", socket_path="/x", cameras=cameras, bundle=bundle())


BROKEN = (LenskeepError, msgspec.DecodeError, UnicodeDecodeError)  # a message that both ends of a wire take for its end

TARGETS = {
    target.name: target
    for target in (
        Target("bundle", tinybundle.read, bundles),
        Target("bundle-look", in_file(lambda path: look.look(path, None, tinybundle.NOW_S), "look.lkb"), bundles),
        Target("signature", lambda data: signing.claimed(signing.open_signature(data)), lambda: [SIGNATURE]),
        Target("statement", feed_statement, lambda: [signing.open_signature(SIGNATURE).payload]),
        Target("manifest", feed_manifest, lambda: [FILES["model.json"]]),
        Target("signed-manifest", feed_signed_manifest, lambda: [FILES["model.json"]]),
        Target("model", feed_model, models),
        Target("json", feed_json, lambda: [FILES["model.json"], SIGNATURE, b'[1, -2.5e3, "\\ud83d\\ude00", null]']),
        Target("key", feed_key, lambda: [KEY.public.pem.encode(), KEY.pem()]),
        Target("envelope", feed_envelope, lambda: [envelope.seal(report(), envelope.REPORT, KEY), head()]),
        Target("report", feed_report, lambda: [report(), envelope.seal(report(), envelope.REPORT, KEY)]),
        Target("record", feed_record, lambda: [record()]),
        Target("record-piece", feed_record_piece, lambda: [record_piece()]),
        Target("record-head", feed_head, lambda: [head(), msgspec.json.encode(_head(_entries()[-1]))]),
        Target("csr", feed_csr, lambda: [csr()]),
        Target("certificate", feed_certificate, lambda: [certificate()]),
        Target("invitation", feed_invitation, lambda: [invitation.invite("0" * 64).text().encode()]),
        Target("metadata", feed_metadata, lambda: list(metadata().values())),
        Target("repository", feed_repository, repository_files),
        Target("stored-metadata", feed_stored, lambda: [bytes([n]) + data for n, data in enumerate(metadata().values())]),
        Target("stick", feed_stick, lambda: [STICK, ODD_STICK]),
        Target("ceremony", feed_keepers_document, lambda: list(metadata().values())),
        Target("assignment", feed_assignment, assignments),
        Target("names", feed_names, lambda: [name.encode() for name in metadata()]),
        Target("to-runner", feed_to_runner, lambda: [frame(Swap(op="1", bundle=bundle()))], (LenskeepError, HungUpError)),
        Target("from-runner", feed_from_runner, lambda: [frame(SwapFailed(op="1", code="LK-4012", message="no"))[4:]], BROKEN),
        Target("from-trust", feed_from_trust, lambda: [msgspec.msgpack.encode(each) for each in (verdict(), Want(name="x", bytes_max=1))], BROKEN),
        Target("request", feed_body, lambda: [b'{"bundle": "cap-inspect@1.0.0", "trial_s": 30}', b'{"name": "a", "pem": "x", "patterns": ["*"]}']),
        Target("fleet-request", feed_fleet_body, lambda: [msgspec.json.encode({"device": "cam-1", "token": "x", "csr": "y"})]),
        Target("pointer", feed_pointer, lambda: [msgspec.json.encode(plan())]),
        Target("config", in_file(config.load, "device.toml"), lambda: [CONFIG.read_bytes()]),
        Target("fleet-config", in_file(fleet_config.load, "fleet.toml"), lambda: [b"[storage]\nstate_dir = '/x'\n"]),
    )
}  # fmt: skip
