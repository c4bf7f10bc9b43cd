"""From the configuration to what is pasted: pool, sources, sampling, sizes and blends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial

import numpy as np
from fvcore.common.config import CfgNode

from detectron2_ext.data.dataset import DetectionDataset, class_frequencies
from detectron2_ext.data.mapper import Paster
from detectron2_ext.data.view import FitFlip, Scene, SceneReader
from detectron2_ext.paste.composite import (
    BLENDS,
    Blend,
    CutoutAugmentation,
    Occlusion,
    RandomColor,
    RandomMirror,
    RandomRotation,
)
from detectron2_ext.paste.pasters import EitherPaster, ImagePaster, PoolPaster
from detectron2_ext.paste.plan import (
    FEW,
    ClassDraws,
    Draws,
    LikeAnotherImage,
    PastePlan,
    RandomDraws,
    Scattered,
    SeenOrNot,
    SizeRule,
    StatisticalSize,
    UniformDraws,
    UniformSize,
    WeightedDraws,
    adaptive_factors,
    class_sizes,
    native_size,
)
from detectron2_ext.paste.pool import (
    Cutouts,
    ImagesWithMasks,
    IndexedCutouts,
    InstancePool,
    JoinedCutouts,
    opaque_part,
)
from detectron2_ext.paste.ranks import highest, shares_no_higher
from detectron2_ext.paste.recolor import RecolorObjects, color_jitter, photometric
from detectron2_ext.paste.sources import (
    AnyImage,
    ClassFirst,
    ImagesOfClasses,
    SharedClass,
    SourceRule,
    every_object,
    some_objects,
)
from exchange import files
from exchange.annotations import frequency, read_annotations
from exchange.config import at_least, choose, from_repository, limits
from exchange.decisions import always_refused
from exchange.errors import UserError
from exchange.feedback import Feedback
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex
from exchange.pool_rank import KINDS, read_rank
from exchange.run import round_iterations

_log = logging.getLogger(__name__)


def build_pool(
    cfg: CfgNode, layout: RunLayout, round_: int, dataset: DetectionDataset
) -> InstancePool | None:
    """What a round pastes from, or None if it pastes nothing from a pool.

    ``dataset``: the training set, whose category ids give the class indices. Raises UserError where the
    pool's annotation file is missing or does not fit.
    """
    if _copy_method(cfg) in ("none", "self_copy"):
        return None
    parts: list[Cutouts] = []
    if cfg.INPUT.INST_POOL_FEED:
        rounds = [round_] if cfg.SEGMENTER.LATEST_ROUND_ONLY else range(round_ + 1)
        parts.append(_cutouts_of_run(cfg, layout, rounds, _refused_before(cfg, layout, round_)))
    if cfg.INPUT.INST_POOL:
        parts.append(_finished_pool(cfg, dataset))
    if not parts:
        raise UserError(
            f"INPUT.USE_COPY_METHOD is {cfg.INPUT.USE_COPY_METHOD}, but there is no pool: set "
            "INPUT.INST_POOL_FEED or INPUT.INST_POOL to true"
        )
    cutouts = parts[0] if len(parts) == 1 else JoinedCutouts(parts)
    return InstancePool(cutouts, dataset.category_ids, crop=cfg.INPUT.INST_POOL_CROP)


def build_pasters(
    cfg: CfgNode,
    reader: SceneReader,
    images: np.ndarray,
    pool: InstancePool | None,
    feedback: Feedback | None,
    round_: int,
    seed: int,
) -> list[Paster]:
    """What INPUT.USE_COPY_METHOD asks for, in the order of pasting; ``reader`` gives the images that are copied from.

    Without a pool, or with an empty one, nothing is pasted from it. Raises UserError for a setting whose
    value does not exist, and for feedback about other categories than the data set's.
    """
    blends, occlude = _build_blends(cfg), _build_occlusion(cfg)
    of_images = partial(
        ImagePaster,
        reader,
        _build_sources(cfg, reader, images),
        choose_objects=every_object if cfg.INPUT.SCP_TYPE in ("in_domain", "cas") else some_objects,
        view_for=partial(FitFlip, flip_probability=flip_probability(cfg))
        if cfg.INPUT.LIMIT_SRC_LSJ and not cfg.INPUT.SCP_TYPE
        else None,
    )
    from_images: list[Paster] = [of_images(blends, occlude)]
    from_pool: list[Paster] = []
    if pool is not None and len(pool):
        plan = _build_plan(cfg, reader.dataset, images, pool, feedback, round_, seed)
        from_pool = [PoolPaster(pool, plan, _build_augmentations(cfg), blends, occlude)]
    method = _copy_method(cfg)
    if isinstance(method, float):
        return [EitherPaster(method, from_images, from_pool)]
    by_method = {"none": [], "syn_copy": from_pool, "self_copy": from_images, "both": from_pool + from_images}
    return by_method[method]


def build_single_paster(cfg: CfgNode, dataset: DetectionDataset, pool: InstancePool) -> PoolPaster:
    """Pastes instance ``k`` of the pool into the ``k``-th image, as large and blended as in training."""
    sizes = _build_size(cfg, dataset, None, 0)
    plan = Scattered(pool.categories, lambda k, image_classes, rng: np.array([k]), sizes)
    return PoolPaster(pool, plan, _build_augmentations(cfg), _build_blends(cfg), _build_occlusion(cfg))


def _build_blends(cfg: CfgNode) -> list[Blend]:
    unknown = [name for name in cfg.INPUT.CP_METHOD if name not in BLENDS]
    if unknown or not cfg.INPUT.CP_METHOD:
        raise UserError(f"INPUT.CP_METHOD is {cfg.INPUT.CP_METHOD}: choose from {', '.join(BLENDS)}")
    return [BLENDS[name] for name in cfg.INPUT.CP_METHOD]


def _build_occlusion(cfg: CfgNode) -> Occlusion:
    return Occlusion(cfg.INPUT.OCCLUSION_MOVED_BOX, cfg.INPUT.OCCLUSION_FEW_PIXELS)


def _cutouts_of_run(
    cfg: CfgNode, layout: RunLayout, rounds: Sequence[int], left_out: frozenset[str] = frozenset()
) -> Cutouts:
    left_out |= _not_among_highest(cfg, layout, rounds, left_out)
    if cfg.INPUT.INST_POOL_CROP:
        return IndexedCutouts(layout, rounds, left_out)
    return ImagesWithMasks.of_run(layout, rounds, left_out)


def _refused_before(cfg: CfgNode, layout: RunLayout, round_: int) -> frozenset[str]:
    """The instances that FEEDBACK.DROP_REFUSED leaves out of a round."""
    if not cfg.FEEDBACK.DROP_REFUSED:
        return frozenset()
    if not cfg.INPUT.ACTIVE_SELECT:
        raise UserError(
            "FEEDBACK.DROP_REFUSED leaves out what a selection refused: set INPUT.ACTIVE_SELECT True, or it to 0"
        )
    refused = always_refused(layout, range(round_), cfg.FEEDBACK.DROP_REFUSED)
    if refused:
        _log.info("round %d: %d instances are left out, which were always refused", round_, len(refused))
    return refused


def _not_among_highest(
    cfg: CfgNode, layout: RunLayout, rounds: Sequence[int], left_out: Collection[str]
) -> frozenset[str]:
    """The instances that INPUT.INST_POOL_RANK leaves out of those that nothing else does."""
    kind, share = cfg.INPUT.INST_POOL_RANK, cfg.INPUT.INST_POOL_KEEP
    if not kind:
        return frozenset()
    choose(cfg, "INPUT.INST_POOL_RANK", dict.fromkeys(KINDS))
    if not 0 < share <= 1:
        raise UserError(f"INPUT.INST_POOL_KEEP is {share}: it is above 0, up to 1")
    index = PoolIndex(layout, rounds, left_out=left_out)
    names = index.column("file")
    kept = highest(read_rank(layout, rounds, kind, names.tolist()), index.category_ids, share)
    _log.info("%d of %d instances are pasted, the highest by %s", kept.sum(), len(kept), kind)
    return frozenset(names[~kept].tolist())


def _finished_pool(cfg: CfgNode, dataset: DetectionDataset) -> Cutouts:
    path = from_repository(cfg.INPUT.INST_POOL_PATH)
    if path.endswith(".json"):
        if cfg.INPUT.INST_POOL_RANK:
            raise UserError(
                f"INPUT.INST_POOL_RANK is {cfg.INPUT.INST_POOL_RANK}, but an annotation file has no ranks: import the "
                "pool (mrca pool import) and rank it, or leave the key out"
            )
        _check_names(path, dataset)
        clean = partial(opaque_part, only_largest=cfg.USE_LARGEST_PART)
        return ImagesWithMasks.of_annotations(path, from_repository(cfg.INPUT.INST_POOL_ROOT), clean)
    layout = RunLayout(path)
    if not cfg.INPUT.INST_POOL_PATH or not layout.pool_rounds():
        raise UserError(
            f"INPUT.INST_POOL_PATH is {cfg.INPUT.INST_POOL_PATH!r}, where there is no pool: give a run folder "
            "with one (mrca pool import makes it), or an annotation file (.json)"
        )
    if files.exists(layout.pool_categories()):
        _check_names(layout.pool_categories(), dataset)
    return _cutouts_of_run(cfg, layout, layout.pool_rounds())


def _check_names(path: str, dataset: DetectionDataset) -> None:
    """Raises UserError where the categories of a pool, in ``path``, are called otherwise than the data set's."""
    names = read_annotations(path).category_names
    for category_id, name in zip(dataset.category_ids.tolist(), dataset.category_names, strict=True):
        if names.get(category_id, name) != name:
            raise UserError(
                f"category {category_id} is {names[category_id]!r} in {path}, but {name!r} in DATASETS.TRAIN: use a "
                "pool of this data set, or, where names alone have changed, mrca pool merge NEW RUN --annotations FILE"
            )


