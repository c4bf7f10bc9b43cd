#!/usr/bin/env python3
"""A data set of LVIS's size in LVIS's format, to see what stages need at that size.

usage: tools/benchmarks/lvis_size.py OUT [--scale 0.1]

Writes OUT/lvis/lvis_v1_{train,val}.json and OUT/coco/*2017/, so that DETECTRON2_DATASETS=OUT makes it take LVIS's
place: 100,170 and 19,809 images, 1,270,141 and 244,707 objects of 1,203 classes, as many images a class as in LVIS
(337 classes with ten or fewer, 461 with up to a hundred), polygons of about 46 points. A few JPEG files stand behind
all names, and a few thousand outlines behind all objects. With --scale, that share of images and objects.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from exchange.annotations import frequency
from exchange.errors import run_cli

CLASSES = 1203
_IMAGES = {"train": 100_170, "val": 19_809}
_OBJECTS = {"train": 1_270_141, "val": 244_707}
# LVIS v1's training images of a class, by the class's rank among all: between these, log-linear.
_RANKS = (0, 20, 50, 100, 200, 300, 404, 405, 500, 600, 700, 800, 865, 866, 900, 1000, 1100, 1202)
_COUNTS = (1977, 1926, 1890, 1609, 595, 221, 101, 100, 61, 38, 25, 14, 11, 10, 9, 5, 2, 1)
_SIZES = ((480, 640), (640, 480), (427, 640), (640, 427), (500, 375))  # height, width
_OUTLINES = 2000  # of each size, at most; a tenth of the objects
_NEGATIVE = 10  # classes known to be absent from an image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", metavar="OUT", help="folder for annotation files and images")
    parser.add_argument("--scale", type=float, default=1.0, help="share of LVIS's images and objects")
    args = parser.parse_args()
    write_lvis(Path(args.out), args.scale)


def write_lvis(out: Path, scale: float) -> None:
    """Writes both splits; the same files for the same ``scale``."""
    for split in ("train", "val"):
        write_split(out, split, scale)


def write_split(out: Path, split: str, scale: float) -> Path:
    """Writes the annotation file of a split, which is returned, and its images."""
    rng = np.random.default_rng(len(split))
    images = max(int(scale * _IMAGES[split]), 1)
    path = out / "lvis" / f"lvis_v1_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = _pairs(rng, images, images / _IMAGES["train"])
    repeats = _repeats(rng, len(pairs), int(scale * _OBJECTS[split]))
    size_of = rng.integers(len(_SIZES), size=images)
    with path.open("w") as file:
        file.write('{"images": [')
        file.write(", ".join(_images(rng, split, size_of, pairs)))
        file.write('], "annotations": [')
        for number, text in enumerate(_annotations(rng, np.repeat(pairs, repeats, axis=0), size_of)):
            file.write((", " if number else "") + text)
        categories = json.dumps(_categories(np.bincount(pairs[:, 1], minlength=CLASSES), pairs, repeats))
        file.write(f'], "categories": {categories}, "info": {{}}, "licenses": []}}')
    _write_pictures(rng, out / "coco" / f"{split}2017", size_of)
    return path


def image_counts() -> np.ndarray:
    """Training images of each class in LVIS's order of magnitude, int64 (1203,), the largest first."""
    logs = np.interp(np.arange(CLASSES), _RANKS, np.log(_COUNTS))
    return np.maximum(np.rint(np.exp(logs)), 1).astype(np.int64)


def _pairs(rng: np.random.Generator, images: int, share: float) -> np.ndarray:
    """Which class is in which image, int64 (pairs, 2) of image and class index, in order of the images."""
    counts = np.clip(np.rint(share * image_counts()), 1, images).astype(np.int64)
    classes = rng.permutation(CLASSES)  # ids say nothing about sizes
    columns = [
        np.column_stack([rng.choice(images, count, replace=False), np.full(count, class_index)])
        for class_index, count in zip(classes, counts, strict=True)
    ]
    pairs = np.concatenate(columns)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _repeats(rng: np.random.Generator, pairs: int, objects: int) -> np.ndarray:
    """Objects of each pair, one or more with a long tail, ``objects`` in all (or one each)."""
    more = rng.lognormal(0, 1.5, pairs)
    return 1 + rng.multinomial(max(objects - pairs, 0), more / more.sum())


