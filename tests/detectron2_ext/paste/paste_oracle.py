"""Pasting written out on whole canvases, straight from the method: slow, short and obviously right."""

import numpy as np


def tight_box(mask: np.ndarray) -> np.ndarray:
    """XYXY edges of the pixels of a mask, bool (H, W)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def paste(image, objects, cutout, x, y, class_index, moved_box, few_pixels):
    """Lay ``cutout`` (h, w, 4) over ``image`` (H, W, 3) at (x, y), where its alpha is above 0.

    ``x`` is in -w … W, ``y`` in -h … H.
    ``objects``: list of (box, mask bool (H, W), class index, source). Returns image and objects afterwards.
    """
    height, width = image.shape[:2]
    h, w = cutout.shape[:2]
    wide = np.zeros((height + 2 * h, width + 2 * w, 4), np.uint8)  # with room for what hangs over
    wide[y + h : y + 2 * h, x + w : x + 2 * w] = cutout
    canvas = wide[h : h + height, w : w + width]
    pasted = canvas[..., 3] > 0
    if not pasted.any():
        return image, objects
    image = np.where(pasted[..., None], canvas[..., :3], image)
    remaining = []
    for box, mask, label, source in objects:
        left = mask & ~pasted
        if (left == mask).all():
            remaining.append((box, mask, label, source))
            continue
        if not left.any():
            continue
        moved = np.abs(tight_box(left) - tight_box(mask)).max()
        if moved > moved_box and left.sum() <= few_pixels:
            continue
        remaining.append((tight_box(left), left, label, source))
    return image, [*remaining, (tight_box(pasted), pasted, class_index, 1)]
