"""MRCA from Python: ``from mrca import Painter, Predictor``; ``python -m mrca`` is the command line.

The parts of the project are packages at the top of its repository: ``exchange``, ``generator``, ``diSegmenter``,
``detectron2_ext``. Installed, they lie in a folder of this package, and importing ``mrca`` makes them known under their
names, after everything else that there is: who has an ``exchange`` of their own keeps it.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_HERE = Path(__file__).resolve().parent
ROOT = _HERE / "_repository" if (_HERE / "_repository").is_dir() else _HERE.parent
PARTS = ("exchange", "generator", "diSegmenter", "detectron2_ext")
_EXPORTS = {
    "CRITERIA": "generator.criteria",
    "Guidance": "generator.guidance",
    "guided": "generator.guidance",
    "Painter": "generator.painter",
    "Predictor": "detectron2_ext.predictor",
}
__all__ = list(_EXPORTS)


class _LastFinder:
    """Finds the parts of this project, once nobody else has found a module of that name."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(ROOT)]) if name in PARTS else None


sys.meta_path.append(_LastFinder)


def __getattr__(name: str) -> Any:
    """What ``__all__`` lists, imported when it is first asked for."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mrca' has no attribute {name!r}")
    for part in PARTS:
        spec = importlib.util.find_spec(part)
        if spec is None or not spec.origin or not Path(spec.origin).resolve().is_relative_to(ROOT):
            where = spec and (spec.origin or list(spec.submodule_search_locations or ()))
            raise ImportError(
                f"mrca.{name} needs MRCA's package {part!r}, but here that name is {where}: rename that one, or use "
                "MRCA in a process without it"
            )
    return getattr(importlib.import_module(_EXPORTS[name]), name)
