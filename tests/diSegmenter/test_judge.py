import re
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import AutoProcessor, LlavaForConditionalGeneration

from diSegmenter import segmentAndFilter
from diSegmenter.judge import Judge, load_judge, questions_about, shown
from exchange import files
from exchange.config import load_config
from exchange.errors import UserError
from exchange.pool_index import PoolIndex
from tests.diSegmenter.conftest import disc_image, generate, write_settings
from tests.diSegmenter.small_judges import FAMILIES, chat, save_judge

CPU = torch.device("cpu")
WORDS = "user bot : is this one whole red disc ? a very large blue yes Yes no No maybe"
QUESTIONS = {3: "is this one whole red disc ?", 7: "is this one whole very large blue disc ?"}
IMAGES = [disc_image(8), disc_image(5, size=(30, 64)), disc_image(12, ink=(0, 0, 250)), disc_image(3)]
ALPHAS = [np.where(image[..., 1] < 255, 255, 0).astype(np.uint8) for image in IMAGES]
CATEGORIES = [3, 7, 7, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_judge(tmp_path_factory.mktemp("models") / "judge", WORDS, chat())


@pytest.fixture
def config(tmp_path, foreground_folder, clip_folder, folder):
    settings = {
        "CLIP_THRESHOLD": -100.0,
        "BATCH_SIZE": 4,
        "JUDGE": folder,
        "JUDGE_PROMPT": "is this one whole {} ?",
    }
    return write_settings(tmp_path, foreground_folder, clip_folder, **settings)


@pytest.mark.parametrize("template", [chat(), None])
def test_the_answer_is_the_share_of_yes_among_yes_and_no_at_the_end_of_the_question(tmp_path, template):
    folder = save_judge(tmp_path / "judge", WORDS, template)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float64).eval()
    processor = AutoProcessor.from_pretrained(folder)
    found = load_judge(folder, "main", QUESTIONS, CPU)(IMAGES, ALPHAS, CATEGORIES)
    for image, alpha, category, answer in zip(IMAGES, ALPHAS, CATEGORIES, found, strict=True):
        text = f"<image>{QUESTIONS[category]}"
        inputs = processor(
            images=Image.fromarray(shown(image, alpha)),
            text=text if template is None else f"user : {text} bot :",
            return_tensors="pt",
        )
        with torch.no_grad():
            inputs["pixel_values"] = inputs["pixel_values"].double()
            probabilities = model(**inputs).logits[0, -1].softmax(0)
        yes, no = (
            sum(probabilities[processor.tokenizer.convert_tokens_to_ids(form)].item() for form in forms)
            for forms in (("yes", "Yes"), ("no", "No"))
        )
        assert answer == pytest.approx(yes / (yes + no), abs=1e-5)
    assert len({round(answer, 5) for answer in found}) == 4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_questions_and_pictures_of_different_length_is_answered_as_one_by_one(family):
    torch.manual_seed(1)
    judge = Judge(*FAMILIES[family](WORDS), QUESTIONS, CPU, family)
    # The more pixels, the more tokens for some.
    images = [IMAGES[0], disc_image(50, size=(130, 164)), *IMAGES[2:]]
    alphas = [np.where(image[..., 1] < 255, 255, 0).astype(np.uint8) for image in images]
    alone = [judge([image], [a], [c])[0] for image, a, c in zip(images, alphas, CATEGORIES, strict=True)]
    assert judge(images, alphas, CATEGORIES) == pytest.approx(alone, abs=1e-5)
    assert len({round(answer, 5) for answer in alone}) == 4


def test_another_class_is_another_question(folder):
    judge = load_judge(folder, "main", QUESTIONS, CPU)
    as_red, as_blue = judge(IMAGES[:1] * 2, ALPHAS[:1] * 2, [3, 7])
    assert abs(as_red - as_blue) > 1e-3


