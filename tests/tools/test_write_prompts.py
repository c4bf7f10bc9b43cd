"""Prompts written by a language model: what is kept of its answers, and the files of the command."""

import json
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import tokenizers
import torch
import transformers
import yaml

from exchange import files
from exchange.errors import UserError
from generator import sentence_writer
from generator.prompt_files import read_prompts
from generator.sentence_writer import LanguageModel, question, write_sentences
from tools import write_prompts

BAT = {"id": 2, "name": "bat_(animal)", "synonyms": ["bat_(animal)", "flying-mouse"], "def": "a mammal"}
WORDS = ["red", "small", "old", "cow", "bat", "box"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A GPT-2 of random weights that knows six words, and ends lines as often as it takes any of them."""
    folder = tmp_path_factory.mktemp("gpt2")
    vocabulary = {word: number for number, word in enumerate(["<?>", "<end>", "\n", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<?>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<?>", eos_token="<end>"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"vocab_size": len(vocabulary), "n_positions": 256, "n_embd": 8, "n_layer": 1, "n_head": 1}
    config = transformers.GPT2Config(**size, bos_token_id=1, eos_token_id=1)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def world(tmp_path):
    categories = [{"id": id_, "name": name} for id_, name in enumerate(["cow", "box", "bat_(animal)"], 1)]
    data = {"images": [], "annotations": [], "categories": categories}
    (tmp_path / "train.json").write_text(json.dumps(data))
    custom = [["tiny", str(tmp_path / "train.json"), str(tmp_path)]]
    settings = {"DATASETS": {"CUSTOM": custom, "TRAIN": ["tiny"]}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return SimpleNamespace(config=str(tmp_path / "tiny.yaml"), out=tmp_path / "prompts")


def write(world, monkeypatch, model, *options):
    settings = ["DATASETS.TRAIN", "['tiny']"]  # behind the options
    given = [world.out, "--config", world.config, "--model", model, "--num", 4, *options, *settings]
    monkeypatch.setattr(sys, "argv", ["write_prompts.py", *map(str, given)])
    write_prompts.main()
    return {path.name: path.read_bytes() for path in world.out.iterdir()}


def test_lines_that_name_the_category_are_kept_once_and_without_the_marks_of_a_list():
    answer = """Here are captions of a bat:
        # A bat
        1. A brown bat  on a branch.
        2) a BROWN bat on a branch
        - **Two bats at dusk**
        • "A flying mouse in a cave"
        A battery on a table
        A wombat on a meadow

        2.5 bats
        A bat."""
    asked = []

    def ask(text, number, seed):
        asked.append((text, number, seed))
        return answer.splitlines()

    kept = ["A brown bat on a branch.", "Two bats at dusk", "A flying mouse in a cave", "2.5 bats", "A bat."]
    assert write_sentences(ask, BAT, 3, seed=0) == kept[:3] and len(asked) == 1
    asked.clear()
    assert write_sentences(ask, BAT, 9, seed=0) == kept
    texts, numbers, seeds = map(set, zip(*asked, strict=True))
    assert len(seeds) == 8 and numbers == {9} and texts == {question(BAT, 9)}
    write_sentences(ask, BAT | {"id": 3}, 1, seed=0)
    assert asked[-1][2] not in seeds
    assert "a single bat (a mammal)" in question(BAT, 9)
    assert "a single bat (animal)" in question({"name": "bat_(animal)"}, 9)
    assert "a single animal (animal)" in question({"name": "(animal)"}, 9)


def test_names_in_letters_of_other_kinds_are_found_within_a_text():
    chinese = {"id": 1, "name": "牛"}
    assert write_sentences(lambda *_: ["一头牛在田里", "一只狗"], chinese, 2, 0) == ["一头牛在田里"]


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}"])
def test_a_language_model_answers_by_its_seed_alone_and_leaves_the_random_numbers_alone(gpt2, template):
    model = LanguageModel(str(gpt2), "main", CPU)
    model._tokenizer.chat_template = template
    state = torch.random.get_rng_state()
    first, other, again = (model("a cow", 3, seed) for seed in (1, 2**62, 1))
    assert first == again != other
    assert {word for line in first for word in line.split()} <= set(WORDS)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_that_chats_is_asked_for_its_own_turn_and_not_to_think_aloud(gpt2, monkeypatch):
    model = LanguageModel(str(gpt2), "main", CPU, temperature=0.5)
    turn = "{% if add_generation_prompt %} old{% endif %}"
    thoughts = "{% if enable_thinking is not defined or enable_thinking %} box{% endif %}"
    model._tokenizer.chat_template = "{{ messages[0]['content'] }}" + turn + thoughts
    monkeypatch.setattr(model._model, "generate", generate := Mock(wraps=model._model.generate))
    model("red cow", 3, 0)
    (asked,) = generate.call_args.kwargs["input_ids"]
    assert model._tokenizer.decode(asked) == "red cow old"
    assert generate.call_args.kwargs["temperature"] == 0.5


def test_a_line_that_is_cut_off_is_no_answer_and_nor_is_what_is_thought_before_one(gpt2, monkeypatch):
    model = LanguageModel(str(gpt2), "main", CPU)
    written = model._tokenizer("red cow box").input_ids
    monkeypatch.setattr(model._tokenizer, "decode", lambda *_, **__: "a cow?\n</think>a cow\na box in")
    rooms = []
    for ends, expected in ((True, ["a cow", "a box in"]), (False, ["a cow"])):
        monkeypatch.setattr(sentence_writer, "_TOKENS", 2 if ends else 1)  # of 3 lines and one more
        answer = torch.tensor([[*model._tokenizer("a cow\n\n-").input_ids, *written, 1]])
        monkeypatch.setattr(
            model._model,
            "generate",
            lambda answer=answer, **given: rooms.append(given["max_new_tokens"]) or answer,
        )
        assert model("a cow", 3, 0) == expected
    assert rooms == [8, 4]


def test_the_command_writes_what_stage_1_reads_and_goes_on_where_it_was_stopped(
    gpt2, world, monkeypatch, capsys, caplog
):
    whole = write(world, monkeypatch, gpt2)
    assert capsys.readouterr().out == f"12 sentences for 3 categories; 0 had a file already: {world.out}\n"
    assert whole["cow.txt"].splitlines()[0] == f"# cow: 4 sentences of {gpt2}, seed 0".encode()
    assert "fewer than" not in caplog.text
    prompts = read_prompts(str(world.out), ["cow", "box", "bat_(animal)"])
    for category, word in (("cow", "cow"), ("box", "box"), ("bat_(animal)", "bat")):
        assert len(set(prompts[category])) == 4 and all(word in p.split() for p in prompts[category])
    (world.out / "cow.txt").write_text("# mine\nthe cow")
    (world.out / "box.txt").unlink()
    (world.out / f"box.txt.{files._kernel()}-01234567.tmp").touch()  # of a writer that was killed
    assert write(world, monkeypatch, gpt2) == whole | {"cow.txt": b"# mine\nthe cow"}
    assert "2 had a file already" in capsys.readouterr().out
    monkeypatch.setattr(sentence_writer, "LanguageModel", lambda *_: pytest.fail("a model was loaded"))
    write(world, monkeypatch, gpt2)


def test_of_categories_that_share_a_name_the_first_one_is_written_about(gpt2, world, monkeypatch, tmp_path):
    content = json.loads((tmp_path / "train.json").read_text())
    content["categories"] = [{"id": id_, "name": "bat/box", "def": f"the bat {id_}"} for id_ in (2, 5, 9)]
    (tmp_path / "train.json").write_text(json.dumps(content))
    asked = []
    monkeypatch.setattr(
        sentence_writer.LanguageModel,
        "__call__",
        lambda _, text, *__: asked.append(text) or [f"{word} bat/box" for word in WORDS],
    )
    for _ in range(2):
        assert list(write(world, monkeypatch, gpt2)) == ["bat%2Fbox.txt"]
        assert len(asked) == 1 and "a single bat/box (the bat 2)" in asked[0]


def test_other_seeds_write_other_sentences(gpt2, world, monkeypatch):
    first = write(world, monkeypatch, gpt2)
    for path in world.out.iterdir():
        path.unlink()
    second = write(world, monkeypatch, gpt2, "--seed", "1")
    assert all(first[name].splitlines()[1:] != second[name].splitlines()[1:] for name in first)


def test_a_category_that_nothing_was_written_about_is_told_when_the_others_have_their_files(
    gpt2, world, monkeypatch, caplog
):
    monkeypatch.setattr(sentence_writer.LanguageModel, "__call__", lambda *_: ["the cow", "one bat, a bat"])
    with pytest.raises(
        UserError, match=r"nothing about 'box' .* 1 categories have no file: write 'box\.txt'"
    ):
        write(world, monkeypatch, gpt2)
    assert sorted(path.name for path in world.out.iterdir()) == ["bat_(animal).txt", "cow.txt"]
    assert "2 categories have fewer than 4 sentences, such as bat_(animal) (1)" in caplog.text


def test_what_cannot_be_loaded_or_asked_for_is_a_sentence(gpt2, world, monkeypatch, tmp_path):
    for option, value in (("--num", "0"), *(("--temperature", number) for number in ("0.0", "inf", "nan"))):
        with pytest.raises(UserError, match=f"{option} {value}"):
            write(world, monkeypatch, gpt2, option, value)
    with pytest.raises(UserError, match="--model 'no/such/model' is neither a folder nor a repository"):
        write(world, monkeypatch, "no/such/model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="--model '.*empty' cannot be loaded"):
        write(world, monkeypatch, tmp_path / "empty")
    with pytest.raises(UserError, match="reads 256 tokens, and the question alone has 256"):
        LanguageModel(str(gpt2), "main", CPU)("cow " * 255, 3, 0)


def test_words_and_weights_are_of_the_revision_that_is_asked_for(gpt2, world, monkeypatch):
    asked = []
    for kind in (transformers.AutoTokenizer, transformers.AutoModelForCausalLM):

        def load(path, load=kind.from_pretrained, **given):
            asked.append((path, given["revision"]))
            return load(path, **given)

        monkeypatch.setattr(kind, "from_pretrained", load)
    write(world, monkeypatch, gpt2, "--revision", "v2")
    assert asked == [(str(gpt2), "v2")] * 2


def test_the_options_of_the_model_are_the_command_line_s(world, monkeypatch):
    asked = Mock(side_effect=UserError("enough"))
    monkeypatch.setattr(sentence_writer, "LanguageModel", asked)
    given = ["--revision", "v2", "--temperature", "0.5", "--trust-remote-code"]
    for options, expected in (([], ("main", CPU, 1.0, False)), (given, ("v2", CPU, 0.5, True))):
        with pytest.raises(UserError, match="enough"):
            write(world, monkeypatch, "theirs", *options)
        asked.assert_called_with("theirs", *expected)


def test_code_of_a_repository_runs_only_with_the_user_s_word(gpt2, tmp_path):
    for path in gpt2.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((gpt2 / "config.json").read_text())
    config |= {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(UserError, match="brings code of its own: read it and give --trust-remote-code"):
        LanguageModel(str(tmp_path), "main", CPU)
    assert not (tmp_path / "ran").exists()
