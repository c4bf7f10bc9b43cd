"""What some guided images would be without guidance: one picture a round, for a person to look at."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exchange import files
from exchange.images import encode_png, read_record, read_rgba

_Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Twins:
    """``files``: names of the guided images; ``criterion``: guidance's, of the finished twin of each (None where it is
    not finite)."""

    files: list[str]
    criterion: list[float | None]


def write_twins(path: str, twins: Twins, images: Sequence[_Pixels]) -> None:
    """Writes the twins, uint8 (H, W, 3) each, side by side into the PNG file ``path``."""
    files.write_bytes(path, encode_png(np.hstack(images), dataclasses.asdict(twins)))


def twins_record(path: str) -> Twins | None:
    """What the file ``path`` says of the twins in it; None where there is none, or it is damaged."""
    twins = read_record(Twins, path)
    whole = twins is not None and 0 < len(twins.files) == len(twins.criterion)
    return twins if whole else None


def read_twins(path: str) -> tuple[Twins, list[_Pixels]] | None:
    """The same with the images; raises BadImage where the pixels are damaged."""
    twins = twins_record(path)
    if twins is None:
        return None
    return twins, np.array_split(read_rgba(path)[..., :3], len(twins.files), axis=1)
