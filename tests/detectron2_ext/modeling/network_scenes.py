"""A network small enough for a test, and images with objects on them."""

from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from detectron2_ext.structures import BitMasks, Instances
from exchange.config import load_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
NUM_CLASSES = 5
_SMALLEST = {
    "MODEL.TIMM.BASE_NAME": "test_resnet",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.CENTERNET.NUM_BOX_CONVS": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 24,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CAT": 4,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.ROI_HEADS.NUM_CLASSES": NUM_CLASSES,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
}


def small_config(**overrides: object) -> CfgNode:
    """The digits network, narrower; ``overrides`` with ``__`` for the dots below MODEL."""
    settings = _SMALLEST | {"MODEL." + key.replace("__", "."): value for key, value in overrides.items()}
    pairs = [str(part) for item in settings.items() for part in item]
    return load_config(str(CONFIGS / "digits" / "Base-digits.yaml"), pairs)


def objects(boxes: list[list[float]], classes: list[int], size: tuple[int, int]) -> Instances:
    """Objects that fill their boxes."""
    rows, columns = torch.arange(size[0])[:, None] + 0.5, torch.arange(size[1])[None] + 0.5
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask |= (columns > x1) & (columns < x2) & (rows > y1) & (rows < y2)
    return Instances(
        size,
        gt_boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        gt_classes=torch.tensor(classes, dtype=torch.int64),
        gt_masks=BitMasks.from_full(masks),
    )


def scene(seed: int, size: tuple[int, int] = (64, 96), num_objects: int = 3) -> dict:
    """A noise image with rectangles, in Detectron2's format."""
    random = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, *size), generator=random, dtype=torch.uint8)
    extent = torch.tensor([size[1], size[0]])
    corner = torch.rand(num_objects, 2, generator=random) * (extent - 24)
    boxes = torch.cat([corner, corner + 12 + torch.rand(num_objects, 2, generator=random) * 12], dim=1)
    classes = torch.randint(0, NUM_CLASSES, (num_objects,), generator=random).tolist()
    instances = objects(boxes.tolist(), classes, size)
    return {"image": image, "height": size[0], "width": size[1], "instances": instances}


def overlap(a, b):
    """Intersection over union of two boxes, XYXY, in plain numbers; 0 for boxes without area."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union else 0.0
