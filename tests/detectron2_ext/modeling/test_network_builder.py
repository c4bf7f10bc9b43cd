import gzip
import json
import math
import os
import re
from pathlib import Path

import pytest
import torch
from network_scenes import CONFIGS, small_config
from torch import nn

from detectron2_ext.modeling import FeedbackNetwork, build_model
from detectron2_ext.modeling.centernet import ProposalSelection
from detectron2_ext.modeling.postprocessing import DetectionSelection
from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError

# Name and shape of every parameter and buffer in the reference's checkpoints, built with 37 classes.
NAMES = json.loads(gzip.decompress((Path(__file__).parent / "parameter_names.json.gz").read_bytes()))


@pytest.mark.parametrize("backbone", ["R50", "SwinL"])
@pytest.mark.parametrize("config", ["MRCA/MRCA", "baselines/CenterNet2"])
def test_parameters_are_those_of_the_references_checkpoints(config, backbone):
    cfg = load_config(str(CONFIGS / f"{config}_{backbone}.yaml"), ["MODEL.ROI_HEADS.NUM_CLASSES", "37"])
    with torch.device("meta"):
        network = build_model(cfg)
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes == NAMES[backbone]
    classifier = {name: p for name, p in network.named_parameters() if ".bottom_up.base.fc." in name}
    assert bool(classifier) == (backbone == "R50")  # of images, which nothing is learnt for
    assert not any(parameter.requires_grad for parameter in classifier.values())


@pytest.mark.parametrize("backbone", ["R50", "SwinL"])
def test_feedback_configurations_build_feedback_networks(backbone):
    for form, width in (("feed", 1204), ("embed", 1024)):
        cfg = load_config(str(CONFIGS / "MRCA" / f"MRCA_{backbone}_{form}.yaml"))
        with torch.device("meta"):
            network = build_model(cfg)
        assert isinstance(network, FeedbackNetwork)
        assert network.classifier(torch.zeros(1, 1024, device="meta")).shape == (1, width)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("META_ARCHITECTURE", "GeneralizedRCNN"),
        ("PROPOSAL_GENERATOR__NAME", "RPN"),
        *((f"CENTERNET__{key}", False) for key in ("WITH_AGN_HM", "ONLY_PROPOSAL", "NOT_NORM_REG")),
        ("ROI_HEADS__NAME", "StandardROIHeads"),
        ("ROI_BOX_HEAD__NAME", "FastRCNNHead"),
        ("ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG", False),
        ("ROI_BOX_HEAD__MULT_PROPOSAL_SCORE", False),
        ("ROI_BOX_HEAD__USE_SIGMOID_CE", False),
        ("ROI_BOX_HEAD__BBOX_REG_LOSS_PER", "image"),
        ("ROI_MASK_HEAD__NAME", "RefineMaskHead"),
        ("ROI_MASK_HEAD__CLS_AGNOSTIC_MASK", False),
        ("BACKBONE__NAME", "build_resnet_fpn_backbone"),
        ("TIMM__NORM", "GN"),
        ("SWIN__SIZE", "XXL"),
        ("FPN__IN_FEATURES", "[swin1, swin2, swin3]"),
        ("FPN__IN_FEATURES", "[layer5, layer4, layer3]"),
        ("ROI_HEADS__BATCH_SIZE_PER_IMAGE", 0),
    ],
)
def test_what_the_network_does_not_have_is_refused_by_name(key, value):
    cfg = small_config(**{key: value})
    with pytest.raises(UserError, match=rf"MODEL\.{key.replace('__', '.')} is .*(set it to|or more)"):
        build_model(cfg)


SWIN = {
    "BACKBONE__NAME": "build_swintransformer_fpn_backbone",
    "SWIN__SIZE": "T",
    "FPN__IN_FEATURES": "[swin1, swin2, swin3]",
}
# Of each layer: standard deviation of the weights, from fan-in and fan-out; their distribution; the bias.
INITIAL = {
    r"fpn_(lateral|output)|top_block|box_head.*fc": (lambda fan_in, _: fan_in**-0.5, "uniform", 0.0),
    r"bbox_tower.[03]": (lambda *_: 0.01, "normal", 0.0),
    r"centernet_head.bbox_pred": (lambda *_: 0.01, "normal", 8.0),
    r"agn_hm": (lambda *_: 0.01, "normal", -math.log(99)),
    r"cls_score": (lambda *_: 0.01, "normal", -math.log(99)),  # the prior probability 0.01
    r"box_predictor.*bbox_pred": (lambda *_: 0.001, "normal", 0.0),
    r"mask_fcn|deconv": (lambda _, fan_out: (2 / fan_out) ** 0.5, "normal", 0.0),
    r"mask_head.predictor": (lambda *_: 0.001, "normal", 0.0),
    r"attn.(qkv|proj)|mlp.fc|reduction": (lambda *_: 0.02, "normal", 0.0),
}


def test_untrained_layers_start_as_in_the_method():
    settings = {"FPN__OUT_CHANNELS": 64, "CENTERNET__NUM_BOX_CONVS": 2, "ROI_MASK_HEAD__CONV_DIM": 640}
    torch.manual_seed(0)
    state = build_model(small_config(**SWIN, **settings)).state_dict()
    seen = set()
    for name, weight in state.items():
        pattern = next((pattern for pattern in INITIAL if re.search(pattern, name)), None)
        if pattern is None or not name.endswith("weight"):
            continue
        seen.add(pattern)
        std, distribution, bias = INITIAL[pattern]
        cells = weight[0, 0].numel()
        std = std(weight.shape[1] * cells, weight.shape[0] * cells)
        assert weight.std().item() == pytest.approx(std, rel=0.01 + 4 / (2 * weight.numel()) ** 0.5), name
        assert (weight.abs().max() < 1.7321 * std) == (distribution == "uniform"), name
        if "reduction" not in name:
            assert state[name.removesuffix("weight") + "bias"].unique().tolist() == pytest.approx([bias]), (
                name
            )
    assert seen == set(INITIAL)
    tables = [value for name, value in state.items() if "relative_position_bias_table" in name]
    assert torch.cat(tables, 1).std().item() == pytest.approx(0.02, rel=0.03)


