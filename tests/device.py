"""A whole device for tests: the real daemon as a process, its own folders, the one typed client, and tiny bundles."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from lenskeep.cli.client import Address, Client
from lenskeep.messages.control import ActivationRequest, KeyRequest, Operation, ResultView, SlotView
from tests import runnerchild, tinybundle

WAIT_S = 30.0  # a bound against hanging, not a time that is measured
SIZE_PX = 16
T = TypeVar("T")

CONFIG = """
[storage]
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
free_mb_min = 0
[control]
port = 0
[trial]
frames = 10
[probation]
seconds = {probation_s}
frames_min = 5
{more}
[[slot]]
name = "main"
{slot}
[[camera]]
name = "cam-1"
source = "{source}"
pace = "{pace}"
fps = {fps}
"""


def bundle_bytes(
    version: str, *, name: str = "cap-inspect", model: bytes | None = None, extra: dict[str, bytes] | None = None,
    **changes: Any,
) -> bytes:  # fmt: skip
    """A bundle whose model gives every picture the same score, which depends on the version."""
    score = runnerchild.version_score(version)
    labels = runnerchild.LABELS
    facts: dict[str, Any] = {
        "name": name,
        "version": version,
        "input": {"name": "images", "shape": [1, 3, SIZE_PX, SIZE_PX], "resize": {"mode": "stretch"}, "scale": 1 / 255},
        "outputs": [{"name": "scores", "shape": [1, len(labels)]}],
        "labels": {"names": labels, "sha256": runnerchild.labels_digest(labels)},
        "verdict": {"ok": ["good"], "ng": ["bad"], "certain_from": 0.5},
        "golden": {
            "cases": [{"image": "golden/a.png", "scores": {"good": score, "bad": 1 - score}}],
            "produced_by": "hand",
        },
    } | changes  # fmt: skip
    files = tinybundle.parts(facts) | (extra or {})
    files["golden/a.png"] = tinybundle.png(128)  # the grey that a trial and a warm-up show; live pictures differ
    files["model.onnx"] = model or runnerchild.constant_model(version, SIZE_PX)
    return tinybundle.pack(files)


class Device:
    """One device in a folder. Everything that it starts, it ends."""

    def __init__(self, folder: Path, **words: Any) -> None:
        self.folder = folder
        self.socket = folder / "run" / "lenskeep.sock"
        self.client = Client(Address(path=self.socket))
        self.config = folder / "device.toml"
        self.daemon: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}
        self.through: list[str] = []  # a program that starts the daemon, e.g. elsewhere in the network
        settings = {"source": "synthetic:ticks", "pace": "realtime", "fps": 50.0}
        settings |= {"probation_s": 0.4, "more": "", "slot": ""}
        self.config.write_text(CONFIG.format(folder=folder, **(settings | words)))

    # --- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        log = (self.folder / "daemon.log").open("ab")
        self.daemon = subprocess.Popen(
            [*self.through, sys.executable, "-m", "lenskeep.daemon", "--config", self.config],
            stdout=log, stderr=log, env=os.environ | self.environment,
        )  # fmt: skip
        log.close()
        self.until(lambda: self.answers() and self.client.status(), "the daemon answers")

    def answers(self) -> bool:
        """Say whether the control socket can be dialled; a daemon that ended is a failed test."""
        assert self.daemon is not None
        assert self.daemon.poll() is None, (self.folder / "daemon.log").read_text()[-3000:]
        try:
            self.client.whoami()
        except Exception:  # whatever it says, it does not answer yet
            return False
        return True

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the daemon at once; its runner lives on."""
        assert self.daemon is not None
        self.daemon.send_signal(how)
        self.daemon.wait(timeout=WAIT_S)

    def close(self) -> None:
        """End everything orderly, and what an accident left as well."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.kill(signal.SIGTERM)
        pid = self.runner_pid()
        if pid:
            os.kill(pid, signal.SIGKILL)

    def log(self) -> str:
        """What the daemon and its runner said."""
        return (self.folder / "daemon.log").read_text(errors="replace")

    def runner_pid(self) -> int:
        """The pid of the slot's process, found by its plan; 0 when there is none."""
        plan = str(self.folder / "run" / "main.plan.json").encode()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if plan in words and b"lenskeep.runner" in words and state != "Z":
                return int(entry.name)
        return 0

    # --- what is asked ------------------------------------------------------------------------------------------

    def until(self, question: Callable[[], T], what: str, timeout_s: float = WAIT_S) -> T:
        """Ask until the answer is yes."""
        deadline = time.monotonic() + timeout_s
        while True:
            answer = question()
            if answer:
                return answer
            assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s\n{self.log()[-3000:]}"
            time.sleep(0.05)

    def slot(self) -> SlotView:
        """The slot as the API says it."""
        return self.client.slot("main")

    def runs(self, bundle: str, state: str = "") -> SlotView:
        """Wait until the slot really runs a version and makes results with it."""

        def there() -> SlotView | None:
            slot = self.slot()
            fits = slot.active == bundle and state in ("", slot.state)
            recent = self.client.results(limit=1).results
            return slot if fits and recent and recent[-1].bundle == bundle else None

        return self.until(there, f"{bundle} runs {state}")

    def trust(self, pattern: str = "*") -> None:
        """Trust the key that tiny bundles are signed with."""
        pem = tinybundle.key().public.pem
        self.client.trust_key(KeyRequest(name="plant-release", pem=pem, patterns=[pattern]))

    def bring(self, version: str, **facts: Any) -> Operation:
        """Import a tiny bundle and wait for its trial."""
        path = self.folder / f"{facts.get('name', 'cap-inspect')}-{version}.lkb"
        path.write_bytes(bundle_bytes(version, **facts))
        return self.finished(self.client.upload(path, lambda _done, _total: None))

    def finished(self, operation: Operation) -> Operation:
        """Wait for an operation's end."""
        return self.client.wait(operation, WAIT_S, lambda _seen: None)

    def activate(self, version: str, **words: Any) -> Operation:
        """Activate a version and wait for the exchange."""
        return self.finished(self.client.activate(ActivationRequest(bundle=f"cap-inspect@{version}", **words)))

    def settle(self, version: str) -> None:
        """Bring a version, activate it, and let it pass its probation."""
        for done in (self.bring(version), self.activate(version)):
            assert done.state == "succeeded", f"{done.kind}: {done.error}"
        self.runs(f"cap-inspect@{version}", "settled")

    def results(self) -> list[ResultView]:
        """The newest results."""
        return self.client.results(limit=1000).results
