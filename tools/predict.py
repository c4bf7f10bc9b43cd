"""What a network finds in a folder of images: a picture of each, and all objects in COCO's results format.

OUT/pictures has the images with masks, boxes and names; OUT/coco_instances_results.json every object, whatever its
score; OUT/images.json names the images and categories of its ids.
"""

import argparse
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from exchange import files
from exchange.command_line import add_device_argument, make_parser
from exchange.errors import UserError, run_cli
from exchange.images import BadImage, encode_png
from tools.outlines import class_color, draw_objects

if TYPE_CHECKING:
    from detectron2_ext.predictor import Prediction, Predictor

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_SIDES = (400, 1600)  # pixels of the longer side of a picture: enlarged or shrunk to be between these
_log = logging.getLogger("predict")


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "--run runs/quickstart photos --out found --score 0.4")
    parser.add_argument("folder", metavar="FOLDER", help="folder of images, with its sub-folders")
    parser.add_argument("--out", metavar="OUT", required=True, help="folder to write to")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="RUN", help="run folder, whose last checkpoint predicts")
    source.add_argument("--weights", metavar="FILE", help="a checkpoint, or what mrca export wrote")
    parser.add_argument(
        "--score", type=float, default=0.5, metavar="S", help="lowest score of an object to draw"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at once")
    add_device_argument(parser)
    return parser


def main() -> None:
    args = build_parser().parse_args()
    if args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}: give 1 or more")
    paths = image_files(Path(args.folder), Path(args.out))

    from detectron2_ext.predictor import Predictor  # only now: seconds that --help should not take

    load = Predictor.from_run if args.run else Predictor.from_checkpoint
    predictor = load(args.run or args.weights, args.device)
    images, objects = predict(predictor, Path(args.folder), paths, args.out, args.batch_size, args.score)
    left_out = f", {len(paths) - images} could not be read" if images < len(paths) else ""
    print(f"{objects} objects in {images} images{left_out}: {args.out}")


def image_files(folder: Path, out: Path) -> list[Path]:
    """The images below ``folder`` but not below ``out``, by name; raises UserError if there is none."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give one with images in it")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    paths = sorted(path for path in found if not path.resolve().is_relative_to(out.resolve()))
    if not paths:
        raise UserError(f"{folder} holds no image: the names of images end in {', '.join(sorted(_SUFFIXES))}")
    return paths


def predict(
    predictor: "Predictor", folder: Path, paths: list[Path], out: str, batch_size: int, min_score: float
) -> tuple[int, int]:
    """Writes pictures and results of the images ``paths`` below ``folder``; returns the numbers of images and objects.

    Raises UserError if no image can be read.
    """
    from detectron2_ext.evaluation.predictions import Predictions

    category_ids = np.array([category.id for category in predictor.categories], dtype=np.int64)
    records: list[dict[str, Any]] = []
    objects = 0
    with files.atomic_writer(files.join(out, "coco_instances_results.json")) as file:
        separator = b"["
        for batch in _batches(paths, batch_size):
            found = predictor.detect([pixels for _, pixels in batch])
            for (path, pixels), instances in zip(batch, found, strict=True):
                name, height, width = path.relative_to(folder).as_posix(), *pixels.shape[:2]
                records.append({"id": len(records) + 1, "file_name": name, "height": height, "width": width})
                columns = Predictions.from_instances(len(records), instances, len(instances))
                for line in columns.to_json(category_ids):
                    file.write(separator + line.encode())
                    separator = b",\n"
                objects += len(columns)
                picture = encode_png(draw(pixels, predictor.named(instances, min_score)))
                files.write_bytes(files.join(out, "pictures", f"{name}.png"), picture)
        file.write(b"]" if separator != b"[" else b"[]")
        if not records:
            raise UserError(f"none of the {len(paths)} images in {folder} can be read: see the lines above")
    categories = [{"id": category.id, "name": category.name} for category in predictor.categories]
    files.write_json(
        files.join(out, "images.json"), {"images": records, "categories": categories, "annotations": []}
    )
    return len(records), objects


def draw(pixels: np.ndarray, found: "Prediction") -> np.ndarray:
    """An image uint8 RGB (H, W, 3) with what was found in it, a colour for each category."""
    labels = [f"{name} {score:.2f}" for name, score in zip(found.names, found.scores.tolist(), strict=True)]
    colors = [class_color(category_id) for category_id in found.category_ids.tolist()]
    side = int(np.clip(max(pixels.shape[:2]), *_SIDES))
    return np.asarray(draw_objects(pixels, found.boxes, found.masks, labels, colors, side))


def _batches(paths: list[Path], size: int) -> Iterator[list[tuple[Path, np.ndarray]]]:
    """The images that can be read, ``size`` at a time; says which cannot."""
    from tqdm import tqdm

    from detectron2_ext.data.images import read_image

    batch: list[tuple[Path, np.ndarray]] = []
    for path in tqdm(paths, desc="predicting", unit="image"):
        try:
            batch.append((path, read_image(str(path))))
        except BadImage as error:
            _log.warning("left out: %s", error)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


if __name__ == "__main__":
    run_cli(main)
