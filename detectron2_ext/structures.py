"""What the mapper hands to the network and what the network hands back: annotated objects of one image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from detectron2_ext.roi_pooler import roi_align_weights


class BitMasks:
    """Binary masks of N objects, each stored as the part of the image that contains it.

    ``crops``: uint8 (N, h, w), values 0 and 1; object ``n`` fills the top left corner, the rest is 0.
    ``boxes``: int64 (N, 4), XYXY pixel edges of each crop in the image (``x2 - x1 <= w``, ``y2 - y1 <= h``).
    ``image_size``: (height, width) of the image in pixels.
    """

    def __init__(self, crops: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> None:
        if crops.ndim != 3 or boxes.shape != (len(crops), 4):
            raise ValueError(f"{tuple(crops.shape)} crops do not fit {tuple(boxes.shape)} boxes")
        self.crops = crops
        self.boxes = boxes
        self.image_size = (int(image_size[0]), int(image_size[1]))

    @classmethod
    def from_crops(
        cls, crops: Sequence[Tensor], boxes: Sequence[Sequence[int]] | Tensor, image_size: tuple[int, int]
    ) -> BitMasks:
        """Pack N masks (h_n, w_n) of 0 and 1; ``boxes`` are their places in the image."""
        height = max((crop.shape[0] for crop in crops), default=0)
        width = max((crop.shape[1] for crop in crops), default=0)
        boxes = torch.as_tensor(boxes, dtype=torch.int64).reshape(-1, 4)
        packed = torch.zeros(len(crops), height, width, dtype=torch.uint8, device=boxes.device)
        for target, crop in zip(packed, crops, strict=True):
            target[: crop.shape[0], : crop.shape[1]] = crop
        return cls(packed, boxes, image_size)

    @classmethod
    def from_full(cls, masks: Tensor) -> BitMasks:
        """Cut masks (N, H, W) of the whole image, bool or number, to their tight boxes (empty: 0, 0, 0, 0)."""
        masks = masks != 0
        bounds = []
        for axis in (1, 2):
            occupied = masks.any(dim=3 - axis)  # (N, extent)
            before, behind = ((each.cumsum(1) == 0).sum(1) for each in (occupied, occupied.flip(1)))
            # of an empty mask 0 and 0
            bounds.append((before * occupied.any(dim=1), occupied.shape[1] - behind))
        (top, bottom), (left, right) = bounds
        boxes = torch.stack([left, top, right, bottom], dim=1)
        crops = [mask[y1:y2, x1:x2] for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True)]
        return cls.from_crops(crops, boxes, (masks.shape[1], masks.shape[2]))

    def to_full(self) -> Tensor:
        """Masks of the whole image: bool (N, H, W)."""
        full = torch.zeros(len(self), *self.image_size, dtype=torch.bool, device=self.crops.device)
        for canvas, crop, (x1, y1, x2, y2) in zip(full, self.crops, self.boxes.tolist(), strict=True):
            canvas[y1:y2, x1:x2] = crop[: y2 - y1, : x2 - x1] != 0
        return full

    def crop_and_resize(self, boxes: Tensor, size: int) -> Tensor:
        """Mask targets: the part of each mask inside its box, resampled to ``size`` x ``size``.

        ``boxes``: float (N, 4) XYXY, one per mask. Returns float32 (N, size, size) of 0 and 1.
        Equals RoIAlign (He et al., Mask R-CNN, 2017, section 3; aligned) of the whole image's mask,
        thresholded at 0.5, but needs the crop only.
        """
        crop_height, crop_width = self.crops.shape[1:]
        targets = torch.zeros(len(self), size, size, device=self.crops.device)
        if not len(self) or not crop_height or not crop_width:
            return targets
        boxes = boxes.to(torch.float32)
        image_height, image_width = self.image_size
        top, left = self.boxes[:, 1], self.boxes[:, 0]
        rows = roi_align_weights(boxes[:, 1], boxes[:, 3], size, image_height, top, crop_height)
        columns = roi_align_weights(boxes[:, 0], boxes[:, 2], size, image_width, left, crop_width)
        at_once = max(1, 2**24 // (crop_height * crop_width))
        for start in range(0, len(self), at_once):
            part = slice(start, start + at_once)
            with torch.autocast(self.crops.device.type, enabled=False):
                mean = rows[part] @ self.crops[part].float() @ columns[part].transpose(1, 2)
            targets[part] = (mean >= 0.5).float()
        return targets

    def to(self, device: torch.device | str, non_blocking: bool = False) -> BitMasks:
        return BitMasks(
            self.crops.to(device, non_blocking=non_blocking),
            self.boxes.to(device, non_blocking=non_blocking),
            self.image_size,
        )

    def __getitem__(self, index: Tensor | slice) -> BitMasks:
        """The masks that a bool, an integer tensor or a slice selects."""
        return BitMasks(self.crops[index], self.boxes[index], self.image_size)

    def __len__(self) -> int:
        return len(self.crops)

    def __repr__(self) -> str:
        return f"BitMasks({len(self)} objects, image_size={self.image_size})"


Field = Tensor | BitMasks


class Instances:
    """The objects of one image: named fields, all of one length, read and set as attributes.

    In training: ``gt_boxes`` float (N, 4) XYXY pixels, ``gt_classes`` int64 (N,), ``gt_masks``
    (:class:`BitMasks` or bool (N, H, W)), ``instance_source`` int64 (N,) (0 real, 1 pasted). From the
    network: ``pred_boxes``, ``scores``, ``pred_classes``, ``pred_masks`` bool (N, H, W). ``image_size`` is
    (height, width) in pixels.
    """

    image_size: tuple[int, int]

    def __init__(self, image_size: tuple[int, int], **fields: Field) -> None:
        self.__dict__["image_size"] = (int(image_size[0]), int(image_size[1]))
        self.__dict__["_fields"] = {}
        for name, value in fields.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Field) -> None:
        if self._fields and len(value) != len(self):
            raise ValueError(f"{name} has {len(value)} entries, the other fields have {len(self)}")
        self._fields[name] = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._fields:
            raise AttributeError(f"no field {name}")
        return self._fields[name]

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def fields(self) -> Iterator[tuple[str, Field]]:
        """(name, value) of every field."""
        return iter(self._fields.items())

    def __len__(self) -> int:
        return next((len(value) for value in self._fields.values()), 0)

    def __getitem__(self, index: Tensor | slice) -> Instances:
        """The objects that a bool, an integer tensor or a slice selects."""
        return Instances(self.image_size, **{name: value[index] for name, value in self._fields.items()})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Instances:
        moved = {name: value.to(device, non_blocking=non_blocking) for name, value in self._fields.items()}
        return Instances(self.image_size, **moved)

    def __repr__(self) -> str:
        return f"Instances({len(self)} objects, image_size={self.image_size}, fields={sorted(self._fields)})"
