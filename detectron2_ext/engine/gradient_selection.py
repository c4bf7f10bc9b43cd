"""Whether a batch is learnt from with its pasted objects or without them, by gradients (BSGAL; Zhu et al., 2024).

Pasted objects are welcome where going down the gradient of their loss goes down that of real test images, too: where
the cosine of the two reaches a threshold. The step's own forward pass is judged, and learnt from if it is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detectron2_ext.data.loader import Batch
from detectron2_ext.distributed import Ranks
from detectron2_ext.engine.gradient_cache import GradientCache, flat_gradient
from exchange.decisions import Decision

Losses = Callable[..., dict[str, Tensor]]
"""``(part, network=None, **options)``: losses by name, of the step's network or another, in the step's precision."""

Selection = Callable[[Batch, Losses, int], tuple[Batch, Losses]]
"""From a batch, the step's losses and the number of the iteration to what is learnt from, and its losses."""

Threshold = Callable[[GradientCache, float], float]
"""What a score has to reach, by the scores before it and the share of the training that is done."""


def learn_from_all(batch: Batch, losses: Losses, iteration: int) -> tuple[Batch, Losses]:
    """No selection: the batch as it is."""
    return batch, losses


def in_parts(batch: Batch, number: int) -> list[Batch]:
    """A batch in ``number`` parts, or in as many as it has images."""
    return [batch[i::number] for i in range(min(number, len(batch)))]


class Verdict(NamedTuple):
    """About the part of a batch that is one process's; ``score`` is None where there was nothing to decide.

    ``instances``: name and category id of each pasted instance of the pool.
    """

    score: float | None
    threshold: float
    accepted: bool
    instances: list[tuple[str, int]]


