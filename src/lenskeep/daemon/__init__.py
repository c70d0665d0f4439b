"""The control plane of a device: asyncio; never numpy, cv2 or onnxruntime."""
