"""Two rounds of all three stages in a bucket: whatever one writes, the others find there."""

import re
from pathlib import Path

from detectron2_ext import train_net
from diSegmenter import segmentAndFilter
from exchange import files
from exchange.feedback import read_feedback
from exchange.layout import RunLayout
from exchange.manifest import read_round
from exchange.pool_index import PoolIndex
from generator import generate
from tests.exchange.test_s3 import root, server
from tests.smallest_run import write_smallest_run

__all__ = ["root", "server"]


def test_two_rounds_of_all_three_stages_guidance_and_evaluation(server, root, tmp_path, call, capsys):
    config, layout = write_smallest_run(root, tmp_path), RunLayout(root)
    for round_ in ("0", "1"):
        options = ["--config", config, "--st_rd", round_, "--num-rounds", "1"]
        for stage in (generate, segmentAndFilter):
            call(stage, *options)
        train_net.main(["--config", config])
    assert [{i.guided for m in read_round(layout, r) for i in m.instances} for r in (0, 1)] == [
        {False},
        {True},
    ]
    assert (
        len(PoolIndex(layout, [0])) > 0 and files.list_dir(layout.train_dir).count("model_0000001.pth") == 1
    )
    # Nobody asks of an image whether it is there: what is written is listed at once, or in the manifests.
    of_images = [request for request in server if re.search(r"pool/(raw|segmented|cutouts)/\d", request)]
    written = [request for request in of_images if request.startswith("PUT")]
    assert (
        len(written) == len(set(written)) == 3 * sum(len(read_round(layout, r)[0].instances) for r in (0, 1))
    )
    assert {request.split()[0] for request in of_images} == {"GET", "PUT"}
    assert not [request for request in server if re.search(r"prefix=[^&]*pool[^&]*png", request)]
    feedback = read_feedback(layout.feedback_file)
    assert feedback.round == 1 and min(feedback.drift) > 0
    train_net.main(["--config", config, "--eval-only"])
    assert f"{root}/train/model_0000001.pth" in capsys.readouterr().out
    assert not Path(root).exists() and not Path("s3:").exists()  # nothing has taken the address for a path
