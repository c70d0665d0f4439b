"""`lenskeep bundle …` as an engineer types it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lenskeep.bundle import recipe
from lenskeep.cli.commands import bundle as commands
from tests import tinybundle

Lenskeep = Callable[..., Any]
SAMPLES = Path(__file__).parents[3] / "scripts" / "samples"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, golden pictures with answers, and keys; the shell stands in it."""
    monkeypatch.chdir(tmp_path)
    Path("golden").mkdir()
    Path("golden/a.png").write_bytes(tinybundle.png())
    third = {"good": 0.333333, "scratched": 0.333333, "missing": 0.333333}
    Path("golden/expected.json").write_text(json.dumps({"cases": {"a.png": {"scores": third}}}))
    Path("tiny.onnx").write_bytes(tinybundle.model_bytes())
    for name, key in (("team", tinybundle.key()), ("plant", tinybundle.other_key())):
        Path(f"{name}.pem").write_bytes(key.pem())
        Path(f"{name}.pub").write_text(key.public.pem)
    Path("locked.pem").write_bytes(tinybundle.key().pem("open sesame"))
    Path("passphrase").write_text("open sesame\n")
    return tmp_path


WORDS = (
    "--name", "cap-inspect", "--version", "1.0.0", "--labels", "good,scratched,missing", "--task", "classify",
    "--resize", "stretch", "--layout", "NCHW", "--ok", "good", "--ng", "scratched,missing", "--latency-ms", "50",
    "--memory-mb", "200", "--golden", "golden", "--license", "Apache-2.0", "--created", "2026-11-01T00:00:00Z",
)  # fmt: skip
PACK = ("bundle", "pack", "tiny.onnx", *WORDS)
FILE = "cap-inspect-1.0.0.lkb"


def packed(lenskeep: Lenskeep, *more: str) -> Any:
    said = lenskeep(*PACK, "--key", "team.pem", *more)
    assert said.code == 0, said.err
    return said


def data(said: Any) -> Any:
    assert said.out.count("\n") == 1, "one envelope and nothing else"
    return json.loads(said.out)


# --- pack -----------------------------------------------------------------------------------------------------------


def test_pack_makes_a_signed_bundle_and_says_what_was_inferred(lenskeep: Lenskeep, bench: Path) -> None:
    said = packed(lenskeep)
    assert (bench / FILE).is_file()
    assert "cap-inspect@1.0.0" in said.out
    assert "custom: float inputs take 0 to 1" in said.out
    assert said.out.splitlines()[-1] == f"Next: lenskeep bundle test {FILE}"


def test_pack_in_json(lenskeep: Lenskeep, bench: Path) -> None:
    answer = data(packed(lenskeep, "--json"))
    assert answer["schema"] == "lenskeep.bundle.pack/1"
    assert answer["data"]["bundle"] == "cap-inspect@1.0.0"
    assert answer["data"]["inferred"]["input.color"].startswith("custom")
    assert answer["warnings"] == []


def test_packing_twice_gives_the_same_file(lenskeep: Lenskeep, bench: Path) -> None:
    packed(lenskeep, "--out", "one")
    packed(lenskeep, "--out", "two.lkb")
    assert (bench / "one" / FILE).read_bytes() == (bench / "two.lkb").read_bytes()


@pytest.mark.parametrize(
    "left_out", ["--resize", "--labels", "--task", "--latency-ms", "--license", "--golden", "--version"]
)
def test_pack_asks_for_what_it_must_not_guess(lenskeep: Lenskeep, bench: Path, left_out: str) -> None:
    words = list(PACK)
    at = words.index(left_out)
    del words[at : at + 2]
    said = lenskeep(*words, "--key", "team.pem")
    assert said.code == 2
    assert left_out in said.err
    assert not (bench / FILE).exists()


def test_a_wrong_choice_is_a_usage_error(lenskeep: Lenskeep, bench: Path) -> None:
    said = lenskeep(*PACK, "--color", "PINK")
    assert said.code == 2
    assert "PINK" in said.err
    assert lenskeep(*PACK, "--input-shape", "1,three").code == 2


def test_pack_without_a_key_makes_a_draft_that_can_be_signed(lenskeep: Lenskeep, bench: Path) -> None:
    said = lenskeep(*PACK)
    assert said.code == 0, said.err
    assert "draft, not signed" in said.out
    folder = bench / "cap-inspect-1.0.0"
    assert (folder / "model.json").is_file()
    assert not (folder / "model.sig").exists()
    assert lenskeep("bundle", "sign", str(folder), "--key", "team.pem").code == 0
    assert lenskeep("bundle", "verify", FILE, "--key", "team.pub").code == 0
    again = lenskeep(*PACK)
    assert again.code == 2
    assert "there already" in again.err


