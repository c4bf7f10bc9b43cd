"""What the embedded judge of LVIS-Digits is taught, how it is measured, and what it tells apart."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diSegmenter.judge import load_judge
from exchange.config import REPOSITORY
from tools.digits import samples, scenes, train_judge
from tools.digits.cut_outs import KINDS, Example, Scribe, examples

CATEGORIES = range(1, samples.NUM_CATEGORIES + 1)


def scribe(part: str = "generation") -> Scribe:
    return Scribe(samples.split()[part], scenes.photographs("train"), np.random.default_rng(0))


def test_every_kind_of_cut_out_shows_something_for_every_category():
    drawing = scribe()
    for draw, _ in KINDS.values():
        for category in CATEGORIES:
            image, alpha = draw(drawing, category)
            assert image.shape == (64, 64, 3) and image.dtype == alpha.dtype == np.uint8
            assert alpha.shape == (64, 64) and alpha.any()


def test_what_is_of_another_category_differs_in_digit_or_in_ink_alone(monkeypatch):
    drawing, drawn = scribe(), []
    monkeypatch.setattr(drawing, "whole", lambda category: drawn.append(category))
    for category in CATEGORIES:
        for draw, same, other in ((drawing.other_digit, 1, 0), (drawing.other_ink, 0, 1)):
            for _ in range(5):
                draw(category)
                asked, shown = (divmod(c - 1, len(samples.INKS)) for c in (category, drawn[-1]))
                assert drawn[-1] in CATEGORIES and asked[same] == shown[same] and asked[other] != shown[other]


def test_a_piece_is_a_third_to_two_thirds_of_a_digit_that_is_no_one(monkeypatch):
    drawing, asked = scribe(), []
    whole = drawing.whole
    monkeypatch.setattr(drawing, "whole", lambda category: asked.append(whole(category)) or asked[-1])
    for category in CATEGORIES:
        image, alpha = drawing.piece(category)
        ink = asked[-1].alpha > 128
        assert image is asked[-1].image and (alpha <= asked[-1].alpha).all()
        assert 0.3 < (alpha > 128).sum() / ink.sum() < 0.7
    ones = [category for category in CATEGORIES if samples.category_name(category).endswith("one")]
    drawn = []
    monkeypatch.setattr(drawing, "whole", lambda category: drawn.append(category) or whole(category))
    for category in ones:
        drawing.piece(category)
    assert not set(drawn) & set(ones)


@pytest.mark.parametrize("kind", ["two", "surrounded"])
def test_two_digits_and_surroundings_cover_more_than_the_digit(monkeypatch, kind):
    drawing, placed = scribe(), []
    place = drawing._place
    monkeypatch.setattr(drawing, "_place", lambda *a, **k: placed.append(place(*a, **k)) or placed[-1])
    beyond = []
    for category in CATEGORIES:
        placed.clear()
        _, alpha = KINDS[kind][0](drawing, category)
        assert (alpha[placed[0] > 0.6] > 0).mean() > 0.8
        beyond.append((alpha[placed[0] == 0] > 128).sum())
    assert np.median(beyond) > 60  # pixels; a blot may lie on the digit


def test_examples_ask_about_all_categories_alike_and_are_of_each_kind_by_its_share():
    found = list(examples(scribe(), 900))
    assert np.bincount([category for _, category, _ in found])[1:].tolist() == [30] * 30
    for kind, (_, share) in KINDS.items():
        assert np.mean([name == kind for *_, name in found]) == pytest.approx(share, abs=0.06)
    assert sum(share for _, share in KINDS.values()) == pytest.approx(1)


def test_of_the_places_of_a_picture_those_in_the_middle_are_kept():
    places = torch.arange(17.0).view(17, 1).expand(17, 3)
    assert train_judge._without_margin(places, 4)[:, 0].tolist() == [0, 6, 7, 10, 11]


def test_the_judge_learns_each_answer_and_the_name_where_a_yes_is_right(monkeypatch):
    categories, right = torch.tensor([1, 5, 9, 2, 6, 10]), torch.tensor([True] * 3 + [False] * 3)
    _, processor = train_judge.build(str(REPOSITORY / "assets/digits/clip"))
    questions, learnt = [], []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.zeros(len(processor.tokenizer)))

        def forward(self, input_ids, pixel_values, logits_to_keep):
            questions.append((input_ids, logits_to_keep))
            return SimpleNamespace(logits=self.logits.expand(len(input_ids), len(logits_to_keep), -1))

    def watched_loss(logits, target):
        learnt.append(processor.tokenizer.convert_ids_to_tokens(target))
        return F.cross_entropy(logits, target)

    monkeypatch.setattr(train_judge, "build", lambda eyes: (Watched(), processor))
    drawn = torch.zeros(6, 3, 48, 48), categories, right
    monkeypatch.setattr(train_judge, "make_pictures", lambda *_: drawn)
    monkeypatch.setattr(train_judge, "F", SimpleNamespace(cross_entropy=watched_loss))
    train_judge.train("", steps=1, seed=0)
    (asked, kept), answers, names = questions[0], *learnt
    words = [processor.tokenizer.convert_ids_to_tokens(row) for row in asked]
    name = kept[:-1] + 1  # each is read off the place before it, the answer off the last
    assert kept[-1] == asked.shape[1] - 1 and len(words) == len(answers) == 64
    about = [" ".join(row[place] for place in name.tolist()) for row in words]
    right_names = [samples.category_name(category) for category in (1, 5, 9)]
    assert answers == ["yes" if each in right_names else "no" for each in about]
    assert names == " ".join(each for each in about if each in right_names).split()


def test_the_judge_is_measured_against_each_kind_of_bad_cut_out(monkeypatch):
    brightness = {"whole": [0.7, 0.4], "other_digit": [0.2, 0.45], "piece": [0.1, 0.9]}

    def draws(kind):
        levels = iter([255 * level for level in brightness[kind]] * 15)
        return lambda scribe, category: Example(
            np.full((2, 2, 3), next(levels), np.uint8), np.ones((2, 2), np.uint8)
        )

    def judge(*_):
        return lambda images, alphas, asked: [image.mean() / 255 for image in images]

    monkeypatch.setattr(train_judge, "KINDS", {kind: (draws(kind), 1.0) for kind in brightness})
    monkeypatch.setattr(train_judge, "Judge", judge)
    seen = []
    monkeypatch.setattr(
        train_judge, "Scribe", lambda digits, photographs, _: seen.extend([digits, photographs])
    )
    assert train_judge.measure(None, None, count=30) == {
        "auc": pytest.approx(5 / 8),
        "yes_to_whole": 0.5,
        "auc_other_digit": pytest.approx(3 / 4),
        "no_to_other_digit": 1.0,
        "auc_piece": pytest.approx(2 / 4),
        "no_to_piece": 0.5,
    }
    digits, photographs = seen
    assert digits.indices.tolist() == samples.split()["val"].indices.tolist()
    assert all(map(np.array_equal, photographs, scenes.photographs("val")))


def test_the_embedded_judge_says_yes_to_the_right_digit_and_no_to_another():
    drawing = scribe("val")
    judge = load_judge("assets/digits/judge", "main", train_judge.questions(), torch.device("cpu"))
    categories = list(CATEGORIES)
    images, alphas = zip(*map(drawing.whole, categories), strict=True)
    right = np.array(judge(images, alphas, categories))
    other_digits = [(category + 2) % 30 + 1 for category in categories]
    other_inks = [(category - 1) // 3 * 3 + category % 3 + 1 for category in categories]
    for others in (other_digits, other_inks):
        assert (right > np.array(judge(images, alphas, others))).mean() > 0.9
