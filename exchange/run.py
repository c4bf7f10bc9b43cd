"""The settings of a run: written once, compared by every stage that joins or resumes it."""

import math
import platform
from importlib import metadata

import yaml
from fvcore.common.config import CfgNode

from exchange import files
from exchange.config import flatten, from_repository
from exchange.errors import UserError
from exchange.layout import RunLayout

# What may differ between the stages of a run, and between a run and its resumption, without changing a result.
_FREE_KEYS = {
    "OUTPUT_DIR",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.PREFETCH_FACTOR",
    "FEEDBACK.TIMEOUT",
    "GENERATOR.EMBEDDING_CACHE",
    "GENERATOR.GUIDANCE_CHECKPOINTING",
    "GENERATOR.GUIDANCE_CHUNK",
    "MODEL.DEVICE",
    "SEGMENTER.TRUST_REMOTE_CODE",
    "SEGMENTER.ANNOTATION_FILES",
    "SEGMENTER.BATCH_SIZE",
    "SEGMENTER.KEEP_RAW",
    "SEGMENTER.WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.KEEP_CHECKPOINTS",
    "SOLVER.LOG_PERIOD",
}
_PACKAGES = ("torch", "torchvision", "timm", "diffusers", "transformers", "numpy", "opencv-python-headless")


def versions() -> dict[str, str]:
    """Versions of Python and of those packages that a stage's numbers depend on and that are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def num_rounds(cfg: CfgNode) -> int:
    """Rounds of the schedule, the last of which may be shorter than SOLVER.ROUND_ITERS."""
    rounds: int = math.ceil(cfg.SOLVER.MAX_ITER / cfg.SOLVER.ROUND_ITERS)
    return rounds


def run_layout(cfg: CfgNode) -> RunLayout:
    """The paths of the run folder ``cfg.OUTPUT_DIR``, whether or not it exists."""
    return RunLayout(from_repository(cfg.OUTPUT_DIR))


def open_run(cfg: CfgNode) -> RunLayout:
    """Opens the run folder ``cfg.OUTPUT_DIR``, made if there is none yet.

    Raises UserError when the folder belongs to a run with other settings.
    """
    layout = run_layout(cfg)
    settings = {key: value for key, value in flatten(cfg) if key not in _FREE_KEYS}
    if not files.exists(layout.settings_file):
        content = {"settings": settings, "versions": versions()}
        files.write_bytes(layout.settings_file, yaml.safe_dump(content, sort_keys=True).encode())
        return layout
    written = yaml.safe_load(files.read_bytes(layout.settings_file))["settings"]
    changed = sorted(key for key in settings | written if settings.get(key) != written.get(key))
    if changed:
        key = changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise UserError(
            f"{layout.root} belongs to a run with {key} {written.get(key)!r}, not {settings.get(key)!r}{more}: "
            "choose another OUTPUT_DIR, or the settings in its run.yaml"
        )
    return layout
