"""What a bundle file in a repository claims to be: who signed it inside, and which content that is.

The same content under another signature is another file and the same version: a publisher whose key was exchanged signs
its bundles again. Nothing is verified here; whoever publishes has verified, and every device does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lenskeep.bundle import archive, signing
from lenskeep.bundle.archive import BLOCK_BYTES
from lenskeep.bundle.signing import SIGNATURE_BYTES_MAX, SIGNATURE_NAME
from lenskeep.errors import BundleError
from lenskeep.trust.source import open_regular


@dataclass(frozen=True, slots=True)
class Claim:
    """What stands in a bundle's signature."""

    key_id: str
    content: str  # the digest of the content, whoever signed it


def claim_of(folder: Path, name: str) -> Claim | None:
    """Read what a bundle file claims; None when it is missing or cannot be read. Cost: reads its head only."""
    descriptor = open_regular(folder, name)
    if descriptor is None:
        return None
    with os.fdopen(descriptor, "rb") as file:
        try:
            size = archive.proven_size(file.read(BLOCK_BYTES), SIGNATURE_NAME, 0)
            envelope = signing.open_signature(file.read(min(size, SIGNATURE_BYTES_MAX)))
            return Claim(envelope.key_id, archive.content_digest(signing.claimed(envelope).files))
        except BundleError:
            return None
