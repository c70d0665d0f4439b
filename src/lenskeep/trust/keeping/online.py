"""What a server calls that holds the online keys: renewal before expiry, and nothing signed that was not verified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lenskeep.bundle.keys import Signer
from lenskeep.trust.keeping import settling, state
from lenskeep.trust.keeping.releases import Release, verify_upload
from lenskeep.trust.keeping.settling import Settled
from lenskeep.trust.keeping.workspace import writing


def resign(repository: Path, signers: Sequence[Signer], now_s: float, *, force: bool = False) -> Settled:
    """Renew what the online keys sign, once a third of its life is over or something new is in place.

    Proposals that have all their signatures are put in place with it. To be called every few hours; most calls write
    nothing.
    Raises: RepositoryDamagedError, RepositoryBusyError, StorageFullError.
    """
    with writing(repository) as work:
        state.require(work)
        settled = settling.settle(work, signers, now_s, force=force)
        work.commit()
    return settled


def accept_upload(
    repository: Path, role: str, metadata: bytes, files: Sequence[Path], signers: Sequence[Signer], now_s: float
) -> tuple[list[Release], Settled]:
    """Verify what a publisher sends as a device would, put it in place and make it visible.

    Raises: UploadRefusedError, MetadataFormatError, BundleError, RepublishedError; then nothing was written.
    """
    with writing(repository) as work:
        releases = verify_upload(work, role, metadata, files, now_s)
        settled = settling.settle(work, signers, now_s)
        work.commit()
    return releases, settled
