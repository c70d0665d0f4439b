"""Every way Lenskeep can say no, drawn as one tree by *who must act*.

LenskeepError
├── RequestError          the caller: a wrong word, an unknown name, no right to ask
├── BundleError           whoever made the bundle; trying again does not help
├── TrustError            whoever keeps the repository: its roles, its freshness, what it lists
├── IdentityError         whoever enrols devices: keys, certificates, tokens, signed reports
├── QualificationError    the bundle is authentic but unfit for this very device
├── SlotError             the operator: a swap refused, nothing to go back to, a version that took itself back
├── DeviceError           this box: disk, database, camera, a process that died
├── PeerError             the other end: a daemon or a fleet server that does not answer as agreed
└── ConfigError           the configuration file

Rules. A class is a fault: its `code` is stable and never used for anything else, the first line of its docstring is
its title, the rest is what `lenskeep explain CODE` prints, and `hint` is the one next step for the person in front of
the device. The message given at the raise names the subject and what remained unchanged. Codes are grouped: 10xx
service, 11xx requests, 20xx camera, 30xx runtime, 40xx bundles, 41xx repository, 42xx its tool, 43xx identity, 44xx
record, 50xx storage, 60xx time, 61xx keys, 70xx sync, 80xx gates, 81xx rollback. Nothing here knows HTTP or exit codes;
two tables elsewhere map them.
"""

from __future__ import annotations

import inspect
from typing import ClassVar


class LenskeepError(Exception):
    """Something went wrong inside Lenskeep.

    The daemon met a condition that nobody foresaw. The cameras keep running in their own processes.
    """

    code: ClassVar[str] = "LK-1000"
    hint: str = "Run `lenskeep bugreport` or `lenskeep logs --faults` and pass the text on."
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "", *, hint: str | None = None) -> None:
        super().__init__(message or self.title())
        if hint is not None:
            self.hint = hint

    @classmethod
    def title(cls) -> str:
        """Say in one line what this kind of fault is."""
        return inspect.getdoc(cls).splitlines()[0].rstrip(".")  # type: ignore[union-attr]

    @classmethod
    def explanation(cls) -> str:
        """Say in plain words what happened and what it means."""
        return "\n".join((inspect.getdoc(cls) or "").splitlines()[2:]).strip()


# --- 11xx: the caller ----------------------------------------------------------------------------------------------


class RequestError(LenskeepError):
    """The request cannot be taken as it is.

    A field is missing, has the wrong type, or asks for something that does not make sense. Nothing was changed.
    """

    code = "LK-1100"
    hint = "Correct the value named in the message and ask again."


class UnknownNameError(RequestError):
    """Nothing here has that name.

    The bundle, slot, camera, key or operation named in the request is not on this device.
    """

    code = "LK-1101"
    hint = "List what is here: lenskeep models --all, lenskeep camera list, lenskeep keys list."


class ConflictError(RequestError):
    """Something else is in the way.

    Another operation is running on the same slot, or the thing has changed since it was read. Nothing was changed.
    """

    code = "LK-1102"
    hint = "Look at what is running with `lenskeep status`, then ask again."
    retryable = True


class NotSignedInError(RequestError):
    """This action needs a sign-in.

    Reading is open on the device itself; changing anything needs a token or an account in the right group.
    """

    code = "LK-1103"
    hint = "Sign in with a token (`lenskeep token add` on the device makes one)."


class NotPermittedError(RequestError):
    """Your role may not do this.

    The token or account is known, but its role does not include this action; `lenskeep help roles` lists which do.
    """

    code = "LK-1104"
    hint = "Ask somebody with the role named in the message."


class PreconditionError(RequestError):
    """The thing has changed since you looked at it.

    The If-Match header names an older state than the one stored here. Nothing was changed.
    """

    code = "LK-1105"
    hint = "Read it again, check that the change is still wanted, and send the new ETag."
    retryable = True


class IdempotencyError(RequestError):
    """The same Idempotency-Key was used for a different request.

    A key stands for one request; re-using it with another body would hide one of the two.
    """

    code = "LK-1106"
    hint = "Use a new Idempotency-Key for a new request."


class SlotLockedError(RequestError):
    """The slot is locked, and this version is not on its list.

    The configuration names the versions that the slot may run. Nothing else is activated there or gone back to,
    whoever asks. What runs goes on.
    """

    code = "LK-1107"
    hint = "Use a version of the slot's list (`lenskeep config get slot`), or have the list extended."


class TokenReachError(NotPermittedError):
    """This token does not reach that far.

    It is bound to some slots: it changes these, and neither other slots nor the device as a whole.
    """

    code = "LK-1108"
    hint = "Use a token or an account that is not bound to other slots."


class NotYourApprovalError(NotPermittedError):
    """You cannot approve this request.

    Whoever asked does not approve it, nobody approves twice, whatever token or account is used, and the slot may want
    other roles.
    """

    code = "LK-1109"
    hint = "Another person approves it; `lenskeep approvals` shows who may."


