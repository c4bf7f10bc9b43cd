"""A vision-language model as a judge: whether a cut-out shows one whole object of its class.

Gen-n-Val (2025) drops what such a model refuses. Here the answer is a probability out of one forward pass, as in
VQAScore (Lin et al., 2024); nothing is generated. filter.py holds it against the threshold.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from diSegmenter.cut_out import on_white_square
from diSegmenter.pretrained import load_pretrained
from exchange.errors import UserError


def shown(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The cut-out as it would be pasted, on a white square: uint8 (S, S, 3).

    Args:
        image: uint8 (H, W, 3 or more).
        alpha: uint8 (H, W), not all 0.
    """
    x, y, width, height = cv2.boundingRect(alpha)
    window = np.s_[y : y + height, x : x + width]
    return on_white_square(np.dstack([image[window][..., :3], alpha[window]]))


def questions_about(prompt: str, names: Mapping[int, str]) -> dict[int, str]:
    """What is asked about each category, ``prompt`` with its name for ``{}``, as it is spoken: no underscores.

    Raises UserError where the prompt has no ``{}``.
    """
    if "{}" not in prompt:
        raise UserError(
            f"SEGMENTER.JUDGE_PROMPT is {prompt!r}, which asks the same of all: put {{}} where the category's name is "
            "to stand"
        )
    return {category: prompt.replace("{}", name.replace("_", " ")) for category, name in names.items()}


class Judge:
    """Asks about cut-outs.

    Args:
        model: a decoder of images and text; its logits at the last position are of the answer's first token.
        processor: its processor, with a ``tokenizer``; of a chat template or, without one, of ``image_token``.
        questions: about each category id, to be answered by yes or no.
        name: of the model, for the message.

    Raises UserError for a model that answers in another way, or has no word for yes or no.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        questions: Mapping[int, str],
        device: torch.device,
        name: str,
    ) -> None:
        self._model = model.to(device).eval().requires_grad_(False)
        self._processor, self._questions, self._device = processor, questions, device
        takes = inspect.signature(model.forward).parameters
        if model.config.is_encoder_decoder or "logits_to_keep" not in takes:
            raise UserError(
                f"{name} does not answer by its next token: set SEGMENTER.JUDGE to a decoder of images and text, such "
                "as LLaVA, Qwen-VL or SmolVLM"
            )
        self._yes, self._no = (self._tokens(word, name) for word in ("yes", "no"))

    @torch.inference_mode()
    def __call__(
        self, images: Sequence[np.ndarray], alphas: Sequence[np.ndarray], category_ids: Sequence[int]
    ) -> list[float]:
        """The probability of a yes, against a no, about each.

        Args:
            images: uint8 (H, W, 3 or more) each.
            alphas: uint8 (H, W) each, not all 0.
        """
        pictures = [Image.fromarray(shown(*pair)) for pair in zip(images, alphas, strict=True)]
        inputs = self._encode(pictures, [self._questions[category] for category in category_ids]).to(
            self._device, self._model.dtype
        )
        inputs.pop("labels", None)  # of PaliGemma's processor, with which a model computes a loss
        last = inputs["attention_mask"].sum(1) - 1
        logits = self._model(**inputs, logits_to_keep=last[:, None]).logits[:, 0].float()
        odds = logits[:, self._yes].logsumexp(1) - logits[:, self._no].logsumexp(1)
        return torch.sigmoid(odds).tolist()

    def _encode(self, pictures: Sequence[Image.Image], questions: Sequence[str]) -> Any:
        # Behind the text, where a decoder does not look: positions are those of a question on its own.
        padding = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
        template = self._processor.chat_template
        if template is None:
            texts = [f"{self._processor.image_token}{question}" for question in questions]
            return self._processor(images=[[picture] for picture in pictures], text=texts, **padding)
        contents = [
            [{"type": "image", "image": picture}, {"type": "text", "text": text}]
            for picture, text in zip(pictures, questions, strict=True)
        ]
        # Else a model that can think aloud begins with that; another's processor would take the option for its own.
        thinking = {"enable_thinking": False} if "enable_thinking" in str(template) else {}
        return self._processor.apply_chat_template(
            [[{"role": "user", "content": content}] for content in contents],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs=padding,
            **thinking,
        )

    def _tokens(self, word: str, name: str) -> list[int]:
        """The tokens that mean ``word`` at the beginning of an answer."""
        tokenizer = self._processor.tokenizer
        written = [space + form for space in ("", " ") for form in (word, word.capitalize())]
        encoded = [tokenizer.encode(text, add_special_tokens=False) for text in written]
        tokens = {ids[0] for ids in encoded if len(ids) == 1} - {tokenizer.unk_token_id}
        if not tokens:
            raise UserError(
                f"{name} has no single token for {word!r}: set SEGMENTER.JUDGE to a model that answers in English"
            )
        return sorted(tokens)


def load_judge(name: str, revision: str, questions: Mapping[int, str], device: torch.device) -> Judge:
    """Loads the model ``name``, a folder or a hub name; raises UserError where that fails, or it is of another kind.

    On a GPU the weights are as they are published, mostly bfloat16: a judge of billions of parameters has no room in
    float32, and the probability is of float32 logits. On a CPU they are float32, which it is made for.
    """
    dtype = "auto" if device.type == "cuda" else torch.float32
    model, processor = load_pretrained(
        name, revision, AutoProcessor, "judge", "SEGMENTER.JUDGE", AutoModelForImageTextToText, dtype
    )
    return Judge(model, processor, questions, device, name)
