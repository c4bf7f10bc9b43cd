"""Sentences about a category, written by a language model, as prompts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers

from exchange.config import model_source
from exchange.errors import UserError
from exchange.seeds import instance_seed
from generator.pipelines import LOADING_ERRORS, explain_loading
from generator.plan import clean_name

# Of a question, the number of lines that it asks for and a seed: the lines of the answer.
Ask = Callable[[str, int, int], list[str]]

_ANSWERS = 8  # of a category at most
_TOKENS = 48  # of a sentence, more than twice those of a usual one
_MARK = re.compile(r"^(?:[-*•–]|\(?\d+[.):])\s+")
_BRACKETS = re.compile(r"\(.*?\)")


def write_sentences(ask: Ask, category: Mapping[str, Any], number: int, seed: int) -> list[str]:
    """Up to ``number`` different sentences that name the category, a record of the annotation file.

    Asks until there are so many, eight times at most. Lines that do not name the category (or a synonym of it),
    headings and those that are there already, but for case, spaces and punctuation, are left out.
    """
    found: dict[str, str] = {}
    for answer in range(_ANSWERS):
        if len(found) < number:
            lines = ask(question(category, number), number, instance_seed(seed, 0, category["id"], answer))
            for line in map(_plain, lines):
                if _is_sentence(line, category):
                    found.setdefault(_folded(line), line)
    return list(found.values())[:number]


def question(category: Mapping[str, Any], number: int) -> str:
    """What a language model is asked for."""
    name = _spoken(category["name"])
    meant = category.get("def") or ", ".join(_BRACKETS.findall(category["name"]))
    return (
        f"Write {number} different captions of photographs, one on each line and nothing else. Each photograph shows "
        f"a single {name}{f' ({clean_name(meant)})' if meant else ''}, whole and by itself, and its caption has the "
        f'words "{name}" in it. Vary the colour, material, shape, pose, point of view and background.'
    )


def _spoken(name: str) -> str:
    """``bat_(animal)`` as it stands in a sentence: ``bat``."""
    return clean_name(_BRACKETS.sub(" ", name)) or clean_name(name)


def _plain(line: str) -> str:
    """A line without the marks of a list, quotation marks and emphasis around it."""
    return " ".join(_MARK.sub("", line.strip()).strip("\"'“”„*_").split())


def _folded(text: str) -> str:
    return " ".join(re.sub(r"[\W_]+", " ", text.casefold()).split())


def _is_sentence(line: str, category: Mapping[str, Any]) -> bool:
    if line.startswith("#") or line.endswith(":"):
        return False
    names = [category["name"], *(category.get("synonyms") or [])]
    words = {_folded(form(name)) for name in names for form in (clean_name, _spoken)} - {""}
    # Not as a part of another word, where words are of letters from a to z and stand apart
    return any(
        re.search(rf"(?<![a-z]){re.escape(word)}(?:e?s)?(?![a-z])", _folded(line)) is not None
        for word in words
    )


class LanguageModel:
    """Any causal language model of transformers, with a chat template or without.

    Args:
        name: a folder, or a repository on the Hugging Face hub, at ``revision``.
        temperature: above 0; the higher, the more varied are the sentences.
        trust_remote_code: whether code that the repository brings may run.

    Raises UserError for a model that cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        revision: str,
        device: torch.device,
        temperature: float = 1.0,
        trust_remote_code: bool = False,
    ) -> None:
        hub = {
            "revision": revision,
            "token": os.environ.get("HF_TOKEN"),
            "trust_remote_code": trust_remote_code,
        }
        path = model_source(name)
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(path, **hub)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype="auto", use_safetensors=True, **hub
            )
        except LOADING_ERRORS as error:
            if "trust_remote_code" in str(error) and not trust_remote_code:
                raise UserError(
                    f"--model {name} brings code of its own: read it and give --trust-remote-code, or take a model "
                    "that transformers has"
                ) from error
            raise UserError(explain_loading("--model", name, error)) from error
        self._name, self._temperature = name, temperature
        self._model = model.to(device).eval()

    def __call__(self, text: str, lines: int, seed: int) -> list[str]:
        """The lines of an answer to ``text``, of which about so many are wanted, without one that is cut off."""
        inputs = self._encode(text).to(self._model.device)
        length = inputs["input_ids"].shape[1]
        places = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        room = _TOKENS * (lines + 1)
        if places is not None:
            room = min(room, places - length)
        if room < 1:
            raise UserError(
                f"--model {self._name} reads {places} tokens, and the question alone has {length}: take a larger one"
            )
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            torch.manual_seed(seed)
            answer = self._model.generate(
                **inputs,
                do_sample=True,
                temperature=self._temperature,
                max_new_tokens=room,
                pad_token_id=self._tokenizer.pad_token_id or self._tokenizer.eos_token_id,
            )[0, length:]
        written: str = self._tokenizer.decode(answer, skip_special_tokens=True)
        # What a model thinks aloud is no answer
        found = written.rpartition("</think>")[2].splitlines()
        return found[:-1] if len(answer) == room else found

    def _encode(self, text: str) -> Any:
        if self._tokenizer.chat_template is None:
            return self._tokenizer(f"{text}\n\n-", return_tensors="pt")
        return self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            enable_thinking=False,  # known to some templates, and nothing to the others
        )
