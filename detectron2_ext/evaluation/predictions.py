"""What the network found, kept as plain columns: a few dozen bytes an object plus its run-length encoding."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from detectron2_ext.evaluation.mask_encoding import encode_masks
from detectron2_ext.structures import Instances


@dataclass
class Predictions:
    """N predicted objects of any number of images.

    ``image_ids`` int64 (N,); ``class_indices`` int64 (N,), from 0; ``scores`` float64 (N,); ``boxes`` float64
    (N, 4), XYWH absolute pixels; ``sizes`` int32 (N, 2), height and width of the image; ``counts`` object
    (N,), the compressed run lengths of the mask in COCO's encoding, as bytes.
    """

    image_ids: npt.NDArray[np.int64]
    class_indices: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    boxes: npt.NDArray[np.float64]
    sizes: npt.NDArray[np.int32]
    counts: npt.NDArray[np.object_]

    @classmethod
    def from_instances(cls, image_id: int, instances: Instances, limit: int) -> Predictions:
        """The ``limit`` best objects of one image, best first, equal scores in the network's order.

        ``instances`` lie on the CPU and have ``pred_boxes`` float32 (N, 4) XYXY within the image, ``scores`` (N,),
        ``pred_classes`` (N,) and ``pred_masks`` float32 (N, S, S), probabilities over the boxes.
        """
        best = np.argsort(-instances.scores.numpy(), kind="stable")[:limit]
        boxes, masks = instances.pred_boxes.numpy()[best], instances.pred_masks.numpy()[best]
        x1, y1, x2, y2 = boxes.astype(np.float64).T
        return cls(
            image_ids=np.full(len(best), image_id, dtype=np.int64),
            class_indices=instances.pred_classes.numpy()[best].astype(np.int64),
            scores=instances.scores.double().numpy()[best],
            boxes=np.stack([x1, y1, x2 - x1, y2 - y1], axis=1),
            sizes=np.tile(np.array(instances.image_size, dtype=np.int32), (len(best), 1)),
            counts=_objects(encode_masks(masks, boxes, *instances.image_size)),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Predictions]) -> Predictions:
        """All objects of several predictions, in their order."""
        if not parts:
            ids = np.zeros(0, np.int64)
            return cls(ids, ids, np.zeros(0), np.zeros((0, 4)), np.zeros((0, 2), np.int32), _objects([]))
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def select(self, index: npt.NDArray[np.bool_] | npt.NDArray[np.int64] | slice) -> Predictions:
        """The objects that a mask, an index array or a slice selects."""
        return Predictions(*(getattr(self, f.name)[index] for f in fields(self)))

    def by_class(self, num_classes: int) -> Iterator[Predictions]:
        """The objects of each class in turn; they must lie in the order of their classes."""
        bounds = np.searchsorted(self.class_indices, np.arange(num_classes + 1)).tolist()
        return (self.select(slice(first, last)) for first, last in pairwise(bounds))

    def masks(self) -> list[dict[str, Any]]:
        """The masks as pycocotools and its kin take them."""
        return [
            {"size": size, "counts": counts}
            for size, counts in zip(self.sizes.tolist(), self.counts, strict=True)
        ]

    def to_bytes(self) -> bytes:
        """As an uncompressed ``.npz`` without pickled objects."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "counts"}
        lengths = np.array([len(counts) for counts in self.counts], dtype=np.int64)
        joined = np.frombuffer(b"".join(self.counts), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **plain, count_lengths=lengths, joined_counts=joined)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Predictions:
        """Reads what :meth:`to_bytes` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            joined = arrays["joined_counts"].tobytes()
            ends = np.cumsum(arrays["count_lengths"])
            starts = ends - arrays["count_lengths"]
            plain = {f.name: arrays[f.name] for f in fields(cls) if f.name != "counts"}
        return cls(
            **plain, counts=_objects(joined[start:end] for start, end in zip(starts, ends, strict=True))
        )

    def to_json(self, category_ids: npt.NDArray[np.int64]) -> list[str]:
        """One JSON object for each predicted object, as the LVIS and COCO result servers take them.

        Scores are float32's shortest text, from which that number is read again; boxes have five decimals of a pixel.
        """
        records = zip(
            self.image_ids.tolist(),
            category_ids[self.class_indices].tolist(),
            self.boxes.round(5).tolist(),
            self.scores.astype(np.float32).astype(str).tolist(),
            self.sizes.tolist(),
            self.counts,
            strict=True,
        )
        return [
            f'{{"image_id":{image_id},"category_id":{category_id},"bbox":[{x},{y},{w},{h}],"score":{score},'
            f'"segmentation":{{"size":[{height},{width}],"counts":{json.dumps(counts.decode("ascii"))}}}}}'
            for image_id, category_id, (x, y, w, h), score, (height, width), counts in records
        ]

    @classmethod
    def from_json(cls, records: Sequence[dict[str, Any]], category_ids: npt.NDArray[np.int64]) -> Predictions:
        """Reads what :meth:`to_json` and Detectron2's evaluators write, parsed."""
        classes = np.array([record["category_id"] for record in records], dtype=np.int64)
        return cls(
            image_ids=np.array([record["image_id"] for record in records], dtype=np.int64),
            class_indices=np.searchsorted(category_ids, classes),
            scores=np.array([record["score"] for record in records], dtype=np.float64),
            boxes=np.array([record["bbox"] for record in records], dtype=np.float64).reshape(-1, 4),
            sizes=np.array([r["segmentation"]["size"] for r in records], dtype=np.int32).reshape(-1, 2),
            counts=_objects(record["segmentation"]["counts"].encode("ascii") for record in records),
        )

    def __len__(self) -> int:
        return len(self.scores)


def _objects(values: Iterable[bytes]) -> npt.NDArray[np.object_]:
    listed = list(values)
    array = np.empty(len(listed), dtype=np.object_)
    array[:] = listed
    return array
