"""The configurations of the full-size networks, as they are shipped, on small images."""

import math

import pytest
import torch
from network_scenes import CONFIGS, scene

from detectron2_ext.engine.distributed import Ranks
from detectron2_ext.engine.state import TrainingState
from detectron2_ext.engine.step import TrainingStep
from detectron2_ext.modeling import FeedbackNetwork, build_model
from exchange.config import load_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["R50", "SwinL"])
def trained(request):
    """The state after one step of MRCA's configuration, the losses, and how far a weight moved at most."""
    cfg = load_config(str(CONFIGS / f"MRCA/MRCA_{request.param}.yaml"), ["MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    state = TrainingState.start(build_model(cfg).train(), cfg)
    moved = "roi_heads.box_predictor.2.cls_score.weight"
    before = state.model.state_dict()[moved].clone()
    losses = TrainingStep.from_config(state, Ranks(0, 1, CPU), cfg)([scene(0), scene(1)])
    return state, losses, (state.model.state_dict()[moved] - before).abs().max()


def test_a_configuration_of_mrca_takes_a_step(trained):
    state, losses, moved = trained
    stages = [f"loss_{kind}_stage{stage}" for kind in ("cls", "box_reg") for stage in range(3)]
    heatmap = [f"loss_centernet_{part}" for part in ("loc", "agn_pos", "agn_neg")]
    assert set(losses) == {*stages, *heatmap, "loss_mask"}
    assert all(math.isfinite(loss) for loss in losses.values()) and losses["loss_mask"] > 0
    assert state.iteration == 1 and moved > 0


def test_a_configuration_of_mrca_evaluates_with_masks_in_the_size_asked_for(trained):
    state, _, _ = trained
    image = scene(2)
    with torch.no_grad():
        (output,) = state.evaluated.eval()([image | {"height": 128, "width": 192}])
    found = output["instances"]
    assert 0 < len(found) <= 300
    assert found.pred_masks.shape == (len(found), 128, 192)
    assert found.pred_boxes.isfinite().all() and found.scores.isfinite().all()


def test_its_feedback_forms_see_whole_images(trained):
    state, _, _ = trained
    for output, width in (("logits", 1204), ("embedding", 1024)):
        with torch.no_grad():
            answer = FeedbackNetwork(state.evaluated, output).eval()(torch.rand(2, 3, 64, 64))
        assert answer.shape == (2, width) and answer.isfinite().all()


@pytest.mark.parametrize("backbone", ["R50", "SwinL"])
def test_the_baseline_is_the_same_network(backbone):
    names = []
    for config in (f"MRCA/MRCA_{backbone}.yaml", f"baselines/CenterNet2_{backbone}.yaml"):
        with torch.device("meta"):
            network = build_model(load_config(str(CONFIGS / config)))
        names.append({name: tensor.shape for name, tensor in network.state_dict().items()})
    assert names[0] == names[1]
