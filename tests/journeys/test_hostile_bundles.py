"""Hostile bundles at the real door of a running device: each is refused with its code, nothing visible changes, the line
goes on. The archives are the ones that `tests/unit/bundle` holds against the reader alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric import utils
from onnx import TensorProto, helper

from lenskeep.bundle.archive import Limits
from lenskeep.bundle.keys import generate_key
from lenskeep.bundle.modelcheck import check_model
from lenskeep.cli.client import Address, Client
from lenskeep.errors import BundleError, BundleFormatError, LenskeepError
from lenskeep.messages.control import KeyRequest, Operation, ResultView, TokenRequest
from tests import hostile, runnerchild, tinybundle
from tests.attacks import named
from tests.device import SIZE_PX, Device, bundle_bytes
from tests.ports import free_port

BUNDLES = hostile.bundles()
LIMITS = Limits(total_bytes_max=64 << 20)
CODES = {"LK-4001", "LK-4002", "LK-4003", "LK-4004", "LK-4010", "LK-4011", "LK-4012", "LK-4020"}


@pytest.fixture(scope="module")
def line() -> Iterator[Device]:
    """One device on which a good version runs; a trial may take 700 MB and 5 s."""
    device = Device(Path(tempfile.mkdtemp(prefix="lk-")), more="[limits]\nbundle_mb_max = 64")
    text = device.config.read_text().replace("port = 0", f"port = {free_port()}")
    device.config.write_text(
        text.replace("frames = 10", "frames = 10\nmemory_mb_max = 700\ncpu_s_max = 5\nwall_s_max = 20")
    )
    device.start()
    device.trust()
    device.client.trust_key(KeyRequest(name="weld", pem=hostile.weld_key().public.pem, patterns=["weld-*"]))
    device.settle("1.0.0")
    yield device
    device.close()
    shutil.rmtree(device.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def network(line: Device) -> Client:
    """The same device's door for other machines: TCP, with a token."""
    token = line.client.add_token(TokenRequest(name="bench", role="engineer"))
    port = int(re.search(r"port = (\d+)", line.config.read_text())[1])  # type: ignore[index]
    return Client(Address(host="127.0.0.1", port=port), token.secret)


def sent(device: Device, data: bytes, client: Client | None = None) -> Operation:
    path = device.folder / "hostile.lkb"
    path.write_bytes(data)
    return device.finished((client or device.client).upload(path, lambda _done, _total: None))


def kept(device: Device) -> tuple[list[str], list[str], list[str]]:
    """All that a refused bundle could have left behind."""
    state = device.folder / "state"
    return (
        [f"{bundle.name}@{bundle.version} {bundle.digest} {bundle.state}" for bundle in device.client.bundles()],
        sorted(path.name for path in (state / "blobs").rglob("*") if path.is_file()),
        [path.name for path in (state / "staging").iterdir()],
    )


def newest(device: Device) -> ResultView:
    return device.client.results(limit=1).results[-1]


def assert_the_line_goes_on(device: Device, since: int | None = None) -> None:
    """Frames are judged after number `since` (now), by the good version."""
    before = newest(device).sequence if since is None else since
    device.until(lambda: newest(device).sequence > before, "the line goes on")
    assert newest(device).bundle == "cap-inspect@1.0.0"


def assert_untouched(device: Device) -> None:
    """Only the good version is there, nothing lies in staging, and the line judges frames with it."""
    assert [bundle.version for bundle in device.client.bundles() if bundle.state == "qualified"] == ["1.0.0"]
    assert list((device.folder / "state" / "staging").iterdir()) == []
    assert_the_line_goes_on(device)


def readers_code(data: bytes) -> str:
    """What the readers alone say of a file, under the keys that the device trusts."""
    weld = tinybundle.trusted(hostile.weld_key(), "weld", patterns=("weld-*",))
    kept = tinybundle.Kept()
    with pytest.raises(BundleError) as caught:
        trust = tinybundle.trust(tinybundle.trusted(tinybundle.key()), weld)
        verified = tinybundle.read(data, trust, limits=LIMITS, kept=kept)
        if not kept.proven["model.onnx"]:  # an empty file cannot be mapped into memory
            raise BundleFormatError
        check_model(verified.manifest, kept.proven["model.onnx"])
    return caught.value.code


@pytest.mark.parametrize("attack", named(BUNDLES))
def test_a_hostile_bundle_is_refused_at_the_socket_and_at_the_network_door(
    line: Device, network: Client, attack: str
) -> None:
    before, sequence = kept(line), newest(line).sequence
    for client in (line.client, network):
        with pytest.raises(BundleError) as caught:
            sent(line, BUNDLES[attack], client)
        assert caught.value.code == readers_code(BUNDLES[attack])
        assert caught.value.code in CODES
        assert str(caught.value).isprintable()
    assert kept(line) == before
    assert before[2] == []
    assert_the_line_goes_on(line, sequence)


