"""A second, independent verifier of an exported record: `verify_record.py DEVICE.pub < record.jsonl`.

Written from the description of the format alone, with the standard library and one signature check; it shares no line
with Lenskeep, so that the two can only agree by both being right. Prints the number of entries; exit code 1 when not whole.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

FIELDS = ("at_ms", "monotonic_ms", "boot", "clock_trusted", "actor", "action", "subject", "reason", "before", "after")
HEAD = b"application/vnd.lenskeep.record-head+json"


def digest(domain: bytes, values: Iterable[object]) -> str:
    words = [(str(int(value)) if isinstance(value, int) else str(value)).encode() for value in values]
    return hashlib.sha256(domain + b"".join(b"%d:%b," % (len(word), word) for word in words)).hexdigest()


def verify(lines: list[dict[str, object]], pem: bytes) -> int:
    header, *entries, last = lines
    assert header["kind"] == "record" and last["kind"] == "head", "cut short"
    previous, sequence = "0" * 64, -1
    for entry in entries:
        left_out = entry["kind"] == "left-out"
        content = entry["content"] if left_out else digest(b"lenskeep record content 1\n", (entry[n] for n in FIELDS))
        if entry.get("action") == "begin record" and entry["before"]:  # the device said that entries before it are gone
            said = str(entry["before"]).split(" ")
            previous, sequence = said[1], max(int(number) for number in said if number.isdigit() and len(number) < 17)
        assert entry["sequence"] == sequence + 1, f"entry {sequence + 1} is missing"
        sequence += 1
        previous = digest(b"lenskeep record entry 1\n", (previous, sequence, content))
        assert entry["hash"] == previous, f"entry {sequence} was changed"
    envelope = json.loads(str(last["envelope"]))
    payload = base64.b64decode(envelope["payload"])
    signed = b"DSSEv1 %d %b %d %b" % (len(HEAD), HEAD, len(payload), payload)
    key = serialization.load_pem_public_key(pem)
    key.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed, ec.ECDSA(hashes.SHA256()))
    head = json.loads(payload)
    assert (head["device"], head["sequence"], head["hash"]) == (header["device"], sequence, previous), (
        "not what was signed"
    )
    return len(entries)


if __name__ == "__main__":
    print(verify([json.loads(line) for line in sys.stdin.buffer], Path(sys.argv[1]).read_bytes()))
