"""What the `bundle` verbs do on an engineer's machine: keys from files, drafts from recipes, answers from a child.

Numpy, OpenCV and ONNX Runtime are needed only where a model is run, and there they run in a process of their own.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lenskeep.bundle import builder, disk, draft, golden, keys
from lenskeep.bundle import manifest as manifests
from lenskeep.bundle.authority import TrustStore
from lenskeep.bundle.draft import Draft
from lenskeep.bundle.golden import Answers
from lenskeep.bundle.keys import PrivateKey
from lenskeep.bundle.recipe import Recipe
from lenskeep.bundle.signing import SIGNATURE_BYTES_MAX
from lenskeep.errors import RequestError

KEY_BYTES_MAX = 16_000
OWN_ANSWERS = "lenskeep's own pipeline on this model; it proves repetition, not that the contract is right"


def read_small(path: Path) -> bytes:
    """Read a key or a passphrase. Raises: RequestError."""
    with disk.open_regular(path) as file:
        data = file.read(KEY_BYTES_MAX + 1)
    if len(data) > KEY_BYTES_MAX:
        raise RequestError(f"{path} is too large for a key.")
    return data


def read_signature(path: Path) -> bytes:
    """Read a `model.sig` that another tool has made. Raises: RequestError."""
    with disk.open_regular(path) as file:
        return file.read(SIGNATURE_BYTES_MAX + 1)


def load_key(path: Path, passphrase: str | None) -> PrivateKey:
    """Read the private key to sign with. Raises: RequestError."""
    return keys.load_private_key(read_small(path), passphrase)


def is_encrypted(path: Path) -> bool:
    """Say whether a key file asks for a passphrase."""
    return b"ENCRYPTED" in read_small(path)


def load_trust(paths: Sequence[Path]) -> TrustStore | None:
    """Trust the public keys in these files, each under its file's name; None when there are none."""
    return builder.trust_of({path.name: keys.admit(read_small(path)) for path in paths}) if paths else None


def make_draft(recipe: Recipe) -> Draft:
    """Make everything that is to be signed. Raises: RequestError, BundleError."""
    if not recipe.golden:
        raise RequestError("Say --golden: a folder with pictures that a device has to judge as the training did.")
    folder = Path(recipe.golden)
    given = golden.find_answers(folder, recipe.expected)
    if given is not None:
        answers = golden.read_answers(given)
        said_by = recipe.golden_by or answers.produced_by or f"{given.name}, whose author is not named"
        return draft.from_recipe(recipe, answers, said_by)
    made = draft.from_recipe(recipe, own_answers(recipe), OWN_ANSWERS)
    doubt = "The golden answers were made by this very pipeline: a wrong colour order or scale would not show."
    return dataclasses.replace(made, warnings=(*made.warnings, doubt))


def own_answers(recipe: Recipe) -> Answers:
    """Let the model answer its golden pictures in a child process. Raises: RequestError."""
    require_runtime()
    pictures = golden.pictures(Path(recipe.golden))
    unproven = draft.from_recipe(recipe, None, OWN_ANSWERS)
    with tempfile.TemporaryDirectory(prefix="lenskeep-") as name:
        manifest, out = Path(name) / "model.json", Path(name) / "expected.json"
        manifest.write_bytes(manifests.encode(unproven.manifest))
        child = [sys.executable, "-m", "lenskeep.runner.answer", recipe.model, str(manifest), str(out)]
        done = subprocess.run([*child, *map(str, pictures)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RequestError(f"The model could not answer its golden pictures: {done.stderr.strip()[-500:]}")
        return golden.read_answers(out)


def require_runtime() -> None:
    """Refuse early what needs to run a model. Raises: RequestError."""
    missing = [name for name in ("numpy", "cv2", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise RequestError(
            f"Running a model needs {', '.join(missing)}, which is not installed here.",
            hint="Install it with: pip install 'lenskeep[pack]'",
        )
