"""A publisher's work: versions released and withdrawn, and what a server checks before it publishes them.

Rules. A bundle is read with the device's own reader under the role's keys before it is listed. A version means one
content for ever, also after it was withdrawn; only its signature may be made anew. A withdrawal is signed with its
reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuf.api.metadata import DelegatedRole, Targets

from lenskeep.bundle import disk
from lenskeep.bundle.archive import VerifiedBundle
from lenskeep.bundle.authority import TrustedKey, TrustStore
from lenskeep.bundle.keys import Signer
from lenskeep.errors import (
    DelegationError,
    NotEntitledError,
    NotListedError,
    RepublishedError,
    UnknownNameError,
    UploadRefusedError,
)
from lenskeep.trust.keeping import changes, contents, documents, proposals, scopes, settings, state
from lenskeep.trust.keeping.documents import Document
from lenskeep.trust.keeping.state import State
from lenskeep.trust.keeping.workspace import CHUNK_BYTES, Progress, Workspace
from lenskeep.trust.names import DIRECTOR, METADATA, TARGETS, model_of, model_path, target_file

WITHDRAWN_FIELD = "x-lenskeep-withdrawn"  # in a publisher's role: path -> sha256, reason, when
REASON_LENGTH_MAX = 200


@dataclass(frozen=True, slots=True)
class Release:
    """A bundle that may be listed under its path."""

    role: str
    path: str
    sha256: str
    length_bytes: int
    bundle: VerifiedBundle
    file: Path


def publish(
    work: Workspace, files: Sequence[Path], signers: Sequence[Signer], now_s: float, progress: Progress | None = None
) -> list[Release]:
    """Verify bundles and propose to list them; equal bundles that are listed already are left as they are.

    Raises: BundleError, ModelRefusedError, DelegationError when nobody may sign that name, NotEntitledError,
        RepublishedError, UploadRefusedError.
    """
    current = state.require(work)
    releases = [inspect(current, file, now_s, progress) for file in files]
    for role in sorted({release.role for release in releases}):
        body = _next(work, role, now_s)
        for release in (one for one in releases if one.role == role):
            _check_content(work, role, release.path, release.sha256, release.bundle.digest)
            body.targets[release.path] = documents.target_of(release.path, release.length_bytes, release.sha256)
            _withdrawn_of(body).pop(release.path, None)
            work.put_copy(target_file(release.path, release.sha256), release.file, release.sha256)
        _propose(work, role, body, signers, ", ".join(_said(one.path) for one in releases if one.role == role))
    return releases


def withdraw(work: Workspace, name: str, version: str, reason: str, signers: Sequence[Signer], now_s: float) -> str:
    """Propose to list a version no more, and return its role; devices then neither activate nor go back to it.

    Raises: NotListedError, NotEntitledError.
    """
    path = model_path(name, version)
    role = _owner(state.require(work), path).name
    body = _next(work, role, now_s)
    target = body.targets.pop(path, None)
    if target is None:
        raise NotListedError(f"{name}@{version} is not listed by {role}.")
    _withdrawn_of(body)[path] = {
        "sha256": target.hashes["sha256"], "reason": reason[:REASON_LENGTH_MAX], "at": int(now_s)
    }  # fmt: skip
    _propose(work, role, body, signers, f"withdraws {name}@{version}: {reason[:REASON_LENGTH_MAX]}")
    return role


def inspect(current: State, file: Path, now_s: float, progress: Progress | None = None) -> Release:
    """Verify a bundle file as a device does, under the keys of the role that owns its name.

    Raises: BundleError, ModelRefusedError, DelegationError, UploadRefusedError.
    """
    if current.targets is None:
        raise UploadRefusedError("The repository has no targets yet; its holders have to sign first.")
    everybody = {
        holder.id: TrustedKey(id=holder.id, name=f"{role} ({holder})", pem=holder.pem, patterns=("*",))
        for role in current.delegations
        if role != DIRECTOR
        for holder in documents.holders_of(current.targets.targets, role)[1]
    }
    bundle = disk.read_file(file, TrustStore(everybody.values()), now_s)
    path = model_path(bundle.manifest.name, bundle.manifest.version)
    role = _owner(current, path).name
    holders = documents.holders_of(current.targets.targets, role)[1]
    if bundle.key_id not in {holder.id for holder in holders}:
        raise UploadRefusedError(f"{file.name} is signed by {bundle.signer}; {bundle.manifest.name} belongs to {role}.")
    disk.check_model_of(file, bundle)
    sha256, length = digest_file(file, progress)
    return Release(role, path, sha256, length, bundle, file)


def digest_file(file: Path, progress: Progress | None = None) -> tuple[str, int]:
    """Return a file's sha256 and length. Cost: reads it whole."""
    digest, done, total = hashlib.sha256(), 0, file.stat().st_size
    with file.open("rb") as reader:
        while chunk := reader.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
    return digest.hexdigest(), done


def verify_upload(work: Workspace, role: str, raw: bytes, files: Sequence[Path], now_s: float) -> list[Release]:
    """Judge what a publisher sends as a device would, and lay it out for the next commit.

    Args:
        raw: the role's new metadata, signed by enough of its keys.
        files: the bundles that it lists and that are not in the repository yet.
    Raises: UploadRefusedError, MetadataFormatError, BundleError; then nothing is laid out.
    """
    current = state.require(work)
    delegation = current.delegations.get(role)
    if delegation is None or role == DIRECTOR or current.targets is None:
        raise UploadRefusedError(f"There is no publisher {role!r}.")
    document = documents.read(role, raw)
    _check_document(work, current, document, delegation, now_s)
    releases = {release.path: release for release in (inspect(current, file, now_s) for file in files)}
    for path, target in document.targets.targets.items():
        _check_target(work, role, path, target, releases)
    foreign = set(releases) - set(document.targets.targets)
    if foreign:
        raise UploadRefusedError(f"{role} was sent with {min(foreign)}, which it does not list.")
    for release in releases.values():
        work.put_copy(target_file(release.path, release.sha256), release.file, release.sha256)
    work.put(f"{METADATA}/{document.file}", document.raw)
    return list(releases.values())


