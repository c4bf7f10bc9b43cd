"""The images of LVIS-Digits: digits over crops of two photographs, few or many of a category by Zipf's law."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from sklearn.datasets import load_sample_images

from exchange.annotations import frequency
from tools.digits.samples import INKS, NUM_CATEGORIES, WORDS, Samples, blend, category_name, draw, ink_colour

SIZE = 160
MAX_OBJECTS = 5
MIN_HEIGHT, MAX_HEIGHT = 24, 80
ZIPF_EXPONENT = 1.7
TRAIN_INSTANCES = 1800
VAL_INSTANCES_PER_CATEGORY = 22
_NUM_VERIFIED_ABSENT = 5
_MIN_VISIBLE_PIXELS = 30


@dataclass(frozen=True)
class Scene:
    """``image`` (160, 160, 3) uint8 RGB; visible ``masks`` (N, 160, 160) bool; ``categories`` (N,) ids."""

    image: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.bool_]
    categories: npt.NDArray[np.int64]


def long_tailed_counts(rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Training instances per category, (30,): Zipf over a random ranking, at least two each.

    The inks of a digit follow each other in the ranking, so that a rare category's digit is rare in every ink.
    With a ranking of the categories alone the segmenter learns a digit in one ink and knows it in all.
    """
    weights = np.arange(1, NUM_CATEGORIES + 1) ** -ZIPF_EXPONENT
    ranked = np.maximum(np.rint(TRAIN_INSTANCES * weights / weights.sum()), 2).astype(np.int64)
    counts = np.empty((len(WORDS), len(INKS)), dtype=np.int64)
    for digit, share in zip(rng.permutation(len(WORDS)), ranked.reshape(counts.shape), strict=True):
        counts[digit] = rng.permutation(share)
    return counts.ravel()


def photographs(part: str) -> list[npt.NDArray[np.uint8]]:
    """The two photographs; the left 60 % for training, the rest for validation."""
    cut = {"train": slice(0, 384), "val": slice(384, 640)}[part]
    return [image[:, cut] for image in load_sample_images().images]


def deal(counts: npt.NDArray[np.int64], rng: np.random.Generator) -> list[list[int]]:
    """Shuffles instances of all categories and deals them out, one to five an image."""
    deck = rng.permutation(np.repeat(np.arange(1, len(counts) + 1), counts)).tolist()
    hands = []
    while deck:
        size = int(rng.integers(1, MAX_OBJECTS + 1))
        hands.append(deck[:size])
        deck = deck[size:]
    return hands


def compose(
    categories: list[int],
    samples: Samples,
    backgrounds: list[npt.NDArray[np.uint8]],
    rng: np.random.Generator,
) -> Scene:
    """One image with an object of each of ``categories``, later ones in front; all remain visible."""
    photograph = backgrounds[rng.integers(len(backgrounds))]
    side = int(rng.integers(SIZE // 2, min(photograph.shape[:2]) + 1))
    top, left = (int(rng.integers(extent - side + 1)) for extent in photograph.shape[:2])
    image = cv2.resize(
        photograph[top : top + side, left : left + side], (SIZE, SIZE), interpolation=cv2.INTER_AREA
    )
    image = np.clip(image * rng.uniform(0.7, 1.2), 0, 255).astype(np.uint8)
    masks: list[npt.NDArray[np.bool_]] = []
    for category in categories:
        digit, ink = divmod(category - 1, len(INKS))
        sample = samples.pixels[rng.choice(np.flatnonzero(samples.labels == digit))]
        for _ in range(100):
            height = round(np.exp(rng.uniform(np.log(MIN_HEIGHT), np.log(MAX_HEIGHT))))
            coverage = draw(sample, height, rng)
            y, x = int(rng.integers(SIZE - height + 1)), int(rng.integers(SIZE - coverage.shape[1] + 1))
            mask = np.zeros((SIZE, SIZE), dtype=bool)
            mask[y : y + height, x : x + coverage.shape[1]] = coverage > 0.5
            if all((old & ~mask).sum() >= max(_MIN_VISIBLE_PIXELS, 0.5 * old.sum()) for old in masks):
                break
        else:
            raise RuntimeError(f"no room for {len(categories)} objects in one image")
        blend(image, coverage, ink_colour(ink, rng), x, y)
        masks = [old & ~mask for old in masks] + [mask]
    return Scene(image, np.stack(masks), np.array(categories, dtype=np.int64))


def annotation_file(
    scenes: list[Scene], names: list[str], part: str, counts_of: list[Scene]
) -> dict[str, Any]:
    """The LVIS v1 record of ``scenes``; frequencies are those of the training scenes ``counts_of``."""
    everything = set(range(1, NUM_CATEGORIES + 1))
    images, annotations = [], []
    for image_id, (scene, name) in enumerate(zip(scenes, names, strict=True), start=1):
        absent = sorted(everything - set(scene.categories.tolist()))
        verified = absent if part == "val" else absent[image_id % 5 :: 5][:_NUM_VERIFIED_ABSENT]
        images.append(
            {"id": image_id, "file_name": name, "height": SIZE, "width": SIZE}
            | {"neg_category_ids": verified, "not_exhaustive_category_ids": []}
        )
        for category, mask in zip(scene.categories.tolist(), scene.masks, strict=True):
            run_length = coco_mask.encode(np.asfortranarray(mask))
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": category, "iscrowd": 0}
                | {"area": float(mask.sum()), "bbox": coco_mask.toBbox(run_length).tolist()}
                | {"segmentation": {"size": [SIZE, SIZE], "counts": run_length["counts"].decode()}}
            )
    return {"images": images, "annotations": annotations, "categories": _categories(counts_of)}


def _categories(scenes: list[Scene]) -> list[dict[str, Any]]:
    records = []
    for category in range(1, NUM_CATEGORIES + 1):
        image_count = sum(category in scene.categories for scene in scenes)
        instance_count = sum(int((scene.categories == category).sum()) for scene in scenes)
        name = category_name(category)
        records.append(
            {"id": category, "name": name, "synonyms": [name], "synset": f"{name.replace(' ', '_')}.n.01"}
            | {"def": f"the digit {name.split()[1]}, handwritten in {name.split()[0]} ink"}
            | {
                "frequency": frequency(image_count),
                "image_count": image_count,
                "instance_count": instance_count,
            }
        )
    return records
