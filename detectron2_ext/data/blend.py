"""How the pixels of a cut-out meet those of the image (INPUT.CP_METHOD)."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

# A blend writes into ``window``, uint8 RGB (h, w, 3), a view of the image; ``cutout`` is RGBA uint8 (h, w, 4)
# and ``mask`` uint8 (h, w), 1 where the object is.
Blend = Callable[[np.ndarray, np.ndarray, np.ndarray], None]


def basic(window: np.ndarray, cutout: np.ndarray, mask: np.ndarray) -> None:
    """The object's pixels replace the image's."""
    cv2.copyTo(cv2.cvtColor(cutout, cv2.COLOR_RGBA2RGB), mask, window)


def alpha(window: np.ndarray, cutout: np.ndarray, mask: np.ndarray) -> None:
    """Weighted by the cut-out's alpha."""
    _mix(window, cutout, (cutout[..., 3] * mask).astype(np.float32) / 255)


def gaussian(window: np.ndarray, cutout: np.ndarray, mask: np.ndarray) -> None:
    """Weighted by the mask, smoothed with a Gaussian of 5 x 5 pixels."""
    weight = cv2.GaussianBlur(mask.astype(np.float32), (5, 5), 0, borderType=cv2.BORDER_CONSTANT)
    _mix(window, cutout, weight)


def poisson(window: np.ndarray, cutout: np.ndarray, mask: np.ndarray) -> None:
    """The object's gradients with the image's colours around it (Pérez et al., Poisson Image Editing,
    2003)."""
    left, top, width, height = cv2.boundingRect(mask)
    if width < 3 or height < 3:  # nothing inside the border that the equation could solve for
        basic(window, cutout, mask)
        return
    # the solver needs a pixel of image on every side of the mask
    framed = [
        cv2.copyMakeBorder(np.ascontiguousarray(part), 2, 2, 2, 2, border)
        for part, border in (
            (cutout[..., :3], cv2.BORDER_REPLICATE),
            (window, cv2.BORDER_REPLICATE),
            (mask * 255, cv2.BORDER_CONSTANT),
        )
    ]
    center = (2 + left + width // 2, 2 + top + height // 2)
    cloned = cv2.seamlessClone(*framed, center, cv2.NORMAL_CLONE)
    np.copyto(window, cloned[2:-2, 2:-2], where=mask[..., None].astype(bool))


def _mix(window: np.ndarray, cutout: np.ndarray, weight: np.ndarray) -> None:
    weight = weight[..., None]
    np.copyto(
        window, np.rint(window + weight * (cutout[..., :3].astype(np.float32) - window)).astype(np.uint8)
    )


BLENDS: dict[str, Blend] = {
    "basic": basic,
    "alpha": alpha,
    "gaussian": gaussian,
    "poisson": poisson,
    "possion": poisson,  # the spelling of X-Paste's configuration files
}
