"""The page of a run: what it says, what it escapes, and what it draws again."""

import csv
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from exchange import files, pool_features
from exchange.decisions import Decision, write_decisions
from exchange.feedback import read_feedback, write_feedback
from exchange.layout import RunLayout
from exchange.manifest import read_manifest, write_manifest
from exchange.pool_index import PoolIndex, write_index
from tests.tools.made_up_run import EVIL, NAMES, ap_of, layout, page, write_made_up_run
from tools.run_report.content import Category, RunContent

__all__ = ["layout"]


class Rows(HTMLParser):
    """The cells of every row of every table, and all tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data.strip()


def test_the_tables_of_a_page_tell_scores_and_counts_winners_classes_pool_time_and_settings(layout):
    drawn = read_manifest(layout.manifest(1, 0, 1))
    asked = {1: 4, 2: 3, 3: 3, 4: 5}
    so_far = {"asked": asked, "instances": drawn.instances[:-1], "complete": False}
    write_manifest(layout, dataclasses.replace(drawn, **so_far))
    rows = list(PoolIndex(layout, [1], dropped_too=True))
    rows[3:5] = [dataclasses.replace(row, reason="too small") for row in rows[3:5]]
    write_index(layout, 1, rows[:-1])
    files.write_bytes(f"{layout.pictures_dir}/report_rd00.html", b"")
    verdicts = files.read_json(layout.verdicts(0))
    verdicts["settings"]["clip_threshold"] = 20.0
    files.write_json(layout.verdicts(0), verdicts)
    text = page(layout.root)
    assert "Kept is what has a CLIP score of 25 or more, an object that covers more than 5 %" in text
    assert "score of 20" not in text  # those are of the round before
    more = ["CLIP score", "AP start", "AP round 0", "AP round 1", "change", "drift"]
    more += ["recognised %", "taken for"]
    assert Rows(text).rows == [
        ["", "AP", "APr", "APc", "APf", "asked", "made", "kept", ""],
        ["start", "50.0", "49.0", "", "55.0", "", "", "", ""],
        ["control", "49.9", "49.9", "", "54.9", "", "", "", ""],
        ["round 0", "49.9", "49.9", "", "54.9", "12", "12", "8", "images"],
        ["round 1", "49.9", "50.9", "", "54.9", "15", "11", "6", ""],
        ["class", "group", "AP from", "to", "change"],
        ["blue disc", "rare", "50.0", "50.6", "+0.6"],
        ["red disc", "common", "50.0", "50.2", "+0.2"],
        ["class", "group", "AP from", "to", "change"],
        ["pink disc", "common", "50.0", "49.2", "-0.8"],
        [EVIL, "frequent", "50.0", "49.6", "-0.4"],
        ["class", "group", "training instances", "asked", "made", "kept", "dropped for", *more],
        ["red disc", "common", "10", "7", "6", "4", "CLIP score 2"]
        + ["31.5", "50.0", "50.1", "50.2", "0.2", "0.001", "", ""],
        [EVIL, "frequent", "20", "6", "6", "3", "too small 2, CLIP score 1"]
        + ["31.0", "50.0", "49.8", "49.6", "-0.4", "0.002", "", ""],
        ["blue disc", "rare", "30", "6", "6", "4", "CLIP score 2"]
        + ["31.5", "50.0", "50.3", "50.6", "0.6", "0.003", "", ""],
        ["pink disc", "common", "40", "8", "5", "3", "CLIP score 2"]
        + ["31.0", "50.0", "49.6", "49.2", "-0.8", "0.004", "", ""],
        ["round", "made", "kept", "CLIP 5, 50, 95 %", "dropped: CLIP score", "dropped: too small"],
        ["0", "12", "8", "30.0 30.5 31.0", "33.3 %", "0.0 %"],
        ["1", "11", "6", "32.0 32.5 33.0", "27.3 %", "18.2 %"],
        ["all", "23", "14", "30.0 31.0 33.0", "30.4 %", "8.7 %"],
        ["", "drawing"],
        ["round 0", "1.0"],
        ["round 1", "1.0"],
        ["share", "100 %"],
        ["key", "value", "default"],
        ["GENERATOR.NAMES", "<b>raw</b>", "raw"],
        ["SOLVER.MAX_ITER", "20", "90000"],
        ["SOLVER.ROUND_ITERS", "10", "9000"],
    ]


def test_a_class_changes_from_its_first_known_ap_on_which_may_be_0():
    assert Category(1, "kite", ap={-1: None, 0: 0.0, 1: None, 2: 7.0, 3: None}).change == 7.0
    assert Category(1, "kite", ap={-1: None, 0: 5.0, 1: None}).change is None


def test_the_page_tells_where_the_time_of_each_round_went_and_the_share_of_each_work(layout):
    drawn = read_manifest(layout.manifest(0, 0, 1))
    files.remove(layout.manifest(0, 0, 1))
    for shard, seconds in ((0, 60.0), (1, 30.0)):
        write_manifest(layout, dataclasses.replace(drawn, shard=shard, num_shards=2, seconds=seconds))
    for process, minutes in (("segment_0of2", 1.5), ("segment_1of2", 3.5), ("train", 13.5)):
        work = "training" if process == "train" else "cutting out"
        path = f"{layout.seconds_dir}/{process}.json"
        files.write_json(path, {"0": {work: 60 * minutes}, "-1": {"evaluating": 0.0}})
    rows = [row for row in Rows(page(layout.root)).rows if row]
    head = rows.index(["", "drawing", "cutting out", "training", "evaluating"])
    assert rows[head + 1 : head + 5] == [
        ["start", "0.0", "0.0", "0.0", "0.0"],
        ["round 0", "1.5", "5.0", "13.5", "0.0"],
        ["round 1", "1.0", "0.0", "0.0", "0.0"],
        ["share", "12 %", "24 %", "64 %", "0 %"],
    ]


def test_the_kinds_of_work_stand_in_the_order_of_a_round(layout):
    works = ["waiting (stage 1)", "drawing", "waiting (stage 2)", "cutting out", "filtering"]
    works += ["waiting (stage 3)", "training", "evaluating"]
    files.write_json(f"{layout.seconds_dir}/all.json", {"0": dict.fromkeys(works[::-1], 60.0)})
    assert ["", *works] in Rows(page(layout.root)).rows


def test_the_eight_classes_that_gained_lost_and_were_refused_most_are_told(tmp_path):
    layout = write_made_up_run(tmp_path, [f"class {i}" for i in range(1, 41)], images=False)
    refused = [Decision(0, n, f"{n}.png", n, -0.5, 0.0, False) for n in range(1, 10)]
    write_decisions(layout, 0, 10, refused)
    content = RunContent(layout)
    gained, lost = ([category.id for category in some] for some in content.movers())
    assert gained == [39, 37, 33, 31, 29, 27, 25, 23] and lost == [38, 36, 34, 32, 30, 26, 24, 22]
    assert [category.id for category in content.most_refused()] == [*range(1, 9)]


def test_the_table_of_classes_lands_as_csv_with_everything_round_by_round(layout):
    content = files.read_json(layout.annotations(0))
    content["categories"][1]["frequency"] = "unheard of"
    files.write_json(layout.annotations(0), content)
    assert '<a href="report/classes.csv">' in page(layout.root)
    text = files.read_bytes(f"{layout.root}/report/classes.csv").decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["class"] for row in rows] == NAMES
    assert [row["group"] for row in rows] == ["common", "unheard of", "rare", "common"]
    for i, row in enumerate(rows, start=1):
        counts = [row[name] for name in ("training instances", "asked", "made", "kept", "dropped for")]
        assert counts == [str(10 * i), "6", "6", "4", "CLIP score 2"]
        aps = [float(row[f"AP {when}"]) for when in ("start", "round 0", "round 1")]
        assert aps == [ap_of(round_, i) for round_ in (-1, 0, 1)]
        assert float(row["change"]) == pytest.approx(aps[-1] - aps[0]) and float(row["drift"]) == i / 1000


def test_the_table_tells_what_the_objects_of_a_class_are_taken_for_the_most_frequent_first(layout):
    taken_for = [[1, 12], [3, 4], [None, 2], [2, 1], [4, 1]]
    content = {"classes": [{"id": 1, "taken_for": taken_for}, {"id": 2, "taken_for": []}]}
    content["classes"].append({"id": 4, "taken_for": [[3, 2]]})  # never recognised
    files.write_json(layout.scores("discs", "model.pth"), content)
    files.write_json(layout.scores("discs", "older.pth"), {"classes": [{"id": 3, "taken_for": [[3, 1]]}]})
    for round_, name in ((-1, "older.pth"), (1, "without scores.pth")):
        told = read_feedback(layout.feedback_history(round_))
        write_feedback(layout, dataclasses.replace(told, checkpoint=name))
    rows = Rows(page(layout.root)).rows
    heads, first, second = (
        next(row for row in rows if row[:2] == start and len(row) > 9)
        for start in (["class", "group"], ["red disc", "common"], [EVIL, "frequent"])
    )
    of_first, of_second = (dict(zip(heads, row, strict=True)) for row in (first, second))
    assert of_first["recognised %"] == "60"
    assert of_first["taken for"] == f"blue disc 20 %, nothing 10 %, {EVIL} 5 %"
    assert of_second["recognised %"] == of_second["taken for"] == ""
    table = list(csv.DictReader(io.StringIO(Path(f"{layout.root}/report/classes.csv").read_text())))
    assert [row["recognised %"] for row in table] == ["60.0", "", "", "0.0"]
    assert table[0]["taken for"] == of_first["taken for"]


def test_the_quality_of_the_pool_is_told_round_by_round_and_class_by_class_as_far_as_it_is_known(layout):
    def told():
        rows = [row for row in Rows(page(layout.root)).rows if row]
        place = next(n for n, row in enumerate(rows) if row[0] == "round")
        text = files.read_bytes(f"{layout.root}/report/classes.csv").decode()
        return rows[place : place + 4], list(csv.DictReader(io.StringIO(text)))

    for path in (layout.feedback_history(1), layout.manifest(1, 0, 1)):  # which a pool from elsewhere lacks
        files.remove(path)
    _, classes = told()
    assert {row["CLIP score"] for row in classes} == {"31.5"} and "distance" not in classes[0]
    assert "Vendi" not in page(layout.root) and "similarity" not in page(layout.root)
    for round_ in (0, 1):
        names = PoolIndex(layout, [round_]).column("file").tolist()
        pool_features.begin(layout, {"model": "a"})
        pool_features.add_features(layout, round_, names, np.eye(len(names))[::-1])
    (head, *rounds), classes = told()
    assert head[4:8] == ["distance", "Vendi", "Vendi of pool", "near-duplicates"]
    assert [row[4:8] for row in rounds] == [
        ["1.000", "2.0", "2.0", "0.0 %"],
        ["1.000", "2.0", "2.0", "100.0 %"],
        ["0.667", "2.0", "", "50.0 %"],  # of six pairs of a class two are of the same
    ]
    for row in classes:
        assert float(row["distance"]) == pytest.approx(2 / 3) and float(row["Vendi"]) == pytest.approx(2)
        assert row["near-duplicates, %"] == "50.0"
    assert "the Vendi score the number of instances" in page(layout.root)


def test_that_no_instance_is_a_near_duplicate_is_told(layout):
    pool_features.begin(layout, {"model": "a"})
    for round_, vectors in enumerate(np.split(np.eye(16), 2)):
        names = PoolIndex(layout, [round_]).column("file").tolist()
        pool_features.add_features(layout, round_, names, vectors)
    assert page(layout.root).count("<td>0.0</td><td>50.") == len(NAMES)


def test_a_run_without_a_pool_has_no_word_about_its_quality_but_tells_what_was_drawn(layout):
    files.remove(layout.feedback_history(1))
    for round_ in (0, 1):
        files.remove(layout.annotations_done(round_))
    files.remove(layout.manifest(0, 0, 1))  # of the first round only the feedback is left
    write_manifest(layout, dataclasses.replace(read_manifest(layout.manifest(1, 0, 1)), seconds=0.0))
    text = page(layout.root)
    assert ["share", "0 %"] in Rows(text).rows
    assert 'id="pool"' not in text
    last = next(row for row in Rows(text).rows if row[:1] == ["round 1"])
    assert last[5:8] == ["12", "12", ""]


def test_a_selection_is_told_round_by_round_and_class_by_class(layout):
    assert 'id="selection"' not in page(layout.root)
    for round_, scores in ((0, [0.1, 0.2, 0.3, -0.2]), (1, [0.5])):
        rows = [  # of two processes side by side
            Decision(n // 2, n % 2, f"{round_}{id_}.png", id_, score, -0.05, score > 0)
            for n, score in enumerate(scores)
            for id_ in {0: (1, 2), 3: (1, 3)}.get(n, (1,))
        ]
        write_decisions(layout, round_, 10 * round_ + 10, rows)
    rows = [row for row in Rows(page(layout.root)).rows if row]
    assert ["round 0", "4", "75.0 %", "0.025", "0.150", "0.225", "1"] in rows
    assert ["round 1", "1", "100.0 %", "0.500", "0.500", "0.500", "0"] in rows
    refused_most = rows[rows.index(["class", "group", "pasted", "refused"]) + 1 :]
    assert [row for row in refused_most if len(row) == 4] == [
        ["blue disc", "rare", "1", "100.0 %"],
        ["red disc", "common", "5", "20.0 %"],
    ]
    text = files.read_bytes(f"{layout.root}/report/classes.csv").decode()
    assert [row["refused, %"] for row in csv.DictReader(io.StringIO(text))] == ["20.0", "0.0", "100.0", ""]


def test_what_comes_from_outside_shows_as_text_on_the_page_and_in_what_it_loads(layout):
    text = page(layout.root)
    found = Rows(text)
    assert EVIL in [row[0] for row in found.rows if row] and "<b>raw</b>" in sum(found.rows, [])
    assert found.tags.count("script") == 1 and "b" not in found.tags
    loaded = Path(f"{layout.root}/report/A/rd00_000.js").read_text()
    name, records = json.loads(f"[{re.fullmatch(r'showSheet[(](.*)[)]', loaded)[1]}]")
    assert name == "report/A/rd00_000" and records[3][2] == f"a photo of {EVIL}"


def test_two_runs_stand_side_by_side_with_their_difference_and_what_they_are_set_to(layout, tmp_path):
    other = write_made_up_run(tmp_path / "other", NAMES[:3], rounds=1, per_class=4)
    settings = files.read_bytes(other.settings_file).replace(
        b"MAX_ITER: 10", b"MAX_ITER: 77\n  SEED: 0\n  OLD.KEY: 5"
    )
    files.write_bytes(other.settings_file, settings)
    rows = Rows(page(layout.root, other.root)).rows
    assert [row for row in rows if len(row) == 10] == [
        ["class", "group", "training instances", "A kept", "A AP", "A change"]
        + ["B kept", "B AP", "B change", "difference"],
        ["red disc", "common", "10", "4", "50.2", "0.2", "3", "50.1", "0.1", "-0.1"],
        [EVIL, "frequent", "20", "4", "49.6", "-0.4", "3", "49.8", "-0.2", "0.2"],
        ["blue disc", "rare", "30", "4", "50.6", "0.6", "3", "50.3", "0.3", "-0.3"],
        ["pink disc", "common", "40", "4", "49.2", "-0.8", "0", "", "", ""],
    ]
    settings = files.read_bytes(layout.settings_file).replace(b"MAX_ITER: 20", b"MAX_ITER: 20\n  SEED: 3")
    assert "SEED" not in [row[0] for row in rows if row]  # as by default
    assert [row[:2] for row in rows].count(["round", "made"]) == 2  # a table of each pool
    files.write_bytes(layout.settings_file, settings)
    text = page(layout.root, other.root)
    assert Rows(text).rows[-6:] == [
        ["key", "A", "B", "default"],
        ["GENERATOR.NAMES", "<b>raw</b>", "<b>raw</b>", "raw"],
        ["OLD.KEY", "", "5", ""],  # which there is not any more
        ["SEED", "3", "0", "0"],
        ["SOLVER.MAX_ITER", "20", "77", "90000"],
        ["SOLVER.ROUND_ITERS", "10", "10", "9000"],
    ]
    assert re.findall(r'<tr class="differ"><td>(.*?)</td>', text) == ["OLD.KEY", "SEED", "SOLVER.MAX_ITER"]
    assert Path(f"{layout.root}/comparison/B/rd00_000.webp").exists()
    assert len(set(re.findall(r'<polyline [^>]* stroke="(.*?)"', text))) == 2  # a colour for each run
    sheets = " ".join(f"comparison/{name}_000" for name in ("A/rd00", "A/rd01", "B/rd00"))
    assert re.findall(r'data-sheets="(.*?)"', text) == [*[sheets] * 3, sheets.rpartition(" ")[0]]


def test_the_csv_of_several_runs_has_the_columns_of_each_in_full_and_a_third_run_decides_the_difference(
    layout, tmp_path
):
    for round_ in (0, 1):
        taken_for = {"classes": [{"id": i, "taken_for": [[i, 1]]} for i in (3, 4)]}
        files.write_json(layout.scores("discs", "model.pth"), taken_for)
        rows = [[Decision(0, 0, f"{i}.png", i, 0.5, 0.0, i == 3)] for i in (3, 4)]
        write_decisions(layout, round_, 10 * round_ + 10, sum(rows, []))
    others = [
        write_made_up_run(tmp_path / f"of {rounds} rounds", NAMES[:3], rounds, per_class=4)
        for rounds in (1, 3)
    ]
    write_decisions(others[1], 0, 10, [Decision(0, 0, "3.png", 3, 0.5, 0.9, False)])
    text = page(layout.root, *(other.root for other in others))
    table = csv.DictReader(io.StringIO(files.read_bytes(f"{layout.root}/comparison/classes.csv").decode()))
    *_, blue, pink = table
    counts = ("asked", "made", "kept", "dropped for")
    ours = {"asked": "6", "made": "6", "kept": "4", "dropped for": "CLIP score 2", "CLIP score": "31.5"}
    ours |= {"recognised %": "100.0"}
    for row, refused in ((blue, "0.0"), (pink, "100.0")):
        assert {name: row[f"A {name}"] for name in ours} == ours and row["A refused, %"] == refused
    for label, rounds in (("B", 1), ("C", 3)):
        expected = [str(4 * rounds)] * 2 + [str(3 * rounds), f"CLIP score {rounds}"]
        assert [blue[f"{label} {name}"] for name in counts] == expected
        assert float(blue[f"{label} change"]) == pytest.approx(ap_of(rounds - 1, 3) - ap_of(-1, 3))
        assert (blue[f"{label} CLIP score"], blue[f"{label} recognised %"]) == (f"{30.0 + rounds}", "")
        assert [pink[f"{label} {name}"] for name in counts] == ["0", "0", "0", ""]
        for name in ("change", "drift", "CLIP score", "recognised %"):
            assert pink[f"{label} {name}"] == ""
    assert (blue["C refused, %"], pink["C refused, %"]) == ("100.0", "") and "B refused, %" not in blue
    shown = next(row for row in Rows(text).rows if row[:1] == ["blue disc"] and len(row) > 9)
    assert shown[-1] == f"{ap_of(2, 3) - ap_of(1, 3):.1f}"


def test_a_class_that_the_first_run_lacks_is_described_by_the_run_that_says_most_of_it(layout, tmp_path):
    lacking, *vague = (
        write_made_up_run(tmp_path / name, names, images=False)
        for name, names in (("lacking", NAMES[:3]), ("no group", NAMES), ("no training", NAMES))
    )
    for round_ in (0, 1):
        files.remove(vague[0].annotations(round_))
        files.remove(f"{vague[1].pictures_dir}/allocation_rd0{round_}.csv")
    page(lacking.root, *(run.root for run in vague), layout.root)
    text = files.read_bytes(f"{lacking.root}/comparison/classes.csv").decode()
    *_, pink = csv.DictReader(io.StringIO(text))
    assert [pink[name] for name in ("class", "group", "training instances")] == ["pink disc", "common", "40"]


def test_classes_stand_by_their_ids_which_are_their_names_where_nothing_describes_them(layout):
    def names():
        page(layout.root)
        table = io.StringIO(files.read_bytes(f"{layout.root}/report/classes.csv").decode())
        return [row["class"] for row in csv.DictReader(table)]

    content = files.read_json(layout.annotations(0))
    files.write_json(layout.annotations(0), content | {"categories": content["categories"][::-1]})
    for round_ in (0, 1):
        files.remove(f"{layout.pictures_dir}/allocation_rd0{round_}.csv")
    assert names() == NAMES
    for round_ in (0, 1):
        files.remove(layout.annotations(round_))
    assert names() == ["1", "2", "3", "4"]


def test_a_run_of_which_little_is_there_yet_has_a_page(tmp_path):
    layout = RunLayout(str(tmp_path))
    files.write_bytes(layout.settings_file, b"settings: {}\nversions: {}\n")
    assert "Nothing was trained or evaluated yet." in page(layout.root)