def test_the_judge_sees_the_whole_cut_out_on_white_in_the_middle_of_a_square():
    image = np.full((40, 60, 4), 100, np.uint8)
    alpha = np.zeros((40, 60), np.uint8)
    alpha[4:10, 20:50], alpha[5, 21] = 255, 51
    square = shown(image, alpha)
    assert square.shape == (36, 36, 3) and square.dtype == np.uint8
    inside = np.zeros((36, 36), bool)
    inside[15:21, 3:33] = True
    assert (square[~inside] == 255).all() and (square[16, 4] == 224).all()
    inside[16, 4] = False
    assert (square[inside] == 100).all()


def test_names_are_asked_about_as_they_are_spoken_and_other_braces_stay():
    found = questions_about("One {} {now}?", {3: "bow_(weapon)"})
    assert found == {3: "One bow (weapon) {now}?"}


@pytest.mark.parametrize("prompt", ["Is it whole?", "Is this {name} whole?"])
def test_a_question_that_names_no_category_is_refused(prompt):
    with pytest.raises(UserError, match=rf"SEGMENTER.JUDGE_PROMPT is {re.escape(repr(prompt))}.*put \{{\}}"):
        questions_about(prompt, {3: "disc"})


@pytest.mark.parametrize(
    ("words", "missing"), [("yes Yes maybe", "'no'"), ("no maybe", "'yes'"), ("maybe", "'yes'")]
)
def test_a_model_without_a_token_for_an_answer_is_refused(tmp_path, words, missing):
    folder = save_judge(tmp_path / "judge", words)
    with pytest.raises(UserError, match=f"has no single token for {missing}.*SEGMENTER.JUDGE"):
        load_judge(folder, "main", QUESTIONS, CPU)


def test_the_letter_that_an_answer_begins_with_is_no_answer():
    model, processor = FAMILIES["LLaVA"]("y e s n o Y N")
    processor.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    with pytest.raises(UserError, match="letters has no single token for 'yes'"):
        Judge(model, processor, QUESTIONS, CPU, "letters")


def test_an_answer_may_begin_with_a_space_or_a_capital_but_is_one_known_token():
    tokens = {
        "yes": [5],
        " yes": [6],
        "Yes": [7],
        " Yes": [0],
        "no": [8, 9],
        " no": [11],
        "No": [0],
        " No": [9, 8],
    }
    tokenizer = Mock(encode=lambda text, add_special_tokens: tokens[text], unk_token_id=0)
    judge = Judge(FAMILIES["LLaVA"](WORDS)[0], Mock(tokenizer=tokenizer), QUESTIONS, CPU, "stub")
    assert (judge._yes, judge._no) == ([5, 6, 7], [11])


def test_a_model_of_another_kind_or_none_is_refused(tmp_path, clip_folder, foreground_folder):
    for name, message in (
        (clip_folder, "Unrecognized configuration class"),
        (str(tmp_path), r"config\.json"),
        (foreground_folder, "custom code"),
    ):
        with pytest.raises(UserError, match=f"the judge {name} does not load.*{message}.*SEGMENTER.JUDGE"):
            load_judge(name, "main", QUESTIONS, CPU)


def test_a_model_that_does_not_answer_by_its_next_token_is_refused(folder, monkeypatch):
    monkeypatch.setattr(LlavaForConditionalGeneration, "forward", lambda self, input_ids: None)
    with pytest.raises(
        UserError, match="does not answer by its next token: set SEGMENTER.JUDGE to a decoder"
    ):
        load_judge(folder, "main", QUESTIONS, CPU)


def test_an_encoder_with_a_decoder_is_refused():
    model, processor = FAMILIES["LLaVA"](WORDS)
    model.config.is_encoder_decoder = True
    with pytest.raises(UserError, match="pair does not answer by its next token"):
        Judge(model, processor, QUESTIONS, CPU, "pair")


