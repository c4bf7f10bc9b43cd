"""Small data sets and pools in LVIS format, written for each test."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from detectron2_ext.data.dataset import DetectionDataset
from exchange import files
from exchange.config import load_config
from exchange.layout import RunLayout
from exchange.pool_index import write_index
from tests.diSegmenter.conftest import pool_instance


def rectangle(x: float, y: float, width: float, height: float) -> list[float]:
    """A rectangle as a COCO polygon."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


class SmallLvis:
    """An annotation file with its images; ``add_*`` first, then :meth:`write`."""

    def __init__(self, folder: Path, num_categories: int = 3) -> None:
        self.folder = folder
        self.categories = [{"id": 10 * (c + 1), "name": f"class {c}"} for c in range(num_categories)]
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    @property
    def path(self) -> Path:
        return self.folder / "annotations.json"

    def add_image(self, width: int = 64, height: int = 48, pixels: np.ndarray | None = None) -> int:
        image_id = len(self.images) + 1
        name = f"{image_id:04}.png"
        if pixels is None:
            rng = np.random.default_rng(image_id)
            pixels = cv2.resize(
                rng.integers(0, 255, (6, 8, 3), dtype=np.uint8),
                (width, height),
                interpolation=cv2.INTER_CUBIC,
            )
        cv2.imwrite(str(self.folder / name), pixels[..., ::-1])
        self.images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        return image_id

    def add_object(self, image_id: int, category: int, box: list[float], **fields: object) -> None:
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image_id,
                "category_id": self.categories[category]["id"],
                "bbox": box,
                "segmentation": [rectangle(*box)],
                "iscrowd": 0,
                **fields,
            }
        )

    def write(self) -> None:
        content = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        self.path.write_text(json.dumps(content))

    def read(self) -> DetectionDataset:
        self.write()
        return DetectionDataset.read(str(self.path), str(self.folder))


@pytest.fixture
def small_lvis(tmp_path: Path) -> SmallLvis:
    folder = tmp_path / "set"
    folder.mkdir()
    return SmallLvis(folder)


@pytest.fixture
def filled_lvis(small_lvis: SmallLvis) -> SmallLvis:
    """Twelve images with one to four objects each; class 2 only in the first image."""
    rng = np.random.default_rng(0)
    for number in range(12):
        image_id = small_lvis.add_image(width=64 + 4 * number, height=48)
        for _ in range(rng.integers(1, 5)):
            x, y = rng.uniform(0, 30, size=2)
            width, height = rng.uniform(6, 18, size=2)
            small_lvis.add_object(image_id, int(rng.integers(2)), [x, y, width, height])
    small_lvis.add_object(1, 2, [10, 10, 20, 20])
    small_lvis.write()
    return small_lvis


WritePool = Callable[[int], Path]


@pytest.fixture
def write_pool(tmp_path: Path) -> WritePool:
    """Writes a pool of n discs in images of 48 x 48, class n % 3; gives its annotation file."""

    def write(num_instances: int) -> Path:
        folder = tmp_path / "pool"
        for name in ("raw", "segmented"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for n in range(num_instances):
            name = f"00_{10 * (n % 3 + 1):04}_{n:04}.png"
            alpha = np.zeros((48, 48), np.uint8)
            cv2.circle(alpha, (24, 24), 15, 255, -1)
            rgb = np.random.default_rng(n).integers(0, 255, (48, 48, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / "raw" / name), rgb)
            cv2.imwrite(str(folder / "segmented" / name), alpha)
            images.append({"id": n + 1, "file_name": name, "width": 48, "height": 48})
            annotations.append({"id": n + 1, "image_id": n + 1, "category_id": 10 * (n % 3 + 1)})
        categories = [{"id": 10 * n, "name": f"class {n - 1}"} for n in (1, 2, 3)]
        path = folder / "pool.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        return path

    return write


@pytest.fixture
def index_of(tmp_path: Path) -> Callable[[Path], RunLayout]:
    """Makes the first five instances of ``write_pool`` two rounds of a run: 0, 2, 4 and 1, 3."""

    def index(path: Path) -> RunLayout:
        layout = RunLayout(str(tmp_path / "run"))
        for round_, numbers in ((0, range(0, 5, 2)), (1, range(1, 5, 2))):
            rows = []
            for n in numbers:
                name = f"00_{10 * (n % 3 + 1):04}_{n:04}.png"
                image, alpha = (cv2.imread(str(path.parent / f / name)) for f in ("raw", "segmented"))
                for target, pixels in ((layout.raw(name), image), (layout.segmented(name), alpha[..., 0])):
                    files.write_bytes(target, cv2.imencode(".png", pixels)[1].tobytes())
                cutout = np.dstack([image, alpha[..., 0]])[9:40, 9:40]
                files.write_bytes(layout.pool(f"cutouts/{n}.png"), cv2.imencode(".png", cutout)[1].tobytes())
                known = {"file": name, "cutout": f"cutouts/{n}.png", "bbox": [9, 9, 31, 31], "height": 48}
                known |= {"area": 100 + 50 * n, "clip_white": 20.0 + n, "clip_black": 30.0 if n else None}
                rows.append(pool_instance(round_, 10 * (n % 3 + 1), n, **known))
            write_index(layout, round_, rows)
        return layout

    return index


@pytest.fixture
def configure(tmp_path, filled_lvis, write_pool):
    """A configuration of the small data set and a pool of 11 instances, with overrides."""
    pool = write_pool(11)

    def make(*overrides):
        settings = {
            "DATASETS": {
                "TRAIN": ["small"],
                "TEST": ["small"],
                "CUSTOM": [["small", str(filled_lvis.path), str(filled_lvis.folder)]],
            },
            "INPUT": {
                "TRAIN_SIZE": 64,
                "USE_COPY_METHOD": "syn_copy",
                "INST_POOL": True,
                "INST_POOL_PATH": str(pool),
                "INST_POOL_ROOT": str(pool.parent),
            },
            "SOLVER": {"IMS_PER_BATCH": 4, "MAX_ITER": 30, "ROUND_ITERS": 10},
            "DATALOADER": {"NUM_WORKERS": 0},
        }
        path = tmp_path / "settings.yaml"
        path.write_text(json.dumps(settings))
        return load_config(str(path), list(overrides))

    return make