class GradientSelection:
    """Chooses between the batch with pasted objects and the images as they were before.

    Each record of a batch has its ``original`` and perhaps a ``test`` image (see
    :class:`~detectron2_ext.paste.triple.TripleMapper`). Every pass draws the same random numbers, those of the
    iteration: what is learnt from in the end is learnt as without a selection, bit for bit.

    Args:
        network: that learns, as it is in one process.
        parameters: of the network, that gradients are taken in.
        through_backbone: whether some of them are the backbone's.
        cache: of the test images' gradients; one for all processes, of the mean over those that have test images.
        scaler: of the losses.
        threshold: what the cosine of the pasted objects' classification losses has to reach; None: what that of all
            losses of the originals is, for that of all losses of the pasted images.
        test_every: of so many iterations one has test images.
        together: one decision for all processes, by the mean of their gradients.
        accumulation: number of parts that a batch is taken in.
        max_iterations: of the training.
    """

    def __init__(
        self,
        network: nn.Module,
        parameters: Sequence[nn.Parameter],
        cache: GradientCache,
        scaler: torch.amp.GradScaler,
        ranks: Ranks,
        threshold: Threshold | None,
        *,
        through_backbone: bool,
        test_every: int,
        together: bool,
        accumulation: int,
        max_iterations: int,
    ) -> None:
        self._network, self._parameters, self._cache = network, list(parameters), cache
        self._scaler, self._ranks, self._threshold = scaler, ranks, threshold
        self._through_backbone, self._test_every, self._together = through_backbone, test_every, together
        self._accumulation, self._max_iterations = accumulation, max_iterations

    def __call__(self, batch: Batch, losses: Losses, iteration: int) -> tuple[Batch, Losses]:
        """What this process learns from: ``batch`` or its originals; and how their losses are computed."""
        if iteration % self._test_every == 0:
            self._look_at_tests(batch, losses)
        originals = [record["original"] for record in batch]
        before = _copied_buffers(self._network)
        gradient, computed = self._gradient_of_pasted(batch, losses)
        score = self._cache.cosine(gradient)
        threshold = self._compared_with(originals, losses, iteration)
        accepted = score is None or score >= threshold
        instances = [named for record in batch for named in record["pasted_instances"]]
        verdicts = self._ranks.gather(Verdict(score, threshold, accepted, instances))
        self._remember(verdicts, iteration)
        if computed is not None and all(verdict.accepted for verdict in verdicts):
            return batch, lambda part: computed
        _restore_buffers(self._network, before)
        return (batch if accepted else originals), losses

    def _look_at_tests(self, batch: Batch, losses: Losses) -> None:
        """Takes the gradient of the test images' classification losses, of all processes, into the cache.

        Batch norm's statistics are each process's own; here they are the first one's, which a checkpoint has.
        """
        self._ranks.share(self._network.buffers())
        tests = [record["test"] for record in batch if record["test"] is not None]
        gradient = torch.zeros_like(self._cache.gradient)
        if tests:
            with self._same_draws():
                network = self._network.class_losses
                found = losses(tests, network, through_backbone=self._through_backbone)
                gradient = self._gradient(found)
        counted = self._ranks.total(torch.cat([gradient, gradient.new_tensor([float(bool(tests))])]))
        if counted[-1] > 0 and bool(counted.isfinite().all()):
            self._cache.update(counted[:-1] / counted[-1])

    def _gradient_of_pasted(self, batch: Batch, losses: Losses) -> tuple[Tensor, dict[str, Tensor] | None]:
        """The gradient that is judged, and the losses of the pasted images if their graph is still there."""
        apart = {"pasted_apart": True} if self._threshold else {}
        parts = in_parts(batch, self._accumulation)
        if len(parts) == 1:
            with self._same_draws():
                computed = losses(batch, **apart)
            judged = {name: computed.pop(name) for name in list(computed) if name.startswith("pasted_")}
            gradient = self._gradient(judged or computed, retain_graph=True)
            return self._of_all(gradient), computed
        return self._of_all(self._gradient_in_parts(parts, losses, **apart)), None

    def _compared_with(self, originals: Batch, losses: Losses, iteration: int) -> float:
        if self._threshold is not None:
            return self._threshold(self._cache, iteration / self._max_iterations)
        before = _copied_buffers(self._network)
        gradient = self._gradient_in_parts(in_parts(originals, self._accumulation), losses)
        _restore_buffers(self._network, before)
        cosine = self._cache.cosine(self._of_all(gradient))
        return -1.0 if cosine is None else cosine

    def _gradient_in_parts(self, parts: Sequence[Batch], losses: Losses, **options: bool) -> Tensor:
        """The gradient of a batch whose graphs are not kept."""
        images = sum(map(len, parts))
        gradient = torch.zeros_like(self._cache.gradient)
        with self._same_draws():
            for part in parts:
                computed = losses(part, self._network, **options)
                judged = {name: loss for name, loss in computed.items() if name.startswith("pasted_")}
                gradient += self._gradient(judged or computed) * (len(part) / images)
        return gradient

    def _gradient(self, losses: dict[str, Tensor], retain_graph: bool = False) -> Tensor:
        """Of the sum of ``losses``, in the parameters: float (P,)."""
        total = self._scaler.scale(torch.stack(list(losses.values())).sum())
        return flat_gradient(total, self._parameters, retain_graph) / self._scaler.get_scale()

    def _of_all(self, gradient: Tensor) -> Tensor:
        """The gradient that decides: of this process's part, or of all of them."""
        return self._ranks.total(gradient) if self._together else gradient

    def _remember(self, verdicts: Sequence[Verdict], iteration: int) -> None:
        scores = [verdict.score for verdict in verdicts if verdict.score is not None]
        self._cache.scores.extend(scores[:1] if self._together else scores)
        if self._ranks.is_first:
            self._cache.decisions += [
                Decision(
                    iteration, process, name, category, verdict.score, verdict.threshold, verdict.accepted
                )
                for process, verdict in enumerate(verdicts)
                if verdict.score is not None
                for name, category in verdict.instances
            ]

    @contextmanager
    def _same_draws(self) -> Iterator[None]:
        """What is drawn inside is as if it had not been, for what comes after."""
        device = self._ranks.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield


def _copied_buffers(network: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in network.buffers()]


def _restore_buffers(network: nn.Module, copied: Sequence[Tensor]) -> None:
    """Unseen by a graph that waits for its backward pass: in training none reads them."""
    for buffer, value in zip(network.buffers(), copied, strict=True):
        buffer.data.copy_(value)