def test_chances_of_the_federated_loss_follow_the_image_counts(tmp_path, monkeypatch):
    counts = [100, 4, 0, 1, 25]
    assert build_model(small_config()).roi_heads.box_predictor[2].freq_weight.tolist() == [1] * 5
    network = build_model(small_config(), counts)
    assert network.roi_heads.box_predictor[2].freq_weight.tolist() == [10, 2, 0, 1, 5]
    records = [{"id": 5 - n, "image_count": count} for n, count in enumerate(reversed(counts))]
    (tmp_path / "categories.json").write_text(json.dumps(records))
    monkeypatch.chdir(tmp_path)  # where a relative path does not begin
    for path in (tmp_path / "categories.json", os.path.relpath(tmp_path / "categories.json", REPOSITORY)):
        for others in (None, [1] * 5):  # which the file takes the place of
            read = build_model(small_config(ROI_BOX_HEAD__CAT_FREQ_PATH=path), others)
            for predictor, same in zip(
                read.roi_heads.box_predictor, network.roi_heads.box_predictor, strict=True
            ):
                assert torch.equal(predictor.freq_weight, same.freq_weight)


def test_image_counts_of_other_categories_are_refused(tmp_path):
    with pytest.raises(
        UserError, match="the training set has 3 categories, but MODEL.ROI_HEADS.NUM_CLASSES is 5"
    ):
        build_model(small_config(), [1, 2, 3])
    one = '[{"id": 1, "image_count": 7}]', r"ROI_BOX_HEAD\.CAT_FREQ_PATH .*/categories\.json has 1 categories"
    for content, reason in (one, ("[1, 2]", "no JSON list"), ("{", "no JSON list"), (None, "does not exist")):
        path = tmp_path / "categories.json"
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
        with pytest.raises(UserError, match=reason):
            build_model(small_config(ROI_BOX_HEAD__CAT_FREQ_PATH=path))


def test_every_setting_reaches_its_place():
    heat_map = {"INFERENCE_TH": 0.1, "NMS_TH_TRAIN": 0.2, "NMS_TH_TEST": 0.3, "PRE_NMS_TOPK_TRAIN": 4}
    heat_map |= {"PRE_NMS_TOPK_TEST": 5, "POST_NMS_TOPK_TRAIN": 6, "POST_NMS_TOPK_TEST": 7}
    settings = {f"CENTERNET__{key}": value for key, value in heat_map.items()} | {
        "ROI_HEADS__BATCH_SIZE_PER_IMAGE": 8,
        "ROI_HEADS__POSITIVE_FRACTION": 0.9,
        "ROI_BOX_CASCADE_HEAD__IOUS": "[0.11, 0.12, 0.13]",
        "ROI_HEADS__SCORE_THRESH_TEST": 0.14,
        "ROI_HEADS__NMS_THRESH_TEST": 0.15,
        "ROI_BOX_HEAD__FED_LOSS_NUM_CAT": 16,
        "ROI_BOX_HEAD__FED_LOSS_FREQ_WEIGHT": 1.5,
        "ROI_BOX_HEAD__PRIOR_PROB": 0.2,
        "CENTERNET__PRIOR_PROB": 0.1,
    }
    generator = torch.Generator()
    network = build_model(small_config(**settings), [4, 0, 1, 9, 0], generator)
    assert network.proposal_generator.when_training == ProposalSelection(0.1, 0.2, 4, 6)
    assert network.proposal_generator.when_testing == ProposalSelection(0.1, 0.3, 5, 7)
    heads = network.roi_heads
    sampler = heads.sampler
    assert (sampler.per_image, sampler.foreground_share, sampler.iou_threshold) == (8, 0.9, 0.11)
    assert heads.iou_thresholds == [0.11, 0.12, 0.13]
    assert heads.selection == DetectionSelection(0.14, 0.15, 100)
    assert heads.class_sampler.num_classes == 16
    assert sampler.generator is heads.class_sampler.generator is generator
    for predictor in heads.box_predictor:
        assert predictor.freq_weight.tolist() == [8, 0, 1, 27, 0]
        assert predictor.cls_score.bias.sigmoid().tolist() == pytest.approx([0.2] * 6)
    assert network.proposal_generator.centernet_head.agn_hm.bias.sigmoid().item() == pytest.approx(0.1)
    with torch.device("meta"):
        swin = build_model(small_config(**SWIN, SWIN__USE_CHECKPOINT=True)).backbone.bottom_up
    assert all(layer.recompute for layer in swin.layers)


@pytest.mark.parametrize(("norm", "learns"), [("BN", True), ("FrozenBN", False)])
def test_batch_norms_learn_unless_they_are_frozen(norm, learns):
    network = build_model(small_config(TIMM__NORM=norm))
    norms = [module for module in network.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    for _ in range(2):  # as it is built, and in training
        assert norms and {module.training for module in norms} == {learns}
        network.train()
    assert {parameter.requires_grad for module in norms for parameter in module.parameters()} == {learns}


def test_no_mask_head_is_an_option():
    network = build_model(small_config(MASK_ON=False))
    assert not any("mask_head" in name for name in network.state_dict())