def _images(rng: np.random.Generator, split: str, size_of: np.ndarray, pairs: np.ndarray) -> Iterator[str]:
    bounds = np.searchsorted(pairs[:, 0], np.arange(len(size_of) + 1))
    negative = rng.integers(1, CLASSES + 1, (len(size_of), _NEGATIVE))
    for index, size in enumerate(size_of.tolist()):
        present = pairs[bounds[index] : bounds[index + 1], 1] + 1
        name = f"{split}2017/{index + 1:012}.jpg"
        yield json.dumps(
            {
                "date_captured": "2013-11-14 17:02:52",
                "neg_category_ids": np.setdiff1d(negative[index], present).tolist(),
                "id": index + 1,
                "license": 4,
                "height": _SIZES[size][0],
                "width": _SIZES[size][1],
                "flickr_url": f"http://farm7.staticflickr.com/6116/{index:010}_8adf0ac4c5_z.jpg",
                "coco_url": f"http://images.cocodataset.org/{name}",
                "not_exhaustive_category_ids": present[:1].tolist() if index % 4 == 0 else [],
            }
        )


def _annotations(rng: np.random.Generator, pairs: np.ndarray, size_of: np.ndarray) -> Iterator[str]:
    number = min(_OUTLINES, len(pairs) // 10 + 1)
    outlines = [[_outline(rng, *size) for _ in range(number)] for size in _SIZES]
    chosen = rng.integers(number, size=len(pairs))
    sizes = size_of[pairs[:, 0]]
    rows = zip(pairs.tolist(), chosen.tolist(), sizes.tolist(), strict=True)
    for number, ((image, class_index), outline, size) in enumerate(rows, start=1):
        known = f'{{"id": {number}, "image_id": {image + 1}, "category_id": {class_index + 1}, '
        yield known + outlines[size][outline]


def _outline(rng: np.random.Generator, height: int, width: int) -> str:
    """The rest of an annotation's text: area, polygons (one in ten has two) and box; two decimals, as in LVIS."""
    extent = np.exp(rng.normal(np.log(0.08), 1.0, 2)).clip(0.01, 0.95) * (width, height)
    corner = rng.uniform(0, 1, 2) * ((width, height) - extent)
    polygons = []
    for part in range(1 + (rng.random() < 0.1)):
        points = int(np.clip(rng.lognormal(np.log(32), 0.8), 3, 400))
        angles = np.sort(rng.uniform(0, 2 * np.pi, points))
        radius = rng.uniform(0.7, 1.0, points) / (1 + part)
        unit = np.column_stack([np.cos(angles), np.sin(angles)]) * radius[:, None]
        polygons.append((corner + extent * (1 + unit) / 2).round(2))
    every = np.concatenate(polygons)
    low, high = every.min(axis=0), every.max(axis=0)
    area = round(float(np.prod(high - low)) * 0.7, 2)
    box = [round(v, 2) for v in (*low.tolist(), *(high - low).tolist())]
    flat = [polygon.ravel().tolist() for polygon in polygons]
    return f'"area": {area}, "segmentation": {json.dumps(flat)}, "bbox": {json.dumps(box)}}}'


def _categories(images: np.ndarray, pairs: np.ndarray, repeats: np.ndarray) -> list[dict[str, Any]]:
    objects = np.bincount(pairs[:, 1], weights=repeats, minlength=CLASSES).astype(int)
    return [
        {
            "id": number,
            "name": f"class_{number:04}",
            "synset": f"class.n.{number:02}",
            "synonyms": [f"class_{number:04}"],
            "def": f"a thing of kind {number} that somebody may have in a picture",
            "image_count": int(images[number - 1]),
            "instance_count": int(objects[number - 1]),
            "frequency": frequency(int(images[number - 1])),
        }
        for number in range(1, CLASSES + 1)
    ]


def _write_pictures(rng: np.random.Generator, folder: Path, size_of: np.ndarray) -> None:
    """A few JPEG files under the names of all images (hard links, of which a file system allows thousands)."""
    folder.mkdir(parents=True, exist_ok=True)
    first: dict[tuple[int, int], Path] = {}
    for index, size in enumerate(size_of.tolist()):
        path = folder / f"{index + 1:012}.jpg"
        path.unlink(missing_ok=True)
        kind = size, index // 20_000
        if kind in first:
            os.link(first[kind], path)
            continue
        height, width = _SIZES[size]
        coarse = Image.fromarray(rng.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=92)
        first[kind] = path


if __name__ == "__main__":
    run_cli(main)
