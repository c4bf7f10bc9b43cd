"""The ONNX form of a matting network, computed by onnxruntime, against its torch form, both as stage 2 calls them.

The network is the embedded one on batches of pictures of its size, turn by turn.
"""

import os
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import torch

from diSegmenter.foreground import load_foreground, load_network
from exchange import files
from tools.benchmarks import times_as_much
from tools.digits import pictures, samples
from tools.matting_to_onnx import as_onnx

_IMAGES, _REPEATS = 16, 15
LIMIT = 1.2
_NETWORK = "assets/digits/foreground"


def measure(device: str) -> dict[str, Any]:
    """Milliseconds an image, medians of turns taken alternately, and the largest difference of a mask."""
    drawn = pictures.with_masks(samples.split()["val"], _IMAGES, np.random.default_rng(0))
    images = [np.asarray(picture) for picture, _, _ in drawn]
    sides = _sides(torch.device(device))
    masks = {name: np.stack(side(images)).astype(int) for name, side in sides.items()}  # the first is slow
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(_REPEATS):
        for name, side in sides.items():
            started = time.perf_counter()
            side(images)
            seconds[name].append(time.perf_counter() - started)
    own, other = (1000 * statistics.median(seconds[name]) / _IMAGES for name in ("ours", "other"))
    return {
        "ours": own,
        "other": other,
        "unit": "ms an image",
        "largest_difference_in_grey_levels": int(np.abs(masks["ours"] - masks["other"]).max()),
        **times_as_much(own, other, LIMIT),
    }


def _sides(device: torch.device) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "matting.onnx")
        files.write_bytes(path, as_onnx(load_network("matting", _NETWORK, "main", False), pictures.SIZE))
        return {
            side: load_foreground(choice, name, "main", False, pictures.SIZE, device)
            for side, choice, name in (("other", "matting", _NETWORK), ("ours", "onnx", path))
        }
