"""Which ONNX file a name means: a file, one in a folder, one in a hub repository."""

import os
from pathlib import Path

from huggingface_hub import snapshot_download

from exchange.config import model_source
from exchange.errors import UserError

_IN_A_FOLDER = ("model.onnx", "onnx/model.onnx")


def find_onnx(name: str, revision: str) -> str:
    """The path of the ONNX file that ``name`` means.

    Args:
        name: a file; a folder with ``model.onnx``, ``onnx/model.onnx`` or one ``*.onnx``; a hub repository with one of
            the first two; or a file in a hub repository, ``owner/repository/path.onnx``.
        revision: of the hub repository.

    Raises:
        UserError: there is none, or more than one.
    """
    source = model_source(name)
    if os.path.isfile(source):
        return source
    if os.path.isdir(source):
        return _in_folder(Path(source), name)
    owner, repository, file = (*name.split("/", 2), "", "")[:3]
    # The data of large files lie beside them: model.onnx_data, model.onnx.data.
    wanted = [f"{path}*" for path in ([file] if file else _IN_A_FOLDER)]
    try:
        if not repository or (repository.endswith(".onnx") and not file):
            raise FileNotFoundError("there is no such file")
        folder = Path(snapshot_download(f"{owner}/{repository}", revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise UserError(
            f"the ONNX network {name} is not found ({str(error).strip().splitlines()[0]}): correct "
            "SEGMENTER.FOREGROUND_MODEL to an .onnx file, a folder or a hub name that you can reach"
        ) from error
    if file and not (folder / file).is_file():
        raise UserError(
            f"the hub repository {owner}/{repository} has no {file} at {revision}: correct SEGMENTER.FOREGROUND_MODEL"
        )
    return str(folder / file) if file else _in_folder(folder, name)


def _in_folder(folder: Path, name: str) -> str:
    for path in _IN_A_FOLDER:
        if (folder / path).is_file():
            return str(folder / path)
    found = sorted(path.name for path in folder.glob("*.onnx"))
    if len(found) != 1:
        raise UserError(
            f"{name} holds {len(found)} ONNX files ({', '.join(found[:5])}), none of them {' or '.join(_IN_A_FOLDER)}: "
            "name the file itself in SEGMENTER.FOREGROUND_MODEL"
        )
    return str(folder / found[0])
