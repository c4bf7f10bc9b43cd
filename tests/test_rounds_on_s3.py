"""Two rounds of all three stages in a bucket: whatever one writes, the others find there."""

import sys
from pathlib import Path

import yaml

from detectron2_ext import train_net
from diSegmenter import segmentAndFilter
from exchange import files
from exchange.feedback import read_feedback
from exchange.layout import RunLayout
from exchange.manifest import read_round
from exchange.pool_index import PoolIndex
from generator import generate
from tests.detectron2_ext.engine.small_run import write_config
from tests.diSegmenter.small_models import save_clip, save_foreground
from tests.exchange.test_s3 import root, server
from tests.generator.tiny_pipelines import SIZE, make_pipeline

__all__ = ["root", "server"]


def configuration(root: str, folder: Path) -> str:
    """Of a run of all three stages with the smallest models; two rounds of one iteration."""
    make_pipeline("sd3").save_pretrained(folder / "sd3")
    config = write_config(folder, MAX_ITER=2, ROUND_ITERS=1)
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


def test_two_rounds_of_all_three_stages_guidance_and_evaluation(root, tmp_path, monkeypatch, capsys):
    config, layout = configuration(root, tmp_path), RunLayout(root)
    for round_ in ("0", "1"):
        options = ["--config", config, "--st_rd", round_, "--num-rounds", "1"]
        for stage in (generate, segmentAndFilter):
            monkeypatch.setattr(sys, "argv", ["stage", *options])
            stage.main()
        train_net.main(["--config", config])
    assert [{i.guided for m in read_round(layout, r) for i in m.instances} for r in (0, 1)] == [
        {False},
        {True},
    ]
    assert (
        len(PoolIndex(layout, [0])) > 0 and files.list_dir(layout.train_dir).count("model_0000001.pth") == 1
    )
    feedback = read_feedback(layout.feedback_file)
    assert feedback.round == 1 and min(feedback.drift) > 0
    train_net.main(["--config", config, "--eval-only"])
    assert f"{root}/train/model_0000001.pth" in capsys.readouterr().out
    assert not Path(root).exists() and not Path("s3:").exists()  # nothing has taken the address for a path
