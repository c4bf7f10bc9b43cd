from unittest.mock import Mock

import numpy as np
import pytest

from exchange import files, pool_rank
from exchange.layout import RunLayout
from exchange.pool_rank import is_ranked, known_ranks, write_rank

NAMES = ["a.png", "b.png"]


def test_values_count_for_what_they_were_made_from_or_not_at_all_where_the_writing_was_stopped(
    tmp_path, monkeypatch
):
    layout = RunLayout(str(tmp_path))
    old, new = {"model": "old"}, {"model": "new"}
    write_rank(layout, 0, "clip", NAMES, np.array([1.0, np.nan]), old)
    assert is_ranked(layout, 0, "clip", NAMES[:1], old)
    assert not is_ranked(layout, 0, "clip", NAMES, new) and not is_ranked(layout, 0, "clip", ["c.png"], old)
    for module, writes in ((pool_rank, "write_batches"), (files, "write_json")):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(module, writes, Mock(side_effect=KeyboardInterrupt))
            write_rank(layout, 0, "clip", NAMES, np.array([2.0, 3.0]), new)
        assert known_ranks(layout, 0, "clip") == {}
        assert not is_ranked(layout, 0, "clip", NAMES, old) and not is_ranked(layout, 0, "clip", NAMES, new)
    write_rank(layout, 0, "clip", NAMES, np.array([2.0, 3.0]), new)
    assert known_ranks(layout, 0, "clip") == {"a.png": 2.0, "b.png": 3.0}
