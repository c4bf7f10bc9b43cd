"""Weights of the whole family, from any file, into this network."""

from __future__ import annotations

import errno
import io
import json
import logging
import pickle
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from detectron2_ext.modeling.extra_classes import with_extra_classes
from detectron2_ext.modeling.plain_pickle import PlainUnpickler
from exchange import files
from exchange.errors import UserError

_log = logging.getLogger(__name__)

_BACKBONE = "backbone.bottom_up."
_CLASSIFIER_PARTS = (".cls_score.weight", ".cls_score.bias", ".cls_score.zs_weight", ".freq_weight")
_FIRST_CLASSIFIER = "roi_heads.box_predictor.0.cls_score.bias"
# In files of early Detectron2 releases; the configuration says them.
_NEVER_WEIGHTS = ("pixel_mean", "pixel_std")
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # PyTorch's before 1.6: pickles, then the storages


@dataclass
class LoadReport:
    """What became of every name: ``loaded`` from the file, ``converted`` (name in the file: name here),
    ``fresh`` (here, kept their initial values), ``unused`` (in the file, without a place here)."""

    path: str
    averaged: bool = False
    loaded: list[str] = field(default_factory=list)
    converted: dict[str, str] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def load_weights(
    model: nn.Module,
    path: str,
    *,
    use_ema: bool = False,
    new_classifier: bool = False,
    classes: Sequence[str] | None = None,
    sha256: str | None = None,
    content: dict[str, Any] | None = None,
) -> LoadReport:
    """Loads a checkpoint of the network or of its backbone into ``model``, in place.

    Where ``model`` has extra classes (MODEL.ROI_HEADS.NUM_EXTRA_CLASSES), a file of the data set's classes alone is
    welcome: what the classifiers have of the extra ones keeps its initial values.

    Args:
        path: ``.pth`` (``{"model": …, "model_ema": …}`` or names and tensors), ``.pkl`` (pre-trained
            backbones in Detectron2's format) or ``.safetensors``.
        use_ema: take ``model_ema`` where the file has it.
        new_classifier: a file of other classes, or with another form of their classifier, is welcome; what does not
            fit of the classifiers keeps its initial values.
        classes: names of the network's, extra ones last, to compare with those of a file that says its own.
        sha256: of the file, in hexadecimal; None does not check.
        content: of the file, where it has been read; None reads it.

    Raises:
        UserError: the file is missing, damaged, another one than ``sha256``, of another network or of other classes;
            the model is then unchanged.
    """
    content = read_weight_file(path, sha256) if content is None else content
    average = content.get("model_ema")
    report = LoadReport(path, averaged=use_ema and isinstance(average, dict) and len(average) > 0)
    expected = model.state_dict()
    extra = getattr(getattr(model, "roi_heads", None), "num_extra_classes", 0)
    weights = _weights_of(content, report)
    if classes and (differing := _differing_class(content, classes, extra)):
        if not new_classifier:
            raise UserError(
                f"{path} was trained on other classes ({differing}): to start from all of it but its classifier set "
                "MODEL.NEW_CLASSIFIER True, or take another file"
            )
        weights = {name: value for name, value in weights.items() if not name.endswith(_CLASSIFIER_PARTS)}
    weights = with_extra_classes(weights, expected, extra)
    if any(name.startswith(("roi_heads.", "proposal_generator.")) for name in weights):
        chosen = _match_network(weights, expected, report, new_classifier)
    else:
        chosen = _match_backbone(weights, expected, report)
    model.load_state_dict(chosen, strict=False)
    report.loaded = sorted(chosen)
    _tell(report)
    return report


def _weights_of(content: dict[str, Any], report: LoadReport) -> dict[str, Tensor]:
    keys = ("model_ema",) if report.averaged else ("model", "state_dict")
    content = next((content[key] for key in keys if isinstance(content.get(key), dict)), content)
    named = {str(name).removeprefix("module."): value for name, value in content.items()}
    weights = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if not weights:
        raise UserError(f"{report.path} has no weights: expected names and tensors, or those below 'model'")
    report.unused = [name for name in named if name not in weights or name in _NEVER_WEIGHTS]
    return {name: value for name, value in weights.items() if name not in _NEVER_WEIGHTS}


def _differing_class(content: dict[str, Any], classes: Sequence[str], extra: int) -> str | None:
    """The first class of a file that is called otherwise than ours, in words; of another number of them that says all.

    None, too, where the file does not say what its classes are called.
    """
    records = content.get("categories")
    said = [r.get("name") for r in records if isinstance(r, dict)] if isinstance(records, list) else []
    if len(said) not in (len(classes), len(classes) - extra):
        return None
    pairs = zip(said, classes, strict=False)
    return next((f"{theirs!r} instead of {ours!r}" for theirs, ours in pairs if theirs != ours), None)