def test_a_draft_is_not_verified(lenskeep: Lenskeep, bench: Path) -> None:
    lenskeep(*PACK)
    said = lenskeep("bundle", "verify", "cap-inspect-1.0.0", "--key", "team.pub")
    assert said.code == 2
    assert "draft" in said.err


def test_init_writes_a_recipe_that_packs(lenskeep: Lenskeep, bench: Path) -> None:
    said = lenskeep("bundle", "init", "work", "--model", "tiny.onnx")
    assert said.code == 0, said.err
    toml = bench / "work" / recipe.RECIPE_NAME
    text = toml.read_text()
    assert 'model = "../tiny.onnx"' in text
    toml.write_text(
        text.replace('name = "work"', 'name = "cap-inspect"').replace('golden = "golden"', 'golden = "../golden"')
        + 'task = "classify"\nlabels = ["good", "scratched", "missing"]\nresize = "stretch"\nlayout = "NCHW"\n'
        'ok = ["good"]\nng = ["scratched", "missing"]\nlatency_ms = 50\nmemory_mb = 200\nlicense = "MIT"\n'
    )
    done = lenskeep("bundle", "pack", "work", "--version", "0.2.0", "--key", "team.pem")
    assert done.code == 0, done.err
    assert (bench / "cap-inspect-0.2.0.lkb").is_file()
    assert lenskeep("bundle", "pack", "--from", str(toml), "--key", "team.pem", "--out", "x").code == 0
    assert lenskeep("bundle", "init", "work").code == 2


def test_pack_of_an_unpacked_bundle_takes_it_as_it_is(lenskeep: Lenskeep, bench: Path) -> None:
    packed(lenskeep)
    lenskeep("bundle", "extract", FILE, "folder", "--key", "team.pub")
    assert lenskeep("bundle", "pack", "folder", "--key", "team.pem", "--out", "again").code == 0
    assert (bench / "again" / FILE).read_bytes() == (bench / FILE).read_bytes()
    refused = lenskeep("bundle", "pack", "folder", "--version", "2.0.0", "--key", "team.pem")
    assert refused.code == 2
    assert "takes no flags" in refused.err


def test_an_encrypted_key_needs_its_passphrase(lenskeep: Lenskeep, bench: Path) -> None:
    said = lenskeep(*PACK, "--key", "locked.pem")
    assert said.code == 2
    assert "--passphrase-file" in said.err
    assert lenskeep(*PACK, "--key", "locked.pem", "--passphrase-file", "passphrase").code == 0


def test_a_public_key_does_not_sign(lenskeep: Lenskeep, bench: Path) -> None:
    said = lenskeep(*PACK, "--key", "team.pub")
    assert said.code == 2
    assert "public half" in said.err


def test_golden_answers_are_made_by_the_model_itself_when_there_are_none(lenskeep: Lenskeep, bench: Path) -> None:
    (bench / "golden" / "expected.json").unlink()
    said = packed(lenskeep)
    assert "wrong colour order or scale would not show" in said.err
    manifest = data(lenskeep("bundle", "inspect", FILE, "--json"))["data"]["manifest"]
    assert "repetition" in manifest["golden"]["produced_by"]
    assert manifest["golden"]["cases"][0]["scores"]["good"] == pytest.approx(1 / 3, abs=0.01)


def test_a_model_that_cannot_answer_is_named(lenskeep: Lenskeep, bench: Path) -> None:
    (bench / "golden" / "expected.json").unlink()
    (bench / "golden" / "a.png").write_bytes(b"no picture")
    said = lenskeep(*PACK, "--key", "team.pem")
    assert said.code == 2
    assert "a.png" in said.err


# --- sign -----------------------------------------------------------------------------------------------------------


def test_resign_keeps_the_content_and_changes_the_signer(lenskeep: Lenskeep, bench: Path) -> None:
    before = data(packed(lenskeep, "--json"))["data"]
    said = lenskeep("bundle", "resign", FILE, "--trust", "team.pub", "--key", "plant.pem", "--json")
    assert said.code == 0, said.err
    after = data(said)["data"]
    assert after["digest"] == before["digest"]
    assert after["key"] != before["key"]
    assert lenskeep("bundle", "verify", FILE, "--key", "plant.pub").code == 0
    assert lenskeep("bundle", "verify", FILE, "--key", "team.pub").code == 4


