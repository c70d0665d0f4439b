"""One loaded version: the ONNX Runtime session and everything around it that makes a judgement of a frame.

Rules. The bytes that were hashed are the bytes that the session is built from: a stored file is read once, into sealed
memory, and ONNX Runtime reads that. `digest` is always that of the signed model, also when the session was built from
the copy that this device's trial prepared. The execution provider is the one that was asked for, or there is no
engine. Whatever ONNX Runtime raises leaves this file as one of our faults.
Not here: threads, deadlines, priorities; who loads decides those.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lenskeep.bundle import manifest as manifests
from lenskeep.bundle.manifest import Manifest
from lenskeep.errors import (
    BlobDamagedError,
    IncompatibleError,
    InferenceError,
    LenskeepError,
    ManifestError,
    MemoryBudgetError,
    ProviderFallbackError,
    StorageError,
    SwapRefusedError,
    UnusableOutputError,
)
from lenskeep.messages.runner import BundleRef
from lenskeep.runner.decode.answer import Answer, Raw
from lenskeep.runner.decode.kinds import decoder
from lenskeep.runner.judge import Judge, Judgement
from lenskeep.runner.resize import Image
from lenskeep.runner.runtime import ort, ort_state
from lenskeep.runner.sealed import Aside, Reader, SealedModel, sealed
from lenskeep.runner.tensors import Placement, Prepared, Preprocessor

PROVIDERS = {
    "CPU": "CPUExecutionProvider",
    "CUDA": "CUDAExecutionProvider",
    "TensorRT": "TensorrtExecutionProvider",
    "OpenVINO": "OpenVINOExecutionProvider",
}
_TENSOR_TYPES = {"float": "float32", "float16": "float16", "uint8": "uint8", "int64": "int64", "int32": "int32"}
_ERROR_HEAD = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE_LINE = re.compile(r"/\S+:\d+ [^)]*\) ")
_MEMORY_WORDS = ("bad allocation", "bad_alloc", "failed to allocate", "cannot allocate", "insufficient memory")


class Cancel(threading.Event):
    """Set from another thread, it ends the load that was given it: `Engine.load` raises SwapRefusedError."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._options: ort.SessionOptions | None = None

    def set(self) -> None:
        """End the load, now or as soon as it begins."""
        super().set()
        with self._lock:
            if self._options is not None:
                self._options.set_load_cancellation_flag(True)

    def watch(self, options: ort.SessionOptions) -> None:
        """Let a load with these options be ended."""
        with self._lock:
            self._options = options
            options.set_load_cancellation_flag(self.is_set())


class Engine:
    """A version that can judge frames. `prepare` may run in other threads than `infer`."""

    def __init__(self, ref: BundleRef, manifest: Manifest, session: ort.InferenceSession, note: str) -> None:
        check_contract(manifest, session)
        self.ref = ref
        self.manifest = manifest
        self.digest = ref.model_sha256
        self.provider = next(word for word, name in PROVIDERS.items() if name == session.get_providers()[0])
        self.note = note  # why the session is not built from the prepared model, if there is one
        self._session: ort.InferenceSession | None = session
        self._outputs = [output.name for output in manifest.outputs]
        self._preprocessor = Preprocessor(manifest.input)
        self._decode = decoder(manifest)
        self._judge = Judge(manifest)

    @classmethod
    def load(
        cls,
        ref: BundleRef,
        *,
        threads: int,
        cancel: Cancel | None = None,
        aside: Aside = contextlib.nullcontext,
        read: Reader = sealed,
    ) -> Engine:
        """Build the session of one stored version, from the prepared model when there is a sound one.

        Args:
            threads: of one inference; with more than one, the runtime's own threads inherit the caller's priority.
            aside: entered around each long call that does not hold the interpreter, for one, to lower the thread.
        Raises: BlobDamagedError, StorageError, IncompatibleError, ProviderFallbackError, MemoryBudgetError,
            ManifestError, UnusableOutputError; SwapRefusedError when it was cancelled.
        Cost: reads and hashes the model (1 s per GB), then about 1 ms per MB; the interpreter is not held.
        """
        manifest = manifests.parse(ref.manifest_json)
        note = ""
        if ref.prepared_path:
            try:
                return cls(ref, manifest, _prepared_session(ref, manifest, threads, cancel, aside, read), "")
            except (BlobDamagedError, StorageError, IncompatibleError) as error:
                note = f"The prepared model was not used: {error}"
        with read(ref.model_path, ref.model_sha256, aside) as model:
            session = open_session(model, manifest, session_options(threads), cancel, aside)
        return cls(ref, manifest, session, note)

    @property
    def spec_key(self) -> bytes:
        """Name what prepared frames depend on; engines with one key can share them."""
        return self._preprocessor.spec_key

    @property
    def memory_mb(self) -> int:
        """What the trial measured for this version; 0 = unknown."""
        return self.ref.memory_mb

    def prepare(self, image: Image) -> Prepared:
        """Bring a frame (uint8 BGR) into the model's form. Raises: CameraFormatError."""
        return self._preprocessor.prepare(image)

    def infer(self, prepared: Prepared) -> Sequence[Raw]:
        """Run the model on one prepared frame; return its outputs in the manifest's order.

        Raises: InferenceError, MemoryBudgetError.
        """
        assert self._session is not None, "this engine is closed"
        with _translated(InferenceError, self.ref.ref):
            outputs: Sequence[Raw] = self._session.run(self._outputs, {self.manifest.input.name: prepared.tensor})
        return outputs

    def answer(self, outputs: Sequence[Raw], placement: Placement) -> Answer:
        """Read the outputs as scores or boxes. Raises: UnusableOutputError."""
        return self._decode(outputs, placement)

    def decode(self, outputs: Sequence[Raw], placement: Placement) -> Judgement:
        """Judge the outputs of one frame. Raises: UnusableOutputError."""
        return self._judge.judge(self._decode(outputs, placement))

    def warm(self, runs: int, aside: Aside = contextlib.nullcontext) -> None:
        """Run the model on a grey frame, so that no real frame pays for its first touch of memory.

        Raises: InferenceError, MemoryBudgetError.
        """
        spec = self.manifest.input
        prepared = self.prepare(np.full((spec.height_px, spec.width_px, 3), 128, np.uint8))
        for _ in range(runs):
            with aside():
                self.infer(prepared)

    def close(self) -> None:
        """Let the session go; `trim_memory` some seconds later gives its memory back to the system."""
        self._session = None