def _match_network(
    weights: dict[str, Tensor], expected: dict[str, Tensor], report: LoadReport, new_classifier: bool
) -> dict[str, Tensor]:
    differing = [
        name for name, value in weights.items() if name in expected and value.shape != expected[name].shape
    ]
    missing = [name for name in expected if name not in weights]
    surplus = [name for name in weights if name not in expected]
    elsewhere = {*differing, *missing, *surplus}
    only_classifier = all(name.endswith(_CLASSIFIER_PARTS) for name in elsewhere)
    if only_classifier and new_classifier:
        report.fresh, report.unused = [*differing, *missing], [*report.unused, *surplus]
        return {name: value for name, value in weights.items() if name not in elsewhere}
    if only_classifier and _FIRST_CLASSIFIER in differing and weights[_FIRST_CLASSIFIER].ndim == 1:
        classes, ours = (len(source[_FIRST_CLASSIFIER]) - 1 for source in (weights, expected))
        raise UserError(
            f"{report.path} was trained on {classes} classes, but MODEL.ROI_HEADS.NUM_CLASSES is {ours}: "
            f"to start from all of it but its classifier set MODEL.NEW_CLASSIFIER True, or set that to {classes} or "
            "take another file"
        )
    _require_none(report.path, weights, expected, differing, missing, surplus)
    return weights


def _match_backbone(
    weights: dict[str, Tensor], expected: dict[str, Tensor], report: LoadReport
) -> dict[str, Tensor]:
    """Finds the place of a pre-trained backbone's weights, whose names lack the path to it."""
    ours = {name for name in expected if name.startswith(_BACKBONE)}
    prefix = f"{_BACKBONE}base." if any(name.startswith(f"{_BACKBONE}base.") for name in ours) else _BACKBONE
    renamed = _official_swin_names(weights) if prefix + "layers.0.blocks.0.norm1.weight" in ours else {}
    places = {name: prefix + renamed.get(name, name).removeprefix(prefix) for name in weights}
    chosen, differing, surplus = {}, [], []
    for name, place in places.items():
        if place in ours and weights[name].shape == expected[place].shape:
            chosen[place] = weights[name]
        elif _is_image_classifier(name):
            report.unused.append(name)
        else:
            (differing if place in ours else surplus).append(name)
    report.converted = {name: places[name] for name in renamed}
    report.fresh = [name for name in expected if name not in chosen]
    missing = [name for name in report.fresh if name in ours and not _may_be_fresh(name)]
    wanted = {name: expected[places[name]] for name in differing}
    _require_none(report.path, weights, wanted, differing, missing, surplus)
    return chosen


def _require_none(
    path: str,
    weights: dict[str, Tensor],
    expected: dict[str, Tensor],
    differing: list[str],
    missing: list[str],
    surplus: list[str],
) -> None:
    """Raises UserError for names that differ in shape or stand on one side only."""
    parts = []
    if missing:
        parts.append(f"{len(missing)} parameters are missing (first {missing[0]})")
    if surplus:
        parts.append(f"{len(surplus)} have no place (first {surplus[0]})")
    if differing:
        name = differing[0]
        shapes = f"{tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        parts.append(f"{len(differing)} have another shape (first {name}: {shapes})")
    if parts:
        raise UserError(f"{path} is of another network than the configuration: {'; '.join(parts)}")


def _official_swin_names(weights: dict[str, Tensor]) -> dict[str, str]:
    """timm's names to those of the Swin release: timm counts the merging of patches to the stage after it."""
    if "layers.3.downsample.reduction.weight" not in weights:
        return {}
    renamed = {}
    for name in weights:
        parts = name.split(".")
        if parts[0] == "layers" and parts[2:3] == ["downsample"] and parts[1].isdecimal():
            renamed[name] = ".".join(["layers", str(int(parts[1]) - 1), *parts[2:]])
    return renamed


def _may_be_fresh(name: str) -> bool:
    """Of the backbone: what detection adds to it, buffers that follow from the architecture, the unused
    ``fc``."""
    rest = name.removeprefix(_BACKBONE)
    added = rest.startswith(("norm1.", "norm2.", "norm3.", "base.fc."))
    return added or rest.endswith(("relative_position_index", "num_batches_tracked"))


def _is_image_classifier(name: str) -> bool:
    """What classification has and detection has no use for."""
    return name.startswith(("fc.", "head.", "norm.")) or name.endswith("attn_mask")


def _tell(report: LoadReport) -> None:
    _log.info(
        "loaded %d%s weights from %s", len(report.loaded), " averaged" if report.averaged else "", report.path
    )
    for what, names in (
        ("converted", list(report.converted)),
        ("initial values kept", report.fresh),
        ("in the file, without use", report.unused),
    ):
        if names:
            shown = ", ".join([*names[:8], *(["…"] if len(names) > 8 else [])])
            _log.warning("%s: %s: %d, %s", report.path, what, len(names), shown)