def _check_document(
    work: Workspace, current: State, document: Document, delegation: DelegatedRole, now_s: float
) -> None:
    role = document.role
    assert current.targets is not None
    before = current.roles.get(role)
    known = max(current.published.get(role, 0), 0 if before is None else before.version)
    if not state.proven_by(document, current.targets.targets):
        raise UploadRefusedError(f"The metadata of {role} is not signed by enough of its keys.")
    if not known < document.version <= known + state.VERSION_LEAP_MAX or document.version in work.versions(role):
        raise UploadRefusedError(
            f"The metadata of {role} has version {document.version}; after {known} comes the next."
        )
    if not now_s < document.expires_s <= now_s + 2 * settings.load(work).life_s(role):
        raise UploadRefusedError(f"The metadata of {role} expires at a time that does not fit.")
    if not scopes.in_scope(document.targets, delegation):
        raise UploadRefusedError(f"The metadata of {role} lists what {role} may not list.")


def _check_target(work: Workspace, role: str, path: str, target: Any, releases: dict[str, Release]) -> None:
    sha256 = target.hashes.get("sha256", "")
    if model_of(path) is None or set(target.hashes) != {"sha256"}:
        raise UploadRefusedError(f"The metadata of {role} lists {path!r}, which is no version of a model.")
    release = releases.get(path)
    if release is None and work.size_of(target_file(path, sha256)) != target.length:
        raise UploadRefusedError(f"{path} is listed by {role} and was not sent.")
    if release is not None and (release.sha256, release.length_bytes) != (sha256, target.length):
        raise UploadRefusedError(f"{path} is not the file that {role} lists.")
    claim = contents.claim_of(work.folder, target_file(path, sha256)) if release is None else None
    content = release.bundle.digest if release is not None else "" if claim is None else claim.content
    _check_content(work, role, path, sha256, content)


def listed(current: State) -> dict[str, tuple[str, Any]]:
    """Return all listed versions: path -> (role, target)."""
    return {
        path: (role, target)
        for role, document in current.roles.items()
        if role != DIRECTOR
        for path, target in document.targets.targets.items()
    }


def withdrawn(current: State) -> dict[str, dict[str, Any]]:
    """Return all withdrawn versions with reason and time."""
    return {
        path: facts for document in current.roles.values() for path, facts in _withdrawn_of(document.targets).items()
    }


def _withdrawn_of(body: Targets) -> dict[str, Any]:
    found = body.unrecognized_fields.setdefault(WITHDRAWN_FIELD, {})
    if not isinstance(found, dict) or not all(isinstance(facts, dict) for facts in found.values()):
        body.unrecognized_fields[WITHDRAWN_FIELD] = found = {}
    return found


def _owner(current: State, path: str) -> DelegatedRole:
    for delegation in current.delegations.values():
        if delegation.name != DIRECTOR and delegation.is_delegated_path(path):
            return delegation
    raise DelegationError(f"No publisher may sign {_said(path)}.", hint="Add one: lenskeep trust add-publisher …")


def _said(path: str) -> str:
    found = model_of(path)
    return path if found is None else f"{found[0]}@{found[1]}"


def _next(work: Workspace, role: str, now_s: float) -> Targets:
    """Return the role's next document to be filled; a role without one begins."""
    current = state.load(work)
    if current.document(role) is None and proposals.load(work, role) is None:
        return Targets(
            version=state.next_version(work, role, current.published.get(role, 0)),
            expires=documents.moment(now_s + settings.load(work).life_s(role)),
        )
    body = changes.latest(work, role, now_s)
    assert isinstance(body, Targets)
    return body


def _propose(work: Workspace, role: str, body: Targets, signers: Sequence[Signer], why: str) -> None:
    if not body.unrecognized_fields.get(WITHDRAWN_FIELD, True):
        del body.unrecognized_fields[WITHDRAWN_FIELD]
    proposal = proposals.propose(work, role, body, signers, why=why)
    if signers and not proposal.document.metadata.signatures:
        raise NotEntitledError(f"None of the keys may sign for {role}. Nothing was changed.")


def _check_content(work: Workspace, role: str, path: str, sha256: str, content: str) -> None:
    """Refuse another content under a version that any document of the role has ever listed."""
    folder, _, name = path.rpartition("/")
    place = work.folder / TARGETS / folder
    others = {one.name.partition(".")[0] for one in place.glob(f"*.{name}")} - {sha256} if place.is_dir() else set()
    if not others:
        return
    for version in work.versions(role):
        raw = work.read(f"{METADATA}/{version}.{role}.json")
        target = None if raw is None else documents.read(role, raw).targets.targets.get(path)
        before = None if target is None else target.hashes.get("sha256", "?")
        if before in (None, sha256):
            continue
        claim = contents.claim_of(work.folder, target_file(path, before))
        if claim is None or claim.content != content:
            raise RepublishedError(f"{_said(path)} was released before with another content. Nothing was changed.")


def find(current: State, name: str, version: str) -> tuple[str, str]:
    """Return path and sha256 of a listed version. Raises: UnknownNameError."""
    path = model_path(name, version)
    found = listed(current).get(path)
    if found is None:
        raise UnknownNameError(f"{name}@{version} is not listed by any publisher.")
    return path, found[1].hashes["sha256"]
