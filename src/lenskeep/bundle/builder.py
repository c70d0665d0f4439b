"""Makes bundle files: from parts, in one exact order, so that the same parts and key give the same bytes.

Rules. What was written is read back by the device's own reader before anybody sees it; a bundle that a
device would refuse is not made. Not here: where the parts come from (recipe), what the manifest says
(manifest).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from lenskeep.bundle import disk, signing
from lenskeep.bundle.archive import VerifiedBundle
from lenskeep.bundle.authority import TrustedKey, TrustStore
from lenskeep.bundle.disk import Part
from lenskeep.bundle.keys import PublicKey, Signer
from lenskeep.bundle.signing import SignedFile
from lenskeep.clock import BUILT_AT


def sign_parts(parts: Mapping[str, Part], signer: Signer, subject: str) -> bytes:
    """Hash the parts and return their `model.sig`. Cost: reads every part."""
    return signing.sign([SignedFile(name, _sha256(part)) for name, part in parts.items()], signer, subject)


def build(path: Path, parts: Mapping[str, Part], signer: Signer, subject: str) -> VerifiedBundle:
    """Sign the parts and write the bundle file. Raises: BundleError; then `path` is as it was before."""
    return assemble(path, parts, sign_parts(parts, signer, subject), signer.public)


def assemble(path: Path, parts: Mapping[str, Part], signature: bytes, public: PublicKey) -> VerifiedBundle:
    """Write a bundle file from signed parts. Raises: BundleError; then `path` is as it was before."""
    with disk.appearing(path) as scratch:
        disk.write_file(scratch, signature, parts)
        verified = disk.read_file(scratch, trust_of({"its signer": public}), BUILT_AT)
        disk.check_model_of(scratch, verified)
    return verified


def trust_of(named: Mapping[str, PublicKey]) -> TrustStore:
    """Trust these keys for every model name at any time, as an engineer does who names them by hand."""
    return TrustStore(TrustedKey(id=key.id, name=name, pem=key.pem, patterns=("*",)) for name, key in named.items())


def _sha256(part: Part) -> str:
    digest = hashlib.sha256()
    for chunk in disk.contents(part):
        digest.update(chunk)
    return digest.hexdigest()
