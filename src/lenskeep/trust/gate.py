"""The gate before python-tuf: every file of a repository is read strictly before the library sees it.

Rules. A source's bytes pass here and nowhere else; names of files and roles are turned into each other here. The
standard learns that there is no newer root from a missing file; every other missing file is a fault.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface

from lenskeep.errors import MetadataMissingError, MetadataTooLargeError, TrustError
from lenskeep.trust import names
from lenskeep.trust.source import Source
from lenskeep.trust.strict import METADATA_BYTES_MAX, Document, Rules, read

_VERSION_PREFIX = re.compile(r"[0-9]+\.(?=.)")


def file_of(role: str) -> str:
    """Return the name under which a role's metadata is stored."""
    return f"{quote(role, '')}.json"


class Reader:
    """Reads documents strictly, each once."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._known: dict[tuple[str, bytes], Document] = {}

    def read(self, role: str, raw: bytes, *, ours: bool = False) -> Document:
        """Raises: MetadataFormatError, RepositoryRulesError."""
        known = self._known.get((role, raw))
        if known is None:
            known = self._known[role, raw] = read(role, raw, self._rules, ours=ours)
        return known

    def stored(self, files: Mapping[str, bytes]) -> Iterator[tuple[str, Document]]:
        """Read the metadata files among the given ones, without those that cannot be read."""
        for file, raw in files.items():
            role = unquote(file.removesuffix(".json"))
            if "/" in file or file_of(role) != file:
                continue
            try:
                yield role, self.read(role, raw, ours=True)
            except TrustError:
                continue


class Gate(FetcherInterface):
    """Hands python-tuf the files of a source, read strictly first; it notes what was asked for last."""

    def __init__(self, source: Source, reader: Reader) -> None:
        self.role = names.ROOT
        self.document: Document | None = None
        self._source = source
        self._reader = reader

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return a metadata file. Raises: LenskeepError; DownloadHTTPError where the standard expects an end."""
        name = url.rpartition("/")[2].removesuffix(".json")
        self.role = unquote(name if name == names.TIMESTAMP else _VERSION_PREFIX.sub("", name, count=1))
        self.document = None
        data = self._source.read(url, max_length)
        if data is None and self.role == names.ROOT:
            raise DownloadHTTPError("there is no newer root", 404)
        if data is None:
            raise MetadataMissingError(f"{url} is not there.")
        if len(data) > max_length:
            raise MetadataTooLargeError(f"{url} has more than the {max_length} bytes that it may have.")
        self.document = self._reader.read(self.role, data)
        return data

    def _fetch(self, url: str) -> Iterator[bytes]:
        yield self.download_bytes(url, METADATA_BYTES_MAX)
