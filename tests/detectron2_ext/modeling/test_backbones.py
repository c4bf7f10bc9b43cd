import math
from copy import deepcopy

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from torch import nn
from torch.nn import functional as F

from detectron2_ext.modeling.fpn import FeaturePyramid
from detectron2_ext.modeling.resnet import FrozenBatchNorm2d, TimmResNet
from detectron2_ext.modeling.swin import SWIN_SIZES, SwinBlock, SwinSize, SwinTransformer
from detectron2_ext.modeling.weights import load_weights

TINY_SWIN = SwinSize(width=16, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=4, drop_path=0.1)


def randomize(module):
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand_like(tensor) + 0.5 if "running_var" in name else torch.randn_like(tensor) * 0.1
                )


@pytest.mark.bits
@torch.no_grad()
def test_resnet_features_are_timms():
    torch.manual_seed(0)
    ours = TimmResNet("resnet18", frozen_norm=False).eval()
    randomize(ours)
    theirs = timm.create_model("resnet18", features_only=True, out_indices=(2, 3, 4)).eval()
    theirs.load_state_dict(ours.base.state_dict())
    images = torch.randn(2, 3, 64, 96)
    for (name, feature), expected in zip(ours(images).items(), theirs(images), strict=True):
        assert torch.equal(feature, expected)
        assert feature.shape[1] == ours.channels[name]


@pytest.mark.bits
def test_frozen_norms_stay_as_they_were_loaded():
    network = TimmResNet("resnet18", frozen_norm=True)
    randomize(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items() if ".bn" in name}
    network.train()
    network(torch.randn(2, 3, 64, 64))["layer5"].sum().backward()
    for module in network.modules():
        if isinstance(module, FrozenBatchNorm2d):
            assert not module.training
            assert module.weight.grad is None
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert network.base.conv1.weight.grad is not None


@torch.no_grad()
def test_swin_is_timms_where_maps_are_whole_windows(tmp_path):
    torch.manual_seed(0)
    theirs = TimmSwin(
        img_size=256, embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), window_size=4
    ).eval()
    randomize(theirs)
    mask = {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}  # a buffer of the release's own files
    torch.save(theirs.state_dict() | mask, tmp_path / "swin.pth")
    ours = nn.Module()
    ours.backbone = FeaturePyramid(SwinTransformer(TINY_SWIN), ["swin1", "swin2", "swin3"], 8)
    report = load_weights(ours, str(tmp_path / "swin.pth"))
    assert (
        report.converted["layers.1.downsample.norm.weight"]
        == "backbone.bottom_up.layers.0.downsample.norm.weight"
    )
    assert set(report.unused) == {"norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias", *mask}
    loaded = ours.backbone.bottom_up.state_dict()
    torch.save({name: 2 * value for name, value in loaded.items()}, tmp_path / "released.pth")
    other = deepcopy(ours)
    assert load_weights(other, str(tmp_path / "released.pth")).converted == {}  # it counts as we do
    doubled = other.backbone.bottom_up.state_dict()
    assert all(torch.equal(doubled[name], 2 * value) for name, value in loaded.items())
    images = torch.randn(2, 3, 256, 256)
    features = ours.backbone.bottom_up.eval()(images)
    tokens = theirs.patch_embed(images)
    for stage, layer in enumerate(theirs.layers):
        tokens = layer(tokens)
        if stage > 0:
            expected = F.layer_norm(tokens, tokens.shape[-1:]).permute(0, 3, 1, 2)
            torch.testing.assert_close(features[f"swin{stage}"], expected, rtol=1e-4, atol=1e-4)


