"""The main journey on a made-up line: keys, bundles, a daemon on a looping clip, an update, refusals, and back.

`scripts/demo` calls this with the project's own Python. Everything lies in `.demo/` and every step is a command that a
person could type; the command is shown before what it prints. `--once` ends after the journey with exit code 0.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "scripts" / "samples"
BIN = Path(sys.executable).parent
CLIP_FRAMES = 600


class Tour:
    """One demo folder, one daemon, and the commands that are shown."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.socket = self.runtime_dir(folder) / "lenskeep.sock"
        self.daemon: subprocess.Popen[bytes] | None = None

    @staticmethod
    def runtime_dir(folder: Path) -> Path:
        """Sockets need a short path; a deep checkout gets its sockets elsewhere."""
        return folder / "run" if len(str(folder)) < 60 else Path(tempfile.mkdtemp(prefix="lenskeep-"))

    # --- commands ----------------------------------------------------------------------------------------------

    def run(self, *words: str, expect: int = 0, show: bool = True) -> str:
        """Run `lenskeep …` as a person would; stop the tour when it ends otherwise than expected."""
        if show:
            print(f"\n$ lenskeep {' '.join(words)}".replace(f"{ROOT}/", ""), flush=True)
        environment = os.environ | {"LENSKEEP_DEVICE": str(self.socket)}
        done = subprocess.run(
            [BIN / "lenskeep", *words], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=self.folder, check=False,
        )  # fmt: skip
        if show:
            print(done.stdout.rstrip(), flush=True)
        if done.returncode != expect:
            self.stop()
            sys.exit(
                f"\nthe tour stopped: exit code {done.returncode}, expected {expect}\n{done.stdout if not show else ''}"
            )
        return done.stdout

    def facts(self, *words: str) -> dict:
        """Return the data of a command's --json."""
        return json.loads(self.run(*words, "--json", show=False))["data"]

    def say(self, text: str) -> None:
        """Narrate."""
        print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n# {text}", flush=True)

    # --- the engineer's side -----------------------------------------------------------------------------------

    def make_keys_and_bundles(self) -> None:
        """Two signers, two good versions, and four files that must be refused."""
        self.say("The engineer's side: a key, and models packed and signed")
        self.run("keys", "gen", "plant-release", "--out", "keys")
        self.run("keys", "gen", "stranger", "--out", "keys", show=False)
        newer, answers = "cap-inspect-1.1.0", f"{SAMPLES}/golden/cap-inspect/expected-1.1.0.json"
        self.pack("cap-inspect", "1.0.0")
        self.pack("cap-inspect", "1.1.0", show=False, more=f"--expected {answers}")
        self.pack("cap-inspect", "1.2.0", show=False, model=newer, more=f"--expected {self.wrong_answers()}")
        self.pack("cap-inspect-slow", "1.0.0", show=False, more=f"--expected {answers} --latency-ms 2")
        self.pack("cap-inspect", "1.3.0", show=False, model=newer, more=f"--expected {answers}", key="stranger")
        flipped = bytearray((self.folder / "bundles" / "cap-inspect-1.1.0.lkb").read_bytes())
        flipped[len(flipped) // 2] ^= 1
        (self.folder / "bundles" / "flipped.lkb").write_bytes(flipped)

    def pack(
        self, name: str, version: str, *, show: bool = True, model: str = "", key: str = "plant-release", more: str = ""
    ) -> None:
        """Pack one sample as a bundle, by the recipe that lies beside it."""
        stem = f"{SAMPLES}/models/{model or f'{name}-{version}'}"
        self.run(
            "bundle", "pack", f"{stem}.onnx", "--from", f"{SAMPLES}/cap-inspect.toml", "--name", name,
            "--version", version, "--facts", f"{stem}.json", *more.split(), "--key", f"keys/{key}.pem",
            "--out", "bundles", show=show,
        )  # fmt: skip

    def wrong_answers(self) -> str:
        """Golden answers as an export with swapped colours would have them."""
        path = SAMPLES / "golden" / "cap-inspect" / "expected-1.1.0.json"
        answers = json.loads(path.read_text())
        for case in answers["cases"].values():
            scores = case["scores"]
            case["scores"] = dict(zip(scores, reversed(scores.values()), strict=True))
        wrong = self.folder / "wrong-answers.json"
        wrong.write_text(json.dumps(answers))
        return str(wrong)

    # --- the device --------------------------------------------------------------------------------------------

    def start_daemon(self) -> None:
        """Write a configuration, start the daemon and wait until it answers."""
        self.say("A device: one camera on a looping clip, one slot")
        clip = self.folder / "clip.avi"
        if not clip.exists():
            print("making the clip (once)", flush=True)
            subprocess.run(
                [sys.executable, SAMPLES / "make_clip.py", clip, "--station", "--frames", str(CLIP_FRAMES)], check=True
            )
        text = (ROOT / "config" / "device.toml").read_text()
        for old, new in (
            ('name = ""', 'name = "demo-line"'),
            ('state_dir = ""', f'state_dir = "{self.folder / "state"}"'),
            ('runtime_dir = ""', f'runtime_dir = "{self.socket.parent}"'),
            ("port = 8417", f"port = {self.port}"),
            ('source = "synthetic:caps"', f'source = "file:{clip}"'),
            ("seconds = 60", "seconds = 10"),
        ):
            assert old in text, old
            text = text.replace(old, new, 1)
        config = self.folder / "device.toml"
        config.write_text(text)
        self.run("config", "validate", str(config))
        with (self.folder / "daemon.log").open("wb") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "lenskeep.daemon", "--config", config], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 30
        while not self.socket.exists() and time.monotonic() < deadline and self.daemon.poll() is None:
            time.sleep(0.05)
        if not self.socket.exists():
            sys.exit(f"the daemon did not start; see {self.folder / 'daemon.log'}")

    def stop(self) -> None:
        """Stop the daemon orderly."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGTERM)
            self.daemon.wait(timeout=20)

    def wait_for(self, active: str, state: str, timeout_s: float = 30) -> dict:
        """Wait until the slot runs a version in a state."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            slot = self.facts("status")["slots"][0]
            if slot["active"] == active and slot["state"] == state and slot["latency"]:
                return slot
            time.sleep(0.3)
        self.stop()
        sys.exit(f"the slot did not come to run {active} ({state}); it is {slot['active']} ({slot['state']})")

    # --- the journey -------------------------------------------------------------------------------------------

    def walk(self) -> None:
        """Import, prove, activate, update, roll back, and see four bad bundles refused."""
        self.say("Trust the plant's key for this model name, and bring in the first version")
        self.run("keys", "trust", "keys/plant-release.pub", "--for", "cap-inspect*")
        self.run("import", "bundles/cap-inspect-1.0.0.lkb")
        self.run("activate", "cap-inspect@1.0.0", "--reason", "first version")
        self.wait_for("cap-inspect@1.0.0", "settled")
        self.run("status")

        self.say("A newer version: proven on this very device, then swapped between two frames, on trial")
        self.run("import", "bundles/cap-inspect-1.1.0.lkb")
        self.run("check", "cap-inspect@1.1.0")
        self.run("activate", "cap-inspect@1.1.0", "--trial", "30s")
        self.wait_for("cap-inspect@1.1.0", "probation")
        self.run("confirm")
        self.run("status")

        self.say("Four files that must not run; the line goes on")
        self.run("import", "bundles/cap-inspect-1.2.0.lkb", expect=8)
        self.run("import", "bundles/cap-inspect-slow-1.0.0.lkb", expect=8)
        self.run("import", "bundles/flipped.lkb", expect=4)
        self.run("import", "bundles/cap-inspect-1.3.0.lkb", expect=4)
        self.run("explain", "LK-8001")

        self.say("And back with one word")
        self.run("rollback")
        self.wait_for("cap-inspect@1.0.0", "rolled_back")
        self.run("models")
        self.run("history")
        self.run("doctor")


def free_port(wanted: int) -> int:
    """Return the wanted port, or another one when it is taken."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Walk the journey; without `--once`, keep the line running for the browser."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the journey")
    parser.add_argument("--port", type=int, default=8417)
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    for name in ("state", "run", "keys", "bundles"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    tour = Tour(folder, free_port(arguments.port))
    try:
        tour.make_keys_and_bundles()
        tour.start_daemon()
        tour.walk()
        if arguments.once:
            print("\nThe journey is complete.")
            return
        tour.say("The line keeps running. Open the page in a browser; Ctrl-C ends the demo")
        print(tour.run("ui", show=False).strip())
        print(f"\nIn another terminal:  export LENSKEEP_DEVICE={tour.socket}")
        print(f"                      {BIN}/lenskeep status --watch", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        print("\nending the demo")
    finally:
        tour.stop()


if __name__ == "__main__":
    main()
