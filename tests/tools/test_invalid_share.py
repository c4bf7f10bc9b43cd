"""What an independent classifier calls invalid among the instances of LVIS-Digits, and by which filter that is kept."""

from collections import Counter

import cv2
import numpy as np
import pytest

from diSegmenter.filter import InstanceFilter
from diSegmenter.finish_round import JudgedRound, write_verdicts
from exchange import files
from exchange.errors import UserError
from exchange.images import encode_png, read_rgba
from exchange.layout import RunLayout
from exchange.pool_index import write_index
from tests.diSegmenter.conftest import pool_instance
from tools.digits import invalid_share, samples
from tools.digits.classifier import DigitClassifier, coverage_of
from tools.digits.invalid_share import examine, kept_by, real_pictures

FILTER = InstanceFilter(20.0, (0.0, 1.1), 0, False, similarity_threshold=0.5)


@pytest.fixture(scope="module")
def classify() -> DigitClassifier:
    return DigitClassifier(drawings_per_sample=1)


@pytest.fixture(scope="module")
def right(classify) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Three real digits of which nothing is wrong, the last one a zero: pictures, masks and category ids."""
    good = (real for real in real_pictures() if not examine(*real, classify))
    return [next(good), next(good), next(real for real in good if real[2] == 1)]


def kinds(classify, right, change) -> set[str]:
    """What is said of the digits after ``change``."""
    return {examine(*change(*(np.copy(part) for part in real)), classify) for real in right}


def test_each_kind_of_what_is_wrong_is_told(classify, right):
    def blank(picture, alpha, category):
        return np.full_like(picture, 230), alpha, category

    def with_another_beside(picture, alpha, category):
        small = cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA)
        return np.hstack([picture, np.vstack([small, small])]), np.pad(alpha, ((0, 0), (0, 32))), category

    def with_a_speck(picture, alpha, category):
        x, y, width, height = cv2.boundingRect(alpha)
        away = cv2.distanceTransform((alpha == 0).astype(np.uint8), cv2.DIST_L2, 3)[
            y : y + height, x : x + width
        ]
        row, column = np.unravel_index(away.argmax(), away.shape)
        picture[y + row, x + column] = picture[coverage_of(picture) > 0.9][0]
        return picture, alpha, category

    def half_of_the_mask(picture, alpha, category):
        alpha[: np.flatnonzero(alpha.any(1)).mean().astype(int)] = 0
        return picture, alpha, category

    def all_of_the_picture(picture, alpha, category):
        return picture, np.full_like(alpha, 255), category

    def another_digit(picture, alpha, category):
        return picture, alpha, (category + 2) % 30 + 1

    def another_ink(picture, alpha, category):
        return picture, alpha, (category - 1) // 3 * 3 + category % 3 + 1

    assert kinds(classify, right, lambda *real: real) == {""}
    assert kinds(classify, right, with_a_speck) == {""}
    assert kinds(classify, right, blank) == {"nothing"}
    assert kinds(classify, right, with_another_beside) == {"several parts"}
    assert (
        kinds(classify, right, half_of_the_mask)
        == kinds(classify, right, all_of_the_picture)
        == {"cut wrongly"}
    )
    assert kinds(classify, right, another_digit) == kinds(classify, right, another_ink) == {"not the class"}


def test_the_real_digits_are_those_of_validation_in_each_ink():
    part, found = samples.split()["val"], [category for *_, category in real_pictures()]
    expected = [3 * digit + ink + 1 for digit in part.labels for ink in range(3)]
    assert found == expected and len(found) == 3 * 397


def test_a_filter_alone_keeps_what_its_threshold_lets_pass_whatever_the_others_say():
    rows = [
        pool_instance(0, 3, n, clip_white=clip, clip_black=None, similarity=similarity, reason=reason)
        for n, (clip, similarity, reason) in enumerate(
            [(30.0, 0.9, ""), (10.0, 0.9, "CLIP score"), (30.0, 0.1, "similarity"), (10.0, None, "too small")]
        )
    ]
    assert kept_by(rows, FILTER) == {
        "kept by clip alone": [True, False, True, False],
        "kept by similarity alone": [True, True, False, True],
        "kept": [True, False, False, False],
    }
    assert "kept by similarity alone" not in kept_by(rows[3:], FILTER)
    nothing = pool_instance(0, 3, 0, clip_white=0.0, clip_black=-1.0)
    assert kept_by([nothing], FILTER) == {"kept by clip alone": [False], "kept": [True]}


@pytest.fixture
def layout(tmp_path, right) -> RunLayout:
    """Two rounds of the three digits; of the first the last is in another class, dropped in round 0 and kept in 1."""
    layout = RunLayout(str(tmp_path / "run"))
    for round_ in (0, 1):
        rows = []
        for number, (picture, alpha, category) in enumerate(right):
            wrong = number == 2
            row = pool_instance(
                round_,
                category + 3 if wrong else category,
                number,
                clip_white=10.0 if wrong and not round_ else 30.0,
                reason="CLIP score" if wrong and not round_ else "",
                clip_black=None,
            )
            files.write_bytes(layout.raw(row.file), encode_png(picture))
            files.write_bytes(layout.segmented(row.file), encode_png(alpha))
            rows.append(row)
        write_index(layout, round_, rows)
        write_verdicts(layout, JudgedRound(round_, FILTER, rows, []))
    return layout


def test_runs_are_added_up_before_and_after_the_filters_and_what_is_kept_wrongly_is_shown(
    layout, tmp_path, call, capsys, monkeypatch, classify, right
):
    monkeypatch.setattr(invalid_share, "DigitClassifier", lambda: classify)
    monkeypatch.setattr(invalid_share, "real_pictures", lambda: right[:1])
    sheet = str(tmp_path / "invalid.png")
    call(invalid_share, layout.root, layout.root, "--sheet", sheet)
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    told = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert told[0] == ["pictures", "invalid", "nothing", "several parts", "cut wrongly", "not the class"]
    assert told[2:] == [
        ["made", "12", "33.3 %", "0", "0", "0", "4"],
        ["kept by clip alone", "10", "20.0 %", "0", "0", "0", "2"],
        ["kept", "10", "20.0 %", "0", "0", "0", "2"],
        ["real digits", "1", "0.0 %", "0", "0", "0", "0"],
    ]
    assert "kept" not in invalid_share.table({"made": Counter({"nothing": 2}), "kept": Counter()})
    height, width, _ = read_rgba(sheet).shape
    assert width > 2 * 200 and 2 * height < width  # two pairs, side by side


@pytest.mark.parametrize("path", ["raw", "segmented"])
def test_a_run_whose_images_are_gone_or_that_was_not_judged_is_refused(
    layout, call, path, monkeypatch, classify
):
    monkeypatch.setattr(invalid_share, "DigitClassifier", lambda: classify)
    files.remove(getattr(layout, path)(files.list_dir(getattr(layout, path)(""))[-1]))
    with pytest.raises(
        UserError, match="images and masks are looked at, so take a run with SEGMENTER.KEEP_RAW"
    ):
        call(invalid_share, layout.root)
    files.remove(layout.verdicts(0))
    with pytest.raises(UserError, match="does not say what round 0 was judged by"):
        call(invalid_share, layout.root)