def build_recoloring(
    cfg: CfgNode, part: str, dataset: DetectionDataset, images: np.ndarray
) -> list[Callable[[Scene, np.random.Generator], None]]:
    """What INPUT.USE_COLOR_JITTER changes in training images (``part`` dst) or in those copied from (src)."""
    if not _recolors(cfg, part):
        return []
    counts = np.rint(class_frequencies(dataset, images) * len(images)).astype(int).tolist()
    chosen = np.array([frequency(count) in cfg.INPUT.COLOR_JITTER_FREQ_FILTER for count in counts])
    return [RecolorObjects(chosen, color_jitter if cfg.INPUT.COLOR_JITTER_USE_TORCHVISION else photometric)]


def _recolors(cfg: CfgNode, part: str) -> bool:
    parts = {"both": ("src", "dst"), "src": ("src",), "dst": ("dst",)}
    return cfg.INPUT.USE_COLOR_JITTER and part in choose(cfg, "INPUT.COLOR_JITTER_APPLY_TYPE", parts)


def _build_sources(cfg: CfgNode, reader: SceneReader, images: np.ndarray) -> SourceRule:
    if not cfg.INPUT.SCP_TYPE:
        return AnyImage(images)
    of_class = ImagesOfClasses(reader.dataset)
    kinds = {
        "in_domain": lambda: SharedClass(of_class),
        "cas": lambda: ClassFirst(of_class, of_class.shown(), only_it=True),
        "the_cls": lambda: ClassFirst(of_class, _selected_classes(cfg, of_class), only_it=True),
        "the_cls_img": lambda: ClassFirst(of_class, _selected_classes(cfg, of_class), only_it=False),
    }
    return choose(cfg, "INPUT.SCP_TYPE", kinds)()


