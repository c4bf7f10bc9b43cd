"""The settings of a run: written once, compared by every stage that joins or resumes it."""

import argparse
import math
import platform
import reprlib
from collections.abc import Collection
from importlib import metadata
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from exchange import files
from exchange.config import at_least, flatten, from_repository, parse_yaml
from exchange.errors import UserError
from exchange.layout import RunLayout

# What may differ between the stages of a run, and between a run and its resumption, without changing a result.
_FREE_KEYS = {
    "OUTPUT_DIR",
    "DATASETS.CUSTOM",  # where the data lie, as $DETECTRON2_DATASETS says it of those with a name of their own
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.PREFETCH_FACTOR",
    "FEEDBACK.TIMEOUT",
    "GENERATOR.EMBEDDING_CACHE",
    "GENERATOR.GUIDANCE_CHECKPOINTING",
    "GENERATOR.GUIDANCE_CHUNK",
    "GENERATOR.TWINS",
    "MODEL.DEVICE",
    "MODEL.META_ARCHITECTURE",  # this and ROI_HEADS.NAME: a _feed or _embed YAML asks the same network something else
    "MODEL.ROI_HEADS.NAME",
    "SEGMENTER.TRUST_REMOTE_CODE",
    "SEGMENTER.ANNOTATION_FILE_LIMIT",
    "SEGMENTER.BATCH_SIZE",
    "SEGMENTER.KEEP_RAW",
    "SEGMENTER.WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.KEEP_CHECKPOINTS",
    "SOLVER.LOG_PERIOD",
    "SOLVER.TENSORBOARD",
    "TEST.EVAL_PERIOD",
}
_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "diffusers",
    "transformers",
    "numpy",
    "opencv-python-headless",
    "onnxruntime",
)


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
    """Rounds of the schedule, the last of which may be shorter than SOLVER.ROUND_ITERS; UserError if one has none."""
    return math.ceil(at_least(1, cfg, "SOLVER.MAX_ITER") / at_least(1, cfg, "SOLVER.ROUND_ITERS"))


def round_iterations(cfg: CfgNode) -> int:
    """Iterations of a round of training.

    A run has rounds, of SOLVER.ROUND_ITERS, if it makes a pool of its own (INPUT.INST_POOL_FEED). Any other waits for
    nothing on its way, and trains to SOLVER.MAX_ITER as in one round. Raises UserError for a number below 1.
    """
    return at_least(1, cfg, "SOLVER.ROUND_ITERS" if cfg.INPUT.INST_POOL_FEED else "SOLVER.MAX_ITER")


