"""ONNX Runtime, imported in this one place: silent towards its maker.

From 1.31 on it sends usage data by default, keeps a device id in the user's cache folder and starts a thread for it.
A device that inspects has nothing to tell anybody; the switch counts only before the import.
Source: the runtime's own Privacy.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

__all__ = ["ort", "ort_state"]
