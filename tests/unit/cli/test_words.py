"""How things are said."""

import inspect
import io
import json
import unicodedata
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenskeep import errors
from lenskeep.cli import words
from lenskeep.cli.output import Progress, Screen
from lenskeep.cli.words import EXIT_OF, EXIT_WORDS, Exit, clean, exit_of


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("Grüße 中文 ✓", "Grüße 中文 ✓"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("abc\u202edef", "abc\\u202edef"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("\x9b0m", "\\x9b0m"),
        ("\U000e0041tag", "\\U000e0041tag"),
        ("line\u2028sep", "line\\u2028sep"),
        ("half \ud800", "half \\ud800"),
    ],
)
def test_strangers_text_is_shown_and_not_obeyed(text, shown):
    assert clean(text) == shown


@given(st.text(alphabet=st.characters(codec=None)))
def test_nothing_cleaned_can_steer_a_terminal(text):
    assert not {unicodedata.category(letter) for letter in clean(text)} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_json_for_a_terminal_is_the_same_json_and_steers_nothing(text):
    written = words.clean_json(json.dumps({"a": text}, ensure_ascii=False))
    assert json.loads(written) == {"a": text}
    assert not {unicodedata.category(letter) for letter in written} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def test_every_fault_has_an_exit_code():
    for fault in errors.fault_book().values():
        assert exit_of(fault("x")) in Exit
    assert set(EXIT_WORDS) == set(Exit)
    assert Exit.OK not in EXIT_OF.values()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("DaemonUnreachableError", 3), ("SignatureError", 4), ("KeyRevokedError", 4), ("UnknownNameError", 5),
        ("ConflictError", 6), ("PreconditionError", 6), ("InUseError", 6), ("NotPermittedError", 7),
        ("NotSignedInError", 7), ("WrongOutputError", 8), ("LatencyBudgetError", 8), ("StorageFullError", 8),
        ("SwapRefusedError", 8), ("NotConfirmedError", 9), ("OutcomeShiftGateError", 9), ("TimedOutError", 10),
        ("CameraLostError", 1), ("RequestError", 2),
    ],
)  # fmt: skip
def test_exit_codes_are_as_documented(fault, code):
    assert exit_of(getattr(errors, fault)("x")) == code


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (14_200_000, "14.2 MB"), (812e6, "812 MB"), (4.3e12, "4300 GB")],
)
def test_sizes(value, text):
    assert words.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.42, "0.4 ms"), (8.44, "8.4 ms"), (27.4, "27 ms"), (999.6, "1000 ms"), (1234, "1.2 s")]
)
def test_durations(value, text):
    assert words.milliseconds(value) == text


def test_moments():
    now = datetime(2026, 11, 20, 12, tzinfo=UTC)
    assert words.moment("", now) == "never"
    assert words.moment("not a time\x1b", now) == "not a time\\x1b"
    assert words.moment("2025-03-01T10:00:00Z", now).endswith("Mar 2025")
    assert words.moment(now.isoformat(), now).endswith("today")


def test_colour_is_for_terminals_and_not_with_no_color():
    assert Screen(stdout=Terminal()).style("RUNNING", "good") == "\x1b[32mRUNNING\x1b[0m"
    for environment in ({"NO_COLOR": ""}, {"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert Screen(stdout=Terminal(), environment=environment).style("RUNNING", "good") == "RUNNING"
    assert Screen(stdout=io.StringIO()).style("RUNNING", "good") == "RUNNING"


def test_marks_are_plain_where_the_terminal_is():
    class Old(Terminal):
        encoding = "latin-1"

    assert Screen(stdout=Old(), colour=False).mark("bad") == "NO"
    assert Screen(stdout=Terminal(), colour=False).mark("bad") == "✗"


def test_progress_draws_over_one_line_on_a_terminal_and_one_per_stage_elsewhere():
    live, plain = Terminal(), io.StringIO()
    for stream in (live, plain):
        progress = Progress(Screen(stdout=stream, stderr=stream))
        for done in (1, 2):
            progress.show("Trying", f"{done} of 2")
        progress.clear()
    assert live.getvalue().count("\n") == 0 and live.getvalue().endswith("\r")
    assert plain.getvalue() == "Trying ...\n"


def test_words_know_every_family_of_faults():
    families = errors.LenskeepError.__subclasses__()
    missing = [family.__name__ for family in families if not any(kind in EXIT_OF for kind in inspect.getmro(family))]
    assert missing == []