def attention_over_all_tokens(block, tokens):
    """The block's attention with every token in every window of one big float64 matrix."""
    attention = block.attn
    window, shift, heads = block.window, block.shift, attention.heads
    height, width, channels = tokens.shape
    rows, columns = math.ceil(height / window) * window, math.ceil(width / window) * window
    padded = torch.zeros(rows, columns, channels, dtype=torch.float64)
    padded[:height, :width] = tokens
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    y, x = (y - shift) % rows, (x - shift) % columns  # where the shift puts each token
    region = (
        ((y >= rows - window).long() + (y >= rows - shift)) * 3
        + (x >= columns - window)
        + (x >= columns - shift)
    )
    if shift == 0:
        region = torch.zeros_like(region)
    y, x, region = y.flatten(), x.flatten(), region.flatten()
    same_window = (y[:, None] // window == y // window) & (x[:, None] // window == x // window)
    relative = (y[:, None] - y + window - 1) * (2 * window - 1) + x[:, None] - x + window - 1
    relative = relative.masked_fill(~same_window, 0)
    qkv = F.linear(padded.view(-1, channels), attention.qkv.weight.double(), attention.qkv.bias.double())
    query, key, value = qkv.view(-1, 3, heads, channels // heads).permute(1, 2, 0, 3)
    logits = query @ key.transpose(1, 2) / math.sqrt(channels // heads)
    logits = logits + attention.relative_position_bias_table.double()[relative].permute(2, 0, 1)
    logits = logits - 100 * (region[:, None] != region)
    attended = logits.masked_fill(~same_window, -math.inf).softmax(-1) @ value
    merged = attended.transpose(0, 1).reshape(-1, channels)
    merged = F.linear(merged, attention.proj.weight.double(), attention.proj.bias.double())
    return merged.view(rows, columns, channels)[:height, :width]


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 12), (6, 9), (3, 3), (13, 4)])
@pytest.mark.parametrize("shift", [0, 2])
def test_window_attention_is_the_masked_attention_over_all_tokens(size, shift):
    torch.manual_seed(0)
    block = SwinBlock(16, heads=2, window=4, shift=shift, drop_path=0.0).eval()
    randomize(block.attn)
    tokens = torch.randn(*size, 16)
    expected = attention_over_all_tokens(block, tokens.double())
    torch.testing.assert_close(block._attend(tokens[None])[0].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.bits
@torch.no_grad()
def test_recomputing_activations_changes_no_gradient():
    torch.manual_seed(0)
    kept, recomputed = (SwinTransformer(TINY_SWIN, recompute) for recompute in (False, True))
    recomputed.load_state_dict(kept.state_dict())
    images = torch.randn(1, 3, 64, 64)
    gradients, runs = [], []
    for network in (kept, recomputed):
        torch.manual_seed(1)  # stochastic depth
        runs.append(0)
        for layer in network.layers:
            layer.blocks[0].register_forward_pre_hook(lambda *_: runs.append(runs.pop() + 1))
        with torch.enable_grad():
            network.train()(images)["swin3"].square().sum().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert runs == [4, 8]


@pytest.mark.parametrize("name", SWIN_SIZES)
def test_a_swin_of_each_size_is_as_wide_deep_and_many_headed_as_timms(name):
    letter, _, side = name.partition("-22k")
    size = {"T": "tiny", "S": "small", "B": "base", "L": "large"}[letter]
    with torch.device("meta"):
        ours = SwinTransformer(SWIN_SIZES[name])
        theirs = timm.create_model(
            f"swin_{size}_patch4_window{'12_384' if side else '7_224'}", features_only=True
        )
    tables = [
        sorted(parameter.shape for name, parameter in network.named_parameters() if "bias_table" in name)
        for network in (ours, theirs)
    ]
    widths = [network.patch_embed.proj.out_channels for network in (ours, theirs)]
    assert tables[0] == tables[1] and len(set(widths)) == 1


def test_residuals_are_dropped_more_often_the_deeper_they_are():
    with torch.device("meta"):
        network = SwinTransformer(SWIN_SIZES["L-22k-384"])
    shares = [block.drop_path.drop_prob for layer in network.layers for block in layer.blocks]
    assert shares == pytest.approx([0.3 * block / 23 for block in range(24)])
    most = {name: size.drop_path for name, size in SWIN_SIZES.items()}
    assert most == {name: 0.2 if name in ("T", "S") else 0.3 for name in most}  # as the reference trains them
    tokens = torch.randn(1, 8, 8, 16)
    assert torch.equal(SwinBlock(16, heads=2, window=4, shift=0, drop_path=1.0).train()(tokens), tokens)


@torch.no_grad()
def test_pyramid_adds_what_is_coarser():
    torch.manual_seed(0)
    pyramid = FeaturePyramid(
        TimmResNet("resnet18", frozen_norm=True), ["layer3", "layer4", "layer5"], 8
    ).eval()
    images = torch.randn(1, 3, 64, 96)
    below = pyramid.bottom_up(images)
    merged5 = pyramid.fpn_lateral5(below["layer5"])
    merged4 = pyramid.fpn_lateral4(below["layer4"]) + merged5.repeat_interleave(2, 2).repeat_interleave(2, 3)
    merged3 = pyramid.fpn_lateral3(below["layer3"]) + merged4.repeat_interleave(2, 2).repeat_interleave(2, 3)
    levels = pyramid(images)
    torch.testing.assert_close(levels["p3"], pyramid.fpn_output3(merged3))
    torch.testing.assert_close(levels["p4"], pyramid.fpn_output4(merged4))
    torch.testing.assert_close(levels["p5"], pyramid.fpn_output5(merged5))
    torch.testing.assert_close(levels["p6"], pyramid.top_block.p6(levels["p5"]))
    torch.testing.assert_close(levels["p7"], pyramid.top_block.p7(levels["p6"].relu()))
    assert levels["p7"].shape == (1, 8, 1, 1)
