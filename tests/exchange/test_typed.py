from dataclasses import dataclass

import pytest

from exchange.errors import UserError
from exchange.typed import from_record, read_object


@dataclass(frozen=True)
class Example:
    name: str
    number: int
    ratio: float | None
    flag: bool
    polygons: list[list[int]]
    counts: dict[int, int]
    extra: int = 7
    place: tuple[int, float] = (0, 0.0)


GOOD = {"name": "a", "number": 3, "ratio": 0.5, "flag": True, "polygons": [[1, 2], []], "counts": {"5": 6}}


def test_values_arrive_and_defaults_fill_in():
    assert from_record(Example, GOOD) == Example("a", 3, 0.5, True, [[1, 2], []], {"5": 6})
    assert from_record(Example, {**GOOD, "ratio": None, "extra": 8, "unknown": 1}).extra == 8
    assert from_record(Example, {**GOOD, "ratio": 1}).ratio == 1
    assert from_record(Example, {**GOOD, "place": [4, 0.5]}).place == [4, 0.5]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 3),
        ("name", None),
        ("name", "half a character: \ud800"),
        ("name", "a\0b"),
        ("number", 3.5),
        ("number", True),
        ("number", 1 << 63),
        ("ratio", "0.5"),
        ("ratio", float("nan")),
        ("ratio", float("inf")),
        ("flag", 1),
        ("polygons", [1, 2]),
        ("polygons", [["1"]]),
        ("polygons", {}),
        ("place", []),
        ("place", [4]),
        ("place", [4, 0.5, 0.5]),
        ("place", [0.5, 4]),
        ("place", 4),
        ("counts", []),
        ("counts", {"1": 1.5}),
    ],
)
def test_a_value_of_another_type_is_named(field, value):
    with pytest.raises(ValueError, match=f"'{field}' is"):
        from_record(Example, {**GOOD, field: value})


def test_a_file_of_no_object_has_no_format(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match="a.json has example format None, this version reads 1: again"):
        read_object(str(tmp_path / "a.json"), "example", 1, "again")


def test_a_missing_field_and_what_is_no_object_are_named():
    with pytest.raises(ValueError, match="'name' is missing"):
        from_record(Example, {key: value for key, value in GOOD.items() if key != "name"})
    with pytest.raises(ValueError, match="holds list"):
        from_record(Example, [])
