"""What ``mrca pool rank`` measures: values for the instances of a finished pool, round by round, without training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.distributed import named_device
from detectron2_ext.engine.build_selection import BOX_HEADS, build_gradient_rank
from detectron2_ext.modeling.builder import load_feedback_network
from detectron2_ext.modeling.described import DescribedWeights, last_checkpoint, read_described
from detectron2_ext.paste.pool import IndexedCutouts, InstancePool
from diSegmenter.build_similarity import build_similarity
from diSegmenter.cut_out import over_white
from diSegmenter.similarity import Similarity
from exchange import files
from exchange.catalog import read_training_set
from exchange.command_line import quiet_model_libraries
from exchange.config import load_config
from exchange.errors import UserError
from exchange.images import BadImage, decode_rgba, read_rgba
from exchange.layout import RunLayout
from exchange.locks import only_one
from exchange.pool_index import PoolIndex
from exchange.pool_rank import is_ranked, write_rank
from generator.criteria import entropy

_BATCH = 32
_log = logging.getLogger(__name__)

Values = Iterable[tuple[int, float]]  # row of the index and value, in any order; a row without is unknown


class ByClip:
    """The larger of the two CLIP scores in the index."""

    made_from: dict[str, Any] = {"column": "clip"}

    def __call__(self, layout: RunLayout, round_: int, index: PoolIndex) -> Values:
        return enumerate(np.fmax(index.column("clip_white"), index.column("clip_black")).tolist())


class BySimilarity:
    """The similarity in the index; where it has none, that to the real objects that ``config`` says, if one is given.

    What is not there any more of a generated image is white.
    """

    def __init__(self, config: str | None, device: torch.device) -> None:
        cfg = load_config(config) if config else None
        if cfg is not None and not cfg.SEGMENTER.SIMILARITY_MODEL:
            raise UserError(f"{config} has no SEGMENTER.SIMILARITY_MODEL: name the model that is to compare")
        self._cfg, self._device = cfg, device
        self._compare: Similarity | None = None
        self.made_from: dict[str, Any] = {"column": "similarity"}
        if cfg is not None:
            settings = {key: value for key, value in cfg.SEGMENTER.items() if key.startswith("SIMILARITY_")}
            self.made_from |= settings | {"TRAIN": cfg.DATASETS.TRAIN, "SEED": cfg.SEED}

    def __call__(self, layout: RunLayout, round_: int, index: PoolIndex) -> Values:
        known = index.column("similarity")
        yield from enumerate(known.tolist())
        unknown = np.flatnonzero(np.isnan(known)).tolist()
        if not unknown:
            return
        if self._cfg is None:
            if len(unknown) == len(known):
                raise UserError(
                    f"round {round_} of {layout.root} has no similarities: give --config with "
                    "SEGMENTER.SIMILARITY_MODEL"
                )
            return
        if self._compare is None:
            training_set = read_training_set(self._cfg)
            self._compare = build_similarity(self._cfg, layout, *training_set, self._device)
        for rows in _batches(unknown):
            pictures = [_picture(layout, index, row) for row in rows]
            images, alphas = zip(*pictures, strict=True)
            found = self._compare(images, alphas, index.category_ids[rows].tolist())
            yield from ((row, value) for row, value in zip(rows, found, strict=True) if value is not None)


class ByEntropy:
    """How uncertain a segmenter is of the instance on white: the entropy that guidance ascends, in nats."""

    def __init__(self, weights: DescribedWeights, device: torch.device) -> None:
        self._network = load_feedback_network(
            weights.cfg, weights.path, content=weights.content, device=device
        )
        self._device = device
        self.made_from = _told(weights)

    @torch.inference_mode()
    def __call__(self, layout: RunLayout, round_: int, index: PoolIndex) -> Values:
        sizes = np.stack([index.column("height"), index.column("width")], 1)
        of_size = [np.flatnonzero((sizes == size).all(1)).tolist() for size in np.unique(sizes, axis=0)]
        for rows in (batch for members in of_size for batch in _batches(members)):
            images = torch.from_numpy(np.stack([_on_white(index, row)[0] for row in rows])).to(self._device)
            logits = self._network(images.permute(0, 3, 1, 2).float() / 255)
            yield from zip(rows, entropy(logits, logits.argmax(1)).tolist(), strict=True)


class ByGradient:
    """BSGAL's score; see :class:`~detectron2_ext.engine.gradient_rank.GradientRank`."""

    def __init__(self, weights: DescribedWeights, device: torch.device, num_tests: int) -> None:
        self._weights, self._device, self._num_tests = weights, device, num_tests
        self._dataset = DetectionDataset(*read_training_set(weights.cfg))
        if [category.id for category in weights.categories] != self._dataset.category_ids.tolist():
            raise UserError(
                f"{weights.path} was trained on other categories than DATASETS.TRAIN has: take a checkpoint of that set"
            )
        layers = list(weights.cfg.MODEL.ACTIVE_GRAD_LAYERS) or list(BOX_HEADS)
        self.made_from = _told(weights) | {"layers": layers, "images": num_tests}

    def __call__(self, layout: RunLayout, round_: int, index: PoolIndex) -> Values:
        cfg, dataset = self._weights.cfg, self._dataset
        pool = InstancePool(IndexedCutouts(layout, [round_]), dataset.category_ids)
        rank = build_gradient_rank(cfg, self._weights, dataset, pool, self._device, self._num_tests)
        yield from rank()
        if rank.skipped:
            _log.warning("round %d: %d files were not used: %s", round_, len(rank.skipped), rank.skipped[0])


