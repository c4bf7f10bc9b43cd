"""What the segmenter tells the generator after a round (``feedback/rdNN.json``)."""

import dataclasses
from dataclasses import dataclass

from exchange import files
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.typed import from_record, read_object

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Feedback:
    """The state of the segmenter at the end of a round; round -1 is that of the initial weights.

    ``categories`` are sorted category ids; the per-class lists are in that order. APs are in percent;
    None means that there is no validation instance (AP) or no earlier weights (drift).
    """

    round: int
    iteration: int
    checkpoint: str
    checkpoint_sha256: str
    dataset: str
    categories: list[int]
    box_ap: list[float | None]
    mask_ap: list[float | None]
    drift: list[float | None]
    mean_box_ap: float | None
    mean_mask_ap: float | None
    ap_r: float | None
    ap_c: float | None
    ap_f: float | None
    time: str


def source_round(round_: int, staleness: int) -> int:
    """The round whose feedback round ``round_`` is drawn and trained with (FEEDBACK.STALENESS); -1: initial weights."""
    return max(round_ - 1 - staleness, -1)


def write_feedback(layout: RunLayout, feedback: Feedback) -> None:
    """Writes the file of the round, after its copy for people, ``feedback.json``, unless that shows a later round."""
    content = {"format": FORMAT_VERSION, **dataclasses.asdict(feedback)}
    if not files.exists(layout.feedback_history(feedback.round + 1)):
        files.write_json(layout.feedback_file, content)
    files.write_json(layout.feedback_history(feedback.round), content)


def read_feedback(path: str) -> Feedback:
    """Reads a feedback file; raises UserError if it is of another format, incomplete or inconsistent."""
    remedy = "write it again with the training stage of the same release"
    content = read_object(path, "feedback", FORMAT_VERSION, remedy)
    try:
        feedback = from_record(Feedback, content)
        ids, aps = feedback.categories, [*feedback.box_ap, *feedback.mask_ap]
        aps += [feedback.mean_box_ap, feedback.mean_mask_ap, feedback.ap_r, feedback.ap_c, feedback.ap_f]
        if feedback.round < -1 or feedback.iteration < 0:
            raise ValueError("'round' or 'iteration' is negative")
        if ids != sorted(set(ids)) or any(not 0 <= category < 1 << 31 for category in ids):
            raise ValueError("'categories' are not different ids in ascending order, of 32 bits")
        if any(ap is not None and not 0 <= ap <= 100 for ap in aps):
            raise ValueError("an AP is not a percentage")
        if any(drift is not None and drift < 0 for drift in feedback.drift):
            raise ValueError("a 'drift' is negative")
    except ValueError as error:
        raise UserError(
            f"{path} is not a feedback file ({error}): write it again with the training stage"
        ) from error
    for name in ("box_ap", "mask_ap", "drift"):
        if len(getattr(feedback, name)) != len(ids):
            raise UserError(f"{path}: {name!r} must list one value for each of the {len(ids)} categories")
    return feedback
