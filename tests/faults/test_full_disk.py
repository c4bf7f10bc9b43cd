"""A full disk is called one, whichever library noticed."""

import errno
import io
import os

import pytest
import torch

from exchange import files
from exchange.errors import run_cli


class Full(io.FileIO):
    """A file on a disk with room for 4 kB."""

    def write(self, data) -> int:
        if self.tell() + len(data) > 4096:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_checkpoint_that_meets_a_full_disk_is_one_sentence_and_nothing_half_written(
    tmp_path, monkeypatch, capsys
):
    path = str(tmp_path / "x.pth")
    monkeypatch.setattr(
        files,
        "open",
        lambda name, mode="r": Full(name, "w") if mode == "wb" else open(name, mode),
        raising=False,
    )

    def main() -> None:
        with files.atomic_writer(path) as file:
            torch.save({"weights": torch.zeros(1 << 16)}, file)

    with pytest.raises(SystemExit) as end:
        run_cli(main)
    line = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and line.startswith(f"error: {path}: No space left on device: make room")
    assert os.listdir(tmp_path) == []
