"""Predicted masks, probabilities over boxes, as run lengths of their image."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as mask_api

_Floats = npt.NDArray[np.float32]


def encode_masks(masks: _Floats, boxes: _Floats, height: int, width: int) -> list[bytes]:
    """COCO's compressed run lengths of the pixels with a probability of at least one half.

    The value of a pixel is the bilinear interpolation at its centre, with zeros around the mask, as the network's
    own pasting has it; but only the pixels below each box are looked at, and masks of whole images never exist.

    Args:
        masks: float32 (N, S, S), over the boxes.
        boxes: float32 (N, 4), XYXY in pixels, within the image.
    """
    windows = _windows(masks, boxes, height, width)
    runs = [{"size": [height, width], "counts": _runs(*window, height, width)} for window in windows]
    encoded: list[dict[str, Any]] = mask_api.frPyObjects(runs, height, width) if runs else []
    return [mask["counts"] for mask in encoded]


def _windows(
    masks: _Floats, boxes: _Floats, height: int, width: int
) -> Iterator[tuple[npt.NDArray[np.bool_], int, int]]:
    """The pixels below each box, bool (columns, rows), with the first column and row.

    Beyond its box a mask has less than one half: nothing is interpolated with zeros there.
    """
    starts = np.floor(boxes[:, :2]).astype(np.int64)
    ends = np.minimum(np.ceil(boxes[:, 2:]).astype(np.int64), (width, height))
    for mask, (x1, y1, x2, y2), start, end in zip(masks, boxes, starts.tolist(), ends.tolist(), strict=True):
        rows = _weights_between(y1, y2, len(mask), start[1], end[1])
        columns = _weights_between(x1, x2, len(mask), start[0], end[0])
        yield columns @ (mask.T @ rows.T) >= 0.5, start[0], start[1]


def _runs(
    pixels: npt.NDArray[np.bool_], first_column: int, first_row: int, height: int, width: int
) -> list[int]:
    """Run lengths down the columns of the whole image, zeros first, of one that is set in a window alone."""
    columns, rows = pixels.shape
    # A row of zeros below keeps what ends one column apart from what begins the next.
    inside = np.zeros((columns, rows + 1), dtype=bool)
    inside[:, :rows] = pixels
    column, row = np.divmod(np.flatnonzero(np.diff(inside.reshape(-1), prepend=False)), rows + 1)
    edges = (column + first_column) * height + row + first_row
    if rows == height:
        touching = np.flatnonzero(edges[1:-1:2] == edges[2::2])  # a run goes on at the top of the next column
        edges = np.delete(edges, np.concatenate([2 * touching + 1, 2 * touching + 2]))
    if not len(edges) or edges[-1] != height * width:
        edges = np.append(edges, height * width)
    runs: list[int] = np.diff(edges, prepend=0).tolist()
    return runs


def _weights_between(start: np.float32, end: np.float32, size: int, first: int, last: int) -> _Floats:
    """Weight of each of ``size`` mask cells in each pixel from ``first`` to ``last``: float32 (last - first, size)."""
    pixel = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    position = (pixel - start) / (end - start) * np.float32(size) - np.float32(0.5)  # in cells
    weights: _Floats = (1 - np.abs(position[:, None] - np.arange(size, dtype=np.float32))).clip(min=0)
    return weights
