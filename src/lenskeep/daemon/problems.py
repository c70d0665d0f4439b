"""A fault as the words that leave the daemon: RFC 9457 problem details with our code and the fix."""

from __future__ import annotations

from lenskeep.errors import (
    ApprovalExpiredError,
    ApprovalMismatchError,
    ApprovalRefusedError,
    ApprovalVoidError,
    BundleError,
    ConfigError,
    ConflictError,
    DeviceError,
    FleetNotProvenError,
    IdempotencyError,
    IdentityError,
    LenskeepError,
    LimitExceededError,
    MetadataMissingError,
    NotEnrolledError,
    NotPermittedError,
    NotSignedInError,
    PeerError,
    PreconditionError,
    QualificationError,
    RecordError,
    RepositoryBusyError,
    RequestError,
    SlotError,
    SlotLockedError,
    StorageFullError,
    TrustError,
    UnknownNameError,
    VersionConflictError,
)
from lenskeep.messages.control import Check, Problem

# The nearest entry up the fault's own tree counts.
HTTP_STATUS: dict[type[LenskeepError], int] = {
    LenskeepError: 500,
    RequestError: 400,
    NotSignedInError: 401,
    NotPermittedError: 403,
    UnknownNameError: 404,
    ConflictError: 409,
    PreconditionError: 412,
    IdempotencyError: 422,
    SlotLockedError: 423,
    ApprovalMismatchError: 409,
    ApprovalRefusedError: 409,
    ApprovalExpiredError: 409,
    ApprovalVoidError: 409,
    BundleError: 422,
    LimitExceededError: 413,
    VersionConflictError: 409,
    TrustError: 422,
    RepositoryBusyError: 409,
    RecordError: 422,
    IdentityError: 422,
    NotEnrolledError: 409,
    FleetNotProvenError: 502,
    MetadataMissingError: 502,
    QualificationError: 422,
    SlotError: 409,
    DeviceError: 503,
    StorageFullError: 507,
    PeerError: 502,
    ConfigError: 422,
}


def status_of(fault: type[LenskeepError]) -> int:
    """Return the HTTP status of a fault."""
    return next(HTTP_STATUS[kind] for kind in fault.__mro__ if kind in HTTP_STATUS)


def problem(error: LenskeepError, *, request_id: str = "", errors: list[dict[str, str]] | None = None) -> Problem:
    """Say a fault in the form of the API."""
    return Problem(
        type=f"urn:lenskeep:problem:{error.code}", title=error.title(), status=status_of(type(error)),
        detail=str(error),
        code=error.code, hint=error.hint, request_id=request_id, errors=errors or [],
    )  # fmt: skip


def fault_check(name: str, error: LenskeepError, severity: str = "fault") -> Check:
    """Say a fault as a line of `status` or `doctor`."""
    return Check(
        name=name,
        passed=False,
        text=str(error),
        code=error.code,
        hint=error.hint,
        severity=severity,  # type: ignore[arg-type]
    )
