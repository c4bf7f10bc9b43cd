import pytest
import torch
from network_scenes import NUM_CLASSES, small_config
from torch.nn import functional as F

from detectron2_ext.modeling import FeedbackNetwork, build_model, load_feedback_network
from detectron2_ext.modeling.weights import read_weight_file
from exchange import files
from exchange.errors import UserError


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    network = build_model(small_config()).eval()
    for predictor in network.roi_heads.box_predictor:
        torch.nn.init.normal_(predictor.cls_score.weight, std=0.5)
    return network


def images(count, height=64, width=96, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(64, 64), (50, 90), (90, 50)])
@torch.no_grad()
def test_logits_are_the_last_stages_of_one_box_around_the_image(detector, size):
    batch = images(2, *size)
    normalized, _ = detector.preprocessor([image * 255 for image in batch])
    levels = detector.backbone(normalized)
    heads = detector.roi_heads
    whole = torch.tensor([[0.0, 0.0, size[1], size[0]]]).repeat(2, 1)
    pooled = heads.box_pooler([levels[name] for name in ("p3", "p4", "p5")], whole, torch.tensor([0, 1]))
    feature = heads.box_head[2](pooled)
    torch.testing.assert_close(FeedbackNetwork(detector, "embedding")(batch), feature)
    logits = FeedbackNetwork(detector)(batch)
    torch.testing.assert_close(logits, heads.box_predictor[2].cls_score(feature))
    assert logits.shape == (2, NUM_CLASSES + 1)


def test_a_batch_is_its_images_one_by_one_gradients_included(detector, monkeypatch):
    # Rounded to the other side of a ReLU's corner, as some processors do in a batch, a gradient is another.
    monkeypatch.setattr(F, "relu", lambda value, inplace=False: F.softplus(value))
    network = FeedbackNetwork(detector)
    batch = images(3).requires_grad_()
    logits = network(batch)
    logits.square().sum().backward()
    for n in range(3):
        single = batch[n : n + 1].detach().requires_grad_()
        alone = network(single)
        alone.square().sum().backward()
        torch.testing.assert_close(logits[n : n + 1], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(batch.grad[n : n + 1], single.grad, rtol=1e-3, atol=1e-5)
        assert single.grad.abs().sum() > 0


@torch.no_grad()
def test_pixels_are_normalized_once_as_in_training(detector):
    whole_numbers = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    expected, _ = detector.preprocessor([whole_numbers])
    torch.testing.assert_close(
        detector.preprocessor.from_batch(whole_numbers[None] / 255 * 255), expected, rtol=1e-5, atol=1e-4
    )
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    torch.testing.assert_close(expected[0, :, 5, 7], (whole_numbers[:, 5, 7] - mean) / std)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["FeedbackRCNN", "EmbedRCNN"])
def test_a_network_for_bgr_gives_what_the_same_one_for_rgb_does(detector, kind, tmp_path):
    weights = {name: value.clone() for name, value in detector.state_dict().items()}
    torch.save({"model": weights}, tmp_path / "rgb.pth")
    first = "backbone.bottom_up.base.conv1.0.weight"
    weights[first] = weights[first].flip(1)
    torch.save({"model": weights}, tmp_path / "bgr.pth")
    rgb = small_config(META_ARCHITECTURE=kind)
    bgr = rgb.clone()
    bgr.defrost()
    bgr.INPUT.FORMAT, bgr.MODEL.PIXEL_STD = "BGR", rgb.MODEL.PIXEL_STD[::-1]
    bgr.MODEL.PIXEL_MEAN = rgb.MODEL.PIXEL_MEAN[::-1]
    batch = images(2)
    expected = load_feedback_network(rgb, str(tmp_path / "rgb.pth"))(batch)
    loaded, built = load_feedback_network(bgr, str(tmp_path / "bgr.pth")), build_model(bgr).eval()
    built.load_state_dict(loaded.state_dict())
    for network in (loaded, built):
        torch.testing.assert_close(network(batch), expected)
    bgr.INPUT.FORMAT = "GBR"
    with pytest.raises(UserError, match="INPUT.FORMAT is 'GBR'"):
        load_feedback_network(bgr, str(tmp_path / "bgr.pth"))


@torch.no_grad()
def test_a_checkpoint_becomes_a_network_without_gradients(detector, tmp_path):
    path = str(tmp_path / "x.pth")
    averaged = {name: value.clone() for name, value in detector.state_dict().items()}
    averaged["roi_heads.box_predictor.2.cls_score.bias"] += 1
    torch.save({"model": detector.state_dict(), "model_ema": averaged}, path)
    batch = images(2)
    plain = FeedbackNetwork(detector)(batch)
    torch.testing.assert_close(load_feedback_network(small_config(), path)(batch), plain + 1)
    network = load_feedback_network(small_config(), path, use_ema=False, sha256=files.sha256(path))
    torch.testing.assert_close(network(batch), plain)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    half = batch.bfloat16()  # as an autoencoder decodes them; all the rest is float32
    torch.testing.assert_close(network(half), network(half.float()), atol=0, rtol=0)
    embedding = load_feedback_network(small_config(META_ARCHITECTURE="EmbedRCNN"), path)
    assert embedding(batch).shape == (2, 24)
    read = load_feedback_network(small_config(), "read already", content=read_weight_file(path))
    torch.testing.assert_close(read(batch), plain + 1)
    with pytest.raises(UserError, match="not the file"):
        load_feedback_network(small_config(), path, sha256="0" * 64)
