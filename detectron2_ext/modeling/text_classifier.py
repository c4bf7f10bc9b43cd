"""A classifier whose rows are text features (Detic, Zhou et al., 2022, section 3): fixed, one for each category."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detectron2_ext.modeling.layers import fill_fan_in
from exchange.config import from_repository
from exchange.errors import UserError


class TextClassifier(nn.Module):
    """Logits ``t · cos(A x + b, row_c)``, and a background whose row is 0; plus one learned bias, if there is one.

    Args:
        in_features: of the box head.
        rows: text features, float (C, D), of any length (buffer ``zs_weight``, (D, C + 1), as in Detic's checkpoints).
        temperature: ``t``.
        bias: what it begins as; 0 and above: there is none.
    """

    def __init__(self, in_features: int, rows: Tensor, temperature: float, bias: float) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, rows.shape[1])
        self.register_buffer(
            "zs_weight", F.pad(F.normalize(rows.float(), dim=1), (0, 0, 0, 1)).T.contiguous()
        )
        self.cls_bias = nn.Parameter(torch.full((1,), bias)) if bias < 0 else None
        self._temperature = temperature

    def forward(self, hidden: Tensor) -> Tensor:
        """(R, in_features) to (R, C + 1)."""
        logits = self._temperature * F.normalize(self.linear(hidden), dim=1) @ self.zs_weight
        return logits if self.cls_bias is None else logits + self.cls_bias


class TextBoxPredictor(nn.Module):
    """Class logits by a :class:`TextClassifier` and class-agnostic box deltas by two layers, as Detic has them.

    Called like :class:`~detectron2_ext.modeling.roi_heads.BoxPredictor`; ``class_weights`` as there.
    """

    def __init__(self, in_features: int, classifier: TextClassifier, class_weights: Tensor | None) -> None:
        super().__init__()
        self.cls_score = classifier
        self.bbox_pred = nn.Sequential(
            nn.Linear(in_features, in_features), nn.ReLU(inplace=True), nn.Linear(in_features, 4)
        )
        self.register_buffer("freq_weight", None if class_weights is None else class_weights.clone())
        fill_fan_in(self.bbox_pred[0])
        nn.init.normal_(self.bbox_pred[2].weight, std=0.001)
        nn.init.zeros_(self.bbox_pred[2].bias)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(R, in_features) to logits (R, C + 1) and deltas (R, 4)."""
        return self.cls_score(hidden), self.bbox_pred(hidden)


def read_text_features(path: str, num_classes: int) -> Tensor:
    """Text features, float32 (C, D), of an ``.npy`` file; raises UserError if it has none for ``num_classes``."""
    what = f"MODEL.ROI_BOX_HEAD.ZEROSHOT_WEIGHT_PATH {path}"
    try:
        rows = np.load(from_repository(path), allow_pickle=False, mmap_mode="r")
    except OSError as error:
        raise UserError(
            f"{what} cannot be read ({error.strerror}): name the .npy file of the text features"
        ) from error
    except (EOFError, ValueError) as error:
        raise UserError(f"{what} is no .npy file of numbers: name the one of the text features") from error
    numbers = isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.dtype.kind == "f"
    if (
        not numbers
        or len(rows) != num_classes
        or not np.isfinite(rows).all()
        or not np.any(rows, axis=1).all()
    ):
        raise UserError(
            f"{what} must hold a row of numbers, not all 0, for each of the {num_classes} classes of "
            "MODEL.ROI_HEADS.NUM_CLASSES: name another file"
        )
    return torch.from_numpy(rows.astype(np.float32))
