"""The process that serves a slot: OpenCV and ONNX Runtime, threads, no asyncio."""