def read_weight_file(path: str, sha256: str | None = None) -> dict[str, Any]:
    """The dictionary in a ``.pth``, ``.pkl`` or ``.safetensors`` file, on the CPU: tensors and plain values.

    Args:
        path: on any fsspec file system.
        sha256: of the file, in hexadecimal; None does not check.

    Raises:
        UserError: missing, not the file with this ``sha256``, damaged, or with more in it than weights.
    """
    if not files.exists(path):
        raise UserError(f"there is no weight file {path}: check MODEL.WEIGHTS, or the file that names it")
    with files.open_to_read(path) as file:
        if sha256 is not None and files.sha256(path) != sha256:
            raise UserError(
                f"{path} is not the file that the feedback was computed with: its SHA-256 is not {sha256}"
            )
        try:
            content = _read(file, path)
        except (_Damaged, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise UserError(f"{path} cannot be read as weights, it may be cut short: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, but weight files hold a dictionary")
    return content


class _Damaged(Exception):
    """What is wrong with the content of a file."""


def _read(file: BinaryIO, path: str) -> Any:
    if path.endswith(".safetensors"):
        return _read_safetensors(file.read())
    begin = file.read(4)
    file.seek(0)
    if begin == b"PK\x03\x04":
        return _read_archive(file)
    data = file.read()
    stream = io.BytesIO(data)
    first = PlainUnpickler(stream, len(data)).load()
    legacy = isinstance(first, int) and first == _LEGACY_MAGIC
    return _read_legacy(stream, len(data)) if legacy else first


def _read_safetensors(data: bytes) -> dict[str, Any]:
    """Names and tensors; where the metadata say what they are of, below ``model``, beside that."""
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__", {})
        if not {"settings", "categories"} <= metadata.keys():
            return tensors
        return metadata | {"model": tensors, "categories": json.loads(metadata["categories"])}
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise _Damaged(str(error)) from error


def _read_archive(file: BinaryIO) -> Any:
    """The form of today's ``torch.save``: a pickle and the storages, each a file in an uncompressed archive."""
    size = file.seek(0, io.SEEK_END)
    with _parsing_archive():
        archive = zipfile.ZipFile(file)
    infos = {info.filename: info for info in archive.infolist()}
    if sum(info.file_size for info in infos.values()) > size:
        raise _Damaged("its parts are larger than itself")
    root = next((name.removesuffix("data.pkl") for name in infos if name.endswith("/data.pkl")), None)
    if root is None:
        raise _Damaged("it is an archive without a data.pkl")

    def part(name: str) -> bytes:
        if root + name not in infos or infos[root + name].compress_type != zipfile.ZIP_STORED:
            raise _Damaged(f"it has no {name} as torch.save writes it")
        with _parsing_archive():
            return archive.read(infos[root + name])

    if f"{root}byteorder" in infos and part("byteorder") != b"little":
        raise _Damaged("its numbers are not in little-endian order")
    storages: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in storages:
            storages[key] = _from_bytes(part(f"data/{key}"), dtype)
        if storages[key].dtype != dtype or len(storages[key]) != count:
            raise _Damaged(f"storage {key} has not the {count} {dtype} numbers that it should have")
        return storages[key]

    content = part("data.pkl")
    return PlainUnpickler(io.BytesIO(content), len(content), storage).load()


@contextmanager
def _parsing_archive() -> Iterator[None]:
    """Around calls of zipfile, which lets through what its helpers raise for a damaged file."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        ValueError,
        struct.error,
    ) as error:
        raise _Damaged(str(error)) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's beginning; anything else is of the disk
            raise
        raise _Damaged(str(error)) from error


def _read_legacy(stream: io.BytesIO, size: int) -> Any:
    """The form of ``torch.save`` before version 1.6, after the magic number."""
    storages: dict[str, Tensor] = {}
    left = size

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        nonlocal left
        if key not in storages:
            left -= count * dtype.itemsize
            if left < 0:
                raise _Damaged("its storages are larger than itself")
            storages[key] = torch.empty(count, dtype=dtype)  # filled below
        if storages[key].dtype != dtype or len(storages[key]) != count:
            raise _Damaged(f"storage {key} changes its type or length")
        return storages[key]

    match PlainUnpickler(stream, size).load(), PlainUnpickler(stream, size).load():
        case 1001, {"little_endian": True}:
            pass
        case _:
            raise _Damaged("it is of an unknown version of PyTorch, or not in little-endian order")
    content = PlainUnpickler(stream, size, storage).load()
    keys = PlainUnpickler(stream, size).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or {*keys} != {*storages}:
        raise _Damaged("its storages are not those that it needs")
    for key in keys:
        target = storages[key]
        count, data = stream.read(8), stream.read(target.nbytes)
        if count != struct.pack("<q", len(target)) or len(data) != target.nbytes:
            raise _Damaged(f"storage {key} is not whole")
        target.copy_(_from_bytes(data, target.dtype))
    return content


def _from_bytes(data: bytes, dtype: torch.dtype) -> Tensor:
    """A tensor (N,) with memory of its own."""
    if len(data) % dtype.itemsize:
        raise _Damaged(f"{len(data)} bytes are no whole number of {dtype}")
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
