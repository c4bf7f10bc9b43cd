"""One YAML for the three stages: Detectron2's format, with ``_BASE_``, checked key by key."""

import argparse
import difflib
import functools
import logging
import math
import operator
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from fvcore.common.config import CfgNode

from exchange.errors import UserError

# Where scripts, configs and assets are: the clone, or what the installed package holds of it.
REPOSITORY = Path(__file__).resolve().parent.parent
_BROUGHT = (("configs",), ("assets",))  # first part of a path
_LONGEST = 1 << 16
_DEEPEST = 64
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Besides its own, what PyYAML's constructors let through for a value that does not fit its tag, as in "!!int x".
_NO_YAML = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, ValueError)
_log = logging.getLogger(__name__)
_Choice = TypeVar("_Choice")


def load_config(path: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Reads an experiment's YAML over the defaults of ``exchange/defaults.yaml``.

    Args:
        path: YAML file, or one that comes with the project (``configs/…``); ``_BASE_`` in it names a file that it
            builds on, relative to itself, or likewise one of the project's. Relative paths in DATASETS.CUSTOM are
            relative to the file that they stand in.
        overrides: alternating keys and values (``["SOLVER.BASE_LR", "1e-4"]``), applied last; a relative OUTPUT_DIR
            or DATASETS.CUSTOM among them is below the working directory.

    Returns:
        A frozen configuration with every key of the defaults. Keys of the Detectron2 family that have no
        effect here are dropped with one warning. A part of OUTPUT_DIR that is called ``auto`` becomes the name of
        the YAML.

    Raises:
        UserError: a file is missing or not YAML, a key is unknown, a value has the wrong type or asks for what
            ``exchange/foreign_keys.yaml`` refuses.
    """
    path = find_config(path)
    return _config(_read(path, {}), path, overrides)


def find_config(path: str) -> str:
    """Where the YAML ``path`` is: below the working directory, or of the project's own; UserError if nowhere."""
    found = _own(path, path)
    if not os.path.isfile(found):
        raise UserError(f"there is no configuration {path}: --config takes a YAML file, see configs/")
    return os.path.abspath(found)


def _own(path: str, near: str) -> str:
    """``near``, unless there is no such file and ``path`` names one that comes with the project."""
    return str(REPOSITORY / path) if not os.path.isfile(near) and Path(path).parts[:1] in _BROUGHT else near


def below_working_directory(path: str) -> str:
    """What a relative ``path`` on a command line means, as an absolute one; a URL stays."""
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def config_of_text(text: str, path: str, overrides: Sequence[str] = ()) -> CfgNode:
    """The configuration that stands as YAML in the file ``path``, such as a checkpoint; see :func:`load_config`."""
    content = parse_yaml(text, path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings: take another file")
    return _config(dict(flatten(content)), path, overrides)


def _config(values: dict[str, Any], path: str, overrides: Sequence[str]) -> CfgNode:
    """The defaults with ``values`` and ``overrides`` over them, checked."""
    cfg = CfgNode(_ours("defaults.yaml"))
    if len(overrides) % 2:
        raise UserError(f"overrides come in pairs KEY VALUE, but {overrides[-1]!r} stands alone")
    defaults = dict(flatten(cfg))
    pairs = zip(overrides[::2], overrides[1::2], strict=True)
    given = {key: _parse_override(value, defaults.get(key)) for key, value in pairs}
    if "OUTPUT_DIR" in given:
        given["OUTPUT_DIR"] = below_working_directory(given["OUTPUT_DIR"])
    values = values | _datasets_beside(given, os.getcwd())
    known, ignored = _known_only(values, cfg, path)
    for key, value in known.items():
        *parents, name = key.split(".")
        node = functools.reduce(operator.getitem, parents, cfg)
        try:
            node[name] = _cast(value, node[name])
        except ValueError as error:
            kind = type(node[name]).__name__
            raise UserError(
                f"{path} or the command line gives {key} the value {reprlib.repr(value)}: it takes a {kind}"
                f"{' of ' + type(node[name][0]).__name__ if kind == 'list' and node[name] else ''}"
            ) from error
        if _is_infinite(node[name]) and not _is_infinite(defaults[key]):
            raise UserError(
                f"{path} or the command line gives {key} the value {node[name]}: it takes finite numbers"
            )
    if not cfg.INPUT.INST_POOL:
        ignored += [f"INPUT.{name}" for name in ("INST_POOL_PATH", "INST_POOL_ROOT") if cfg.INPUT[name]]
    if ignored:
        _log.warning("%s: what it says of %s has no effect in this implementation", path, ", ".join(ignored))
    auto = [Path(path).stem if part == "auto" else part for part in cfg.OUTPUT_DIR.split("/")]
    cfg.OUTPUT_DIR = "/".join(auto)
    cfg.freeze()
    return cfg


def parse_yaml(text: str | bytes, path: str) -> Any:
    """The value of a YAML text: numbers, texts, lists and dicts, never an object of another class.

    Args:
        path: where the text comes from, for the message.

    Raises:
        UserError: the text is not YAML, or longer than a configuration is; or it holds what no setting can be: NaN,
            a number beyond 64 bits, a text that is no Unicode or has a zero byte, aliases that multiply.
    """
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"longer than {_LONGEST} bytes")
        content = _load(text)
        _check(content, len(text))
    except _NO_YAML as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from error
    return content


def _load(text: str | bytes) -> Any:
    """The value of a YAML text by libyaml, where PyYAML has it: ten times as fast as in Python.

    Raises ValueError for what is nested deeper than any setting: libyaml composes each level within the one above and
    would exhaust the stack, which ends the process. Its events come one after the other.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"nested deeper than {_DEEPEST} levels")
    return yaml.load(text, Loader=_LOADER)


def _check(content: Any, most: int) -> None:
    """Raises ValueError for a value that no setting can have, and if there are more values than ``most``."""
    left, count = [content], 1
    while left:
        value = left.pop()
        if isinstance(value, (dict, list)):
            count += len(value)
            if count > most:  # each takes a byte at least where it is written out
                raise ValueError("its aliases repeat each other too often")
            left += [*value, *value.values()] if isinstance(value, dict) else value
        elif isinstance(value, str):
            if b"\0" in value.encode():
                raise ValueError("a text has a zero byte")
        elif isinstance(value, int):
            if not -(1 << 63) <= value < 1 << 63:
                raise ValueError("a number has more than 64 bits")
        elif value is not None and (not isinstance(value, float) or math.isnan(value)):
            raise ValueError(f"{value} is neither number nor text: put it in quotation marks if it is one")


def add_config_arguments(
    parser: argparse.ArgumentParser, default: str = "configs/MRCA/MRCA_R50.yaml"
) -> None:
    """Adds ``--config FILE`` and the trailing ``KEY VALUE`` overrides (``args.opts``) to a command line."""
    parser.add_argument(
        "--config",
        "--config-file",
        default=str(REPOSITORY / default),
        metavar="FILE",
        help=f"YAML of the experiment (default: {default})",
    )
    parser.add_argument(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="settings that override the YAML's, see exchange/defaults.yaml",
    )


def choose(cfg: CfgNode, key: str, known: Mapping[Any, _Choice]) -> _Choice:
    """What ``known`` has for the value of ``key``; raises UserError, with the choices, if nothing."""
    value = dict(flatten(cfg))[key]
    if value not in known:
        raise UserError(f"{key} is {value!r}, which does not exist: choose from {', '.join(map(str, known))}")
    return known[value]


def at_least(least: int, cfg: CfgNode, key: str) -> int:
    """The whole number of the setting ``key``; raises UserError where it is below ``least``."""
    number: int = dict(flatten(cfg))[key]
    if number < least:
        raise UserError(f"{key} is {number}: it is {least} or more")
    return number


def limits(cfg: CfgNode, key: str) -> tuple[float, float]:
    """The two numbers of the setting ``key``; raises UserError where there are not two, the smaller one first."""
    numbers: list[float] = dict(flatten(cfg))[key]
    if len(numbers) != 2 or numbers[0] > numbers[1]:
        raise UserError(f"{key} is {numbers}: it takes two numbers, the smaller one first")
    return numbers[0], numbers[1]


def from_repository(path: str) -> str:
    """``path``, if it is absolute, a URL or in a home (``~``), else the path below the repository.

    Installed, that is a folder among Python's packages: of it only configs and assets are meant, and everything else
    is below the working directory.
    """
    path = os.path.expanduser(path)
    if "://" in path or path.startswith("/"):
        return path
    is_clone = (REPOSITORY / "pyproject.toml").is_file()
    return str((REPOSITORY if is_clone or Path(path).parts[:1] in _BROUGHT else Path.cwd()) / path)


def model_source(name: str) -> str:
    """The file or folder ``name`` below the repository if there is one, else ``name``: another, or a hub name."""
    path = REPOSITORY / os.path.expanduser(name)
    return str(path) if path.exists() else name


def flatten(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys and values of a tree of settings, as ``("SOLVER.BASE_LR", 1e-4)``."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def default_of(key: str) -> Any:
    """The value of a setting such as ``GENERATOR.MODEL`` where nothing gives it another."""
    return dict(flatten(_ours("defaults.yaml")))[key]


@functools.cache
def _ours(name: str) -> dict[str, dict[str, Any]]:
    """The content of a YAML file in this folder."""
    content: dict[str, dict[str, Any]] = _load(Path(__file__).with_name(name).read_bytes())
    return content


def _read(path: str, known: dict[str, dict[str, Any] | None]) -> dict[str, Any]:
    """Keys and values of a YAML file over those of its bases; ``known``: files read so far, None while they are."""
    path = os.path.realpath(path)
    if path not in known:
        known[path] = None
        content = parse_yaml(Path(path).read_bytes(), path)
        content = {} if content is None else content
        if not isinstance(content, dict):
            raise UserError(f"{path} holds a {type(content).__name__}: a configuration has lines KEY: VALUE")
        bases = content.pop("_BASE_", [])
        values: dict[str, Any] = {}
        for base in bases if isinstance(bases, list) else [bases]:
            file = _own(str(base), os.path.join(os.path.dirname(path), os.path.expanduser(str(base))))
            if not isinstance(base, str) or not os.path.isfile(file):
                raise UserError(f"{path} builds on {reprlib.repr(base)}, which is no file: correct _BASE_")
            values |= _read(file, known)
        known[path] = values | _datasets_beside(dict(flatten(content)), os.path.dirname(path))
    found = known[path]
    if found is None:
        raise UserError(f"{path} builds on itself: correct _BASE_")
    return found


def _datasets_beside(values: dict[str, Any], folder: str) -> dict[str, Any]:
    """``values`` with relative paths in DATASETS.CUSTOM below ``folder``; what is no entry is refused later."""
    entries = values.get("DATASETS.CUSTOM")
    if not isinstance(entries, list):
        return values
    absolute = [
        [entry[0], *(os.path.join(folder, os.path.expanduser(path)) for path in entry[1:])]
        if isinstance(entry, list) and entry and all(isinstance(part, str) for part in entry)
        else entry
        for entry in entries
    ]
    return values | {"DATASETS.CUSTOM": absolute}


def _parse_override(value: str, default: Any) -> Any:
    """What ``value`` means for a setting with this ``default``: for a text itself, whatever YAML takes it for."""
    parsed = _parse(value)
    if isinstance(default, str):
        return parsed if isinstance(parsed, str) else value
    if isinstance(default, list) and default and isinstance(default[0], str):
        return parsed if isinstance(parsed, str | list) else value
    return parsed


def _parse(value: str) -> Any:
    try:
        return parse_yaml(value, "the command line")
    except UserError:
        return value


def _known_only(values: dict[str, Any], cfg: CfgNode, path: str) -> tuple[dict[str, Any], list[str]]:
    """The values of keys that there are here, and which others ask for something that has no effect here."""
    known = {key for key, _ in flatten(cfg)}
    foreign = _ours("foreign_keys.yaml")
    others = {key: value for key, value in values.items() if key not in known}
    differing: dict[str, list[str]] = {kind: [] for kind in foreign}
    for key, value in others.items():
        if any(setting.startswith(f"{key}.") for setting in known):
            raise UserError(
                f"{path} or the command line gives {key} a value: it is a group of settings, set those"
            )
        kind = next((kind for kind, keys in foreign.items() if key in keys), None)
        if kind is None:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise UserError(
                f"{path} or the command line sets {key[:80]}, which is no setting: did you mean {nearest}?"
            )
        if (_parse_tuple(value) if isinstance(value, str) else value) != foreign[kind][key]:
            differing[kind].append(key)
    selects = values.get("INPUT.ACTIVE_SELECT") is True
    differing["refused" if selects else "ignored"] += differing["selecting"]
    if differing["refused"]:
        key = differing["refused"][0]
        more = f" (and {len(differing['refused']) - 1} more such)" if len(differing["refused"]) > 1 else ""
        raise UserError(
            f"{path} or the command line sets {key} to {reprlib.repr(others[key])}{more}, which this implementation "
            f"does not have, and without it would learn something else: leave it out or set it to "
            f"{(foreign['refused'] | foreign['selecting'])[key]!r}"
        )
    return {key: value for key, value in values.items() if key in known}, differing["ignored"]


def _cast(value: Any, default: Any) -> Any:
    """``value`` as the type of ``default`` is, items of a list as the first one there; ValueError if it is not.

    One text stands for a list of one.
    """
    if isinstance(default, list):
        value = _parse_tuple(value) if isinstance(value, str) else value
        if isinstance(value, str) and default and isinstance(default[0], str):
            value = [value]
        if not isinstance(value, list):
            raise ValueError(value)
        return [_cast(item, default[0]) for item in value] if default else value
    if isinstance(default, float) and type(value) in (int, str):  # YAML 1.1 reads 1e-4 as a string
        value = float(value)
    if type(value) is not type(default) or value != value:
        raise ValueError(value)
    return value


def _is_infinite(value: Any) -> bool:
    return any(map(_is_infinite, value)) if isinstance(value, list) else value in (math.inf, -math.inf)


def _parse_tuple(value: str) -> Any:
    """Detectron2's YAML files write tuples as ``("a", "b")``, which YAML reads as one string."""
    text = value.strip()
    return _parse(f"[{text[1:-1].rstrip(',')}]") if text.startswith("(") and text.endswith(")") else value
