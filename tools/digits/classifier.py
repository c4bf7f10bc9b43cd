"""A classifier of generated digits that has seen only real ones: a support vector machine on 8 × 8 pixels.

The pipeline does not use it: what it says of pictures is independent of the models that drew, cut out and filtered.
"""

import cv2
import numpy as np
import numpy.typing as npt
from sklearn.svm import SVC

from tools.digits import samples

_FEWEST = 20  # pixels of a digit


class DigitClassifier:
    """Tells digit and ink of a picture of one digit on a plain background; trained on the real training digits."""

    def __init__(self, drawings_per_sample: int = 6) -> None:
        rng = np.random.default_rng(0)
        part = samples.split()["train"]
        drawings, labels = [], []
        for pixels, label in zip(part.pixels, part.labels, strict=True):
            for _ in range(drawings_per_sample):
                drawings.append(_shrink(samples.draw(pixels, 48, rng)))
                labels.append(label)
        self._classifier = SVC(C=10.0, gamma="scale").fit(np.stack(drawings), labels)

    def __call__(self, picture: npt.NDArray[np.uint8]) -> tuple[int, int]:
        """Digit (0–9) and ink (0–2) in a picture (H, W, 3); digit -1 where there is nothing."""
        coverage = coverage_of(picture)
        if (coverage > 0.5).sum() < _FEWEST:
            return -1, -1
        colour = np.median(picture[coverage > 0.8], axis=0)
        ink = int(np.argmin([np.abs(colour - np.array(base)).sum() for base in samples.INKS.values()]))
        return int(self._classifier.predict(_shrink(coverage)[None])[0]), ink


def coverage_of(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """How much of each pixel is not the plain background that the border shows: (H, W) in [0, 1]."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    difference = np.abs(picture.astype(np.float32) - np.median(border, axis=0)).sum(-1)
    return np.clip(difference / max(np.quantile(difference, 0.98), 60.0), 0, 1).astype(np.float32)


def _shrink(coverage: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    solid = coverage > 0.5
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    tight = coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = tight.shape
    side = max(height, width)
    square = np.zeros((side, side), dtype=np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = tight
    return cv2.resize(square, (8, 8), interpolation=cv2.INTER_AREA).ravel()
