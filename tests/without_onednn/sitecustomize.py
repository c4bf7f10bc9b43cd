"""Switches oneDNN off in every Python process that finds this folder on PYTHONPATH: PyTorch has no variable for it."""

import torch

torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
