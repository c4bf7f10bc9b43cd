import logging

import numpy as np
import pytest
import torch
from network_scenes import NUM_CLASSES, scene, small_config

from detectron2_ext.modeling import build_model, load_weights
from detectron2_ext.modeling.extra_classes import without_extra_classes
from exchange.errors import UserError

EXTRA = 7
CLASSIFIERS = ("cls_score.weight", "cls_score.bias", "freq_weight")


def network(num_extra, **overrides):
    """Random weights, with logits that differ."""
    classes = NUM_CLASSES + num_extra
    torch.manual_seed(num_extra)
    heads = {"ROI_HEADS__NUM_CLASSES": classes, "ROI_HEADS__NUM_EXTRA_CLASSES": num_extra}
    model = build_model(small_config(**heads, **overrides), range(classes)).eval()
    for predictor in model.roi_heads.box_predictor if not overrides else ():
        torch.nn.init.normal_(predictor.bbox_pred.weight)
        torch.nn.init.normal_(predictor.cls_score.weight, std=0.3)
        predictor.cls_score.bias.data[NUM_CLASSES:] = 20.0  # surer of the extra classes than of any other
    return model


def text_features(tmp_path, num_classes):
    path = tmp_path / f"{num_classes}.npy"
    np.save(path, np.random.default_rng(0).normal(size=(num_classes, 6)).astype(np.float32))
    return {
        "ROI_BOX_HEAD__USE_ZEROSHOT_CLS": True,
        "ROI_BOX_HEAD__USE_BIAS": -1.0,
        "ROI_BOX_HEAD__ZEROSHOT_WEIGHT_PATH": str(path),
    }


@pytest.mark.bits
@pytest.mark.parametrize("form", ["learned", "text"])
def test_a_network_detects_what_it_does_without_its_extra_classes_bit_for_bit(form, tmp_path):
    more = {n: text_features(tmp_path, NUM_CLASSES + n) if form == "text" else {} for n in (0, EXTRA)}
    whole, cut = network(EXTRA, **more[EXTRA]), network(0, **more[0])
    cut.load_state_dict(without_extra_classes(whole.state_dict(), EXTRA))
    images = [scene(seed) for seed in range(3)]
    for ours, theirs in zip(whole.detect(images), cut.detect(images), strict=True):
        assert len(ours) and ours.pred_classes.max() < NUM_CLASSES
        for name, value in ours.fields():
            assert torch.equal(value, dict(theirs.fields())[name]), name


def test_training_and_guidance_know_all_classes():
    model = network(EXTRA)
    seen = []
    model.roi_heads.box_predictor[0].register_forward_hook(lambda *args: seen.append(args[2][0].shape[1]))
    model.train()([scene(0)])
    assert seen == [NUM_CLASSES + EXTRA + 1]
    logits = build_model(
        small_config(
            META_ARCHITECTURE="FeedbackRCNN",
            ROI_HEADS__NUM_CLASSES=NUM_CLASSES + EXTRA,
            ROI_HEADS__NUM_EXTRA_CLASSES=EXTRA,
        )
    ).eval()(torch.rand(1, 3, 64, 64))
    assert logits.shape == (1, NUM_CLASSES + EXTRA + 1)


def test_weights_of_the_data_set_s_classes_alone_start_a_network_with_more(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    source, model = network(0), network(EXTRA)
    torch.save({"model": source.state_dict()}, tmp_path / "x.pth")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_weights(model, str(tmp_path / "x.pth"))
    assert f"classifiers of the data set's classes alone: {EXTRA} more classes begin anew" in caplog.messages
    for name, value in model.state_dict().items():
        given = source.state_dict()[name]
        if not name.endswith(CLASSIFIERS):
            assert torch.equal(value, given)
            continue
        assert torch.equal(value[:NUM_CLASSES], given[:NUM_CLASSES]), name
        last = NUM_CLASSES + EXTRA
        assert torch.equal(value[NUM_CLASSES:last], before[name][NUM_CLASSES:last]), name
        assert torch.equal(value[last:], given[NUM_CLASSES:]), name  # the background's, where it has one
    caplog.clear()
    torch.save({"model": model.state_dict()}, tmp_path / "y.pth")
    load_weights(model, str(tmp_path / "y.pth"))
    assert not any("begin anew" in message for message in caplog.messages)
    unweighed = network(EXTRA, ROI_BOX_HEAD__USE_FED_LOSS=False)
    report = load_weights(unweighed, str(tmp_path / "x.pth"), new_classifier=True)
    assert report.unused == [f"roi_heads.box_predictor.{stage}.freq_weight" for stage in range(3)]
    cut = without_extra_classes(model.state_dict(), EXTRA)
    assert all(torch.equal(cut[name], given) for name, given in source.state_dict().items())


def test_weights_of_other_classes_than_those_of_the_data_set_are_refused_by_their_number(tmp_path):
    source, more = network(0), EXTRA - 4
    grown = {
        name: torch.cat([value, value[:more]]) if name.endswith(CLASSIFIERS) else value
        for name, value in source.state_dict().items()
    }
    torch.save({"model": grown}, tmp_path / "x.pth")
    message = (
        f"trained on {NUM_CLASSES + more} classes, but MODEL.ROI_HEADS.NUM_CLASSES is {NUM_CLASSES + EXTRA}"
    )
    with pytest.raises(UserError, match=message):
        load_weights(network(EXTRA), str(tmp_path / "x.pth"))
