"""Classification over many classes of which each image names only a few."""

import torch
import torch.nn.functional as F
from torch import Tensor


class FederatedClassSampler:
    """Draws the classes that a step's classification loss is about (Zhou et al., 2021, section 5.2).

    A data set with a thousand classes cannot say for every image which of them are absent. So the loss covers
    those that are present and, at random, others as negatives, frequent ones more often.

    Args:
        num_classes: classes (background counts as one when it is present) that a step covers.
        generator: of the random numbers; torch's own where it is None.
    """

    def __init__(self, num_classes: int, generator: torch.Generator | None = None) -> None:
        self.num_classes = num_classes
        self.generator = generator

    def __call__(self, gt_classes: Tensor, weights: Tensor) -> Tensor:
        """Indices, int64 (K,), of the classes that count.

        ``gt_classes``: int64 (R,) in 0..C, C the background. ``weights``: float (C,), relative chance of each
        class.
        """
        background = len(weights)
        chance = torch.cat([weights.float(), weights.new_zeros(1)])
        present = torch.unique(gt_classes)
        chance[present] = 0
        wanted = min(self.num_classes - len(present), int(chance.count_nonzero()))
        if wanted > 0:
            drawn = torch.multinomial(chance, wanted, generator=self.generator)
            present = torch.cat([present, drawn])
        return present[present != background]


def sigmoid_classification_loss(logits: Tensor, gt_classes: Tensor, class_index: Tensor) -> Tensor:
    """Binary cross entropy, summed over the classes ``class_index`` (K,), averaged over the boxes.

    ``logits``: (R, C + 1), the last column (background) has no part. ``gt_classes``: int64 (R,) in 0..C.
    """
    targets = (gt_classes[:, None] == class_index).float()
    total = F.binary_cross_entropy_with_logits(logits[:, class_index].float(), targets, reduction="sum")
    return total / max(len(gt_classes), 1)
