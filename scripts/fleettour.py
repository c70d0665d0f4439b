"""A fleet and five devices on one machine: enrol, release, roll out in waves, and a bad version that is stopped.

`scripts/demo-fleet` calls this with the project's own Python. Every step is a command that a person could type; it is
shown before what it prints. Five real daemons inspect made-up cameras. `--once` ends after the journey.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tour import BIN, ROOT, SAMPLES, free_port

from lenskeep.cli.fleetclient import FleetClient
from lenskeep.cli.wire import Address

DEVICES = 5
SITES = ("aachen", "aachen", "aachen", "brno", "brno")
NAME = "cap-inspect"
FRAMES_PER_S = 5
PATIENCE_S = 240.0
PLAN = """\
slot = "main"
target = "all"
waves = [{ take = "canary=yes" }, { take = "60%" }, { take = "100%" }]
soak_s = 2                     # how long a wave is watched before the next begins
on_broken = "abort-revert"     # nobody is asked any more, and every device goes back to what it ran before
[gates]
failed_max = 0
"""
GOOD, BAD = f"{NAME}@1.0.0", f"{NAME}@1.1.0"


class FleetTour:
    """One folder, one fleet, five devices, and the commands that are shown."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.devices_port = free_port(8443)
        self.operators_port = port
        self.running: list[subprocess.Popen[bytes]] = []
        # what is only waited for is asked without a command: its start would take the processor from what is waited for
        self.client = FleetClient(Address(path=folder / "fleet" / "run" / "fleet.sock"))
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("LENSKEEP_")} | {
            "HOME": str(folder),
            "LENSKEEP_FLEET": str(folder / "fleet" / "run" / "fleet.sock"),
        }

    # --- commands ----------------------------------------------------------------------------------------------

    def run(self, *words: str, device: str = "", expect: tuple[int, ...] = (0,), show: bool = True) -> str:
        """Run `lenskeep …` as a person would; stop the tour when it ends otherwise than expected."""
        where = f"{device}$" if device else "$"
        if show:
            print(f"\n{where} lenskeep {' '.join(words)}".replace(f"{self.folder}/", ""), flush=True)
        environment = self.environment | ({"LENSKEEP_DEVICE": str(self.socket(device))} if device else {})
        done = subprocess.run(
            [BIN / "lenskeep", *words], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=self.folder, check=False,
        )  # fmt: skip
        if show:
            print(done.stdout.rstrip(), flush=True)
        if done.returncode not in expect:
            sys.exit(f"\nthe tour stopped: exit code {done.returncode}\n{done.stdout if not show else ''}")
        return done.stdout

    def facts(self, *words: str, device: str = "") -> Any:
        """Return the data of a command's --json."""
        return json.loads(self.run(*words, "--json", device=device, expect=(0, 6), show=False))["data"]

    def say(self, text: str) -> None:
        """Narrate."""
        print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n# {text}", flush=True)

    def until(self, what: str, look: Any, shown: Any = lambda: "") -> Any:
        """Look until it is so, and tell how it goes whenever that changes."""
        deadline, told = time.monotonic() + PATIENCE_S, ""
        while time.monotonic() < deadline:
            found = look()
            if (now := shown()) and now != told:
                print(f"    {now}", flush=True)
                told = now
            if found:
                return found
            time.sleep(0.5)
        self.tell_why()
        sys.exit(f"\nthe tour stopped: {what} did not happen within {PATIENCE_S:.0f} s")

    def tell_why(self) -> None:
        """Show what the fleet knows, for whoever has to find out."""
        for words in (("fleet", "devices"), ("fleet", "drift"), ("fleet", "alarms")):
            self.run(*words, expect=tuple(range(16)))
        for log in sorted(self.folder.rglob("*.log")):
            print(f"\n--- {log.name}\n{log.read_text(errors='replace')[-2000:]}", flush=True)

    # --- keys and the repository -------------------------------------------------------------------------------

    def make_repository(self) -> None:
        """Two holders of the root, one publisher, and the fleet's own key for what is short-lived."""
        self.say("Keys: two people hold the root, a team publishes, the fleet has a key of its own")
        for who in ("anna", "ben", "acme", "server"):
            self.run("keys", "gen", who, "--out", "keys", show=who == "anna")
        self.say("A repository: who may sign what")
        online = ("--key", "keys/server.pem")
        self.run(
            "trust", "init", "plant", "--root-key", "keys/anna.pub", "--root-key", "keys/ben.pub", "--threshold", "2",
            "--targets-key", "keys/anna.pub", "--online-key", "keys/server.pub", "--key", "keys/anna.pem",
            "--key", "keys/ben.pem", *online,
        )  # fmt: skip
        self.run(
            "trust", "add-publisher", "acme", "--public", "keys/acme.pub", "--for", f"{NAME}*", "--repository", "plant",
            "--key", "keys/anna.pem", *online,
        )  # fmt: skip

    def pack(self, version: str, *more: str, model: str = "1.0.0") -> None:
        """Pack the sample classifier under a version."""
        stem = f"{SAMPLES}/models/{NAME}-{model}"
        self.run(
            "bundle", "pack", f"{stem}.onnx", "--from", f"{SAMPLES}/cap-inspect.toml", "--name", NAME,
            "--version", version, "--facts", f"{stem}.json", "--expected",
            f"{SAMPLES}/golden/{NAME}/expected-{model}.json", *more, "--key", "keys/acme.pem", "--out", "bundles",
            show=False,
        )  # fmt: skip

    def publish(self, version: str) -> None:
        """Release a packed version."""
        self.run(
            "trust", "publish", f"bundles/{NAME}-{version}.lkb", "--repository", "plant", "--key", "keys/acme.pem",
            "--key", "keys/server.pem",
        )  # fmt: skip

    # --- the fleet ---------------------------------------------------------------------------------------------

    def start_fleet(self) -> None:
        """Write its configuration and start it."""
        self.say("The fleet: one process, one folder")
        text = (ROOT / "config" / "fleet.toml").read_text()
        config = self.configure(
            self.folder / "fleet" / "fleet.toml", text,
            ('state_dir = ""', f'state_dir = "{self.folder}/fleet/state"'),
            ('runtime_dir = ""', f'runtime_dir = "{self.folder}/fleet/run"'),
            ('repository = ""', f'repository = "{self.folder}/plant"'),
            ('address = "0.0.0.0"', 'address = "127.0.0.1"'),
            ("port = 8443", f"port = {self.devices_port}"),
            ("\nport = 0\n", f"\nport = {self.operators_port}\n"),
            ("keys = []", f'keys = ["{self.folder}/keys/server.pem"]'),
        )  # fmt: skip
        self.start("fleet", "lenskeep.fleet", config)
        socket = self.folder / "fleet" / "run" / "fleet.sock"
        self.until("the fleet's start", lambda: socket.exists() or self.ended())
        self.run("fleet", "ca", "show")

    @staticmethod
    def configure(path: Path, text: str, *changes: tuple[str, str]) -> Path:
        """Write a configuration from the one that is shipped."""
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def start(self, name: str, module: str, config: Path) -> None:
        """Start a process of ours; it is ended at the end of the tour."""
        with (config.parent / f"{name}.log").open("wb") as log:
            self.running.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, "--config", config], stdout=log, stderr=log, env=self.environment
                )
            )

    def ended(self) -> bool:
        """Stop the tour when a process ended by itself."""
        for process in self.running:
            if process.poll() is not None:
                self.tell_why()
                sys.exit(f"\nthe tour stopped: {' '.join(map(str, process.args))} ended")  # type: ignore[arg-type]
        return False

    def socket(self, device: str) -> Path:
        return self.folder / device / "run" / "lenskeep.sock"

    def start_devices(self) -> None:
        """Five daemons with made-up cameras; each enrols with a token of its own."""
        self.say(f"{DEVICES} devices, each with a camera; the fleet invites them, and each enrols with a token")
        text = (ROOT / "config" / "device.toml").read_text()
        names = [f"cam-{number + 1}" for number in range(DEVICES)]
        for name in names:
            config = self.configure(
                self.folder / name / "device.toml", text, ('id = ""', f'id = "{name}"'),
                ('state_dir = ""', f'state_dir = "{self.folder}/{name}/state"'),
                ('runtime_dir = ""', f'runtime_dir = "{self.folder}/{name}/run"'), ("port = 8417", "port = 0"),
                ('root = ""', f'root = "{self.folder}/plant/metadata/1.root.json"'), ("poll_s = 60", "poll_s = 2"),
                ("seconds = 60", "seconds = 6"), ("frames_min = 30", "frames_min = 20"),
                ("fps = 0.0", f"fps = {FRAMES_PER_S}.0"),
            )  # fmt: skip
            if name == names[-1]:  # the canary does not look at what its results are: others have to
                self.configure(config, config.read_text(), ("outcome_shift_max = 0.30", "outcome_shift_max = 1.0"))
            self.start(name, "lenskeep.daemon", config)
            self.until(f"the start of {name}", lambda name=name: self.socket(name).exists() or self.ended())
        for name, site in zip(names, SITES, strict=True):
            token = self.facts("fleet", "token", name)["token"]
            words = ("enrol", f"https://127.0.0.1:{self.devices_port}", "--token", token)
            if name == names[0]:
                print(f"\n$ lenskeep fleet token {name}\n{token}")
            self.run(*words, device=name, show=name == names[0])
            self.run("fleet", "tag", name, f"site={site}", show=False)
        self.run("fleet", "tag", names[-1], "canary=yes")
        self.run("fleet", "devices")

    # --- rollouts ----------------------------------------------------------------------------------------------

    def roll_out(self, bundle: str, reason: str) -> int:
        """Start a rollout by the plan."""
        self.run("fleet", "rollout", "start", bundle, "--plan", "plan.toml", "--reason", reason)
        return int(self.facts("fleet", "rollout", "list")[0]["id"])

    def follow(self, number: int, state: str) -> None:
        """Tell how it goes until it is in a state and no device is on its way."""

        def now() -> str:
            found = self.client.rollout(number).rollout
            counts = ", ".join(f"{count} {name}" for name, count in sorted(found.states.items()))
            return f"wave {found.wave} of {found.waves}, {found.state}: {counts}"

        def there() -> bool:
            return self.client.rollout(number).rollout.state == state or self.ended()

        self.until(f"rollout {number}: {state}", there, now)
        self.run("fleet", "rollout", "show", str(number), "--devices")

    def everybody_runs(self, bundle: str) -> bool:
        """Say whether every device runs a version, by its signed reports."""
        lines = self.client.list_devices().devices
        return len(lines) == DEVICES and all([slot.running for slot in line.slots] == [bundle] for line in lines)

    def walk(self) -> None:
        """The journey."""
        self.make_repository()
        self.start_fleet()
        self.start_devices()

        self.say("Release the first version, and roll it out in waves: one device, three, all")
        self.pack("1.0.0")
        self.publish("1.0.0")
        (self.folder / "plan.toml").write_text(PLAN)
        print(f"\n$ cat plan.toml\n{PLAN.rstrip()}")
        first = self.roll_out(GOOD, "first version")
        self.follow(first, "finished")
        self.until(f"all running {GOOD}", lambda: self.everybody_runs(GOOD))
        self.run("fleet", "devices")
        self.run("fleet", "versions")

        self.say("A bad version: it passes every check of the lab, and calls good caps bad on the line")
        print("The canary's own gate for that is switched off, so the first wave goes through; the second will see it.")
        self.pack("1.1.0", "--ok", "missing", "--ng", "good,scratched")
        self.publish("1.1.0")
        time.sleep(5)  # a few more pictures of the good one, to compare with
        second = self.roll_out(BAD, "faster, says the lab")
        self.follow(second, "aborted")
        self.until(f"all running {GOOD} again", lambda: self.everybody_runs(GOOD))
        self.say("It stopped itself in its second wave and took the version back; everybody runs the one before")
        self.run("fleet", "devices")
        self.run("fleet", "history", BAD)
        self.run("fleet", "drift")
        self.run("fleet", "overview")

    def stop(self) -> None:
        """End what was started, the devices first."""
        for process in reversed(self.running):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main() -> None:
    """Walk the journey; without `--once`, keep the fleet running for the browser."""
    parser = argparse.ArgumentParser(prog="scripts/demo-fleet", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the journey")
    parser.add_argument("--port", type=int, default=8444, help="port of the fleet's pages")
    arguments = parser.parse_args()
    usual = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="lkf-", dir=usual if len(usual) < 40 else "/tmp"))  # sockets need short paths
    tour = FleetTour(folder, free_port(arguments.port))
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        tour.walk()
        if arguments.once:
            print(f"\nThe journey is complete, after {time.monotonic() - begun:.0f} s.")
            return
        tour.say("The fleet keeps running. Open its pages in a browser; Ctrl-C ends the demo")
        secret = tour.facts("fleet", "operator", "add", "demo", "--role", "operator")["secret"]
        print(f"http://127.0.0.1:{tour.operators_port}/#token={secret}")
        print(f"\nIn another terminal:  export LENSKEEP_FLEET={tour.environment['LENSKEEP_FLEET']}")
        print(f"                      {BIN}/lenskeep fleet overview", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        print("\nending the demo")
    finally:
        tour.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