class ApprovalMismatchError(RequestError):
    """The approval names other bytes than the request.

    Somebody looked at another version than the one that waits. An approval counts for one digest only.
    """

    code = "LK-1110"
    hint = "Look again with `lenskeep approvals` and approve what really waits there."


class ApprovalOverError(ConflictError):
    """The request waits no longer.

    It was carried out, refused, has expired or became void. Nothing was changed.
    """

    code = "LK-1111"
    hint = "Look at `lenskeep approvals --all`; if the version is still wanted, ask again: lenskeep activate."
    retryable = False


class ApprovalRefusedError(RequestError):
    """The activation was refused by somebody who was asked to approve it.

    What runs goes on.
    """

    code = "LK-1112"
    hint = "The reason is in the message; talk to the person named there."


class ApprovalExpiredError(RequestError):
    """Not enough people approved the activation in time.

    The request ended by itself. What runs goes on.
    """

    code = "LK-1113"
    hint = "Ask again with `lenskeep activate`, and tell the people who approve."


class ApprovalVoidError(RequestError):
    """The request became void while it waited.

    The bundle was removed, withdrawn or judged anew, or the slot's policy was changed, so the approvals would no longer
    be for what they were given for. What runs goes on.
    """

    code = "LK-1114"
    hint = "Ask again with `lenskeep activate` if the version may still run."


# --- 40xx: the bundle's maker --------------------------------------------------------------------------------------


class BundleError(LenskeepError):
    """The bundle cannot be accepted.

    The file itself is at fault; another try with the same file gives the same answer.
    """

    code = "LK-4000"
    hint = "Ask the people who made the bundle for a new file and show them this message."


class UnknownSignerError(BundleError):
    """The bundle is signed by a key that this device does not trust.

    The signature names a key that no administrator of this device has added. It may come from another site, from a
    test key, or from a stranger.
    """

    code = "LK-4001"
    hint = "If the signer is known to you, an administrator adds the key: lenskeep keys trust FILE --for NAME."


class SignatureError(BundleError):
    """The signature does not match the bundle.

    The signature is malformed, or it was not made by the key that it names over these very bytes. The file was
    altered after signing or the signing went wrong.
    """

    code = "LK-4002"
    hint = "Copy the file again from its source; if it is refused again, have it signed anew."


class SignerScopeError(BundleError):
    """The signer may not sign this model name.

    The key is trusted here, but for other model names only.
    """

    code = "LK-4003"
    hint = "Have it signed by a key that is trusted for this name; see `lenskeep keys list`."


class DigestMismatchError(BundleError):
    """A file in the bundle differs from what was signed.

    At least one byte changed between signing and here: a damaged stick, a broken download, or tampering.
    """

    code = "LK-4004"
    hint = "Copy the file again from its source and compare; a damaged stick is the usual cause."


class KeyRevokedError(BundleError):
    """The bundle is signed by a key that was revoked here.

    An administrator has withdrawn trust in this key on this device.
    """

    code = "LK-4005"
    hint = "Have it signed again with a current key: lenskeep bundle resign FILE --key KEY --trust OLD.pub."


class KeyExpiredError(BundleError):
    """The signing key is outside its time of validity.

    The key was trusted for a time that has ended or not begun. Running models are not affected.
    """

    code = "LK-4006"
    hint = "Check the device's clock; if it is right, have the bundle signed with a current key."


class BundleFormatError(BundleError):
    """The file is not laid out as a Lenskeep bundle.

    A bundle has one exact layout; this file departs from it, is cut short, or is another kind of file.
    """

    code = "LK-4010"
    hint = "Check that the copy is complete and that it is a .lkb file made by `lenskeep bundle pack`."


class LimitExceededError(BundleError):
    """The bundle is larger than this device accepts.

    A file, a name or a count is over the limit that protects the device.
    """

    code = "LK-4011"
    hint = "Make the bundle smaller; the limits are in `lenskeep config get limits`."


class ManifestError(BundleError):
    """The bundle's description of itself is wrong.

    `model.json` has an unknown or missing field, a value of the wrong kind, or contradicts the files beside it.
    """

    code = "LK-4012"
    hint = "The maker checks it with: lenskeep bundle verify FILE; the message names the field."


class VersionConflictError(BundleError):
    """This version is already here with other content.

    A version once released never changes. The file has a name and version that this device knows with a different
    digest.
    """

    code = "LK-4013"
    hint = "The maker gives the changed model a new version number."


class ModelRefusedError(BundleError):
    """The ONNX model contains something that is not run here.

    Files outside the bundle, local functions, loops, unknown operators or sizes that lie are refused before the
    model is ever loaded.
    """

    code = "LK-4020"
    hint = "Export the model again with a static graph and without external data."


# --- 41xx: the repository and its roles ------------------------------------------------------------------------------


