"""Trains the small judge, a LLaVA that is asked whether a cut-out shows one whole digit of its category."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tqdm import tqdm
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from diSegmenter.judge import Judge, questions_about, shown
from exchange.config import load_config
from tools.digits import samples, scenes
from tools.digits.cut_outs import KINDS, Example, Scribe, examples
from tools.digits.optimise import optimising
from tools.digits.prompts import build_chat_tokenizer

CONFIG = "configs/digits/MRCA_judge_digits.yaml"
_BATCH, _SIDE = 64, 48
_CATEGORIES = range(1, samples.NUM_CATEGORIES + 1)
_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def questions() -> dict[int, str]:
    """What stage 2 asks by the judge's YAML, about each category."""
    prompt = load_config(CONFIG).SEGMENTER.JUDGE_PROMPT
    return questions_about(prompt, {category: samples.category_name(category) for category in _CATEGORIES})


def build(eyes: str) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA whose vision tower is that of the CLIP in the folder ``eyes``, all else random; and its processor.

    It sees 48 × 48 pixels: there a digit that fills the picture is as large as in the CLIP's 64 × 64 with their margin,
    whose places go.
    """
    clip = CLIPModel.from_pretrained(eyes, dtype=torch.float32).vision_model
    vision = CLIPVisionModel(CLIPVisionConfig(**clip.config.to_dict() | {"image_size": _SIDE, "dtype": None}))
    tokenizer = build_chat_tokenizer([*questions().values(), "yes no ASSISTANT:"])
    width = vision.config.hidden_size
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=3,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
    )
    patches = (_SIDE // vision.config.patch_size) ** 2
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(tokenizer.image_token),
        image_seq_length=patches + 1,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    weights = clip.state_dict()
    weights["embeddings.position_embedding.weight"] = _without_margin(
        weights["embeddings.position_embedding.weight"], patches
    )
    model.model.vision_tower.load_state_dict(weights)
    processor = LlavaProcessor(
        CLIPImageProcessor.from_pretrained(
            eyes, size={"shortest_edge": _SIDE}, crop_size={"height": _SIDE, "width": _SIDE}
        ),
        tokenizer,
        patch_size=vision.config.patch_size,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
    return model, processor


def _without_margin(places: Tensor, patches: int) -> Tensor:
    """Of embeddings of the whole and each patch, (1 + N, C), those of the whole and the ``patches`` in the middle."""
    whole, grid = places[:1], places[1:]
    side, kept = math.isqrt(len(grid)), math.isqrt(patches)
    middle = slice((side - kept) // 2, (side + kept) // 2)
    return torch.cat([whole, grid.view(side, side, -1)[middle, middle].flatten(0, 1)])


def make_pictures(processor: LlavaProcessor, scribe: Scribe, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised pictures (count, 3, 48, 48), the category ids asked about and whether a yes is right, (count,)."""
    seen, categories, right = [], [], []
    for cut_out, category, kind in tqdm(examples(scribe, count), "judge's pictures", total=count):
        seen.append(processor.image_processor(shown(*cut_out), return_tensors="pt")["pixel_values"][0])
        categories.append(category)
        right.append(kind == "whole")
    return torch.stack(seen), torch.tensor(categories), torch.tensor(right)


def train(eyes: str, steps: int, seed: int) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Teaches the next token: the answer, and the category's name where a yes is right.

    From answers alone it learns for hundreds of steps which pictures show no digit at all, and not to read. Only digits
    of the part for generation are seen.
    """
    torch.manual_seed(seed)
    model, processor = build(eyes)
    scribe = Scribe(samples.split()["generation"], scenes.photographs("train"), np.random.default_rng(seed))
    images, categories, right = make_pictures(processor, scribe, 16_000)
    blank = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    talks = [
        [{"role": "user", "content": [{"type": "image", "image": blank}, {"type": "text", "text": text}]}]
        for text in questions().values()
    ]
    tokens = processor.apply_chat_template(
        talks,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"return_tensors": "pt"},
    )["input_ids"]
    name = torch.nonzero((tokens != tokens[0]).any(0))[:, 0]
    answers = torch.tensor(processor.tokenizer.convert_tokens_to_ids(["no", "yes"]))
    model.train()
    for step in optimising([*model.parameters()], steps, 1e-3, 0.05, "judge", max_norm=1.0):
        batch = torch.randint(len(images), (_BATCH,))
        asked, is_right = tokens[categories[batch] - 1], right[batch]
        kept = torch.cat([name - 1, torch.tensor([asked.shape[1] - 1])])
        logits = model(input_ids=asked, pixel_values=images[batch], logits_to_keep=kept).logits
        loss = F.cross_entropy(logits[:, -1], answers[is_right.long()])
        loss += F.cross_entropy(logits[is_right, :-1].flatten(0, 1), asked[is_right][:, name].flatten())
        step(loss)
    return model.eval(), processor


def measure(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, count: int = 600
) -> dict[str, float]:
    """AUC of whole digits against bad cut-outs, all and by kind, and shares of right answers, on unseen digits.

    ``count``: of each kind.
    """
    scribe = Scribe(samples.split()["val"], scenes.photographs("val"), np.random.default_rng(1))
    judge = Judge(model, processor, questions(), torch.device("cpu"), "the trained model")
    asked = [index % samples.NUM_CATEGORIES + 1 for index in range(count)]

    def answers(draw: Callable[[Scribe, int], Example]) -> npt.NDArray[np.float64]:
        images, alphas = zip(*(draw(scribe, category) for category in asked), strict=True)
        chunks = [slice(at, at + _BATCH) for at in range(0, count, _BATCH)]
        return np.array([a for c in chunks for a in judge(images[c], alphas[c], asked[c])])

    found = {kind: answers(draw) for kind, (draw, _) in KINDS.items()}
    good = found.pop("whole")
    measured = {
        "auc": _auc(good, np.concatenate(list(found.values()))),
        "yes_to_whole": float((good >= 0.5).mean()),
    }
    for kind, bad in found.items():
        measured |= {f"auc_{kind}": _auc(good, bad), f"no_to_{kind}": float((bad < 0.5).mean())}
    return measured


def _auc(good: npt.NDArray[np.float64], bad: npt.NDArray[np.float64]) -> float:
    right = np.repeat([1, 0], [len(good), len(bad)])
    return float(roc_auc_score(right, np.concatenate([good, bad])))
