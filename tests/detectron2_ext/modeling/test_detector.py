import pytest
import torch
from network_scenes import NUM_CLASSES, objects, scene, small_config

from detectron2_ext.modeling import build_model
from detectron2_ext.modeling.detector import ImagePreprocessor, half_type
from detectron2_ext.structures import Instances

LOSSES = {
    *(f"loss_{kind}_stage{stage}" for kind in ("cls", "box_reg") for stage in range(3)),
    "loss_mask",
    "loss_centernet_loc",
    "loss_centernet_agn_pos",
    "loss_centernet_agn_neg",
}


def detector(seed=0, generator=None, **overrides):
    torch.manual_seed(seed)
    return build_model(small_config(**overrides), generator=generator)


AWKWARD = {
    "ordinary": lambda: [scene(0), scene(1, (48, 40), 1)],
    "no object": lambda: [scene(0, num_objects=0), scene(1, num_objects=0)],
    "one image without": lambda: [scene(0), scene(1, num_objects=0)],
    "300 objects": lambda: [scene(0, num_objects=300)],
    "on the border": lambda: [
        scene(0) | {"instances": objects([[0, 0, 96, 64], [90, 60, 96, 64]], [0, 1], (64, 96))}
    ],
    "partly outside": lambda: [scene(0) | {"instances": objects([[-20, -9, 30, 30]], [2], (64, 96))}],
    "without width": lambda: [
        scene(0) | {"instances": objects([[9, 9, 9, 30], [20, 20, 50, 50]], [2, 1], (64, 96))}
    ],
}


@pytest.mark.parametrize("batch", AWKWARD.values(), ids=AWKWARD)
def test_every_loss_is_finite_and_every_trained_weight_has_a_gradient(batch):
    network = detector().train()
    losses = network(batch())
    assert set(losses) == LOSSES
    assert all(
        loss.dtype == torch.float32 and loss.shape == () and loss.isfinite() for loss in losses.values()
    )
    sum(losses.values()).backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_images_are_padded_with_the_mean_below_and_to_the_right_to_multiples_of_32():
    preprocessor = ImagePreprocessor([10.0, 20.0, 30.0], [1.0, 2.0, 4.0])
    images = [torch.full((3, *size), 50, dtype=torch.uint8) for size in ((32, 64), (20, 70))]
    batch, sizes = preprocessor(images)
    assert sizes == [(32, 64), (20, 70)]
    expected = torch.zeros(2, 3, 32, 96)
    normal = torch.tensor([40.0, 15.0, 5.0]).view(3, 1, 1)
    expected[0, :, :, :64], expected[1, :, :20, :70] = normal, normal
    assert torch.equal(batch, expected)
    assert torch.equal(preprocessor.from_batch(images[1][None]), expected[1:])


def test_one_class_is_enough():
    network = detector(ROI_HEADS__NUM_CLASSES=1).train()
    entry = scene(0) | {"instances": objects([[10, 10, 40, 40]], [0], (64, 96))}
    assert sum(network([entry]).values()).isfinite()


def test_boxes_without_masks_teach_all_but_the_mask_head():
    whole = scene(0)["instances"]
    boxes_only = Instances(whole.image_size, gt_boxes=whole.gt_boxes, gt_classes=whole.gt_classes)
    assert set(detector().train()([scene(0) | {"instances": boxes_only}])) == LOSSES - {"loss_mask"}


def test_full_masks_are_as_good_as_cut_ones():
    whole = scene(0)
    whole["instances"].gt_masks = whole["instances"].gt_masks.to_full()
    losses = [detector(generator=torch.Generator().manual_seed(5)).train()([s]) for s in (scene(0), whole)]
    assert losses[0] == losses[1]


def test_detections_refer_to_the_size_that_the_input_names():
    network = detector(ROI_HEADS__SCORE_THRESH_TEST=0.0).eval()
    results = network([scene(0) | {"height": 128, "width": 48}, {"image": scene(1, (50, 70))["image"]}])
    for result, (height, width) in zip(results, [(128, 48), (50, 70)], strict=True):
        found = result["instances"]
        assert found.image_size == (height, width) and not found.scores.requires_grad
        assert 0 < len(found) <= 100
        assert found.pred_boxes.dtype == found.scores.dtype == torch.float32
        assert (found.pred_boxes >= 0).all() and (found.pred_boxes <= torch.tensor([width, height] * 2)).all()
        assert (found.scores.diff() <= 0).all()
        assert found.pred_classes.dtype == torch.int64 and found.pred_classes.max() < NUM_CLASSES
        assert found.pred_masks.dtype == torch.bool and found.pred_masks.shape == (len(found), height, width)


@torch.no_grad()
def test_a_batch_is_its_images_one_by_one():
    network = detector().eval()
    batch = [scene(0), scene(1), scene(2)]
    for together, entry in zip(network(batch), batch, strict=True):
        alone = network([entry])[0]["instances"]
        torch.testing.assert_close(together["instances"].scores, alone.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together["instances"].pred_boxes, alone.pred_boxes, rtol=1e-3, atol=1e-2)


def test_mixed_precision_keeps_the_losses_in_float32():
    batch = [scene(0), scene(1)]
    full = detector(generator=torch.Generator().manual_seed(5)).train()(batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = detector(generator=torch.Generator().manual_seed(5)).train()(batch)
    for name, loss in mixed.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(full[name].item(), rel=0.2, abs=0.02), name


def test_with_fp16_on_a_cpu_the_backbone_trains_in_bfloat16_and_all_else_in_float32():
    """A bfloat16 is off by up to 2^-9 of itself; sixteen layers in a row, at random, by four times that."""
    cfg = small_config()
    cfg.defrost()
    losses, seen = [], []
    for cfg.FP16 in (False, True):
        torch.manual_seed(0)
        network = build_model(cfg, generator=torch.Generator().manual_seed(5)).train()
        inside = [m for m in network.backbone.modules() if isinstance(m, torch.nn.Conv2d)]
        heads = (network.proposal_generator, network.roi_heads)
        outside = [
            m for part in heads for m in part.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
        ]
        kinds = [set(), set()]
        for found, modules in zip(kinds, (inside, outside), strict=True):
            for module in modules:
                module.register_forward_hook(lambda m, x, y, found=found: found.update((x[0].dtype, y.dtype)))
        losses.append(network([scene(0), scene(1)]))
        seen.append([kind - {torch.float32} for kind in kinds])
        kinds[0].clear()
        network.eval()([scene(0)])
        assert kinds == [{torch.float32}, {torch.float32}]
    assert seen == [[set(), set()], [{torch.bfloat16}, set()]]
    for name, loss in losses[1].items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, losses[0][name], rtol=4 * 2**-9, atol=0)
    assert losses[0] != losses[1]
    cfg.SOLVER.AMP.ENABLED = True
    assert not build_model(cfg).half_backbone  # which casts the whole network
    assert half_type(torch.device("cuda")) == torch.float16