class TrustError(LenskeepError):
    """The repository's metadata is refused.

    What it says cannot be proved by the keys that this device trusts. What was trusted before stays so, and what runs
    goes on.
    """

    code = "LK-4100"
    hint = "Sync again; if it is refused again, show this message to the people who hold the repository's keys."


class MetadataSignatureError(TrustError):
    """A role's metadata lacks valid signatures of enough of its keys.

    It was changed on the way, or signed by somebody who may not. What was trusted before stays so.
    """

    code = "LK-4101"
    hint = "Sync again from another source; if it goes on, the repository's holders run: lenskeep trust status."


class MetadataExpiredError(TrustError):
    """The repository's metadata is out of date.

    Its signatures were good for a time that is over, so nobody can say what is current. New activations wait; what
    runs goes on.
    """

    code = "LK-4102"
    hint = "Sync with the fleet or with a freshly written stick; if the clock is wrong, set it."


class MetadataRollbackError(TrustError):
    """The repository shows an older state than this device has already seen.

    An old copy was restored or is replayed. What was trusted before stays so.
    """

    code = "LK-4103"
    hint = "Use the current repository or a newer stick; `lenskeep trust status` shows the versions."


class MetadataMissingError(TrustError):
    """A file that the repository's metadata names is not there.

    The copy is incomplete, or something between answers in the repository's place.
    """

    code = "LK-4104"
    hint = "Write the stick again, or sync again once the network is right."
    retryable = True


class MetadataTooLargeError(TrustError):
    """A metadata file is larger than it may be.

    It is not read any further.
    """

    code = "LK-4105"
    hint = "The source is not the repository, or is broken; use another one."


class MetadataFormatError(TrustError):
    """A metadata file cannot be read as what it should be.

    A web page in place of a file is the usual cause: a sign-in page of the network.
    """

    code = "LK-4106"
    hint = "Check that the network lets the device through to the fleet without a sign-in page."


class NotListedError(TrustError):
    """No role of the repository lists this version now.

    It was never released, or it was withdrawn. It is not activated, nor gone back to; if it runs, it goes on.
    """

    code = "LK-4107"
    hint = "Ask the publisher for a version that is listed; `lenskeep models` shows which are."


class ListingMismatchError(TrustError):
    """The bundle is not the file that the repository lists under its name.

    Length or digest differ, or the name inside differs from the name outside.
    """

    code = "LK-4108"
    hint = "Copy the file again from the repository; if it is refused again, tell the publisher."


class AssignmentError(TrustError):
    """What the director assigned to this device cannot be followed.

    It names another device, a version that is not listed, or cannot be read. What runs goes on.
    """

    code = "LK-4109"
    hint = "The fleet's operator assigns a listed version again."


class SourceError(TrustError):
    """The stick or folder cannot be used.

    A file is not a plain file, cannot be read, or left while it was read. Nothing was changed.
    """

    code = "LK-4110"
    hint = "Plug the stick in again and repeat; if it goes on, write it again."
    retryable = True


class TrustStateLostError(TrustError):
    """What this device knew about the repository was lost.

    It begins again from the root that it was provisioned with; until the next sync an old repository would be taken for
    current as long as its signatures last.
    """

    code = "LK-4111"
    hint = "Sync with the fleet as soon as it can be reached."


class NoRepositoryError(TrustError):
    """This device follows no repository.

    It trusts the keys that its administrator added.
    """

    code = "LK-4112"
    hint = "Give it the repository's root: lenskeep trust follow ROOT.json."


class RepositoryRulesError(TrustError):
    """The repository breaks a rule that this device holds to.

    Its documents may follow the standard; here keys, names and paths have to be narrower, so that a stolen key or a
    slip of the hand reaches less far. What was trusted before stays so.
    """

    code = "LK-4113"
    hint = "Show this message to the people who hold the repository's keys; they sign it again without that."


class MetadataMismatchError(TrustError):
    """The repository's files do not belong together.

    A file is not the one that another file names, by version, length or digest: the copy is mixed from two times, was
    changed, or was written while it was read.
    """

    code = "LK-4114"
    hint = "Sync again; from a stick: write it again in one go."


# --- 42xx: the tool of the people who keep the repository -----------------------------------------------------------


class KeepingError(TrustError):
    """The repository cannot be changed in this way.

    What was asked for breaks a rule of the repository. Nothing was changed.
    """

    code = "LK-4200"
    hint = "`lenskeep trust status` shows the roles, their keys and what waits for a signature."


class RepositoryFolderError(KeepingError):
    """This folder is no repository that can be worked on.

    It lacks a signed root, or is a repository already where a new one was asked for. Nothing was changed.
    """

    code = "LK-4201"
    hint = "Name the repository with --repository DIR; `lenskeep trust init DIR` makes a new one."


class RepositoryBusyError(KeepingError):
    """Somebody else is changing the repository right now.

    Only one at a time may write. Nothing was changed.
    """

    code = "LK-4202"
    hint = "Try again in a moment; `lenskeep trust status` works meanwhile."
    retryable = True


