"""Batches for a gradient selection, and its quantities computed from their definitions in float64."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from detectron2_ext.structures import Instances
from tests.detectron2_ext.modeling.network_scenes import overlap, scene, small_config

SELECTING = {
    "INPUT.ACTIVE_SELECT": True,
    "INPUT.USE_COPY_METHOD": "syn_copy",
    "MODEL.ACTIVE_MODE": "paste_only",
    "MODEL.ACTIVE_GRAD_COMPARE": True,
    "MODEL.ACTIVE_ONLY_GT_TEST": True,
    "MODEL.ACTIVE_FORWARD_ONCE": True,
    "MODEL.ACTIVE_ONCE_MODE": "only_paste_-0.05",
    "MODEL.ACTIVE_GRAD_SAVE": True,
    "MODEL.ACTIVE_GRAD_UPDATE": "MOMENTUM0.1",
}


def selecting_config(exact: bool = True, **overrides: object) -> CfgNode:
    """The small network with a selection; ``exact``: it draws nothing at random, since every box and class counts."""
    network = {"TIMM__NORM": "FrozenBN", "ROI_BOX_HEAD__USE_FED_LOSS": False} if exact else {}
    if exact:
        network |= {"ROI_HEADS__BATCH_SIZE_PER_IMAGE": 64, "ROI_HEADS__POSITIVE_FRACTION": 1.0}
        network |= {"CENTERNET__NMS_TH_TRAIN": 1.0, "CENTERNET__POST_NMS_TOPK_TRAIN": 20}
    cfg = small_config(**network)
    cfg.defrost()
    for name, value in (SELECTING | {key.replace("__", "."): v for key, v in overrides.items()}).items():
        *groups, last = name.split(".")
        node = cfg
        for group in groups:
            node = node[group]
        assert last in node
        node[last] = value
    return cfg


def triple(seed: int, pasted: int = 1, with_test: bool = True) -> dict[str, Any]:
    """A scene whose last ``pasted`` objects are pasted, the scene without them, and one with an object of theirs."""
    record = scene(seed)
    objects = record["instances"]
    source = torch.arange(len(objects)) >= len(objects) - pasted
    record["instances"] = Instances(
        objects.image_size, **dict(objects.fields()), instance_source=source.to(torch.int64)
    )
    before = scene(seed + 1000)["image"]
    original = record | {"instances": record["instances"][~source], "image": before}
    test = scene(seed + 2000, num_objects=2)
    classes = objects.gt_classes.tolist()
    named = [(f"00_{c + 1:04}_{seed:04}.png", c + 1) for c in classes[len(classes) - pasted :]]
    return record | {
        "file_name": f"{seed}.png",
        "original": original | {"file_name": f"{seed}.png"},
        "test": test if with_test else None,
        "pasted_instances": named,
    }


def batch_of(iteration: int, size: int = 2) -> list[dict[str, Any]]:
    """The batch of an iteration."""
    return [triple(size * iteration + i) for i in range(size)]


class Exact:
    """A network as it is now, in float64, and the losses of a selection as its definition says them."""

    def __init__(self, network: nn.Module) -> None:
        self.network = deepcopy(network).double()
        self.network.zero_grad(set_to_none=True)
        self._float32 = deepcopy(network)

    def gradient_of_tests(self, tests: list[dict[str, Any]]) -> Tensor:
        """Of the classification losses of all stages, from the objects' own boxes on: (P,)."""
        features = self._features(tests, training=False)
        boxes = [(i, box) for i, t in enumerate(tests) for box in t["instances"].gt_boxes.double()]
        losses = [bce.sum() / len(bce) for bce, _ in self._stages(features, tests, boxes)]
        return self._gradient(sum(losses))

    def gradient_of_pasted(self, batch: list[dict[str, Any]]) -> Tensor:
        """Of what the boxes that show pasted objects add to the classification losses: (P,)."""
        self._float32.train()
        inputs, _ = self._float32.preprocessor([r["image"] for r in batch])
        pyramid = self._float32.backbone(inputs)
        levels = [pyramid[name] for name in self._float32.proposal_features]
        with torch.no_grad():
            proposals, _ = self._float32.proposal_generator(levels)  # the same that are drawn from
        boxes = [
            (i, box)
            for i, (record, of_image) in enumerate(zip(batch, proposals, strict=True))
            for box in torch.cat([of_image.boxes, record["instances"].gt_boxes]).double()
        ]
        features = self._features(batch, training=True)
        losses = []
        for bce, shown in self._stages(features, batch, boxes):
            pasted = [n is not None and bool(batch[i]["instances"].instance_source[n]) for i, n in shown]
            losses.append(bce[torch.tensor(pasted)].sum() / len(bce))
        return self._gradient(sum(losses))

    def _features(self, records: list[dict[str, Any]], training: bool) -> list[Tensor]:
        network = self.network
        network.backbone.train(training)
        images, _ = network.preprocessor([record["image"] for record in records])
        pyramid = network.backbone(images.double())
        return [pyramid[name] for name in network.roi_features]

    def _stages(self, features, records, boxes):
        """Of each stage the cross entropy of each box, summed over the classes, and which object it shows."""
        heads = self.network.roi_heads
        for stage, threshold in enumerate(heads.iou_thresholds):
            shown = []
            for image, box in boxes:
                overlaps = [
                    overlap(box.tolist(), o) for o in records[image]["instances"].gt_boxes.double().tolist()
                ]
                best = max(range(len(overlaps)), key=overlaps.__getitem__)
                shown.append(
                    (
                        image,
                        best
                        if stage == 0 and overlaps[best] > 0.999 or overlaps[best] >= threshold
                        else None,
                    )
                )
            places = torch.stack([box for _, box in boxes]).float()
            index = torch.tensor([image for image, _ in boxes])
            pooled = heads.box_pooler(features, places, index).double()
            # its gradient is divided by the number of stages on its way back
            pooled = pooled / heads.num_stages + pooled.detach() * (1 - 1 / heads.num_stages)
            logits, deltas = heads.box_predictor[stage](heads.box_head[stage](pooled))
            targets = torch.zeros_like(logits[:, :-1])
            for row, (image, n) in enumerate(shown):
                if n is not None:
                    targets[row, records[image]["instances"].gt_classes[n]] = 1
            probability = logits[:, :-1].sigmoid()
            bce = -(targets * probability.log() + (1 - targets) * (1 - probability).log())
            yield bce.sum(1), shown
            moved = heads.box_coders[stage].decode(deltas.detach(), places.double())
            height, width = records[0]["instances"].image_size
            moved = torch.stack([moved[:, 0::2].clamp(0, width), moved[:, 1::2].clamp(0, height)], dim=2)
            moved = moved.flatten(1)
            boxes = [
                (image, box)
                for (image, _), box in zip(boxes, moved, strict=True)
                if box[2] > box[0] and box[3] > box[1]
            ]

    def _gradient(self, loss: Tensor) -> Tensor:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.cat(
            [
                torch.zeros_like(p).flatten() if g is None else g.flatten()
                for p, g in zip(parameters, gradients, strict=True)
            ]
        )