def _selected_classes(cfg: CfgNode, of_class: ImagesOfClasses) -> list[int]:
    classes = cfg.INPUT.SCP_SELECT_CATS_LIST
    unknown = set(classes).difference(of_class.shown().tolist())
    if unknown or not classes:
        raise UserError(
            f"INPUT.SCP_SELECT_CATS_LIST is {classes}, but INPUT.SCP_TYPE {cfg.INPUT.SCP_TYPE} copies from images of "
            "its classes: list class indices from 0 on that a training image shows"
        )
    return classes


def flip_probability(cfg: CfgNode) -> float:
    """How often an image, or a pasted instance, is mirrored."""
    return choose(cfg, "INPUT.RANDOM_FLIP", {"horizontal": 0.5, "none": 0.0})


def _copy_method(cfg: CfgNode) -> str | float:
    """INPUT.USE_COPY_METHOD; the share of images that copy from images if it is a mixture ``p:SHARE``."""
    method = cfg.INPUT.USE_COPY_METHOD
    try:
        if method.startswith("p:") and 0 <= float(method[2:]) <= 1:
            return float(method[2:])
    except ValueError:
        pass
    names = ("none", "syn_copy", "self_copy", "both", "p:0.5")
    return choose(cfg, "INPUT.USE_COPY_METHOD", {name: name for name in names})


