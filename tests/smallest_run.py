"""A run of all three stages with the smallest models there are."""

from pathlib import Path

import yaml

from tests.detectron2_ext.engine.small_run import write_config
from tests.diSegmenter.small_models import save_clip, save_foreground
from tests.generator.tiny_pipelines import SIZE, make_pipeline


def write_smallest_run(root: str, folder: Path, **solver: object) -> str:
    """Its configuration: two rounds of one iteration, or as ``solver`` says; data and models lie in ``folder``."""
    make_pipeline("sd3").save_pretrained(folder / "sd3")
    config = write_config(folder, **{"MAX_ITER": 2, "ROUND_ITERS": 1} | solver)
    settings = yaml.safe_load(config.read_text())
    settings["OUTPUT_DIR"] = root
    settings["MODEL"]["TIMM"]["BASE_NAME"] = "test_resnet"
    settings["INPUT"] |= {"USE_COPY_METHOD": "syn_copy", "INST_POOL_FEED": True}
    settings["FEEDBACK"] = {"STALENESS": 0, "FROM_ROUND": 1, "TIMEOUT": 0.0}
    settings["GENERATOR"] = {"MODEL": str(folder / "sd3"), "DTYPE": "float32", "IMAGE_SIZE": SIZE}
    settings["GENERATOR"] |= {"STEPS": 2, "PER_CLASS": 1, "BATCH_SIZE": 4}
    settings["SEGMENTER"] = {
        "FOREGROUND_MODEL": save_foreground(folder / "foreground"),
        "CLIP_MODEL": save_clip(folder / "clip"),
        **{"TRUST_REMOTE_CODE": True, "INPUT_SIZE": 32, "CLIP_THRESHOLD": -100.0, "WORKERS": 1},
        "AREA_SHARE": [0.0, 1.1],  # the models are random: they see an object everywhere
    }
    config.write_text(yaml.safe_dump(settings))
    return str(config)