def test_a_template_that_can_think_aloud_is_told_not_to(tmp_path):
    thinking = chat() + "{% if enable_thinking is not defined or enable_thinking %} maybe{% endif %}"
    answers = [
        load_judge(save_judge(tmp_path / name, WORDS, template), "main", QUESTIONS, CPU)(
            IMAGES, ALPHAS, CATEGORIES
        )
        for name, template in (("plain", chat()), ("thinking", thinking))
    ]
    assert answers[0] == answers[1]


def test_what_the_judge_refuses_is_dropped_with_its_reason_and_its_answer_on_record(call, config, layout):
    generate(layout, 0, 12)
    call(segmentAndFilter, "--config", config, "--round", "1", "SEGMENTER.JUDGE_THRESHOLD", "0")
    index = PoolIndex(layout, [0], dropped_too=True)
    answers = index.column("judge")
    assert np.isfinite(answers).all() and ((answers > 0) & (answers < 1)).all() and len(set(answers)) > 6
    threshold = float(np.median(answers))
    judged = ["--config", config, "--round", "1", "SEGMENTER.JUDGE_THRESHOLD", str(threshold)]
    call(segmentAndFilter, *judged, "--refilter", "-100")
    index = PoolIndex(layout, [0], dropped_too=True)
    np.testing.assert_array_equal(index.column("judge"), answers)
    assert index.column("reason").tolist() == ["" if answer >= threshold else "judge" for answer in answers]
    verdicts = files.read_json(layout.verdicts(0))
    assert verdicts["settings"]["judge_threshold"] == threshold
    assert [verdict["judge"] for verdict in verdicts["instances"]] == answers.tolist()
    page = files.read_bytes(f"{layout.pictures_dir}/report_rd00.html").decode()
    assert f"a judge&#x27;s yes with a probability of {threshold:g} or more" in page
    assert "<td>judge</td>" in page


def test_without_a_judge_none_is_loaded_and_its_column_is_empty(call, config, layout, monkeypatch):
    generate(layout, 0, 4)
    monkeypatch.setattr("diSegmenter.judge.load_judge", None)
    call(segmentAndFilter, "--config", config, "--round", "1", "SEGMENTER.JUDGE", "")
    index = PoolIndex(layout, [0], dropped_too=True)
    assert np.isnan(index.column("judge")).all() and set(index.column("reason")) == {""}


def test_a_call_that_goes_on_keeps_the_answers_that_there_are(call, config, layout, monkeypatch):
    generate(layout, 0, 9)
    call(segmentAndFilter, "--config", config, "--round", "1", "--share", "0", "--num-shares", "2")
    answered = len(files.list_dir(layout.segmented("")))
    asked = []
    answers = load_judge

    def counting(*arguments):
        judge = answers(*arguments)
        return lambda images, *rest: asked.extend(images) or judge(images, *rest)

    monkeypatch.setattr("diSegmenter.judge.load_judge", counting)
    call(segmentAndFilter, "--config", config, "--round", "1")
    assert 0 < answered < 9 and len(asked) == 9 - answered
    there = PoolIndex(layout, [0], dropped_too=True).column("judge")
    assert np.isfinite(there).all()


def test_a_threshold_that_is_no_probability_is_refused(call, config):
    for value in ("50", "-0.1"):
        with pytest.raises(
            UserError, match=rf"\.JUDGE_THRESHOLD is {value}: give a probability, from 0 to 1"
        ):
            call(segmentAndFilter, "--config", config, "SEGMENTER.JUDGE_THRESHOLD", value)
    surely = load_config(config, ["SEGMENTER.JUDGE_THRESHOLD", "1"])
    assert segmentAndFilter.build_filter(surely, 25.0).judge_threshold == 1


def test_a_question_without_a_place_for_the_name_stops_stage_2_before_anything_is_cut_out(
    call, config, layout
):
    generate(layout, 0, 3)
    with pytest.raises(UserError, match=r"SEGMENTER\.JUDGE_PROMPT"):
        call(segmentAndFilter, "--config", config, "--round", "1", "SEGMENTER.JUDGE_PROMPT", "is it whole")
    assert not files.list_dir(layout.segmented(""))
