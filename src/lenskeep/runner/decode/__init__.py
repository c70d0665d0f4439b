"""From a model's output tensors to scores or boxes, one small module for each kind in the manifest."""
