"""From an annotated image to a random view of it."""

from __future__ import annotations

import numpy as np

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.decode import read_image
from detectron2_ext.data.geometry import ResizeCropFlip
from detectron2_ext.data.rasterize import rasterize
from detectron2_ext.data.scene import Scene, SceneObject


class SceneReader:
    """Reads images of ``dataset`` in the views that ``augmentation`` draws."""

    def __init__(self, dataset: DetectionDataset, augmentation: ResizeCropFlip) -> None:
        self.dataset = dataset
        self._augmentation = augmentation

    def __call__(self, index: int, rng: np.random.Generator) -> Scene:
        """A view of one image with its objects, without crowds and what the view does not show.

        Raises BadImage where the image cannot be read.
        """
        record = self.dataset.record(index)
        view = self._augmentation.draw((record.height, record.width), rng)
        image = read_image(record.file_name, (record.height, record.width), view.scale)
        boxes = view.boxes(record.boxes)
        visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & ~record.crowd
        objects = []
        for offset in np.flatnonzero(visible).tolist():
            mask = rasterize(self.dataset.segmentation(record.first_object + offset), view)
            if mask is not None:
                box = tuple(boxes[offset].tolist())
                objects.append(SceneObject(box, mask, int(record.classes[offset])))
        return Scene(view.image(image), objects)
