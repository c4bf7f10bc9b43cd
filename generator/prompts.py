"""What a pipeline is asked to draw: templates, and category names put into them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exchange.errors import UserError

NAME_STYLES = ("raw", "clean")


def clean_name(name: str) -> str:
    """A category name as a person would write it: ``bat_(animal)`` becomes ``bat animal``."""
    return " ".join(re.sub(r"[_()\[\]]", " ", name).split())


@dataclass(frozen=True)
class PromptBook:
    """Draws one of ``templates`` for an instance and fills in what is known of its category.

    A template holds ``{}`` or ``{name}`` for the name, and may hold ``{synonym}`` (one of the category's
    synonyms) and ``{definition}``, where LVIS's category records have them and else the name. Names (and
    synonyms) stand there as in the annotations ("raw", as in the reference) or cleaned ("clean").
    """

    templates: Sequence[str]
    names: str = "raw"

    def __post_init__(self) -> None:
        if self.names not in NAME_STYLES:
            raise UserError(f"GENERATOR.NAMES is one of {', '.join(NAME_STYLES)}, not {self.names!r}")
        if not self.templates:
            raise UserError("GENERATOR.TEMPLATES is empty: give at least one, such as 'a photo of {}'")
        for template in self.templates:
            try:
                texts = [template.format(n, name=n, synonym=n, definition=n) for n in ("one", "other")]
            except (LookupError, ValueError, AttributeError) as error:
                raise UserError(
                    f"GENERATOR.TEMPLATES holds {template!r}, which does not work: write {{}} or {{name}} "
                    "for the category's name, {synonym} or {definition} for what LVIS adds"
                ) from error
            if texts[0] == texts[1]:
                raise UserError(f"GENERATOR.TEMPLATES holds {template!r}, which names no category: add {{}}")

    def prompt(self, category: dict[str, Any], seed: int) -> tuple[str, str]:
        """Template and prompt of the instance with this seed, templates (and synonyms) drawn uniformly.

        ``category`` is a record of the annotation file; the seed, a hash already, is its own random number.
        """
        rest, index = divmod(seed, len(self.templates))
        synonyms = category.get("synonyms") or [category["name"]]
        write = clean_name if self.names == "clean" else str
        name = write(category["name"])
        template = self.templates[index]
        text = template.format(
            name,
            name=name,
            synonym=write(synonyms[rest % len(synonyms)]),
            definition=category.get("def") or name,
        )
        return template, text