class RepositoryDamagedError(KeepingError):
    """The repository's own files do not fit together.

    A file is missing, was changed, or lacks its signatures. Nothing is signed on top of it.
    """

    code = "LK-4203"
    hint = "Restore the named file from the server or from a backup; `lenskeep trust status` examines all of them."


class NotEntitledError(KeepingError):
    """This key may not sign that.

    It belongs to no role that is asked for here, or was taken out of it. Nothing was changed.
    """

    code = "LK-4204"
    hint = "`lenskeep trust status` lists who may sign what; use one of those keys."


class AnswerRefusedError(KeepingError):
    """A signature that came back is refused.

    It belongs to another proposal, was changed on the way, or comes from a key that does not count. The others were
    not touched.
    """

    code = "LK-4205"
    hint = "Send the holder the present request again and compare its words over the telephone."


class DelegationError(KeepingError):
    """A role cannot be given this name, these paths or these keys.

    Names of roles are fixed words of a-z, 0-9 and dash; a publisher signs models only, the director devices only; no
    key counts twice and no threshold may be out of reach. Nothing was changed.
    """

    code = "LK-4206"
    hint = "Correct the name, the pattern, the keys or the threshold that the message names."


class RepublishedError(KeepingError):
    """This version was released with another content before.

    A version means one content for ever; devices and records rely on it. Nothing was changed.
    """

    code = "LK-4207"
    hint = "Give the bundle a new version and publish that."


class UploadRefusedError(KeepingError):
    """What a publisher sent is not published.

    It is not signed by enough of the role's keys, is not newer, lists what the role may not list, or lists files that
    are not there. Nothing was changed.
    """

    code = "LK-4208"
    hint = "The publisher fetches the present repository, signs again and sends it again."


class ExternalSignerError(KeepingError):
    """The program that holds the key did not sign.

    It failed, took too long, or gave a signature that does not fit its key. Nothing was changed.
    """

    code = "LK-4209"
    hint = "Run the program by hand: it reads bytes on standard input and writes a DER signature on standard output."


class OnlineKeyMissingError(KeepingError):
    """Online signatures are needed, and no online key was given.

    Everything else is in its place; devices see it after the next refresh.
    """

    code = "LK-4210"
    hint = "Run: lenskeep trust refresh --key ONLINE-KEY.pem"


# --- 43xx: who a device is -------------------------------------------------------------------------------------------


class IdentityError(LenskeepError):
    """The proof of who a device is was refused.

    A key, a certificate, a token or a signed report does not prove what it should. Nothing was changed.
    """

    code = "LK-4300"
    hint = "Look at `lenskeep identity show` on the device and at `lenskeep fleet show DEVICE` at the fleet."


class CertificateError(IdentityError):
    """The certificate cannot be used by this device.

    It was made for another key or another device, by another authority, or for another time.
    """

    code = "LK-4301"
    hint = "Write a new request (lenskeep identity csr) and have the fleet's operator answer that one."


class NotEnrolledError(IdentityError):
    """This device belongs to no fleet yet.

    It has a key of its own, but no certificate that a fleet would accept.
    """

    code = "LK-4302"
    hint = "Enrol it: lenskeep enrol URL --token TOKEN, or by stick: lenskeep identity csr."


class UnlistedDeviceError(IdentityError):
    """The fleet does not list this device's key.

    The device was revoked, replaced by another one with its name, or never enrolled here. A certificate alone opens
    nothing.
    """

    code = "LK-4303"
    hint = "If it should belong here, the operator makes a token (lenskeep fleet token DEVICE); then enrol it again."


class EnrolmentTokenError(IdentityError):
    """The enrolment token is not known or is too old.

    A token is good for one device and for one day.
    """

    code = "LK-4304"
    hint = "Ask the fleet's operator for a new one: lenskeep fleet token DEVICE."


class TokenUsedError(IdentityError):
    """The enrolment token was used by another key already.

    Somebody else enrolled with it, or the device has lost its key since. Nothing was changed.
    """

    code = "LK-4305"
    hint = "If it was not you, have the device revoked (lenskeep fleet revoke DEVICE); then ask for a new token."


class ForeignIdentityError(IdentityError):
    """A device asks in the name of another one.

    The name in the request, in the token or in the certificate differs from the name that is asked for.
    """

    code = "LK-4306"
    hint = "Use the device's own name: `lenskeep identity show` prints it, device.id in the configuration sets it."


class CertificateRequestError(IdentityError):
    """The certificate request cannot be granted.

    It cannot be read, does not prove that its sender holds the key, or its key is of a kind that is not accepted.
    """

    code = "LK-4307"
    hint = "Write it again with: lenskeep identity csr."


class FleetNotProvenError(IdentityError):
    """The fleet server did not prove that it is the one that is meant.

    Its authority is another one than the token or the operator named: a wrong address, or somebody in between. Nothing
    was sent to it.
    """

    code = "LK-4308"
    hint = "Compare the fingerprint with the operator (lenskeep fleet ca show); do not go on if they differ."


