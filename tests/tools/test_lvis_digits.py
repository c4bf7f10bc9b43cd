import itertools
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from transformers import CLIPTokenizer

from exchange.annotations import frequency
from exchange.config import REPOSITORY
from tools.build_lvis_digits import build
from tools.digits import prompts, samples, scenes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lvis_digits")
    build(str(folder), seed=0)
    parts = {part: json.loads((folder / f"lvis_digits_{part}.json").read_text()) for part in ("train", "val")}
    return folder, parts


def test_generation_training_and_validation_share_no_handwritten_digit():
    parts = samples.split()
    indices = [set(part.indices.tolist()) for part in parts.values()]
    assert sum(map(len, indices)) == len(set.union(*indices)) == 1797
    for part in parts.values():
        assert set(part.labels.tolist()) == set(range(10))


@pytest.fixture
def one_of_each(monkeypatch):
    """What is built then shows each category once in training and once in validation."""
    monkeypatch.setattr(scenes, "long_tailed_counts", lambda _: np.ones(samples.NUM_CATEGORIES, np.int64))
    monkeypatch.setattr(scenes, "VAL_INSTANCES_PER_CATEGORY", 1)


def test_training_and_validation_share_no_column_of_a_photograph_and_no_digit(
    one_of_each, tmp_path, monkeypatch
):
    seen: list[set[bytes]] = []
    written: list[set[int]] = []
    compose = scenes.compose

    def spy(hand, digits, backgrounds, rng):
        seen.append({image[:, x].tobytes() for image in backgrounds for x in range(image.shape[1])})
        written.append(set(digits.indices.tolist()))
        return compose(hand, digits, backgrounds, rng)

    monkeypatch.setattr(scenes, "compose", spy)
    build(str(tmp_path), seed=0)
    for first, *_, last in (seen, written):
        assert first and last and not first & last


def test_the_tail_is_long_and_validation_is_balanced(dataset):
    train, val = dataset[1]["train"], dataset[1]["val"]
    groups = Counter(category["frequency"] for category in train["categories"])
    assert len(train["categories"]) >= 20
    assert groups["r"] >= len(train["categories"]) / 3 and min(groups["c"], groups["f"]) >= 1
    assert min(Counter(a["category_id"] for a in val["annotations"]).values()) >= 20
    assert max(Counter(a["image_id"] for a in train["annotations"]).values()) == 5


def test_which_digits_are_rare_is_drawn_and_which_ink_of_a_digit_is_rarest():
    counts = [scenes.long_tailed_counts(np.random.default_rng(seed)).reshape(10, 3) for seed in range(20)]
    assert len({tuple(of_seed.sum(1).argsort().tolist()) for of_seed in counts}) == 20
    assert {int(ink) for of_seed in counts for ink in of_seed.argmin(1)} == {0, 1, 2}
    ranked = {tuple(sorted(of_seed.ravel().tolist())) for of_seed in counts}
    assert len(ranked) == 1


def test_counts_and_frequencies_are_those_of_the_training_annotations(dataset):
    for part in dataset[1].values():
        images, instances = Counter(), Counter()
        for _, category in {(a["image_id"], a["category_id"]) for a in dataset[1]["train"]["annotations"]}:
            images[category] += 1
        for annotation in dataset[1]["train"]["annotations"]:
            instances[annotation["category_id"]] += 1
        for category in part["categories"]:
            assert category["image_count"] == images[category["id"]]
            assert category["instance_count"] == instances[category["id"]]
            assert category["frequency"] == frequency(images[category["id"]])
            ink, digit = category["name"].split()
            assert category["def"] == f"the digit {digit}, handwritten in {ink} ink"


def test_negative_categories_are_absent_and_every_annotation_is_a_visible_mask(dataset):
    folder, parts = dataset
    everything = {category["id"] for category in parts["val"]["categories"]}
    for part in parts.values():
        present = {image["id"]: set() for image in part["images"]}
        shown = dict.fromkeys(present, 0)
        for annotation in part["annotations"]:
            present[annotation["image_id"]].add(annotation["category_id"])
            run_length = annotation["segmentation"]
            assert coco_mask.area(run_length) == annotation["area"] >= 30
            assert coco_mask.toBbox(run_length).tolist() == annotation["bbox"]
            shown[annotation["image_id"]] = shown[annotation["image_id"]] + coco_mask.decode(run_length)
        assert max(masks.max() for masks in shown.values()) == 1  # no pixel shows two objects
        for image in part["images"]:
            assert not present[image["id"]] & set(image["neg_category_ids"])
            if part is parts["val"]:
                assert present[image["id"]] | set(image["neg_category_ids"]) == everything
            else:
                assert len(image["neg_category_ids"]) == 5
    name = parts["train"]["images"][0]["file_name"]
    assert name == "train_00001.png"
    image = Image.open(folder / "images" / name)
    assert (image.size, image.format) == ((scenes.SIZE, scenes.SIZE), "PNG")


def test_an_object_covers_at_most_half_of_one_behind_it(monkeypatch):
    monkeypatch.setattr(scenes, "SIZE", scenes.MAX_HEIGHT)  # so that they are in each other's way
    digits, backgrounds = samples.split()["val"], scenes.photographs("val")
    left = []
    for seed in range(40):
        alone, behind = (
            scenes.compose(categories, digits, backgrounds, np.random.default_rng(seed)).masks[0]
            for categories in ([2], [2, 5])
        )
        assert not (behind & ~alone).any() and behind.sum() >= 30
        left.append(behind.sum() / alone.sum())
    assert 0.5 <= min(left) < 0.6 and max(left) == 1


def test_a_photograph_that_is_made_brighter_stays_bright():
    digits, white = samples.split()["val"], np.full((90, 90, 3), 255, np.uint8)
    for seed in range(9):
        image = scenes.compose([1], digits, [white], np.random.default_rng(seed)).image
        assert np.median(image) >= int(0.7 * 255)


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(one_of_each, tmp_path):
    for name, seed in (("original", 0), ("again", 0), ("other", 1)):
        build(str(tmp_path / name), seed)
    original, again, other = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("original", "again", "other")
    )
    assert original == again and len(original) > 10
    assert all(other[path] != content for path, content in original.items() if path in other)


def test_the_tokenizer_knows_every_word_of_the_prompts_and_reads_any_other():
    tokenizer = prompts.build_tokenizer()
    names = [samples.category_name(number) for number in range(1, samples.NUM_CATEGORIES + 1)]
    for template, name in itertools.product(prompts.TEMPLATES, names):
        prompt = template.format(name)
        assert len(tokenizer(prompt).input_ids) == len(prompt.split()) + 2 <= prompts.MAX_TOKENS
    embedded = CLIPTokenizer.from_pretrained(REPOSITORY / "assets/digits/clip")
    assert tokenizer.get_vocab() == embedded.get_vocab()  # the same in every process
    unknown = tokenizer("zebra?").input_ids
    assert len(unknown) > 3 and tokenizer.unk_token_id not in unknown[1:-1]


def test_a_drawn_digit_is_tight_and_as_high_as_asked():
    rng = np.random.default_rng(0)
    for pixels in samples.split()["train"].pixels[:50]:
        coverage = samples.draw(pixels, 40, rng)
        assert coverage.shape[0] == 40 and 0 <= coverage.min() and coverage.max() <= 1
        assert coverage[0].any() and coverage[-1].any() and coverage[:, 0].any() and coverage[:, -1].any()
