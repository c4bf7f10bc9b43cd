"""What the objects of each class were taken for, as the last evaluation of a run counted it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exchange import files
from exchange.errors import UserError
from exchange.feedback import Feedback
from exchange.layout import RunLayout

TakenFor = Mapping[int | None, int]
_SHOWN = 3


def read_confusions(layout: RunLayout, feedbacks: Sequence[Feedback]) -> dict[int, TakenFor]:
    """By category id: how many of its validation objects were taken for which category (None: for none).

    Of the last feedback whose scores are there; empty where they do not tell, as in older runs. Raises UserError
    for a damaged file.
    """
    paths = [layout.scores(feedback.dataset, feedback.checkpoint) for feedback in feedbacks]
    path = next((path for path in reversed(paths) if files.exists(path)), None)
    content = files.read_json(path) if path else {"classes": []}
    try:
        return {
            int(of_class["id"]): {
                None if taken is None else int(taken): int(count) for taken, count in of_class["taken_for"]
            }
            for of_class in content["classes"]
            if "taken_for" in of_class
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not hold the scores of an evaluation ({error!r}): remove it") from error


def recognised(category_id: int, taken_for: TakenFor) -> float | None:
    """Percent of a category's objects that were taken for what they are; None where it has none."""
    objects = sum(taken_for.values())
    return 100 * taken_for.get(category_id, 0) / objects if objects else None


def in_words(category_id: int, taken_for: TakenFor, names: Mapping[int, str]) -> str:
    """What a category's objects were taken for instead, the most frequent first, in percent of its objects."""
    objects = sum(taken_for.values())
    wrong = sorted(
        ((count, taken) for taken, count in taken_for.items() if taken != category_id), key=lambda w: -w[0]
    )
    return ", ".join(
        f"{'nothing' if taken is None else names.get(taken, taken)} {100 * count / objects:.0f} %"
        for count, taken in wrong[:_SHOWN]
    )
