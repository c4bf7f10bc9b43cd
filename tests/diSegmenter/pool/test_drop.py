"""What is taken out of a pool by hand, for good."""

import dataclasses

import numpy as np
import pytest

from diSegmenter.filter import InstanceFilter
from diSegmenter.finish_round import judge_again
from diSegmenter.pool.annotation_file import write_lvis
from diSegmenter.pool.drop import drop, dropped_by_hand
from diSegmenter.pool.verify import verify
from exchange import files
from exchange.errors import UserError
from exchange.pool_index import PoolIndex, write_index
from tests.diSegmenter.conftest import CATEGORIES
from tests.diSegmenter.pool.two_rounds import IDS, layout
from tools import pool as command

__all__ = ["layout"]
LENIENT = InstanceFilter(-100.0, (0.0, 1.1), 0, False)


def reasons(layout):
    rows = PoolIndex(layout, layout.pool_rounds(), dropped_too=True)
    return {instance.file: instance.reason for instance in rows}


def test_what_is_dropped_by_hand_leaves_training_and_no_later_judgement_brings_it_back(layout):
    before = reasons(layout)
    kept = [name for name, reason in before.items() if not reason]
    assert drop(layout, [kept[0], kept[4]], [], [], CATEGORIES) == {0: 1, 1: 1}
    assert reasons(layout) == before | {kept[0]: "by hand", kept[4]: "by hand"}
    assert {i.file for i in PoolIndex(layout, [0, 1])}.isdisjoint({kept[0], kept[4]})
    for round_, listed in ((0, kept[1:3]), (1, [*kept[1:3], kept[3], kept[5]])):
        images = files.read_json(layout.annotations(round_))["images"]
        assert sorted(image["file_name"] for image in images) == sorted(listed)
    files.write_json(layout.verdicts(0), {"unreadable": []})
    for threshold in (-100.0, 100.0):  # whatever else is against it
        judged = judge_again(layout, 0, dataclasses.replace(LENIENT, clip_threshold=threshold))
        assert {i.file for i in judged.instances if i.reason == "by hand"} == {kept[0]}
    assert drop(layout, [kept[1]], [], [], CATEGORIES) == {0: 1}
    assert dropped_by_hand(layout) == {kept[0], kept[1], kept[4]}
    later = files.read_json(layout.annotations(1))["images"]
    assert sorted(image["file_name"] for image in later) == sorted([kept[2], kept[3], kept[5]])


def test_an_annotation_file_of_the_latest_round_alone_stays_so_when_instances_are_dropped(layout):
    write_lvis(layout.annotations(1), layout, [1], CATEGORIES)
    first, *_, last = PoolIndex(layout, [0, 1]).column("file")
    drop(layout, [first, last], [], [], CATEGORIES)
    content = files.read_json(layout.annotations(1))
    listed = [image["file_name"] for image in content["images"]]
    assert listed == PoolIndex(layout, [1]).column("file").tolist() and content["info"]["rounds"] == [1]
    for says_nothing in (b"damaged", b'{"info":{"round":1},"images":[]'):  # as older ones begin
        files.write_bytes(layout.annotations(1), says_nothing)
        drop(layout, listed[:1], [], [], CATEGORIES)
        assert files.read_json(layout.annotations(1))["info"]["rounds"] == [0, 1]
    assert list(verify(layout, IDS)) == []


@pytest.mark.parametrize(
    ("classes", "rounds"), [([CATEGORIES[0]["id"]], []), ([], [1]), ([CATEGORIES[0]["id"]], [1])]
)
def test_a_class_a_round_or_a_class_in_a_round_is_dropped_whole(classes, rounds, layout):
    meant = {
        i.file
        for i in PoolIndex(layout, [0, 1], dropped_too=True)
        if (not classes or i.category_id in classes) and (not rounds or i.round in rounds)
    }
    named = next(i.file for i in PoolIndex(layout, [0]) if i.file not in meant)
    meant.add(named)
    assert sum(drop(layout, [named], classes, rounds, CATEGORIES).values()) == len(meant) > 1
    assert {name for name, reason in reasons(layout).items() if reason == "by hand"} == meant


def test_the_names_of_a_round_are_looked_up_and_not_compared_each_with_each(layout, monkeypatch):
    compared, column = [], PoolIndex.column

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            compared.append(other)
            return str.__eq__(self, other)

    def watched(index, name):
        values = column(index, name)
        return np.array([*map(Name, values)], object) if name == "file" else values

    one, number = PoolIndex(layout, [0])[0], 100
    write_index(layout, 0, [dataclasses.replace(one, file=f"{n}{one.file}") for n in range(number)])
    monkeypatch.setattr(PoolIndex, "column", watched)
    assert drop(layout, [], [], [0], CATEGORIES) == {0: number}
    assert len(compared) < 10 * number


def test_the_command_drops_and_refuses_what_is_unknown_nothing_at_all_and_a_damaged_list(
    layout, call, capsys
):
    before = reasons(layout)
    with pytest.raises(UserError, match="has no instance nobody.png"):
        call(command, "drop", layout.root, "nobody.png")
    for nothing in (("--class", 999), ("--round", 99), ("--class", 3, "--round", 99)):
        with pytest.raises(UserError, match="has no instance of these classes and rounds"):
            call(command, "drop", layout.root, *nothing)
    with pytest.raises(UserError, match="drop takes names"):
        call(command, "drop", layout.root)
    assert reasons(layout) == before and not files.exists(layout.dropped_by_hand())
    for damaged in (b'{"a": 1}', b'["a", 1]', b"[" * 100_000):
        files.write_bytes(layout.dropped_by_hand(), damaged)
        with pytest.raises(UserError, match="dropped.json is damaged"):
            call(command, "drop", layout.root, "--round", 0)
    files.remove(layout.dropped_by_hand())
    record = {"settings": dataclasses.asdict(LENIENT), "unreadable": [], "instances": []}
    files.write_json(layout.verdicts(0), record)
    call(command, "drop", layout.root, "--round", 0, 1)
    assert capsys.readouterr().out == "round 0: dropped 5 instances\nround 1: dropped 5 instances\n"
    told = files.read_json(layout.verdicts(0))
    assert told["settings"] == record["settings"] | {"area_share": [0.0, 1.1]}
    assert [(row["kept"], row["reason"]) for row in told["instances"]] == [(False, "by hand")] * 5
    page = files.read_bytes(f"{layout.pictures_dir}/report_rd00.html").decode()
    assert "0 of 5 instances kept" in page and "by hand" in page and ">red disc<" in page
    assert not files.exists(layout.verdicts(1))