class ReportRefusedError(IdentityError):
    """A device's report cannot be believed.

    It is not signed by the device that it speaks for, or cannot be read. Nothing was stored.
    """

    code = "LK-4309"
    hint = "Write it again on the device; a report from a damaged stick is the usual cause."


class RecordContradictedError(IdentityError):
    """A device's record contradicts what the fleet has seen of it.

    It became shorter, or an entry that was there before is another one now: it was restored from an old copy, or
    somebody changed it.
    """

    code = "LK-4310"
    hint = "Export the record on the device (lenskeep audit export) and verify it; keep the disk if it fails."


class TooManyTriesError(IdentityError):
    """Too many attempts came from this address.

    Enrolment is slow on purpose, so that nobody can guess.
    """

    code = "LK-4311"
    hint = "Wait a minute and try once more with the right token."
    retryable = True


class ReportForkError(IdentityError):
    """One device told two different things under one number.

    Its state was restored from an old copy, or there are two devices with its key. The first report stays.
    """

    code = "LK-4312"
    hint = "Check that the device was not copied; if it was, revoke it and enrol it again."


class DeviceKeyLostError(IdentityError):
    """The device's own key is damaged or cannot be read.

    The cameras go on. The device signs with a new key, which its fleet does not know.
    """

    code = "LK-4313"
    hint = "Restore identity/device.key from a backup and start again, or enrol the device again with its new key."


class ReceiptRefusedError(IdentityError):
    """A receipt for records does not prove that it is the fleet's.

    It is not signed by the authority that this device knows, was made for another device, or is damaged. Nothing was
    forgotten: the records stay here until the fleet has acknowledged them.
    """

    code = "LK-4314"
    hint = "Let the fleet's operator take the stick once more (lenskeep fleet take DIR) and bring it back."


class CarriedRecordsError(IdentityError):
    """Records that came on a stick cannot be believed.

    They are not signed by the device that they speak for, or cannot be read. Nothing was stored.
    """

    code = "LK-4315"
    hint = "Write them again at the device (lenskeep sync --import DIR); it keeps its records until they are taken."


class RecordsMissingError(IdentityError):
    """Older records of this device have not arrived.

    Records count in their order. What came on the stick goes on behind others that are neither here nor on it. Nothing
    was stored; the device still has all of them.
    """

    code = "LK-4316"
    hint = "Take the stick that was written before, or write this one again at the device: lenskeep sync --import DIR."


# --- 44xx: the record ------------------------------------------------------------------------------------------------


class RecordError(LenskeepError):
    """The record of changes is not whole.

    Its entries form a chain, each with the digest of all that came before. Somewhere an entry was changed, removed,
    moved or cut off; the message names the first one that is wrong. What runs is not affected.
    """

    code = "LK-4400"
    hint = "Keep the file as it is, export the device's record, and show both to whoever is responsible for it."


class RecordCutError(RecordError):
    """The registry is not the one that this device signed last.

    It ends before the last signed entry or says something else there: an old copy was restored, or the file was
    exchanged or changed. The record goes on from the last signed entry; what is missing stays missing, visibly.
    """

    code = "LK-4401"
    hint = (
        "Find out who touched the registry's file; compare with the fleet's witness: lenskeep audit verify --witness."
    )


class RecordLostError(RecordError):
    """The registry was lost, and the record begins anew.

    The new record names the last entry that the device had signed, so that nobody takes it for the whole.
    """

    code = "LK-4402"
    hint = "Earlier exports of the record and the fleet's witness hold what was before; keep them."


class RecordHeadError(RecordError):
    """A signed head of the record cannot be used.

    It is missing, damaged, or signed by another key than the one that it is judged by.
    """

    code = "LK-4403"
    hint = "Check that the public key is this device's: lenskeep audit head shows it and its fingerprint."


class RecordFormatError(RecordError):
    """The file is not an exported record.

    An exported record is a text of JSON lines, as `lenskeep audit export` writes it.
    """

    code = "LK-4404"
    hint = "Export it again: lenskeep audit export -o record.jsonl."


# --- 80xx: the gates on this device --------------------------------------------------------------------------------


class QualificationError(LenskeepError):
    """The bundle is genuine but does not work on this device.

    It was tried away from the line, in a process of its own, and did not pass. The running model is unchanged.
    """

    code = "LK-8000"
    hint = "Show the report to the people who made the model: lenskeep check NAME@VERSION --json."


class WrongOutputError(QualificationError):
    """The model does not reproduce its golden outputs here.

    The bundle carries pictures with the answers that its training framework gave. On this device the answers differ
    by more than the agreed tolerance.
    """

    code = "LK-8001"
    hint = "The likely cause is in the message; the maker corrects the export or the preprocessing block."


class LatencyBudgetError(QualificationError):
    """The model is too slow on this device.

    Its 99th percentile over the measured frames is above the budget in its manifest.
    """

    code = "LK-8002"
    hint = "Use a smaller or quantised model, or a budget that the line can really live with."


