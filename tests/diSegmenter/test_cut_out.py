import threading

import numpy as np
import pytest

from diSegmenter.annotate import MaskCleaner
from diSegmenter.cut_out import BestOf, InTurn, OneModel
from diSegmenter.filter import InstanceFilter
from tests.diSegmenter.conftest import pool_instance

IMAGES, IDS = [np.zeros((4, 5, 4), np.uint8)] * 8, [3, 3, 3, 3, 7, 7, 7, 7]


def model(name: str, level: int, scores: np.ndarray) -> OneModel:
    """Masks of one alpha, scored (8, 2) as given."""
    alpha = np.full((4, 5), level, np.uint8)
    return OneModel(name, lambda images: [alpha] * len(images), MaskCleaner(0, False), lambda *_: scores)


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_the_best_of_each_image_is_judged_by_the_smaller_of_threshold_and_best_less_tolerance(tolerance):
    scores = np.random.default_rng(0).uniform(15, 30, (3, 8, 2))  # model, image, background
    scores[:, 4:] -= 12  # all of class 7 are below the threshold
    found = BestOf([model(name, 50 + n, scores[n]) for n, name in enumerate("abc")])(IMAGES, IDS)
    best = scores.max(axis=2)
    assert [cut.foreground for cut in found] == ["abc"[n] for n in best.argmax(axis=0)]
    assert [int(cut.alpha[0, 0]) - 50 for cut in found] == best.argmax(axis=0).tolist()
    rows = [
        pool_instance(
            0, category, n, clip_white=cut.scores[0], clip_black=cut.scores[1], foreground=cut.foreground
        )
        for n, (category, cut) in enumerate(zip(IDS, found, strict=True))
    ]
    kept = [not row.reason for row in InstanceFilter(25.0, (0.0, 1.1), 0, False, tolerance).judge(rows)]
    bars = [
        min(25.0, best[:, part].max() - tolerance) if tolerance else 25.0 for part in (slice(4), slice(4, 8))
    ]
    assert kept == [bool(best[:, n].max() >= bars[n // 4]) for n in range(8)]
    assert any(kept[:4]) and any(kept[4:]) == (tolerance > 0)


def test_a_cut_out_that_shows_nothing_loses_against_any_other_and_the_first_of_equals_wins():
    high, low = np.full((8, 2), 40.0), np.full((8, 2), 10.0)
    models = [model("empty", 0, high), model("first", 90, low), model("second", 91, low)]
    assert {cut.foreground for cut in BestOf(models)(IMAGES, IDS)} == {"first"}


def test_while_one_thread_has_a_model_another_does_not_get_it():
    entered, threads = threading.Event(), []

    def model(first: bool) -> bool:
        if not first:
            entered.set()
            return True
        threads.append(threading.Thread(target=shared, args=(False,)))
        threads[0].start()
        return entered.wait(0.1)  # nobody comes in, however long

    shared = InTurn(model)
    assert not shared(True)
    threads[0].join()
    assert entered.is_set()
