"""Prompts from text files: which file is whose, what is read, what is refused."""

import numpy as np
import pytest

from exchange.errors import UserError
from generator.plan import PromptBook, Sentences, plan_round
from generator.prompt_files import prompt_file_name, read_prompts, write_prompts
from tests.generator.test_generate import run


@pytest.mark.parametrize(
    ("category", "file"),
    [
        ("bat_(animal)", "bat_(animal).txt"),
        ("hair drier", "hair drier.txt"),
        ("ключ", "ключ.txt"),
        ("and/or", "and%2For.txt"),
        ("and%2For", "and%252For.txt"),
        ("..", "%2E..txt"),
        ("a" * 196, f"{'a' * 196}.txt"),
        ('a\\b:c*?"<>|\n', "a%5Cb%3Ac%2A%3F%22%3C%3E%7C%0A.txt"),
    ],
)
def test_what_is_written_of_a_category_is_read_of_it(category, file, tmp_path):
    assert prompt_file_name(category) == file
    write_prompts(str(tmp_path), category, ["a red one", "ein grüner"], f"{category}, by\nnobody")
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert read_prompts(str(tmp_path), [category]) == {category: ["a red one", "ein grüner"]}


def test_blank_lines_and_comments_are_no_prompts(tmp_path):
    (tmp_path / "cow.txt").write_bytes("\ufeff# a heading\r\n a  cow\tin fog \r\n\n  #no\ncow #2".encode())
    (tmp_path / "of nobody.txt").write_text("")
    assert read_prompts(str(tmp_path), ["cow"]) == {"cow": ["a cow in fog", "cow #2"]}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "cow.txt has no prompt in it"),
        (b"\n# a cow\n  \n", "cow.txt has no prompt in it"),
        (b"a cow\na K\xfche\n", r"cow.txt is no UTF-8 text \(at byte 9\)"),
        ("a cow".encode("utf-16-le"), r"cow.txt is no UTF-8 text \(it has a zero byte\)"),
    ],
)
def test_a_file_without_prompts_or_of_another_encoding_is_named(content, part, tmp_path):
    (tmp_path / "cow.txt").write_bytes(content)
    with pytest.raises(UserError, match=part):
        read_prompts(str(tmp_path), ["cow"])


def test_a_folder_or_a_file_that_is_missing_is_named_with_the_number_of_others(tmp_path):
    with pytest.raises(UserError, match="no files in GENERATOR.PROMPT_FOLDER .*nowhere"):
        read_prompts(str(tmp_path / "nowhere"), ["cow"])
    (tmp_path / "cow.txt").write_text("a cow")
    with pytest.raises(UserError, match=r"no prompts for the category 'a/b': write 'a%2Fb.txt'"):
        read_prompts(str(tmp_path), ["cow", "a/b"])
    with pytest.raises(UserError, match=r"'dog' \(and 2 more categories have none\)"):
        read_prompts(str(tmp_path), ["cow", "dog", "bat", "hen"])
    with pytest.raises(UserError, match="too long for a file"):
        read_prompts(str(tmp_path), ["a" * 197])


def test_stage_1_asks_for_every_category_before_it_draws_and_for_a_share(world, monkeypatch):
    folder = world.config.parent / "prompts"
    folder.mkdir()
    (folder / "cow.txt").write_text("a cow")
    options = ("--round", "1", "GENERATOR.PROMPT_FOLDER", str(folder))
    with pytest.raises(UserError, match=r"'aerosol_can' \(and 2 more"):
        run(world, monkeypatch, *options)
    for name in ("aerosol_can", "bat_(animal)", "dog"):
        (folder / f"{name}.txt").write_text(f"one {name}")
    for share in ("0", "1.5"):
        with pytest.raises(UserError, match="PROMPT_SHARE must be above 0 and at most 1"):
            run(world, monkeypatch, *options, "GENERATOR.PROMPT_SHARE", share)
    assert not (world.run / "run.yaml").exists()


ROW = ["one", "two", "three", "four"]


def plan(count, round_=0, share=0.7, seed=0):
    book = PromptBook(["a {}"], "raw", Sentences({"cow": ROW}, share))
    images = plan_round([{"id": 3, "name": "cow"}], np.array([count]), book, seed, round_)
    for image in images:
        assert image.template == ("a {}" if image.prompt == "a cow" else image.prompt)
    return [image.prompt for image in images]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7, 1.0])
def test_sentences_have_their_share_of_any_number_of_images_and_each_its_turn(share):
    for round_ in range(20):
        prompts = plan(40, round_, share)
        for count in range(41):
            number = sum(prompt != "a cow" for prompt in prompts[:count])
            assert abs(number - count * share) < 1 - 1e-9
        first, *rest = (ROW.index(prompt) for prompt in prompts if prompt != "a cow")
        assert rest == [(first + k) % 4 for k in range(1, len(rest) + 1)]  # in the order that they have


def test_a_share_is_the_number_that_was_written_and_the_first_sentence_comes_first():
    sentences = Sentences({"cow": ROW}, 0.29)  # which is less in binary
    assert [place for place in range(1, 101) if sentences.at("cow", place)][::28] == [4, 100]
    assert Sentences({"cow": ROW}, 1.0).at("cow", 1) == "one"


def test_a_prompt_follows_from_seed_round_class_and_number_alone():
    assert plan(40)[:3] == plan(3)
    assert len({tuple(plan(8, round_, seed=seed)) for round_ in range(4) for seed in range(4)}) > 8