class MemoryBudgetError(QualificationError):
    """The model needs more memory than it may use here.

    The trial went over the budget in the manifest, or there is not enough free memory to hold it
    beside the running one.
    """

    code = "LK-8003"
    hint = "Use a smaller model or free memory on the device."


class IncompatibleError(QualificationError):
    """This device cannot run the bundle.

    It asks for an operator set, a runtime version or an execution provider that is not here.
    """

    code = "LK-8004"
    hint = "Export the model for what this device has; `lenskeep doctor` lists it."


class ModelCrashedError(QualificationError):
    """The model crashed while it was tried.

    The trial process died by itself. It was separate from the line, so nothing else was touched.
    """

    code = "LK-8005"
    hint = "Send the report to the people who made the model; do not retry on other devices."


class ModelHungError(QualificationError):
    """The model did not finish in its time.

    Loading or running took longer than the limit of the trial, and the trial was ended.
    """

    code = "LK-8006"
    hint = "Export the model without loops, or raise the trial limit if the model is truly that large."


class UnusableOutputError(QualificationError):
    """The model answers with numbers that mean nothing.

    Its outputs contain NaN or infinity, or have a shape or type other than the manifest says.
    """

    code = "LK-8007"
    hint = "The maker checks the export; half-precision overflow is the usual cause."


class ProviderFallbackError(QualificationError):
    """The model does not run on the processor that it asks for.

    The execution provider that the manifest requires was not really used; the model would run slower than promised.
    """

    code = "LK-8008"
    hint = "Install the provider on this device or ship a bundle that allows what is here."


class DiskHeadroomError(QualificationError):
    """There is not enough free disk for the prepared model.

    The trial stores a copy of the model that is optimised for this device, and the disk is too full for it.
    """

    code = "LK-8009"
    hint = "Free space: lenskeep models --all shows sizes, lenskeep remove NAME@VERSION removes one."


# --- 81xx and slot -------------------------------------------------------------------------------------------------


class SlotError(LenskeepError):
    """The slot cannot do that now.

    The slot is in a state in which this action has no meaning. Nothing was changed.
    """

    code = "LK-8100"
    hint = "Look at the slot with `lenskeep status`."


class SwapRefusedError(SlotError):
    """The exchange did not take place.

    The new version could not be loaded beside the running one in time. The running version went on without a gap.
    """

    code = "LK-8101"
    hint = "Try again when the device is less busy; `lenskeep check NAME@VERSION` tells what it needs."
    retryable = True


class NothingToRollBackToError(SlotError):
    """There is no previous version in this slot.

    A slot knows the version before the active one only after its first exchange.
    """

    code = "LK-8102"
    hint = "Activate a version by name: lenskeep models, then lenskeep activate NAME@VERSION."


class ErrorRateGateError(SlotError):
    """The new version failed on live frames and was taken back.

    During probation too many frames ended in an error. The previous version is active again.
    """

    code = "LK-8103"
    hint = "Send the report to the people who made the model."


class LatencyGateError(SlotError):
    """The new version was too slow on the line and was taken back.

    During probation its 99th percentile was over the budget, or far over the previous version's.
    """

    code = "LK-8104"
    hint = "Compare `lenskeep status` with the trial's report; heat or another program may be the cause."


class OutcomeShiftGateError(SlotError):
    """The new version judged very differently and was taken back.

    During probation its share of NG or uncertain results moved further from the previous version's than allowed.
    """

    code = "LK-8105"
    hint = "Check the parts on the line; if they really changed, activate again with --accept-risk=outcome-shift."


class CrashedInProbationError(SlotError):
    """The new version crashed on the line and was taken back.

    The process that serves the slot died during probation. It was started again with the previous version.
    """

    code = "LK-8106"
    hint = "Send the report to the people who made the model."


class NotConfirmedError(SlotError):
    """The trial ended without a confirmation and was taken back.

    A version activated with --trial stays only if somebody confirms it in time.
    """

    code = "LK-8107"
    hint = "Activate again and run `lenskeep confirm` before the time is over."


class CrashLoopError(SlotError):
    """The slot's process kept crashing, so the last good version was put back.

    It died several times within a short time with the active version.
    """

    code = "LK-8108"
    hint = "Look at `lenskeep logs --faults`; a damaged model, a bad stream or full memory are usual causes."


class InUseError(SlotError):
    """The version is in use and cannot be removed.

    It is active, the one to go back to, or pinned in a slot.
    """

    code = "LK-8109"
    hint = "Activate another version first, or unpin it."


# --- this box ------------------------------------------------------------------------------------------------------


class DeviceError(LenskeepError):
    """This device has a problem.

    The cause is in this box, not in the bundle or in what was asked.
    """

    code = "LK-5000"
    hint = "Run `lenskeep doctor`."
    retryable = True


class StorageFullError(DeviceError):
    """The disk is too full.

    There is not enough free space to store this safely. What was half written has been removed.
    """

    code = "LK-5001"
    hint = "Remove old versions with `lenskeep remove NAME@VERSION`, or free space on the disk."


