"""One YAML for the three stages: Detectron2's format, with ``_BASE_``, checked key by key."""

import argparse
import difflib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from exchange.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
_HERE = Path(__file__).resolve().parent
_log = logging.getLogger(__name__)


def load_config(path: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Reads an experiment's YAML over the defaults of ``exchange/defaults.yaml``.

    Args:
        path: YAML file; ``_BASE_`` in it names a file that it builds on, relative to itself.
        overrides: alternating keys and values (``["SOLVER.BASE_LR", "1e-4"]``), applied last.

    Returns:
        A frozen configuration with every key of the defaults. Keys of the Detectron2 family that have no
        effect here are dropped with a warning.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, or a value has the wrong type.
    """
    cfg = CfgNode(yaml.safe_load((_HERE / "defaults.yaml").read_text()))
    if not Path(path).is_file():
        raise UserError(f"there is no configuration {path}: --config takes a YAML file, see configs/")
    try:
        loaded = CfgNode.load_yaml_with_base(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} builds on {error.filename}, which does not exist: correct _BASE_") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if len(overrides) % 2:
        raise UserError(f"overrides come in pairs KEY VALUE, but {overrides[-1]!r} stands alone")
    pairs = list(zip(overrides[::2], overrides[1::2], strict=True))
    values = dict(flatten(loaded)) | {key: _parse(value) for key, value in pairs}
    for key, value in _known_only(values, cfg, path).items():
        _set(cfg, key, value, path)
    cfg.freeze()
    return cfg


def add_config_arguments(
    parser: argparse.ArgumentParser, default: str = "configs/MRCA/MRCA_R50.yaml"
) -> None:
    """Adds ``--config FILE`` and the trailing ``KEY VALUE`` overrides (``args.opts``) to a command line."""
    parser.add_argument("--config", default=str(REPOSITORY / default), metavar="FILE", help="experiment YAML")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override the YAML's")


def from_repository(path: str) -> str:
    """``path``, if it is absolute or a URL, else the path below the repository."""
    return path if "://" in path or path.startswith("/") else str(REPOSITORY / path)


def model_source(name: str) -> str:
    """The folder ``name`` below the repository if there is one, else ``name``: another folder or a hub name."""
    return str(REPOSITORY / name) if (REPOSITORY / name).is_dir() else name


def flatten(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values of a tree of settings, as ``("SOLVER.BASE_LR", 1e-4)``."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parse(value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _known_only(values: dict[str, Any], cfg: CfgNode, path: str) -> dict[str, Any]:
    known = {key for key, _ in flatten(cfg)}
    without_effect = set((_HERE / "keys_without_effect.txt").read_text().split())
    for key in [key for key in values if key not in known]:
        if key not in without_effect:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise UserError(
                f"{path} or the command line sets {key}, which is no setting: did you mean {nearest}?"
            )
        _log.warning("%s: %s has no effect in this implementation", path, key)
        del values[key]
    return values


def _set(cfg: CfgNode, key: str, value: Any, path: str) -> None:
    *parents, name = key.split(".")
    node = cfg
    for parent in parents:
        node = node[parent]
    default = node[name]
    if isinstance(default, (list, tuple)) and isinstance(value, str):
        value = _parse_tuple(value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if isinstance(default, float) and isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string
        try:
            value = float(value)
        except ValueError:
            pass
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        value = type(default)(value)
    if default is not None and type(value) is not type(default):
        raise UserError(
            f"{path} or the command line gives {key} the value {value!r}: it takes a {type(default).__name__}"
        )
    node[name] = value


def _parse_tuple(value: str) -> Any:
    """Detectron2's YAML files write tuples as ``("a", "b")``, which YAML reads as one string."""
    text = value.strip()
    return _parse(f"[{text[1:-1].rstrip(',')}]") if text.startswith("(") and text.endswith(")") else value
