"""What ``mrca pool measure`` encodes a pool by: the image encoder of a configuration or of the run."""

from __future__ import annotations

from collections.abc import Iterator

from detectron2_ext.distributed import named_device
from diSegmenter.pool.measure import measure
from diSegmenter.similarity import ImageEncoder, load_image_encoder
from exchange import files
from exchange.command_line import quiet_model_libraries
from exchange.config import flatten, load_config
from exchange.errors import UserError
from exchange.layout import RunLayout
from tools.run_report.settings import read_settings


def measure_features(layout: RunLayout, config: str | None, device: str) -> Iterator[tuple[int, int, int]]:
    """Measures with ``SEGMENTER.SIMILARITY_MODEL``, or where that is empty with ``CLIP_MODEL``.

    Args:
        config: YAML with these keys; None: the settings of the run.
        device: empty for a GPU if there is one.

    Yields what :func:`~diSegmenter.pool.measure.measure` does. Raises UserError where nothing says which encoder.
    """
    if config is None and not files.exists(layout.settings_file):
        raise UserError(
            f"{layout.root} has no run.yaml that says which encoder: give --config with SEGMENTER.SIMILARITY_MODEL"
        )
    quiet_model_libraries()
    settings = dict(flatten(load_config(config))) if config else read_settings(layout)[0]
    # An older run's settings have no such key.
    kind = "SIMILARITY" if settings.get("SEGMENTER.SIMILARITY_MODEL") else "CLIP"
    model, revision = (settings[f"SEGMENTER.{kind}_{what}"] for what in ("MODEL", "REVISION"))
    chosen = named_device(device)

    def load() -> ImageEncoder:
        return load_image_encoder(model, revision, chosen)

    yield from measure(layout, load, {"model": model, "revision": revision})
