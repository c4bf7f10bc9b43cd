"""Models of ``transformers`` by name."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoModel

from exchange.config import model_source
from exchange.errors import UserError


def load_pretrained(name: str, revision: str, processor: Any, what: str, key: str) -> tuple[nn.Module, Any]:
    """The model ``name``, a folder or a hub name, in float32, and what prepares its input.

    Args:
        processor: the class that loads the latter, ``AutoProcessor`` or a more special one.
        what: the model is, and the setting ``key`` that names it, for the message.

    Raises UserError where one of the two does not load.
    """
    source = model_source(name)
    try:
        model = AutoModel.from_pretrained(source, revision=revision)
        return model.float(), processor.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UserError(
            f"the {what} {name} does not load ({first_line}): correct {key} to a folder or a "
            "hub name that you can reach"
        ) from error