class RegistryCorruptError(DeviceError):
    """The registry's database is damaged.

    The slots run from their pointer files. History may be missing until the registry is repaired.
    """

    code = "LK-5002"
    hint = "The damaged file was set aside next to the new one; import the bundles again from the stick."
    retryable = False


class BlobDamagedError(DeviceError):
    """A stored file no longer matches its digest.

    The disk returned other bytes than were stored. The file is not run.
    """

    code = "LK-5003"
    hint = "Import the bundle again; if it happens twice, replace the disk or card."
    retryable = False


class StorageError(DeviceError):
    """The disk refused to read or write.

    The operating system reported an error for a file of the registry.
    """

    code = "LK-5004"
    hint = "Check that the disk is mounted writable and healthy: lenskeep doctor."


class ScrubOverdueError(DeviceError):
    """The stored files were not read through in time.

    Damage on the disk would be noticed later than intended. What runs was checked when it was loaded.
    """

    code = "LK-5005"
    hint = "Read them now: lenskeep scrub --now. If that happens again, raise storage.scrub_mb_s."


class ProcessFailedError(DeviceError):
    """The process that serves the slot does not start.

    It is started again with growing pauses.
    """

    code = "LK-3001"
    hint = "Look at `lenskeep logs`."


class InferenceError(DeviceError):
    """A frame could not be judged.

    The model raised an error for this frame. The result carries no verdict and is counted.
    """

    code = "LK-3002"
    hint = "If it goes on, take the version back: lenskeep rollback."


class WeakConfinementError(DeviceError):
    """A process that reads models keeps more rights than it needs.

    Models are tried and run in processes that give up files, network and system calls first. Here the kernel could not
    take all of that, or a container around the service forbids it. The other layers hold, and so does the account that
    the service runs under.
    """

    code = "LK-3003"
    hint = "Boot Linux 6.7 or newer with Landlock: `landlock` must stand in /sys/kernel/security/lsm."
    retryable = False


class CameraError(DeviceError):
    """A camera has a problem.

    The slot keeps trying to get pictures from it.
    """

    code = "LK-2000"
    hint = "Check cable and power, then `lenskeep camera test`."


class CameraMissingError(CameraError):
    """The camera cannot be opened.

    Nothing answers at the address in the configuration.
    """

    code = "LK-2001"
    hint = "Check cable, power and address: lenskeep camera test NAME."


class CameraLostError(CameraError):
    """The camera stopped sending pictures.

    It was running and then ended, was unplugged or the network broke. It is being opened again.
    """

    code = "LK-2002"
    hint = "Check cable and power; it reconnects by itself."


class CameraFrozenError(CameraError):
    """The camera's picture is old.

    The stream is open, but no new picture came within the allowed frame age. Old pictures are never judged.
    """

    code = "LK-2003"
    hint = "Power-cycle the camera if it does not recover within a minute."


class CameraFormatError(CameraError):
    """The camera's picture has another size than configured.

    The picture is not judged, because positions and thresholds were set for the configured size.
    """

    code = "LK-2004"
    hint = "Set the camera back, or change width_px and height_px in the configuration."


class ClockUntrustedError(DeviceError):
    """The device's clock cannot be right.

    It shows a time before this software was made or far ahead. Running models do not depend on it; validity of keys
    is judged by the latest time known to be true.
    """

    code = "LK-6001"
    hint = "Set the clock or connect the device to a time server."


class ClockLeptError(ClockUntrustedError):
    """The device's clock was set while the service ran.

    It moved by more than a minute against the clock of this boot, which nobody can set. Time goes on here as it did
    before; the new time is believed after an hour, or at once when the clock comes back.
    """

    code = "LK-6002"
    hint = "If nobody set the clock on purpose, look at its time server and its battery."


class KeyExpiresSoonError(DeviceError):
    """A signing key will soon be outside its validity.

    After that, new bundles signed with it are refused here. Running models go on.
    """

    code = "LK-6101"
    hint = "Ask the publisher for the next key and add it: lenskeep keys trust FILE --for NAME."


# --- the other end -------------------------------------------------------------------------------------------------


class PeerError(LenskeepError):
    """The other end did not answer as agreed.

    The connection broke or the answer could not be read.
    """

    code = "LK-7000"
    hint = "Try again; if it goes on, compare the versions of both ends."
    retryable = True


class FleetUnreachableError(PeerError):
    """The fleet or the repository cannot be reached.

    The network, a name or the server itself does not answer. Everything here goes on; it is asked again.
    """

    code = "LK-7001"
    hint = "Check the cable and the address in the configuration: lenskeep config get fleet."
    retryable = True


class FleetAnswerError(PeerError):
    """The fleet or the repository answers with something that it should not.

    A redirect, another status or a web page: something between the device and the server answers in its place, or the
    address is wrong.
    """

    code = "LK-7002"
    hint = "Check the address in the configuration, and that no sign-in page stands in between."
    retryable = True


