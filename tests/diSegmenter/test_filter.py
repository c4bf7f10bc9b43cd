import dataclasses

import pytest

from diSegmenter.filter import InstanceFilter
from exchange.config import REPOSITORY, flatten, load_config
from tests.diSegmenter.conftest import pool_instance

GOOD = pool_instance(0, 1, 0, width=100, height=50, bbox=[20, 10, 40, 30], area=1000, clip_black=26.0)
CHECKS = InstanceFilter(
    clip_threshold=25.0,
    area_share=(0.05, 0.95),
    max_objects=1,
    drop_touching_border=True,
    similarity_threshold=0.6,
    judge_threshold=0.5,
)


def test_a_good_instance_is_kept():
    assert CHECKS.reason(GOOD) == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"clip_black": 24.99}, "CLIP score"),
        ({"area": 250}, "too small"),
        ({"area": 4750}, "too large"),
        ({"objects": 2}, "several objects"),
        ({"bbox": [0, 10, 40, 30]}, "touches the border"),
        ({"bbox": [20, 0, 40, 30]}, "touches the border"),
        ({"bbox": [60, 10, 40, 30]}, "touches the border"),
        ({"bbox": [20, 20, 40, 30]}, "touches the border"),
        ({"segmentation": []}, "no object"),
        ({"similarity": 0.59}, "similarity"),
        ({"similarity": 0.6}, ""),
        ({"judge": 0.49}, "judge"),
        ({"judge": 0.5}, ""),
        *(
            ({"similarity": 0.0}, "similarity"),
            ({"judge": 0.0}, "judge"),
            ({"clip_black": 0.0}, "CLIP score"),
        ),
    ],
)
def test_each_check_drops_with_its_reason(change, reason):
    assert CHECKS.reason(dataclasses.replace(GOOD, **change)) == reason


def test_the_better_of_the_two_backgrounds_decides_at_the_threshold_itself():
    assert CHECKS.reason(dataclasses.replace(GOOD, clip_white=25.0, clip_black=-3.0)) == ""


def test_the_best_of_a_class_and_what_is_as_far_below_as_the_tolerance_stay_however_low_they_score():
    rows = [dataclasses.replace(GOOD, clip_white=score, clip_black=-9.0) for score in (-3.0, -4.01, -4.0)]
    rows.append(dataclasses.replace(GOOD, clip_white=5.0, area=1))  # is dropped, whatever its score
    judged = dataclasses.replace(CHECKS, clip_tolerance=1.0).judge(rows)
    assert [row.reason for row in judged] == ["", "CLIP score", "", "too small"]


def test_an_instance_without_a_score_is_not_judged_by_it():
    assert CHECKS.reason(dataclasses.replace(GOOD, clip_white=None, clip_black=None)) == ""


def test_switched_off_checks_drop_nothing():
    off = InstanceFilter(
        clip_threshold=-100.0, area_share=(0.0, 1.0), max_objects=0, drop_touching_border=False
    )
    odd = {"area": 1, "objects": 9, "bbox": [0, 0, 100, 50], "similarity": -0.9, "judge": 0.0}
    assert off.reason(dataclasses.replace(GOOD, **odd)) == ""


RELEASE = {"ALPHA_FLOOR": 0, "LARGEST_COMPONENT": False, "AREA_SHARE": [0.0, 1.1], "CLIP_THRESHOLD": 25.0}
MODELS = {"FOREGROUND_MODEL": ["ZhengPeng7/BiRefNet"], "INPUT_SIZE": 512, "TRUST_REMOTE_CODE": False}
MODELS |= {"CLIP_MODEL": "openai/clip-vit-large-patch14", "CLIP_PROMPT": "a photo of {}"}
MODELS |= {"SIMILARITY_MODEL": "", "SIMILARITY_THRESHOLD": 0.6, "SIMILARITY_PADDING": 40, "JUDGE": ""}
X_PASTE = {"ALPHA_FLOOR": 128, "LARGEST_COMPONENT": True, "AREA_SHARE": [0.01, 1.0]}
FORMS = {
    "MRCA/*.yaml": RELEASE | MODELS | {"LATEST_ROUND_ONLY": False, "KEEP_RAW": True},
    "baselines/**/MRCA*.yaml": RELEASE,
    "baselines/**/XPaste*.yaml": X_PASTE,
    "digits/*.yaml": X_PASTE,
    "digits/*MRCA*.yaml": X_PASTE | {"CLIP_THRESHOLD": 45.0},
}


@pytest.mark.parametrize("pattern", FORMS)
def test_mrca_takes_masks_as_its_release_does_and_digits_and_x_paste_clean_them(pattern):
    paths = [path for path in (REPOSITORY / "configs").glob(pattern) if "raw_masks" not in path.name]
    off = {"CLIP_TOLERANCE": 0.0, "MAX_OBJECTS": 0, "DROP_TOUCHING_BORDER": False}
    for path in paths:
        node = load_config(str(path)).SEGMENTER
        assert {key: node[key] for key in FORMS[pattern] | off} == FORMS[pattern] | off
    assert len(paths) > 3


def test_raw_masks_differ_from_the_digits_in_what_cleans_alone():
    raw, cleaned = (
        dict(flatten(load_config(str(REPOSITORY / f"configs/digits/{name}_digits.yaml"))))
        for name in ("MRCA_raw_masks", "MRCA")
    )
    changed = {key.removeprefix("SEGMENTER."): raw[key] for key in raw if raw[key] != cleaned[key]}
    del changed["OUTPUT_DIR"]
    assert changed == {key: RELEASE[key] for key in ("ALPHA_FLOOR", "LARGEST_COMPONENT", "AREA_SHARE")}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((25.0, (0.0, 1.1), 0, False), "a CLIP score of 25 or more."),
        (
            (25.0, (0.0, 1.1), 0, False, 0.0, -0.5),
            "a CLIP score of 25 or more, a similarity to real objects of -0.5 or more.",
        ),
        (
            (25.0, (0.01, 1.1), 0, False),
            "a CLIP score of 25 or more, an object that covers more than 1 % of its image.",
        ),
        (
            (20.5, (0.05, 0.95), 2, True, 1.5, 0.6, 0.5),
            "a CLIP score of 20.5 or more (or up to 1.5 below the best of the class), an object that covers more "
            "than 5 % and less than 95 % of its image, at most 2 objects in its mask, a similarity to real "
            "objects of 0.6 or more, a judge's yes with a probability of 0.5 or more, an "
            "object that does not touch the border.",
        ),
    ],
)
def test_what_is_kept_is_told_in_words_without_bounds_that_are_none(settings, words):
    assert InstanceFilter(*settings).in_words() == f"Kept is what has {words}"
