"""Follows stage 1 through a round while it is still generating."""

import logging
import time
from collections.abc import Iterator

from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.manifest import GeneratedInstance, is_complete, read_round

Listing = tuple[int, list[tuple[GeneratedInstance, str]]]

_log = logging.getLogger(__name__)


def follow_round(layout: RunLayout, round_: int, timeout_s: float, poll_s: float = 2.0) -> Iterator[Listing]:
    """Yields the generated images of a round as the manifests of stage 1 list them, each once.

    Yields:
        How many images the round will have, as far as is known, and those listed since the last time, each
        with the name of the model that made it.

    Raises:
        UserError: nothing new was listed for ``timeout_s`` seconds and a shard is not complete.
    """
    seen: set[str] = set()
    changed, since = time.monotonic(), time.strftime("%Y-%m-%d %H:%M:%S")
    announced = False
    while True:
        manifests = read_round(layout, round_)
        complete = is_complete(manifests)
        new = [(i, m.model) for m in manifests for i in m.instances if i.file not in seen]
        seen.update(instance.file for instance, _ in new)
        yield sum(sum(manifest.asked.values()) for manifest in manifests), new
        if complete:
            return
        if new:
            changed, since = time.monotonic(), time.strftime("%Y-%m-%d %H:%M:%S")
        elif time.monotonic() - changed >= timeout_s:
            raise UserError(
                f"waited {timeout_s:.0f} s (since {since}) for stage 1 to go on with round {round_}, but the "
                f"manifests in {layout.raw('')} list {len(seen)} images of it and are not complete: "
                "run generator/generate.py for every shard, or raise FEEDBACK.TIMEOUT"
            )
        else:
            if not announced:
                _log.info("round %d: stage 1 is not done, following it in %s", round_, layout.raw(""))
                announced = True
            time.sleep(min(poll_s, timeout_s))
