"""Models of ``transformers`` by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from exchange.config import model_source
from exchange.errors import UserError


def load_pretrained(
    name: str,
    revision: str,
    processor: Any,
    what: str,
    key: str,
    kind: Any = AutoModel,
    dtype: torch.dtype | str = torch.float32,
) -> tuple[nn.Module, Any]:
    """The model ``name``, a folder or a hub name, and what prepares its input. Code that it brings along does not run.

    Args:
        processor: the class that loads the latter, ``AutoProcessor`` or a more special one.
        what: the model is, and the setting ``key`` that names it, for the message.
        kind: the class that loads the model.
        dtype: of the weights; ``auto``: as they are published.

    Raises UserError where one of the two does not load.
    """
    source, hub = model_source(name), {"revision": revision, "trust_remote_code": False}
    try:
        model = kind.from_pretrained(source, dtype=dtype, **hub)
        return model, processor.from_pretrained(source, **hub)
    except (OSError, ValueError, ImportError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"the {what} {name} does not load ({first_line}): correct {key} to a folder or a "
            "hub name that you can reach"
        ) from error