class FleetBusyError(PeerError):
    """The fleet has more to do than it can take at this moment.

    Nothing of the call was taken. Devices keep what they have to tell and ask again when the answer says.
    """

    code = "LK-7004"
    hint = "Nothing needs to be done; if it goes on, look at the fleet's processor and disk."


class SourceTooSlowError(PeerError):
    """The repository answers too slowly to be used.

    It was left, so that nobody can hold this device up with a trickle of bytes. It is asked again later.
    """

    code = "LK-7003"
    hint = "Check the network; if it is always that slow, bring a stick."
    retryable = True


class MeteredBudgetError(PeerError):
    """The metered line's budget of today is used up.

    The download goes on where it stopped when the next day begins (UTC); what runs goes on.
    """

    code = "LK-7005"
    hint = "Wait, bring a stick, or raise fleet.metered_mb_per_day in the configuration."
    retryable = True


class ProxyUnreachableError(PeerError):
    """The proxy on the way to the fleet does not answer.

    The configuration or the environment names a forward proxy, and that cannot be reached. Everything here goes on; it
    is asked again.
    """

    code = "LK-7010"
    hint = "Check fleet.proxy in the configuration, and that the proxy is up: lenskeep config get fleet."


class ProxyRefusesError(PeerError):
    """The proxy on the way to the fleet does not let this device through.

    It asks for a login (407) or its rules forbid the address or the port (403). Nothing was said to the fleet.
    """

    code = "LK-7011"
    hint = "Check fleet.proxy_login, and ask the network's people to allow CONNECT to the fleet's address and port."


class ProxyAnswerError(PeerError):
    """The proxy on the way to the fleet answers with something that is no way through.

    A web page, a redirect, or something that is not TLS: a sign-in page, a device that opens connections, or another
    server than a proxy. Nothing was said to the fleet.
    """

    code = "LK-7012"
    hint = "Check fleet.proxy; exempt the fleet's address from sign-in pages and from what opens TLS."


class StoreUnreachableError(PeerError):
    """The fleet's database does not answer.

    The server or the network to it is down. Nothing was acknowledged that is not stored; devices keep what they have to
    tell and ask again.
    """

    code = "LK-7040"
    hint = "Look at the database server and at [storage] database in the fleet's configuration."


class StoreNotProvenError(StoreUnreachableError):
    """The fleet's database did not prove that it is the one that is meant, or does not accept the fleet.

    Its certificate was made by another authority or for another name, it speaks no TLS, or it refuses the fleet's own
    certificate. No password and no data were sent; devices keep what they have to tell and ask again.
    """

    code = "LK-7045"
    hint = "Look at [storage] database_ca in the fleet's configuration, and at the database's certificate."


class StoreBusyError(PeerError):
    """Another replica of the fleet changed the same thing at the same time.

    Nothing of this one was changed.
    """

    code = "LK-7041"
    hint = "Try again; if it goes on, the database is too slow for the fleet."


class BlobStoreError(PeerError):
    """The fleet's object store does not answer as agreed.

    It is down, refuses the key, or gave other bytes than were stored. Devices go on with what they run.
    """

    code = "LK-7042"
    hint = "Look at the object store and at [storage] blobs in the fleet's configuration."


class StoreNotEmptyError(PeerError):
    """The database that is to be filled holds something already.

    Nothing was changed there.
    """

    code = "LK-7043"
    hint = "Name an empty database; set the old one aside if it is not needed."
    retryable = False


class CopyMismatchError(PeerError):
    """A copy of the fleet's database is not what was copied.

    A table differs in its rows. The target was left as it was before.
    """

    code = "LK-7044"
    hint = "Try again with the fleet stopped; if it happens twice, report it."


class DaemonUnreachableError(PeerError):
    """The Lenskeep service does not answer.

    Nothing listens at the control socket. The service may be stopped, starting, or on another address.
    """

    code = "LK-1001"
    hint = "Start it: systemctl start lenskeep; then look at: journalctl -u lenskeep -n 20."


class TimedOutError(PeerError):
    """It takes longer than was waited for.

    The operation goes on by itself on the device.
    """

    code = "LK-1002"
    hint = "Follow it with: lenskeep op show ID."


class ConfigError(LenskeepError):
    """The configuration is wrong.

    A key is unknown, missing or has a value that cannot be used. The configuration in force is unchanged.
    """

    code = "LK-1010"
    hint = "Check the file with: lenskeep config validate FILE."


def fault_book() -> dict[str, type[LenskeepError]]:
    """Return every fault by its code; two classes with one code are a programmer's error."""
    book: dict[str, type[LenskeepError]] = {}
    waiting: list[type[LenskeepError]] = [LenskeepError]
    while waiting:
        fault = waiting.pop()
        assert fault.code not in book or book[fault.code] is fault, f"{fault.code} is used twice"
        book[fault.code] = fault
        waiting.extend(fault.__subclasses__())
    return dict(sorted(book.items()))
