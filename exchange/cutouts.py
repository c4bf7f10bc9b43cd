"""What stage 2 found in the generated images, and what it decided.

``pool/segmented/cutouts_rdNN_IofN.json`` holds everything that a decision depends on, so that a threshold can
be changed afterwards without running a model; ``pool/annotations/rdNN.filter.json`` holds the decisions.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from exchange import files
from exchange.errors import UserError
from exchange.layout import RunLayout

FORMAT_VERSION = 1
_AGAIN = "remove it and run stage 2 again"


@dataclass(frozen=True)
class Cutout:
    """One generated image after stage 2.

    ``bbox`` is XYWH in pixels of the image, tight around alpha > 0; ``area`` counts those pixels;
    ``segmentation`` are their outer contours, [x, y, x, y, …] each. ``clip_white`` and ``clip_black`` are
    100 x cosine of the cut-out on white and on black. ``objects`` counts the separate objects in the
    mask that the model gave.
    """

    file: str
    category_id: int
    width: int
    height: int
    bbox: list[int]
    area: int
    segmentation: list[list[int]]
    objects: int
    clip_white: float
    clip_black: float

    @property
    def clip_score(self) -> float:
        return max(self.clip_white, self.clip_black)


@dataclass(frozen=True)
class Verdicts:
    """The decisions about a round.

    Attributes:
        settings: the thresholds that were applied.
        reasons: why each image was dropped, by file name; empty for a kept one.
        unreadable: images that did not decode.
    """

    round: int
    settings: dict[str, Any]
    reasons: dict[str, str]
    unreadable: list[str]


def write_cutouts(path: str, cutouts: list[Cutout], unreadable: list[str]) -> None:
    """Writes the record of one shard; ``unreadable`` names the images that did not decode."""
    instances = [dataclasses.asdict(cutout) for cutout in cutouts]
    files.write_json(path, {"format": FORMAT_VERSION, "instances": instances, "unreadable": unreadable})


def read_cutouts(path: str) -> tuple[list[Cutout], list[str]]:
    """Reads what :func:`write_cutouts` wrote; raises UserError if it is of another format or damaged."""
    content = _read(path)
    try:
        return [_cutout(item) for item in content["instances"]], [str(name) for name in content["unreadable"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no record of stage 2 ({error}): {_AGAIN}") from error


def read_round_cutouts(layout: RunLayout, round_: int) -> tuple[dict[str, Cutout], list[str]]:
    """All cut-outs of a round by file name, sorted, and the images that did not decode."""
    cutouts: dict[str, Cutout] = {}
    unreadable: set[str] = set()
    for path in layout.all_cutouts(round_):
        found, damaged = read_cutouts(path)
        cutouts |= {cutout.file: cutout for cutout in found}
        unreadable |= set(damaged)
    return dict(sorted(cutouts.items())), sorted(unreadable - cutouts.keys())


def write_verdicts(layout: RunLayout, verdicts: Verdicts) -> None:
    """Writes the decisions to their place in the run."""
    content = {"format": FORMAT_VERSION, **dataclasses.asdict(verdicts)}
    content["kept"] = sum(not reason for reason in verdicts.reasons.values())
    files.write_json(layout.verdicts(verdicts.round), content)


def read_verdicts(layout: RunLayout, round_: int) -> Verdicts:
    """Reads the decisions about a round; raises UserError if there are none or the file is damaged."""
    path = layout.verdicts(round_)
    content = _read(path)
    try:
        reasons = {str(name): str(reason) for name, reason in content["reasons"].items()}
        return Verdicts(round_, dict(content["settings"]), reasons, list(content["unreadable"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no record of stage 2 ({error}): {_AGAIN}") from error


def _read(path: str) -> dict[str, Any]:
    content = files.read_json(path)
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has stage 2 format {version!r}, this version reads {FORMAT_VERSION}: {_AGAIN}"
        )
    return dict(content)


def _cutout(item: dict[str, Any]) -> Cutout:
    cutout = Cutout(**{field.name: item[field.name] for field in dataclasses.fields(Cutout)})
    if not isinstance(cutout.file, str) or "/" in cutout.file or cutout.file.startswith("."):
        raise ValueError(f"file {cutout.file!r} is not a plain file name")
    if len(cutout.bbox) != 4 or not all(isinstance(value, int) for value in cutout.bbox):
        raise ValueError(f"the bbox of {cutout.file} is not four whole numbers")
    if not (math.isfinite(cutout.clip_white) and math.isfinite(cutout.clip_black)):
        raise ValueError(f"a CLIP score of {cutout.file} is not finite")
    return cutout
