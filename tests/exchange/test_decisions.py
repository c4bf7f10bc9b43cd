"""The table of what gradient selection decided."""

import dataclasses

import pytest

from exchange.decisions import (
    Decision,
    always_refused,
    forget_decisions_after,
    read_decisions,
    write_decisions,
)
from exchange.errors import UserError
from exchange.layout import RunLayout


@pytest.fixture
def layout(tmp_path) -> RunLayout:
    return RunLayout(str(tmp_path))


def decision(iteration: int, instance: str, accepted: bool) -> Decision:
    return Decision(iteration, iteration % 2, instance, 3, 0.25 - iteration, -0.05, accepted)


def test_parts_are_read_as_one_table_in_the_order_of_rounds_and_iterations(layout):
    rows = [decision(n, f"{n}.png", n % 2 == 0) for n in range(6)]
    write_decisions(layout, 1, 12, rows[4:])
    write_decisions(layout, 0, 10, rows[3:4])
    write_decisions(layout, 0, 9, rows[:3])
    assert [Decision(**row) for row in read_decisions(layout, [0, 1]).to_pylist()] == rows
    assert read_decisions(layout, [1])["iteration"].to_pylist() == [4, 5]
    assert read_decisions(layout, [2]).num_rows == 0
    write_decisions(layout, 0, 9, rows[:1])
    assert read_decisions(layout, [0])["iteration"].to_pylist() == [0, 3]


def test_what_a_killed_training_wrote_beyond_its_checkpoint_goes(layout):
    for end in (3, 6, 9):
        write_decisions(layout, 0, end, [decision(end, "a.png", True)])
        write_decisions(layout, 1, end, [decision(end, "a.png", True)])
    forget_decisions_after(layout, 0, 6)
    assert list(layout.decision_parts(0)) == [3, 6] and list(layout.decision_parts(1)) == [3, 6, 9]


def test_always_refused_is_what_was_pasted_often_enough_and_never_learnt_from(layout):
    said = {"often": [False] * 3, "once": [False], "mixed": [False, True, False], "liked": [True] * 3}
    for number in range(3):
        rows = [decision(number, name, of[number]) for name, of in said.items() if number < len(of)]
        write_decisions(layout, number // 2, 10 * number + 1, rows)
    assert always_refused(layout, range(2), 1) == {"often", "once"}
    assert always_refused(layout, range(2), 3) == {"often"}
    assert always_refused(layout, range(1), 3) == always_refused(layout, [], 1) == frozenset()


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Decision)])
def test_a_decision_that_lacks_a_value_is_damaged(layout, name):
    write_decisions(layout, 0, 5, [dataclasses.replace(decision(0, "a.png", True), **{name: None})])
    with pytest.raises(UserError, match=r"rd00_0000005\.arrow is damaged .a value is missing"):
        read_decisions(layout, [0])


def test_a_damaged_part_or_one_of_another_format_is_named(layout, tmp_path):
    write_decisions(layout, 0, 5, [decision(0, "a.png", True)])
    path = tmp_path / "train/decisions/rd00_0000005.arrow"
    whole = path.read_bytes()
    for damaged in (whole[:-200], b"", b"x" * 500):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"rd00_0000005\.arrow is damaged"):
            read_decisions(layout, [0])
    for name, other in ((b"threshold", b"thresholt"), (b"format", b"formed")):
        path.write_bytes(whole.replace(name, other))
        with pytest.raises(UserError, match="of another version"):
            read_decisions(layout, [0])
