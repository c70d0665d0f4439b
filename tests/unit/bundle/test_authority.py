"""Who may sign which name, and when."""

import pytest

from lenskeep.bundle.authority import TrustStore, matches
from lenskeep.errors import (
    BundleError,
    KeyExpiredError,
    KeyRevokedError,
    SignerScopeError,
    UnknownSignerError,
)
from tests import tinybundle

GOOD = tinybundle.pack()


@pytest.mark.parametrize(
    ("pattern", "name", "covered"),
    [
        ("*", "cap-inspect", True),
        ("cap-inspect", "cap-inspect", True),
        ("cap-*", "cap-inspect", True),
        ("*-inspect", "cap-inspect", True),
        ("c*p-in*t", "cap-inspect", True),
        ("cap", "cap-inspect", False),
        ("cap-inspec", "cap-inspect", False),
        ("ap-inspect", "cap-inspect", False),
        ("", "cap-inspect", False),
        ("cap-inspect*", "cap-inspect", True),
        ("weld-*", "cap-inspect", False),
        ("CAP-*", "cap-inspect", False),
        ("cap-inspec?", "cap-inspect", False),
        ("cap-inspec[t]", "cap-inspect", False),
        ("[!x]*", "cap-inspect", False),
        ("cap*", "xcap", False),
    ],
)
def test_a_pattern_covers_whole_names_and_only_the_star_is_special(pattern: str, name: str, covered: bool) -> None:
    assert matches(pattern, name) is covered


def refusal(**changes: object) -> BundleError:
    store = tinybundle.trust(tinybundle.trusted(tinybundle.key(), **changes))
    with pytest.raises(BundleError) as caught:
        tinybundle.read(GOOD, store)
    return caught.value


@pytest.mark.attack(54)
def test_54_a_removed_key_is_a_stranger() -> None:
    store = tinybundle.trust(tinybundle.trusted(tinybundle.other_key(), "other"))
    with pytest.raises(UnknownSignerError, match="other"):
        tinybundle.read(GOOD, store)
    with pytest.raises(UnknownSignerError, match="no key at all"):
        tinybundle.read(GOOD, TrustStore([]))


@pytest.mark.attack(54)
def test_54_a_revoked_key_is_refused_by_its_name() -> None:
    error = refusal(revoked_s=1_700_000_000.0)
    assert isinstance(error, KeyRevokedError)
    assert "plant-release" in str(error)
    assert "2023-11-14" in str(error)


def test_a_key_before_its_time_is_refused() -> None:
    assert isinstance(refusal(not_before_s=tinybundle.NOW_S + 1), KeyExpiredError)


def test_a_key_after_its_time_is_refused() -> None:
    assert isinstance(refusal(not_after_s=tinybundle.NOW_S), KeyExpiredError)


def test_a_key_within_its_time_is_good() -> None:
    key = tinybundle.trusted(tinybundle.key(), not_before_s=tinybundle.NOW_S, not_after_s=tinybundle.NOW_S + 1)
    assert tinybundle.read(GOOD, tinybundle.trust(key)).signer == "plant-release"


@pytest.mark.attack(71)
def test_71_a_key_of_another_namespace_is_refused() -> None:
    error = refusal(patterns=("weld-*", "cap-detect"))
    assert isinstance(error, SignerScopeError)
    assert "cap-inspect" in str(error)


def test_a_key_without_patterns_may_sign_nothing() -> None:
    assert isinstance(refusal(patterns=()), SignerScopeError)


@pytest.mark.attack(58)
def test_58_one_key_under_another_id_is_not_taken_for_two() -> None:
    key = tinybundle.trusted(tinybundle.other_key(), id=tinybundle.key().public.id)
    with pytest.raises(UnknownSignerError, match="another key"):
        tinybundle.read(GOOD, tinybundle.trust(key))


def test_a_damaged_stored_key_is_named() -> None:
    key = tinybundle.trusted(tinybundle.key(), pem="-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    with pytest.raises(UnknownSignerError, match="plant-release is damaged"):
        tinybundle.read(GOOD, tinybundle.trust(key))