# --- the stick --------------------------------------------------------------------------------------------------------

STICK_FILES_MAX = 150  # below what one look at a stick takes


@pytest.fixture(scope="module")
def stick(line: Device) -> Iterator[dict[str, str]]:
    """What `lenskeep usb` says of every hostile file, by attack; afterwards `lenskeep import` has walked over them."""
    place = line.folder / "stick"
    codes: dict[str, str] = {}
    names = list(BUNDLES)
    before, sequence = kept(line), newest(line).sequence
    for start in range(0, len(names), STICK_FILES_MAX):
        folder = place / f"part-{start}"
        folder.mkdir(parents=True)
        files = {f"{start + at:03}.lkb": name for at, name in enumerate(names[start : start + STICK_FILES_MAX])}
        for file, name in files.items():
            (folder / file).write_bytes(BUNDLES[name])
        found = json.loads(lenskeep(line, "usb", folder, "--json").stdout)["data"]
        codes |= {files[Path(one["file"]).name]: one["code"] for one in found}
        said = lenskeep(line, "import", folder)
        assert "Nothing new was found" in said.stdout, said.stdout + said.stderr
    assert kept(line) == before
    assert_the_line_goes_on(line, sequence)
    yield codes
    shutil.rmtree(place)


def lenskeep(device: Device, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line, talking to the device."""
    command = [sys.executable, "-m", "lenskeep.cli.main", *map(str, words)]
    environment = os.environ | {"LENSKEEP_DEVICE": str(device.socket)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("attack", named(BUNDLES))
def test_a_hostile_bundle_on_a_stick_is_refused_and_not_taken(stick: dict[str, str], attack: str) -> None:
    assert stick[attack] == readers_code(BUNDLES[attack])


@pytest.mark.attack(3, 5, 6, 99)
def test_links_pipes_and_devices_on_a_stick_are_passed_over(line: Device) -> None:
    place = line.folder / "odd-stick"
    place.mkdir()
    secret = line.folder / "elsewhere.lkb"
    secret.write_bytes(bundle_bytes("9.0.0"))
    (place / "link.lkb").symlink_to(secret)
    (place / "folder").symlink_to(line.folder)
    (place / "zero.lkb").symlink_to("/dev/zero")
    os.mkfifo(place / "pipe.lkb")
    (place / "dir.lkb").mkdir()
    before = kept(line)
    assert json.loads(lenskeep(line, "usb", place, "--json").stdout)["data"] == []
    assert "Nothing new was found" in lenskeep(line, "import", place).stdout
    assert kept(line) == before
    assert_the_line_goes_on(line)


@pytest.mark.attack(49)
def test_a_file_name_on_a_stick_does_not_steer_the_terminal(line: Device) -> None:
    place = line.folder / "loud-stick"
    place.mkdir()
    (place / "\x1b[2J\u202ekbl.lkb").write_bytes(bundle_bytes("9.0.1"))
    said = lenskeep(line, "usb", place)
    assert "\x1b" not in said.stdout + said.stderr
    assert "\u202e" not in said.stdout + said.stderr


# --- what is right in itself ------------------------------------------------------------------------------------------


@pytest.mark.attack(35, 64)
def test_a_malleated_signature_is_no_second_bundle_and_each_comes_out_as_it_came_in(line: Device) -> None:
    def malleated(der: bytes) -> bytes:
        r, s = utils.decode_dss_signature(der)
        return utils.encode_dss_signature(r, hostile.ORDER - s)

    good = bundle_bytes("1.0.0")
    signature = tinybundle.read(good).signature
    content = good[len(tinybundle.member("model.sig", signature)) :]
    again = tinybundle.member("model.sig", tinybundle.respelled(signature, malleated)) + content
    before = kept(line)
    for data in (again, good):
        assert sent(line, data).state == "succeeded"
        assert kept(line) == before
        out = line.folder / f"{len(data)}.out"
        assert lenskeep(line, "export", "cap-inspect@1.0.0", out).returncode == 0
        assert out.read_bytes() == data


@pytest.mark.attack(54)
def test_a_key_that_was_revoked_signs_nothing_any_more(line: Device) -> None:
    files, lost = tinybundle.parts({"version": "4.0.0"}), generate_key()
    line.client.trust_key(KeyRequest(name="laptop", pem=lost.public.pem, patterns=["*"]))
    line.client.revoke_key("laptop", "it was stolen")
    with pytest.raises(BundleError) as caught:
        sent(line, tinybundle.pack(files, sig=tinybundle.signature(files, lost)))
    assert caught.value.code == "LK-4005"
    assert_untouched(line)


def model(*nodes: Any, weights: dict[str, np.ndarray] | None = None, opset: int = 17, **changes: Any) -> bytes:
    """A model between `images` and `scores`, with whatever nodes."""
    names = changes.pop("outputs", [1, 2])
    graph = helper.make_graph(
        list(nodes), "hostile",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, changes.pop("inputs", [1, 3, SIZE_PX, SIZE_PX]))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, names)],
        [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=changes.pop("ir", 9))
    return bytes(made.SerializeToString())


def mean_of(source: str) -> list[Any]:
    """Two scores from the mean of a tensor of any size."""
    return [
        helper.make_node("ReduceMean", [source], ["mean"], keepdims=0),
        helper.make_node("Mul", ["pair", "mean"], ["scores"]),
    ]


PAIR = {"pair": np.array([[0.5, 0.5]], np.float32)}
GOLDEN = {"cases": [{"image": "golden/a.png", "scores": {"good": 0.5, "bad": 0.5}}], "produced_by": "nobody"}


def external() -> bytes:
    """Weights that lie in a file outside the bundle."""
    made = onnx.load_model_from_string(runnerchild.constant_model("1.0.0", SIZE_PX))
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    return bytes(made.SerializeToString())


def with_function() -> bytes:
    """A model with a local function."""
    made = onnx.load_model_from_string(runnerchild.constant_model("1.0.0", SIZE_PX))
    node = helper.make_node("Identity", ["x"], ["y"])
    made.functions.append(helper.make_function("evil", "f", ["x"], ["y"], [node], [helper.make_opsetid("", 17)]))
    return bytes(made.SerializeToString())


REFUSED_AT_THE_DOOR: dict[str, tuple[str, bytes]] = {
    "104 external data": ("LK-4020", bundle_bytes("2.0.0", model=external())),
    "116 local functions": ("LK-4020", bundle_bytes("2.0.1", model=with_function())),
    "121 future opset": ("LK-4020", bundle_bytes("2.0.2", model=model(*mean_of("images"), weights=PAIR, opset=99))),
    "121 future ir": ("LK-4020", bundle_bytes("2.0.3", model=model(*mean_of("images"), weights=PAIR, ir=99))),
    "122 garbage model": ("LK-4020", bundle_bytes("2.0.4", model=b"\x08\x07garbage" * 50)),
    "125 input differs from the manifest": (
        "LK-4012", bundle_bytes("2.0.5", model=model(*mean_of("images"), weights=PAIR, inputs=[1, 3, 8, 8]))
    ),
    "44 unknown field": ("LK-4012", bundle_bytes("2.0.6", surprise=1)),
    "47 Cyrillic letter in the name": ("LK-4012", bundle_bytes("2.0.7", name="c\u0430p-inspect")),
    "48 bidirectional override in a title": ("LK-4012", bundle_bytes("2.0.8", title="\u202egood")),
    "50 wrong kind of version": ("LK-4012", bundle_bytes("2.0.9-")),
    "53 a stranger's key": (
        "LK-4001",
        tinybundle.pack(sig=tinybundle.signature(tinybundle.parts(), tinybundle.other_key())),
    ),
    "too large": ("LK-4011", bytes(65 << 20)),
}  # fmt: skip


@pytest.mark.parametrize("attack", named(REFUSED_AT_THE_DOOR))
def test_a_hostile_content_is_refused_at_the_door(line: Device, attack: str) -> None:
    code, data = REFUSED_AT_THE_DOOR[attack]
    with pytest.raises(LenskeepError) as caught:
        sent(line, data)
    assert caught.value.code == code, caught.value
    assert_untouched(line)


HUGE = [
    helper.make_node("ConstantOfShape", ["size"], ["huge"]),
    helper.make_node("ReduceMean", ["huge"], ["nothing"], keepdims=0),
    helper.make_node("Add", ["images", "nothing"], ["sum"]),
]
NOT_A_NUMBER = [
    helper.make_node("Sub", ["images", "images"], ["zero"]),
    helper.make_node("Div", ["zero", "zero"], ["nan"]),
]
REFUSED_BY_THE_TRIAL: dict[str, tuple[str, bytes]] = {
    "111 a constant of 16 GiB": (
        "LK-8003",
        bundle_bytes(
            "3.0.0", golden=GOLDEN,
            model=model(*HUGE, *mean_of("sum"), weights=PAIR | {"size": np.array([16 << 28], np.int64)}),
        ),
    ),
    "127 NaN": ("LK-8007", bundle_bytes("3.0.1", golden=GOLDEN, model=model(*NOT_A_NUMBER, *mean_of("nan"), weights=PAIR))),
    "128 another output shape": (
        "LK-8007",
        bundle_bytes(
            "3.0.2", golden=GOLDEN,
            model=model(*mean_of("images"), weights={"pair": np.array([[0.5, 0.5, 0.5]], np.float32)}),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", named(REFUSED_BY_THE_TRIAL))
def test_a_hostile_model_is_refused_by_its_trial(line: Device, attack: str) -> None:
    code, data = REFUSED_BY_THE_TRIAL[attack]
    operation = sent(line, data)
    assert operation.state == "failed" and operation.error is not None
    assert operation.error.code == code, operation.error
    assert_untouched(line)