Measure = ByClip | BySimilarity | ByEntropy | ByGradient


def build_measure(
    layout: RunLayout, kind: str, config: str | None, checkpoint: str | None, num_tests: int, device: str
) -> Measure:
    """What takes the measure ``kind``; ``checkpoint``: None for the last one of the run."""
    quiet_model_libraries()
    chosen = named_device(device)

    def weights() -> DescribedWeights:
        return read_described(checkpoint or last_checkpoint(layout.root))

    kinds: dict[str, Callable[[], Measure]] = {
        "clip": ByClip,
        "similarity": lambda: BySimilarity(config, chosen),
        "entropy": lambda: ByEntropy(weights(), chosen),
        "gradient": lambda: ByGradient(weights(), chosen, num_tests),
    }
    return kinds[kind]()


def rank(layout: RunLayout, kind: str, measure: Measure) -> Iterator[tuple[int, np.ndarray | None]]:
    """Ranks the kept instances of each round that is not ranked so already.

    Yields the round and its values, float64 (N,), NaN where nobody knows; None where it was ranked before.
    """
    with only_one(layout, f"rank_{kind}"):
        files.remove_leftovers(layout.pool("rank"))
        for round_ in layout.pool_rounds():
            index = PoolIndex(layout, [round_])
            names = index.column("file").tolist()
            if is_ranked(layout, round_, kind, names, measure.made_from):
                yield round_, None
                continue
            values = np.full(len(index), math.nan)
            with tqdm(total=len(index), desc=f"rank round {round_} by {kind}", unit=" instances") as progress:
                for row, value in measure(layout, round_, index):
                    values[row] = value
                    progress.update(not math.isnan(value))
            write_rank(layout, round_, kind, names, values, measure.made_from)
            yield round_, values


def _batches(rows: list[int]) -> list[list[int]]:
    return [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]


def _told(weights: DescribedWeights) -> dict[str, Any]:
    return {"checkpoint": weights.path.rsplit("/", 1)[-1], "sha256": files.sha256(weights.path)}


def _on_white(index: PoolIndex, row: int) -> tuple[np.ndarray, np.ndarray]:
    """An instance on its canvas without what was generated around it: uint8 (H, W, 3), and its alpha (H, W)."""
    instance = index[row]
    try:
        pixels = decode_rgba(index.read(row), index.name(row))
    except BadImage as error:
        raise UserError(f"{error}: mrca pool verify names everything that is damaged") from error
    x, y, width, height = instance.bbox
    canvas = np.full((instance.height, instance.width, 3), 255, np.uint8)
    alpha = np.zeros(canvas.shape[:2], np.uint8)
    window = np.s_[y : y + height, x : x + width]
    alpha[window] = pixels[..., 3]
    canvas[window] = over_white(pixels)
    return canvas, alpha


def _picture(layout: RunLayout, index: PoolIndex, row: int) -> tuple[np.ndarray, np.ndarray]:
    """The generated image of an instance, if it is there, else the instance on white; and its alpha."""
    canvas, alpha = _on_white(index, row)
    try:
        image = read_rgba(layout.raw(index.file(row)))[..., :3]
    except BadImage:
        return canvas, alpha
    return (image if image.shape == canvas.shape else canvas), alpha