def _build_augmentations(cfg: CfgNode) -> list[CutoutAugmentation]:
    augmentations: list[CutoutAugmentation] = [RandomMirror(flip_probability(cfg))]
    if cfg.INPUT.RANDOM_ROTATE:
        augmentations.append(RandomRotation())
    if cfg.INPUT.COLOR_AUG or _recolors(cfg, "src"):
        augmentations.append(RandomColor())
    return augmentations


def _build_plan(
    cfg: CfgNode,
    dataset: DetectionDataset,
    images: np.ndarray,
    pool: InstancePool,
    feedback: Feedback | None,
    round_: int,
    seed: int,
) -> PastePlan:
    if cfg.INPUT.INST_POOL_SAMPLE_TYPE == "reference":
        return LikeAnotherImage(pool.categories, dataset, images)
    origin = round_ * round_iterations(cfg) * cfg.SOLVER.IMS_PER_BATCH
    draws = _build_draws(cfg, dataset, pool, origin, seed)
    return Scattered(pool.categories, draws, _build_size(cfg, dataset, feedback, round_))


def _build_draws(
    cfg: CfgNode, dataset: DetectionDataset, pool: InstancePool, origin: int, seed: int
) -> Draws:
    many = (0, at_least(1, cfg, "INPUT.INST_POOL_MAX_SAMPLES"))
    kinds = {
        "uniform": lambda: UniformDraws(len(pool), seed, origin),
        "one": lambda: RandomDraws(len(pool), FEW),
        "random": lambda: RandomDraws(len(pool), many),
        "cas_random": lambda: ClassDraws(pool.categories, many),
        "cats_random": lambda: ClassDraws(pool.categories, many, among_image_classes=True),
        "weighted": lambda: WeightedDraws(_weights(cfg.INPUT.INST_POOL_WEIGHT, dataset, pool), FEW),
        "reference": None,
    }
    return choose(cfg, "INPUT.INST_POOL_SAMPLE_TYPE", kinds)()


def _weights(kind: str, dataset: DetectionDataset, pool: InstancePool) -> np.ndarray:
    """Weight of each instance of the pool: (N,)."""
    if kind in KINDS:
        return shares_no_higher(pool.column(kind), pool.categories)
    if kind != "class":
        return pool.column(kind)
    real = _real_objects(dataset)
    pooled = np.bincount(pool.categories, minlength=dataset.num_classes)
    return (1 / np.maximum(real, 1) / np.maximum(pooled, 1))[pool.categories]


def _real_objects(dataset: DetectionDataset) -> np.ndarray:
    """Number of training objects of each class, crowds not counted: int64 (C,)."""
    return np.bincount(dataset.classes[~dataset.crowd], minlength=dataset.num_classes)


def _build_size(cfg: CfgNode, dataset: DetectionDataset, feedback: Feedback | None, round_: int) -> SizeRule:
    if cfg.INPUT.INST_POOL_AREA_CERTAINTY > 0:
        return UniformSize(cfg.INPUT.INST_POOL_AREA_CERTAINTY, cfg.INPUT.INST_POOL_AREA_CERTAINTY)

    def statistics() -> SizeRule:
        return StatisticalSize(class_sizes(dataset), _size_factors(cfg, dataset, feedback, round_))

    def uniform() -> SizeRule:
        return UniformSize(*limits(cfg, "INPUT.INST_POOL_SIZE_RANGE"))

    kinds: dict[str, Callable[[], SizeRule]] = {
        "statistics": statistics,
        "uniform": uniform,
        "statistics_or_uniform": lambda: SeenOrNot(_real_objects(dataset) > 0, statistics(), uniform()),
        "native": lambda: native_size,
    }
    return choose(cfg, "INPUT.INST_POOL_SIZE", kinds)()


def _size_factors(
    cfg: CfgNode, dataset: DetectionDataset, feedback: Feedback | None, round_: int
) -> np.ndarray | None:
    if feedback is None or not cfg.INPUT.INST_POOL_ADAPTIVE_SIZE or round_ < cfg.FEEDBACK.FROM_ROUND:
        return None
    if feedback.categories != dataset.category_ids.tolist():
        raise UserError(
            f"the feedback of round {feedback.round} is about the categories of {feedback.dataset}, not "
            "those of DATASETS.TRAIN: use the feedback of this data set"
        )
    return adaptive_factors(feedback.box_ap)
