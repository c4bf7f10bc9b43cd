"""The configuration of an experiment as Detectron2 reads it."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode as Detectron2Config
from detectron2.config import get_cfg
from fvcore.common.config import CfgNode

from detectron2_ext.with_detectron2.registration import register_custom_datasets
from exchange.config import from_repository
from exchange.run import run_layout


def detectron2_config(cfg: CfgNode) -> Detectron2Config:
    """Detectron2's defaults, overridden and extended by all that ``cfg`` says, for its ``DefaultPredictor`` etc.

    The entries of DATASETS.CUSTOM become known to its catalogue.
    """
    merged = get_cfg()
    merged.set_new_allowed(True)
    merged.merge_from_other_cfg(cfg)
    merged.set_new_allowed(False)
    merged.MODEL.DEVICE = cfg.MODEL.DEVICE or ("cuda" if torch.cuda.is_available() else "cpu")
    merged.MODEL.WEIGHTS = from_repository(cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else ""
    merged.OUTPUT_DIR = run_layout(cfg).train_dir
    register_custom_datasets(cfg)
    return merged