def test_what_is_not_proven_is_not_signed_anew(lenskeep: Lenskeep, bench: Path) -> None:
    packed(lenskeep)
    before = (bench / FILE).read_bytes()
    said = lenskeep("bundle", "sign", FILE, "--key", "plant.pem")
    assert said.code == 4
    assert "LK-4001" in said.err
    assert (bench / FILE).read_bytes() == before
    assert lenskeep("bundle", "sign", FILE, "--key", "plant.pem", "--trust", "team.pub", "--out", "new").code == 0
    assert (bench / FILE).read_bytes() == before


def test_a_signature_of_the_openssf_tool_makes_a_bundle(lenskeep: Lenskeep, bench: Path) -> None:
    lenskeep(*PACK)
    subprocess.run(
        [sys.executable, "-m", "model_signing", "sign", "key", "cap-inspect-1.0.0", "--signature",
         "cap-inspect-1.0.0/model.sig", "--private_key", "team.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    assert lenskeep("bundle", "sign", "cap-inspect-1.0.0", "--signed-by", "team.pub").code == 0
    assert lenskeep("bundle", "verify", FILE, "--key", "team.pub").code == 0
    refused = lenskeep("bundle", "sign", "cap-inspect-1.0.0", "--signed-by", "plant.pub", "--out", "other")
    assert refused.code == 4
    assert not (bench / "other" / FILE).exists()


# --- verify, inspect, extract, diff, test ---------------------------------------------------------------------------


def test_verify_says_what_is_good(lenskeep: Lenskeep, bench: Path) -> None:
    packed(lenskeep)
    said = lenskeep("bundle", "verify", FILE, "--key", "plant.pub", "--key", "team.pub")
    assert said.code == 0
    assert "by team.pub" in said.out
    answer = data(lenskeep("bundle", "verify", FILE, "--key", "team.pub", "--json"))["data"]
    assert (answer["signature"], answer["signer"], answer["opset"]) == ("verified", "team.pub", 17)


@pytest.mark.attack(50)
def test_50_a_file_that_is_called_something_else_is_warned_about(lenskeep: Lenskeep, bench: Path) -> None:
    packed(lenskeep, "--out", "weld-seam-9.9.9.lkb")
    said = lenskeep("bundle", "verify", "weld-seam-9.9.9.lkb", "--key", "team.pub")
    assert said.code == 0
    assert "what it holds is cap-inspect@1.0.0" in said.err


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda data: data.replace(b"Apache", b"Apathy"), "LK-40"),
        (lambda data: data[:-1], "LK-4010"),
        (lambda data: data + b"\0", "LK-4010"),
        (lambda data: b"", "LK-4010"),
    ],
)
def test_verify_refuses_what_was_changed(
    lenskeep: Lenskeep, bench: Path, spoil: Callable[[bytes], bytes], code: str
) -> None:
    packed(lenskeep)
    (bench / FILE).write_bytes(spoil((bench / FILE).read_bytes()))
    said = lenskeep("bundle", "verify", FILE, "--key", "team.pub")
    assert said.code == 4
    assert code in said.err
    assert "Fix:" in said.err
    problem = json.loads(lenskeep("bundle", "verify", FILE, "--key", "team.pub", "--json").out)
    assert problem["schema"] == "lenskeep.problem/1"


def test_verify_needs_a_key_and_says_so(lenskeep: Lenskeep, bench: Path) -> None:
    packed(lenskeep)
    said = lenskeep("bundle", "verify", FILE)
    assert said.code == 2
    assert "--key" in said.err
    assert lenskeep("bundle", "verify", "nothing.lkb", "--key", "team.pub").code == 2


def test_inspect_says_whether_the_signature_was_checked(lenskeep: Lenskeep, bench: Path) -> None:
    packed(lenskeep)
    assert "NOT CHECKED" in lenskeep("bundle", "inspect", FILE).out
    checked = lenskeep("bundle", "inspect", FILE, "--key", "team.pub").out
    assert "NOT CHECKED" not in checked
    assert "golden/a.png" in checked
    assert "# cap-inspect 1.0.0" in checked
    assert '"schema": "lenskeep.model/1"' in lenskeep("bundle", "inspect", FILE, "--manifest").out


