"""The command line of the TUF conformance suite over our client.

The suite's repositories use all that the standard allows (other keys, other names, deeper delegations), so the rules
of the house are left out here unless LENSKEEP_RULES=house says otherwise; everything else is what a device runs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

from lenskeep.errors import FleetUnreachableError, MetadataTooLargeError
from lenskeep.messages.trust import Listing, Look, Refusal, Verdict
from lenskeep.trust import names
from lenskeep.trust.client import look
from lenskeep.trust.strict import Rules

BOOTSTRAP = "bootstrap"


class HttpSource:
    """A repository on a server."""

    def __init__(self, metadata_url: str, targets_url: str) -> None:
        self._urls = {names.METADATA: metadata_url.rstrip("/"), names.TARGETS: targets_url.rstrip("/")}

    def read(self, name: str, bytes_max: int) -> bytes | None:
        """Return a file's bytes, or None when it is not there."""
        part, _, rest = name.partition("/")
        try:
            with urllib.request.urlopen(f"{self._urls[part]}/{rest}", timeout=10) as answer:
                data: bytes = answer.read(bytes_max + 1)
        except urllib.error.HTTPError as error:
            if error.code in (403, 404):
                return None
            raise FleetUnreachableError(f"{name}: {error}") from error
        except OSError as error:
            raise FleetUnreachableError(f"{name}: {error}") from error
        if len(data) > bytes_max:
            raise MetadataTooLargeError(f"{name} is larger than {bytes_max} bytes.")
        return data


def main() -> int:
    """Run one command of the suite."""
    arguments = parsed()
    folder = Path(arguments.metadata_dir)
    if arguments.command == "init":
        (folder / BOOTSTRAP).write_bytes(Path(arguments.root).read_bytes())
        return 0
    source = HttpSource(arguments.metadata_url, arguments.target_base_url or "")
    request = Look(
        bootstrap=(folder / BOOTSTRAP).read_bytes(), now_s=time.time(), paths=arguments.target_name or [],
        stored={
            str(path.relative_to(folder)): path.read_bytes()
            for path in (*folder.glob("*.json"), *folder.glob("roots/*.json"))
        },
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        answer = look(request, source, Path(work), Rules(os.environ.get("LENSKEEP_RULES", "standard")))
    keep(folder, answer)
    if isinstance(answer, Refusal):
        print(f"{answer.code} {answer.role}: {answer.message}", file=sys.stderr)
        return 1
    targets = Path(arguments.target_dir) if arguments.target_dir else folder
    found = {listing.path: listing for listing in answer.listings}
    return 0 if all(path in found and download(source, found[path], targets) for path in request.paths) else 1


def parsed() -> argparse.Namespace:
    """Read the suite's words."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--metadata-dir", required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name", action="append")
    parser.add_argument("--target-base-url")
    parser.add_argument("--target-dir")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root")
    commands.add_parser("refresh")
    commands.add_parser("download")
    return parser.parse_args()


def keep(folder: Path, answer: Verdict | Refusal) -> None:
    """Keep what was verified, as the daemon does: all of it, or as it was."""
    if not answer.stored:
        return
    (folder / "roots").mkdir(exist_ok=True)
    for path in folder.glob("*.json"):
        path.unlink()
    for name, raw in answer.stored.items():
        (folder / name).write_bytes(raw)


def download(source: HttpSource, listing: Listing, folder: Path) -> bool:
    """Have a target at its place, with the length and digest that are listed."""
    place = folder / quote(listing.path, "")
    if place.exists() and fits(place.read_bytes(), listing):
        return True
    data = source.read(names.target_file(listing.path, listing.sha256), listing.length_bytes)
    if data is None or not fits(data, listing):
        return False
    place.write_bytes(data)
    return True


def fits(data: bytes, listing: Listing) -> bool:
    """Say whether these are the bytes that are listed."""
    return len(data) == listing.length_bytes and hashlib.sha256(data).hexdigest() == listing.sha256


if __name__ == "__main__":
    sys.exit(main())
