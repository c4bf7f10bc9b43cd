"""A training set with images: discs, as objects to compare cut-outs with."""

from pathlib import Path

import numpy as np
from PIL import Image

from exchange import files
from exchange.annotations import AnnotationFile, read_annotations
from tests.diSegmenter.conftest import CATEGORIES

# Orientations in EXIF by which height and width change places, and what the camera did to the upright image.
_LYING = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def _disc(number: int, size: tuple[int, int]) -> tuple[np.ndarray, list[int]]:
    """A disc in noise: where it is, bool (H, W), and its box."""
    rng = np.random.default_rng(number)
    radius = 4 + number % 16
    y, x = (int(rng.integers(radius, extent - radius)) for extent in size)
    rows, columns = np.mgrid[: size[0], : size[1]]
    inside = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    return inside, [x - radius, y - radius, 2 * radius + 1, 2 * radius + 1]


def write_training_set(folder: Path, classes: list[int]) -> AnnotationFile:
    """One image for each object, of category ids ``classes``; every third has an outline as run lengths, as a polygon
    around its box, or none, and every second image lies on its side in its file.
    """
    images, annotations = [], []
    for number, category_id in enumerate(classes):
        size = (40, 56)
        inside, box = _disc(number, size)
        x, y, w, h = box
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        pixels[inside] = (200, 30, 30) if category_id == 3 else (30, 30, 200)
        exif, picture = Image.Exif(), Image.fromarray(pixels)
        if number % 2:
            exif[0x0112] = orientation = 5 + number // 2 % 4
            picture = picture.transpose(_LYING[orientation])
        picture.save(folder / f"{number}.png", exif=exif)
        images.append({"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]})
        runs = np.flatnonzero(np.diff(np.pad(inside.T.ravel().astype(int), 1))).tolist()
        counts = np.diff([0, *runs, inside.size]).tolist()
        outlines = [
            {"size": list(size), "counts": counts},
            [[x, y, x + w, y, x + w, y + h, x, y + h]],
            [[x, y, x, y]],
        ]
        record = {
            "id": number + 1,
            "image_id": number,
            "category_id": category_id,
            "bbox": box,
            "area": int(inside.sum()),
        }
        annotations.append(record | {"segmentation": outlines[number % 3], "iscrowd": 0})
    path = str(folder / "train.json")
    files.write_json(path, {"images": images, "annotations": annotations, "categories": CATEGORIES})
    return read_annotations(path)


def framed(
    pixels: np.ndarray, inside: np.ndarray, box: list[int], padding: int, surroundings: str
) -> Image.Image:
    """What is to be looked at of an object, pixel by pixel from the definition."""
    x, y, w, h = box
    height, width = inside.shape
    rows = range(max(y - padding, 0), min(y + h + padding, height))
    columns = range(max(x - padding, 0), min(x + w + padding, width))
    window = pixels[np.ix_(rows, columns)].astype(np.float64)
    around = np.full_like(window, 255)
    if surroundings == "blur":
        spread = np.pad(window, ((5, 4), (5, 4), (0, 0)), mode="reflect")
        around = np.rint(np.lib.stride_tricks.sliding_window_view(spread, (10, 10), (0, 1)).mean((-2, -1)))
    return Image.fromarray(
        np.where(inside[np.ix_(rows, columns)][..., None], window, around).astype(np.uint8)
    )