def _prepared_session(
    ref: BundleRef, manifest: Manifest, threads: int, cancel: Cancel | None, aside: Aside, read: Reader
) -> ort.InferenceSession:
    options = session_options(threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # done when it was prepared
    with read(ref.prepared_path, ref.prepared_sha256, aside) as model:
        return open_session(model, manifest, options, cancel, aside)


def session_options(threads: int) -> ort.SessionOptions:
    """Return the options of every session here: quiet, one graph at a time, no threads that spin while they wait.

    The runtime's arena stays on: it takes 10-15 MB more and makes a MobileNet 7 % faster.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # what goes wrong arrives as an exception; the rest is noise in a journal
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def open_session(
    model: SealedModel,
    manifest: Manifest,
    options: ort.SessionOptions,
    cancel: Cancel | None = None,
    aside: Aside = contextlib.nullcontext,
) -> ort.InferenceSession:
    """Build a session on the first provider of the manifest that really works here, and on no other.

    Raises: IncompatibleError, ProviderFallbackError, MemoryBudgetError, SwapRefusedError when cancelled.
    """
    here = providers_here(manifest)
    if cancel is not None:
        cancel.watch(options)
    for word in here:
        with aside():
            session = _session_on(word, model, manifest, options)
        if session.get_providers()[0] == PROVIDERS[word]:
            return session
    raise ProviderFallbackError(
        f"{manifest.ref} asks for the provider {' or '.join(here)}; ONNX Runtime used the CPU instead."
    )


def providers_here(manifest: Manifest) -> list[str]:
    """Return the providers of the manifest that this runtime was built with, best first. Raises: IncompatibleError."""
    wanted, installed = manifest.requires.providers, ort.get_available_providers()
    here = [str(word) for word in wanted if PROVIDERS[word] in installed]
    if not here:
        raise IncompatibleError(
            f"{manifest.ref} asks for the provider {' or '.join(wanted)}, which is not installed here."
        )
    return here


def _session_on(word: str, model: SealedModel, manifest: Manifest, options: ort.SessionOptions) -> ort.InferenceSession:
    names = [PROVIDERS[word]] if word == "CPU" else [PROVIDERS[word], PROVIDERS["CPU"]]
    with _translated(IncompatibleError, manifest.ref):
        return ort.InferenceSession(model.path, options, providers=names, enable_fallback=0)


def check_contract(manifest: Manifest, session: ort.InferenceSession) -> None:
    """Compare what the session takes and gives with the manifest. An axis that the model leaves open fits any size.

    Raises: ManifestError about the input, UnusableOutputError about an output.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ManifestError(f"The model takes {len(inputs)} inputs; model.json describes one.")
    spec = manifest.input
    if inputs[0].name != spec.name or not _fits(inputs[0], spec.dtype, spec.shape):
        raise ManifestError(
            f"The model takes {_described(inputs[0])}; model.json says {spec.name} {spec.dtype} {spec.shape}."
        )
    given = {output.name: output for output in session.get_outputs()}
    for output in manifest.outputs:
        if output.name not in given:
            raise UnusableOutputError(f"The model has no output {output.name}; it has {', '.join(given)}.")
        if not _fits(given[output.name], output.dtype, output.shape):
            raise UnusableOutputError(
                f"The model gives {_described(given[output.name])}; "
                f"the manifest says {output.name} {output.dtype} {output.shape}."
            )


def _dtype(value: Any) -> str:
    word = str(value.type).removeprefix("tensor(").removesuffix(")")
    return _TENSOR_TYPES.get(word, word)


def _fits(value: Any, dtype: str, shape: list[int]) -> bool:
    if _dtype(value) != dtype or len(value.shape) != len(shape):
        return False
    return all(mine == theirs for mine, theirs in zip(shape, value.shape, strict=True) if isinstance(theirs, int))


def _described(value: Any) -> str:
    sizes = ", ".join(str(size) if isinstance(size, int) else "?" for size in value.shape)
    return f"{value.name} {_dtype(value)} [{sizes}]"


@contextlib.contextmanager
def _translated(fault: type[LenskeepError], subject: str) -> Iterator[None]:
    """Raise what ONNX Runtime raises as our own fault."""
    try:
        yield
    except ort_state.ModelLoadCanceled as error:
        raise SwapRefusedError(f"Loading {subject} was cancelled.") from error
    except MemoryError as error:
        raise MemoryBudgetError(f"{subject} needs more memory than there is.") from error
    except Exception as error:  # its faults share no parent, and texts that are not UTF-8 raise others
        said = _plain(str(error))
        if any(word in said.lower() for word in _MEMORY_WORDS):
            raise MemoryBudgetError(f"{subject} needs more memory than there is: {said}") from error
        raise fault(f"{subject}: {said}") from error


def _plain(text: str) -> str:
    """Reduce what ONNX Runtime says to what a person can use: no line of its source, no control characters."""
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return _SOURCE_LINE.sub("", _ERROR_HEAD.sub("", text))[:300]