def add_round_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--st-rd`` and ``--round``, which mean what they do in the release, and ``--num-rounds``."""
    parser.add_argument("--st-rd", "--st_rd", type=int, default=0, metavar="R", help="first round")
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--round", type=int, metavar="END", help="stop before this round (default: at the last)")
    end.add_argument(
        "--num-rounds",
        type=int,
        metavar="N",
        help="so many rounds, as far as the schedule goes (default: to its end)",
    )


def chosen_rounds(args: argparse.Namespace, cfg: CfgNode) -> range:
    """The rounds of the schedule that these arguments ask for; UserError if it does not have the first."""
    in_schedule = num_rounds(cfg)
    if not 0 <= args.st_rd < in_schedule:
        raise UserError(
            f"--st-rd {args.st_rd}: the schedule has the rounds 0 to {in_schedule - 1} (SOLVER.MAX_ITER / "
            "SOLVER.ROUND_ITERS)"
        )
    if args.round is not None and args.round <= args.st_rd:
        raise UserError(
            f"--round {args.round} stops before --st-rd {args.st_rd} begins: give the number after the last round, or "
            "the number of rounds as --num-rounds"
        )
    end = in_schedule if args.round is None else args.round
    end = end if args.num_rounds is None else args.st_rd + args.num_rounds
    return range(args.st_rd, min(end, in_schedule))


def run_layout(cfg: CfgNode) -> RunLayout:
    """The paths of the run folder ``cfg.OUTPUT_DIR``, whether or not it exists."""
    return RunLayout(from_repository(cfg.OUTPUT_DIR))


def open_run(cfg: CfgNode, *writes: str, trains: bool = True, may_differ: Collection[str] = ()) -> RunLayout:
    """Opens the run folder ``cfg.OUTPUT_DIR``, whether or not there is one yet; nothing is written.

    Args:
        writes: the folders below it that the caller's stage writes to; what killed writers left there, in the run
            folder itself and in that of the seconds is removed.
        trains: False: the caller makes no training images, so that a YAML that does not say how, as the release's
            ``_feed`` files, belongs to the run, too.
        may_differ: keys in which ``cfg`` may be another than the run's.

    Raises UserError when the folder belongs to a run with other settings, or its run.yaml is damaged.
    """
    layout = run_layout(cfg)
    for folder in ("", "seconds", *writes):
        files.remove_leftovers(files.join(layout.root, folder))
    _settings_to_write(cfg, layout, trains, may_differ)
    return layout


def claim_run(cfg: CfgNode, trains: bool = True) -> None:
    """Makes the run folder that of ``cfg``, by run.yaml: called when the first thing is about to be written there.

    ``trains`` and what is raised: see :func:`open_run`. The first stage that trains completes what another began.
    """
    layout = run_layout(cfg)
    if settings := _settings_to_write(cfg, layout, trains):
        _write_settings(layout.settings_file, settings)


def _settings_to_write(
    cfg: CfgNode, layout: RunLayout, trains: bool, may_differ: Collection[str] = ()
) -> dict[str, Any] | None:
    """What run.yaml should hold, None where it does already; raises UserError if it holds something else."""
    settings = {key: value for key, value in flatten(cfg) if key not in _FREE_KEYS}
    of_images = {
        key for key in settings if key.startswith(("INPUT.", "MODEL.ACTIVE_")) and key != "INPUT.FORMAT"
    }
    if not files.exists(layout.settings_file):
        return {key: value for key, value in settings.items() if trains or key not in of_images}
    written = _read_settings(layout.settings_file)
    unsaid = of_images if not trains or of_images.isdisjoint(written) else set()
    keys = (settings | written).keys() - unsaid - _FREE_KEYS - set(may_differ)
    changed = sorted(key for key in keys if settings.get(key) != written.get(key))
    if changed:
        key = "SOLVER.MAX_ITER" if "SOLVER.MAX_ITER" in changed else changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        way_out = "choose another OUTPUT_DIR, or the settings in its run.yaml"
        if key == "SOLVER.MAX_ITER":
            way_out = (
                "its learning rate follows one cosine to that end, so that it cannot become longer or shorter; start a "
                f"new run with another OUTPUT_DIR, MODEL.WEIGHTS the last checkpoint in {layout.train_dir}, and "
                f"INPUT.INST_POOL True INPUT.INST_POOL_PATH {layout.root} for its pool"
            )
        raise UserError(
            f"{layout.root} belongs to a run with {key} {reprlib.repr(written.get(key))}, not "
            f"{reprlib.repr(settings.get(key))}{more}: {way_out}"
        )
    return settings if trains and unsaid else None


def _write_settings(path: str, settings: dict[str, Any]) -> None:
    content = {"settings": settings, "versions": versions()}
    data = yaml.safe_dump(content, sort_keys=True).encode()
    parse_yaml(data, path)  # so that the next call can read it
    files.write_bytes(path, data)


def _read_settings(path: str) -> dict[str, Any]:
    content = parse_yaml(files.read_bytes(path), path)
    parts = [content.get(part) for part in ("settings", "versions")] if isinstance(content, dict) else [None]
    if not all(isinstance(part, dict) and all(isinstance(key, str) for key in part) for part in parts):
        raise UserError(
            f"{path} does not hold the settings and versions of a run, whole: restore it, or remove it if the "
            "settings of the run are those of this call"
        )
    settings: dict[str, Any] = content["settings"]
    return settings
