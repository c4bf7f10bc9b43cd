"""How different instances are, from their image features: unit vectors (N, D) each, compared by the cosine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_ROWS = 1024  # that are compared with all before them at a time
_Vectors = npt.NDArray[np.floating]


def mean_distance(features: _Vectors) -> float | None:
    """Mean of 1 - cosine over all pairs of two; None where there is no pair.

    The cosines of all ordered pairs, each with itself included, add up to the square of the length of the sum.
    """
    count = len(features)
    if count < 2:
        return None
    total = features.sum(0, dtype=np.float64)
    return float(1 - (total @ total - count) / (count * (count - 1)))


def vendi_score(features: _Vectors) -> float:
    """The effective number of different instances, from 1 (all the same) to N (Vendi score; Friedman & Dieng, 2023).

    exp of the entropy of the eigenvalues of K / N, where K is the kernel of cosines. Where N > D they are taken of the
    D x D matrix of products, which has the same ones but for zeros.
    """
    exact = features.astype(np.float64)
    count, width = exact.shape
    matrix = exact @ exact.T if count <= width else exact.T @ exact
    shares = np.linalg.eigvalsh(matrix / count)
    shares = shares[shares > 0]  # rounding leaves zeros on either side
    return float(np.exp(-(shares * np.log(shares)).sum()))


def near_duplicates(features: _Vectors, threshold: float) -> npt.NDArray[np.bool_]:
    """Which have a cosine of ``threshold`` or more with one before them: (N,)."""
    found = np.zeros(len(features), bool)
    for start in range(0, len(features), _ROWS):
        block = features[start : start + _ROWS]
        cosines = block @ features[: start + len(block)].T
        before = np.arange(cosines.shape[1]) < start + np.arange(len(block))[:, None]
        found[start : start + len(block)] = ((cosines >= threshold) & before).any(1)
    return found
