"""Records as the journal gets them, read back from a socket where the journal would listen."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lenskeep.daemon import journal


class Listener:
    """The journal's end."""

    def __init__(self, folder: str) -> None:
        self.path = Path(folder) / "socket"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.settimeout(5)

    def fields(self) -> dict[str, str]:
        """Read one entry as journald does."""
        data, fields = self.socket.recv(1 << 20), {}
        while data:
            line, _, data = data.partition(b"\n")
            name, is_text, value = line.partition(b"=")
            if not is_text:
                size = int.from_bytes(data[:8], "little")
                value, data = data[8 : 8 + size], data[8 + size + 1 :]
            fields[name.decode()] = value.decode()
        return fields


@pytest.fixture
def listener() -> Iterator[Listener]:
    with tempfile.TemporaryDirectory(prefix="lk-") as folder:
        one = Listener(folder)
        yield one
        one.socket.close()


@pytest.fixture
def log(listener: Listener) -> Iterator[logging.Logger]:
    handler = journal.JournalHandler(listener.path)
    logger = logging.Logger("lenskeep.test", logging.DEBUG)
    logger.addHandler(handler)
    assert handler.formatter is not None, "logging.basicConfig would set one that puts the level before the code"
    yield logger
    handler.close()


def test_a_line_about_a_fault_carries_its_code_and_the_id_of_its_explanation(
    log: logging.Logger, listener: Listener
) -> None:
    log.error("%s slot %s: too slow", "LK-8104", "main")
    fields = listener.fields()
    assert fields["MESSAGE"] == "LK-8104 slot main: too slow"
    assert fields["LENSKEEP_CODE"] == "LK-8104"
    assert fields["MESSAGE_ID"] == journal.message_id("LK-8104")
    assert (fields["PRIORITY"], fields["SYSLOG_IDENTIFIER"]) == ("3", "lenskeep")
    assert fields["CODE_FUNC"].startswith("test_a_line_about_a_fault")


@pytest.mark.parametrize(
    "text", ["serving", "operation failed with LK-8104", "LK-9999 is no fault of ours", "LK-81041"]
)
def test_other_lines_carry_none(text: str, log: logging.Logger, listener: Listener) -> None:
    log.info(text)
    fields = listener.fields()
    assert fields["MESSAGE"] == text
    assert not {"LENSKEEP_CODE", "MESSAGE_ID"} & fields.keys()


def test_line_breaks_and_field_names_in_a_message_stay_in_the_message(log: logging.Logger, listener: Listener) -> None:
    text = "camera says:\nPRIORITY=0\nMESSAGE_ID=f00\n"
    log.warning("%s", text)
    fields = listener.fields()
    assert fields["MESSAGE"] == text
    assert fields["PRIORITY"] == "4"
    assert "MESSAGE_ID" not in fields


def test_a_traceback_is_part_of_the_message(log: logging.Logger, listener: Listener) -> None:
    try:
        raise ZeroDivisionError("of frames")
    except ZeroDivisionError:
        log.exception("LK-1000 ended")
    assert "ZeroDivisionError: of frames" in listener.fields()["MESSAGE"]


def test_a_message_without_measure_is_cut_and_arrives(log: logging.Logger, listener: Listener) -> None:
    log.error("x" * 1_000_000)
    assert len(listener.fields()["MESSAGE"]) == journal.MESSAGE_CHARS_MAX


def test_a_journal_that_does_not_read_never_holds_up_the_caller(log: logging.Logger) -> None:
    for number in range(5000):  # the socket's queue is full after a few; a blocking send would hang here
        log.info("line %d %s", number, "x" * 1000)


def test_a_journal_that_is_gone_is_no_error(log: logging.Logger, listener: Listener) -> None:
    listener.path.unlink()
    log.error("LK-5001 nobody hears this")


def test_the_journal_is_chosen_only_when_standard_error_leads_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "stderr").open("w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        status = os.fstat(stderr.fileno())
        chosen = journal.handler({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        assert isinstance(chosen, journal.JournalHandler)
        chosen.close()
        for environment in ({}, {"JOURNAL_STREAM": "1:2"}, {"JOURNAL_STREAM": ""}):
            assert not isinstance(journal.handler(environment), journal.JournalHandler)
