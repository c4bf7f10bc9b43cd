"""From the keys ``SEGMENTER.SIMILARITY_…`` to what compares cut-outs with real objects."""

from __future__ import annotations

import logging

import torch
from fvcore.common.config import CfgNode

from diSegmenter.real_objects import RealObjects, read_or_make
from diSegmenter.similarity import SURROUNDINGS, Framing, Similarity, load_image_encoder
from exchange.annotations import AnnotationFile
from exchange.config import at_least, choose
from exchange.layout import RunLayout

_log = logging.getLogger(__name__)


def build_similarity(
    cfg: CfgNode, layout: RunLayout, dataset: AnnotationFile, image_folder: str, device: torch.device
) -> Similarity:
    """The similarity to the objects of ``dataset``, whose features are made unless the pool of the run has them.

    Raises UserError for a model that does not load, for a setting with a value that there is not, and where the images
    of ``dataset`` are not in ``image_folder``.
    """
    node, most = cfg.SEGMENTER, at_least(1, cfg, "SEGMENTER.SIMILARITY_OBJECTS")
    padding = at_least(0, cfg, "SEGMENTER.SIMILARITY_PADDING")
    framing = Framing(padding, choose(cfg, "SEGMENTER.SIMILARITY_SURROUNDINGS", SURROUNDINGS))
    encode = load_image_encoder(node.SIMILARITY_MODEL, node.SIMILARITY_REVISION, device)
    objects = RealObjects.of_each_class(dataset, image_folder, most, cfg.SEED)
    names = ("SIMILARITY_MODEL", "SIMILARITY_REVISION", "SIMILARITY_PADDING", "SIMILARITY_SURROUNDINGS")
    key = objects.digest([node[name] for name in names])
    means = read_or_make(layout, objects, key, framing, encode, node.BATCH_SIZE, node.WORKERS)
    _log.info(
        "compared with %d real objects of %d categories, at most %d of each (SEGMENTER.SIMILARITY_OBJECTS)",
        len(objects.chosen),
        len(means),
        most,
    )
    if unknown := [name for category_id, name in dataset.category_names.items() if category_id not in means]:
        _log.warning(
            "%d categories have no real object to compare with (%s): what is drawn for them is kept, its similarity "
            "unknown",
            len(unknown),
            ", ".join(unknown),
        )
    return Similarity(encode, framing, means)
