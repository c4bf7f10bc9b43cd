"""The words of LVIS-Digits: prompts in the method's seven templates, and tokenizers that know them or others."""

import json
from collections.abc import Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from tools.digits.samples import NUM_CATEGORIES, category_name

# The method's templates; where they ask for white or for no background, the small models learn white.
TEMPLATES = (
    "a photo of {}",
    "a realistic photo of {}",
    "a photo of {} in pure background",
    "{} in a white background",
    "{} without background",
    "{} isolated on white background",
    "a photo of {} in a white background",
)
MAX_TOKENS = 16
_SPECIAL = ["<|startoftext|>", "<|endoftext|>"]


def on_white(template: str) -> bool:
    """Whether a prompt in this template asks for a white background."""
    return "white" in template or "without" in template


def build_tokenizer() -> CLIPTokenizer:
    """A byte-level BPE tokenizer of CLIP's form whose merges make each of the prompts' words one token."""
    prompts = [t.format(category_name(c)) for t in TEMPLATES for c in range(1, NUM_CATEGORIES + 1)]
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_SPECIAL[1]))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        special_tokens=[],
        show_progress=False,
    )
    bpe.train_from_iterator(prompts, trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]
    vocabulary = (
        alphabet + [f"{letter}</w>" for letter in alphabet] + ["".join(pair) for pair in merges] + _SPECIAL
    )
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    return CLIPTokenizer(vocab=ids, merges=[tuple(pair) for pair in merges], model_max_length=MAX_TOKENS)


def build_chat_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each word and sign of ``texts``, in lower case; others are unknown to it."""
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<pad>", "<image>"], show_progress=False)
    words.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