@pytest.mark.attack(48, 49)
def test_49_nothing_in_a_bundle_reaches_the_terminal_as_a_command(lenskeep: Lenskeep, bench: Path) -> None:
    hostile = tinybundle.parts({"provenance": {"source": "\x1b]0;owned\x07", "inferred": {"\x1b[2J": "\u202eevil"}}})
    hostile["readme.md"] = b"\x1b[31mred\x1b[0m\r\xff\x9b2J\n\xe2\x80\xaeright to left"
    (bench / "hostile.lkb").write_bytes(tinybundle.pack(hostile))
    said = lenskeep("bundle", "inspect", "hostile.lkb")
    assert said.code == 0
    for letter in ("\x1b", "\x07", "\x9b", "\u202e", "\r"):
        assert letter not in said.out
    assert "\\x1b[31mred" in said.out


def test_extract_gives_a_folder_that_the_openssf_tool_verifies(lenskeep: Lenskeep, bench: Path) -> None:
    packed(lenskeep)
    for folder, more in (("checked", ("--key", "team.pub")), ("unchecked", ())):
        said = lenskeep("bundle", "extract", FILE, folder, *more)
        assert said.code == 0
        assert ("NOT CHECKED" in said.out) is (folder == "unchecked")
        done = subprocess.run(
            [sys.executable, "-m", "model_signing", "verify", "key", folder, "--signature", f"{folder}/model.sig",
             "--public_key", "team.pub"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert lenskeep("bundle", "extract", FILE, "checked").code == 2
    assert lenskeep("bundle", "extract", FILE, "never", "--key", "plant.pub").code == 4
    assert not (bench / "never").exists()


def test_diff_says_reordered_labels_first(lenskeep: Lenskeep, bench: Path) -> None:
    packed(lenskeep, "--out", "old.lkb")
    packed(lenskeep, "--labels", "scratched,good,missing", "--out", "new.lkb")
    said = lenskeep("bundle", "diff", "old.lkb", "new.lkb")
    assert said.code == 0
    assert "labels RE-ORDERED" in said.out.splitlines()[1]
    changes = data(lenskeep("bundle", "diff", "old.lkb", "new.lkb", "--json"))["data"]["changes"]
    assert changes[0]["breaking"] is True
    assert "no difference" in lenskeep("bundle", "diff", "old.lkb", "old.lkb").out


def test_test_tries_a_bundle_on_this_machine(lenskeep: Lenskeep, bench: Path) -> None:
    packed(lenskeep)
    said = lenskeep("bundle", "test", FILE, "--frames", "10")
    assert said.code == 0, said.out + said.err
    assert "1 of 1 golden pictures" in said.out
    report = data(lenskeep("bundle", "test", FILE, "--frames", "10", "--json"))["data"]["report"]
    assert report["passed"] is True


def test_test_of_a_draft_with_a_wrong_answer_ends_as_a_gate(lenskeep: Lenskeep, bench: Path) -> None:
    wrong = {"good": 0.9, "scratched": 0.05, "missing": 0.05}
    (bench / "golden" / "expected.json").write_text(json.dumps({"cases": {"a.png": {"scores": wrong}}}))
    lenskeep(*PACK)
    said = lenskeep("bundle", "test", "cap-inspect-1.0.0", "--frames", "10")
    assert said.code == 8
    assert "LK-8001" in said.err
    as_json = lenskeep("bundle", "test", "cap-inspect-1.0.0", "--frames", "10", "--json")
    assert as_json.code == 8
    assert data(as_json)["data"]["report"]["code"] == "LK-8001"


# --- the samples, and the surface -------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SAMPLES / "golden" / "cap-inspect").is_dir(), reason="the sample models are not here")
def test_the_sample_classifier_packs_as_the_readme_says_and_passes(lenskeep: Lenskeep, bench: Path) -> None:
    models = SAMPLES / "models"
    said = lenskeep(
        "bundle", "pack", str(models / "cap-inspect-1.0.0.onnx"), "--name", "cap-inspect", "--version", "1.0.0",
        "--labels", "good,scratched,missing", "--task", "classify", "--resize", "stretch", "--ok", "good",
        "--ng", "scratched,missing", "--latency-ms", "50", "--memory-mb", "200", "--license", "Apache-2.0",
        "--golden", str(SAMPLES / "golden" / "cap-inspect"), "--expected", "expected-1.0.0.json",
        "--facts", str(models / "cap-inspect-1.0.0.json"), "--key", "team.pem",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert lenskeep("bundle", "test", FILE, "--frames", "10").code == 0


def test_every_word_of_the_recipe_is_an_option_and_the_help_shows_examples(lenskeep: Lenskeep) -> None:
    help_text = lenskeep("bundle", "pack", "--help").out
    for word in recipe.fields():
        if word != "model":
            assert f"--{word.replace('_', '-')}" in help_text
    for name in commands.bundle.commands:
        assert "lenskeep bundle" in lenskeep("bundle", name, "--help").out, name
