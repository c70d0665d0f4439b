"""A repository whose every key the test holds: it can be wrong in any way and still be signed correctly."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from securesystemslib.formats import encode_canonical

from lenskeep.bundle.keys import PrivateKey, generate_key
from lenskeep.messages.trust import Look
from lenskeep.trust import assignment, names
from lenskeep.trust.assignment import Assignment, SlotAssignment

DAY_S = 86_400
Signed = dict[str, Any]


def when(at_s: float) -> str:
    """Return a time as metadata gives it."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def key_dict(key: PrivateKey) -> dict[str, Any]:
    """Return a public key as metadata gives it."""
    return {"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256", "keyval": {"public": key.public.pem}}


def facts(data: bytes) -> dict[str, Any]:
    """Return what a target's entry says about its bytes."""
    return {"length": len(data), "hashes": {"sha256": hashlib.sha256(data).hexdigest()}}


class Forger:
    """A repository in a folder, laid out and named as ours are; `signed` holds each role's words before signing."""

    def __init__(self, folder: Path, publishers: Iterable[str] = ("cap-team",), now_s: float | None = None) -> None:
        self.folder = folder
        self.now_s = time.time() if now_s is None else now_s
        self.keys = {role: [generate_key()] for role in (*names.TOP_ROLES, names.DIRECTOR, *publishers)}
        self.keys[names.ROOT] = [generate_key(), generate_key(), generate_key()]
        self.signed: dict[str, Signed] = {}
        self.signed[names.ROOT] = self._root()
        self.signed[names.TOP_TARGETS] = self.words("targets", targets={}, delegations={"keys": {}, "roles": []})
        self.signed[names.SNAPSHOT] = self.words("snapshot", meta={})
        self.signed[names.TIMESTAMP] = self.words("timestamp", meta={}, **{names.ISSUED_FIELD: int(self.now_s)})
        for publisher in publishers:
            self.delegate(publisher, [f"models/{publisher.removesuffix('-team')}-*/*"])
        self.delegate(names.DIRECTOR, names.DIRECTOR_PATHS)
        for part in (names.METADATA, names.TARGETS):
            (folder / part).mkdir(parents=True, exist_ok=True)

    # --- words ------------------------------------------------------------------------------------------------------

    def words(self, kind: str, days: float = 300, **more: Any) -> Signed:
        """Return the common words of a document."""
        expires = when(self.now_s + days * DAY_S)
        return {"_type": kind, "spec_version": "1.0.31", "version": 0, "expires": expires, **more}

    def _root(self) -> Signed:
        held = {key.public.id: key_dict(key) for role in names.TOP_ROLES for key in self.keys[role]}
        roles = {
            role: {"keyids": [key.public.id for key in self.keys[role]], "threshold": 2 if role == names.ROOT else 1}
            for role in names.TOP_ROLES
        }
        return self.words(names.ROOT, consistent_snapshot=True, keys=held, roles=roles)

    def delegate(self, role: str, paths: list[str], *, by: str = names.TOP_TARGETS, terminating: bool = True) -> None:
        """Let a role speak about paths."""
        keys = self.keys.setdefault(role, [generate_key()])
        self.signed.setdefault(role, self.words("targets", targets={}))
        said = self.signed[by].setdefault("delegations", {"keys": {}, "roles": []})
        said["keys"] |= {key.public.id: key_dict(key) for key in keys}
        said["roles"] = [each for each in said["roles"] if each["name"] != role] + [
            {
                "name": role, "keyids": [key.public.id for key in keys], "threshold": 1, "terminating": terminating,
                "paths": paths,
            }
        ]  # fmt: skip

    def rotate(self, role: str) -> None:
        """Exchange the keys of a role that root speaks for."""
        self.keys[role] = [generate_key()]
        fresh = self._root()
        self.signed[names.ROOT] |= {"keys": fresh["keys"], "roles": fresh["roles"]}

    # --- targets ----------------------------------------------------------------------------------------------------

    def add(self, role: str, path: str, data: bytes) -> None:
        """List a target and put its file where it belongs."""
        self.signed[role]["targets"][path] = facts(data)
        place = self.folder / names.target_file(path, hashlib.sha256(data).hexdigest())
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    def assign(self, device: str, target: str = "models/cap-inspect/1.0.0.lkb", *, names_device: str = "") -> bytes:
        """Assign a version to a device; `names_device` forges the name inside."""
        slots = {"line-1": SlotAssignment(target=target, sha256="0" * 64)}
        data = assignment.write(Assignment(device=names_device or device, generation=1, slots=slots))
        path = names.device_path(device)
        self.add(names.bin_of(path) if names.bin_of(path) in self.signed else names.DIRECTOR, path, data)
        return data

    def share_out(self) -> None:
        """Share the director's list out to bins, signed by its keys."""
        director = self.signed[names.DIRECTOR]
        keys = {key.public.id: key_dict(key) for key in self.keys[names.DIRECTOR]}
        bins = {"keyids": list(keys), "threshold": 1, "bit_length": names.BIN_BITS, "name_prefix": names.DIRECTOR}
        listed, director["targets"] = director["targets"], {}
        director["delegations"] = {"keys": keys, "succinct_roles": bins}
        for number in range(1 << names.BIN_BITS):
            role = names.bin_name(number)
            self.keys[role] = self.keys[names.DIRECTOR]
            mine = {path: facts for path, facts in listed.items() if names.bin_of(path) == role}
            self.signed[role] = self.words("targets", targets=mine)

    # --- signing and publishing -------------------------------------------------------------------------------------

    def sign(self, signed: Signed, keys: Iterable[PrivateKey]) -> bytes:
        """Return a signed document."""
        words = encode_canonical(signed)
        assert words is not None
        signatures = [{"keyid": key.public.id, "sig": key.sign(words.encode()).hex()} for key in keys]
        return json.dumps({"signatures": signatures, "signed": signed}).encode()

    def file(self, role: str) -> Path:
        """Return where a role's current document lies."""
        prefix = "" if role == names.TIMESTAMP else f"{self.signed[role]['version']}."
        return self.folder / names.METADATA / f"{prefix}{role}.json"

    def put(self, role: str, data: bytes | None = None, keys: Iterable[PrivateKey] | None = None) -> bytes:
        """Sign a role's words as they are and put them in place."""
        data = self.sign(self.signed[role], self.keys[role] if keys is None else keys) if data is None else data
        self.file(role).write_bytes(data)
        return data

    def publish(self, *roles: str) -> None:
        """Publish new versions of these roles (all of them when none is named), then snapshot and timestamp."""
        inner = [role for role in self.signed if role not in (names.ROOT, names.SNAPSHOT, names.TIMESTAMP)]
        for role in roles or (names.ROOT, *inner):
            self.signed[role]["version"] += 1
            self.put(role)
        snapshot, timestamp = self.signed[names.SNAPSHOT], self.signed[names.TIMESTAMP]
        snapshot["meta"] = {f"{role}.json": {"version": self.signed[role]["version"]} for role in inner}
        snapshot["version"] += 1
        self.put(names.SNAPSHOT)
        timestamp["version"] += 1
        timestamp["meta"] = {"snapshot.json": {"version": snapshot["version"]}}
        self.put(names.TIMESTAMP)

    def root(self, version: int = 1) -> bytes:
        """Return a published root."""
        return (self.folder / names.METADATA / f"{version}.root.json").read_bytes()

    def look(self, stored: dict[str, bytes] | None = None, **more: Any) -> Look:
        """Return the request of a device that was provisioned with the first root."""
        return Look(bootstrap=self.root(), stored=stored or {}, **({"now_s": self.now_s} | more))

    def copy(self) -> dict[str, Signed]:
        """Return what all roles say, to go back to later."""
        return copy.deepcopy(self.signed)
