from colorsys import rgb_to_hsv
from unittest.mock import Mock

import numpy as np
import pytest

from detectron2_ext.data.view import PASTED, REAL, ObjectMask, ResizeCropFlip, Scene, SceneObject, SceneReader
from detectron2_ext.paste import build
from detectron2_ext.paste.composite import (
    RELEASED,
    Occlusion,
    RandomColor,
    RandomMirror,
    RandomRotation,
    basic,
)
from detectron2_ext.paste.pasters import EitherPaster, ImagePaster, PoolPaster
from detectron2_ext.paste.plan import Placement
from detectron2_ext.paste.pool import ImagesWithMasks, InstancePool
from detectron2_ext.paste.sources import AnyImage
from exchange.config import REPOSITORY, load_config
from exchange.images import BadImage

UPRIGHT = ResizeCropFlip(64, (1.0, 1.0), flip_probability=0.0)


def pool_at(path) -> InstancePool:
    return InstancePool(ImagesWithMasks.of_annotations(str(path), str(path.parent)), np.array([10, 20, 30]))


def black(height: int = 100, width: int = 120) -> Scene:
    return Scene(np.zeros((height, width, 3), np.uint8), [])


def test_a_pool_paster_tells_what_it_pasted_where(write_pool):
    pool = pool_at(write_pool(5))
    pool.load = Mock(wraps=pool.load)
    plan = [Placement(4, 0.3, None), Placement(1, 0.2, (7, 9))]
    scene = black()
    infos = PoolPaster(pool, lambda *_: iter(plan), [], [basic])(scene, 0, np.random.default_rng(1), [])
    assert [info.pool_index for info in infos] == [4, 1]
    assert [info.class_index for info in infos] == [1, 1] == [o.class_index for o in scene.objects]
    for info, (_, area_root, corner), pasted, loaded in zip(
        infos, plan, scene.objects, pool.load.call_args_list, strict=True
    ):
        x1, y1, x2, y2 = info.box
        assert loaded.args == (info.pool_index, (y2 - y1, x2 - x1))  # which says the half to begin with
        assert (x2 - x1) * (y2 - y1) == pytest.approx(area_root**2 * 100 * 120, rel=0.1)
        assert corner is None or (x1, y1) == corner
        assert pasted.source == PASTED


@pytest.mark.parametrize(("rule", "survivors"), [(RELEASED, 1), (Occlusion(-1, 12_000), 0)])
def test_what_a_pool_paster_leaves_of_objects_below_is_for_its_rule_to_say(write_pool, rule, survivors):
    scene, plan = black(), [Placement(0, 0.3, (7, 9))]
    below = ObjectMask(np.ones(scene.size, np.uint8), (0, 0, 120, 100))
    scene.objects = [SceneObject(below.box, below, 0, REAL)]
    paster = PoolPaster(pool_at(write_pool(1)), lambda *_: iter(plan), [], [basic], rule)
    paster(scene, 0, np.random.default_rng(1), [])
    assert [o.source for o in scene.objects] == [REAL] * survivors + [PASTED]


def test_both_pasters_get_the_rule_of_the_settings_which_digits_scale_to_their_160_pixels(monkeypatch):
    made = {name: Mock() for name in ("PoolPaster", "ImagePaster", "_build_plan")}
    for name, paster in made.items():
        monkeypatch.setattr(build, name, paster)
    for path, rule in (("MRCA/MRCA_R50", RELEASED), ("digits/MRCA_digits", Occlusion(10 // 4, 300 // 16))):
        cfg = load_config(str(REPOSITORY / f"configs/{path}.yaml"), ["INPUT.USE_COPY_METHOD", "both"])
        pasters = build.build_pasters(cfg, Mock(), None, [1], None, round_=0, seed=0)
        in_turn = [made[name] for name in ("PoolPaster", "ImagePaster")]  # so that what is copied is on top
        assert pasters == [paster.return_value for paster in in_turn]
        assert [paster.call_args.args[-1] for paster in in_turn] == [rule, rule]


def test_what_cannot_be_read_is_told_and_does_not_keep_the_others_from_being_pasted(write_pool):
    path = write_pool(3)
    (path.parent / "raw" / "00_0010_0000.png").unlink()
    plan = [Placement(0, 0.3, None), Placement(2, 2.0, None), Placement(1, 0.3, None)]  # one is too large
    skipped = []
    infos = PoolPaster(pool_at(path), lambda *_: iter(plan), [], [basic])(
        black(), 0, np.random.default_rng(1), skipped
    )
    assert [info.pool_index for info in infos] == [1] and len(skipped) == 1
    reader = Mock(side_effect=BadImage("the second image"))
    paster = ImagePaster(reader, AnyImage(np.array([0])), [basic])
    assert paster(black(), 0, np.random.default_rng(1), skipped) == [] and skipped[1] == "the second image"


def test_each_blend_and_augmentation_of_the_list_is_used(write_pool):
    used = []
    blends = [lambda *_, n=n: used.append(n) for n in range(3)]

    def augment(cutout, rng):
        used.append("augmented")
        return cutout

    plan = [Placement(0, 0.3, None)] * 60
    PoolPaster(pool_at(write_pool(1)), lambda *_: iter(plan), [augment], blends)(
        black(), 0, np.random.default_rng(1), []
    )
    assert used.count("augmented") == 60
    assert all(used.count(n) > 8 for n in range(3))


def test_the_layout_of_another_image_gives_classes_sizes_and_places(small_lvis):
    image = small_lvis.add_image(64, 48)
    boxes = {0: [4, 6, 20, 10], 1: [30, 20, 12, 24]}
    for category, box in {2: [1, 1, 20, 20], **boxes}.items():
        small_lvis.add_object(image, category, box)
    small_lvis.add_object(image, 1, [0, 0, 60, 40], iscrowd=1)  # which is not imitated
    small_lvis.add_object(small_lvis.add_image(64, 48), 0, [1, 1, 9, 9])  # nor is this image
    categories = np.array([0, 1, 0, 1, 1])  # no instance of class 2
    config = str(REPOSITORY / "configs/MRCA/MRCA_R50.yaml")
    cfg = load_config(config, ["INPUT.INST_POOL_SAMPLE_TYPE", "reference"])
    pool = Mock(categories=categories)
    plan = build._build_plan(cfg, small_lvis.read(), np.array([0]), pool, None, 0, 0)
    scene = black(96, 200)
    scales, used = [], set()
    for seed in range(200):
        placements = list(plan(scene, 0, np.random.default_rng(seed)))
        used |= {p.pool_index for p in placements}
        assert [categories[p.pool_index] for p in placements] == [0, 1]
        one, other = (
            p.area_root * (96 * 200) ** 0.5 / (w * h) ** 0.5
            for p, (_, _, w, h) in zip(placements, boxes.values(), strict=True)
        )
        assert one == pytest.approx(other)
        (x1, y1), (x2, y2) = (p.corner for p in placements)
        assert x2 - x1 == pytest.approx(26 * one, abs=1) and y2 - y1 == pytest.approx(14 * one, abs=1)
        free = (x1 - 4 * one) / (200 - 64 * one), (y1 - 6 * one) / (96 - 48 * one + 1e-9)
        scales.append((one, *free))
    one, right, down = np.array(scales).T
    assert used == set(range(5))
    np.testing.assert_allclose(
        np.quantile(one, [0, 0.5, 1]), [1.6, 1.8, 2.0], atol=0.03
    )  # 0.8 to 1 of what fits
    np.testing.assert_allclose(np.quantile(right, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.08)
    roomy = one < 1.9
    assert abs(np.corrcoef(right[roomy], down[roomy])[0, 1]) < 0.3


def test_objects_of_a_second_image_come_with_their_pixels_masks_and_places(small_lvis):
    pixels = np.random.default_rng(0).integers(1, 256, (48, 64, 3), dtype=np.uint8)
    image = small_lvis.add_image(64, 48, pixels)
    boxes = [[4, 6, 20, 10], [30, 20, 12, 24], [10, 10, 30, 12]]
    for category, box in enumerate(boxes):
        small_lvis.add_object(image, category, box)
    reader = SceneReader(small_lvis.read(), UPRIGHT)
    counts, used = [], []
    blends = [lambda *given, n=n: used.append(n) or basic(*given) for n in range(2)]
    paster = ImagePaster(reader, AnyImage(np.array([0])), blends)
    for seed in range(400):
        scene = black(40, 90)
        infos = paster(scene, 0, np.random.default_rng(seed), [])
        counts.append(len(infos))
        expected = np.zeros((40, 90, 3), np.uint8)
        if infos:
            expected = np.zeros((48, 90, 3), np.uint8)  # grown to hold the second image's view
            for info in infos:
                x1, y1, x2, y2 = info.box
                assert [x1, y1, x2 - x1, y2 - y1] == boxes[info.class_index]
                expected[y1:y2, x1:x2] = pixels[y1:y2, x1:x2]
        np.testing.assert_array_equal(scene.image, expected)
        assert [o.source for o in scene.objects] == [PASTED] * len(infos)
    np.testing.assert_allclose(np.bincount(counts, minlength=4) / 400, 0.25, atol=0.08)
    assert abs(np.mean(used) - 0.5) < 0.1


@pytest.mark.parametrize(("rule", "survivors"), [(RELEASED, 0), (Occlusion(10, 139), 1)])
def test_copied_objects_cover_those_below_together(small_lvis, rule, survivors):
    image = small_lvis.add_image(64, 48)
    for x in (0, 10):
        small_lvis.add_object(image, 0, [x, 0, 10, 48])
    reader = SceneReader(small_lvis.read(), UPRIGHT)
    for seed in range(30):
        scene = reader(0, np.random.default_rng(0))
        below = scene.objects[0]
        below.mask.crop = np.ones((14, 30), np.uint8)  # 20 of its 30 columns can be covered: 140 pixels left
        below.mask.box = below.box = (0, 0, 30, 14)
        scene.objects = [below]
        paster = ImagePaster(reader, AnyImage(np.array([0])), [basic], rule)
        infos = paster(scene, 0, np.random.default_rng(seed), [])
        real = [o for o in scene.objects if o.source == REAL]
        assert len(real) == (survivors if len(infos) == 2 else 1)


def test_a_mixture_takes_all_of_a_side_as_often_as_asked():
    a, b, c = (lambda *_, name=name: [name] for name in "abc")
    paster = EitherPaster(0.3, [a, b], [c])
    taken = ["".join(paster(black(), seed, np.random.default_rng(seed), [])) for seed in range(3000)]
    assert set(taken) == {"ab", "c"} and abs(taken.count("ab") / 3000 - 0.3) < 0.03


def cutout() -> np.ndarray:
    image = np.zeros((20, 30, 4), np.uint8)
    image[..., 0], image[..., 3] = 200, 255
    image[:, :15, 1] = 100
    return image


def test_half_of_the_cutouts_are_mirrored_or_none():
    rng = np.random.default_rng(0)
    mirrored = [RandomMirror()(cutout(), rng)[0, 0, 1] == 0 for _ in range(2000)]
    assert abs(np.mean(mirrored) - 0.5) < 0.04
    np.testing.assert_array_equal(RandomMirror(1.0)(cutout(), rng), cutout()[:, ::-1])
    np.testing.assert_array_equal(RandomMirror(0.0)(cutout(), rng), cutout())


def test_a_turned_cutout_holds_the_whole_object_tightly():
    rng = np.random.default_rng(0)
    heights = []
    for _ in range(200):
        turned = RandomRotation()(cutout(), rng)
        alpha = turned[..., 3] > 0
        assert (turned[alpha][:, 0] == 200).all()  # no dark fringe
        assert alpha.sum() == pytest.approx(600, rel=0.2)
        assert (turned[..., 3] > 127).sum() == pytest.approx(600, rel=0.05)
        assert alpha[0].any() and alpha[-1].any() and alpha[:, 0].any() and alpha[:, -1].any()
        heights.append(turned.shape[0])
    assert max(heights) == pytest.approx(20 * np.cos(np.pi / 6) + 30 * np.sin(np.pi / 6), abs=2)


def test_cutouts_turn_one_way_as_often_as_the_other():
    rng, bar = np.random.default_rng(0), np.full((3, 41, 4), 255, np.uint8)
    ends = [RandomRotation()(bar, rng)[..., 3] for _ in range(300)]
    slopes = [int(end[:, -3:].any(axis=1).argmax()) - int(end[:, :3].any(axis=1).argmax()) for end in ends]
    np.testing.assert_allclose(np.quantile(slopes, [0, 0.5, 1]), [-19, 0, 19], atol=3)


def test_a_cutout_so_faint_that_turning_would_leave_nothing_of_it_stays_as_it_is():
    faint = np.array([[[9, 8, 7, 1]]], np.uint8)
    np.testing.assert_array_equal(RandomRotation()(faint, Mock(uniform=lambda *_: 30.0)), faint)


@pytest.mark.parametrize("degrees", [30.0, 11.0])
def test_a_cutout_turns_about_its_centre(degrees):
    one_way, other = (Mock(uniform=lambda *_, angle=angle: angle) for angle in (degrees, -degrees))
    pixels = np.random.default_rng(0).integers(0, 256, (21, 30, 4), dtype=np.uint8)
    turned = RandomRotation()(pixels, one_way).astype(int)
    mirrored = RandomRotation()(pixels[:, ::-1], other)[:, ::-1]
    assert mirrored.shape == turned.shape and np.abs(mirrored - turned).mean() < 3


def test_colour_jitter_turns_hues_by_a_fifth_and_scales_all_else_by_one():
    rng = np.random.default_rng(0)
    grey, red = np.full((1, 1, 4), 100, np.uint8), np.array([[[200, 50, 50, 255]]], np.uint8)
    levels, hues = [], []
    for _ in range(300):
        levels.append(RandomColor()(grey, rng)[0, 0, 0])
        hue = rgb_to_hsv(*RandomColor(probability=1.0)(red, rng)[0, 0, :3] / 255)[0]
        hues.append((hue + 0.5) % 1 - 0.5)
    np.testing.assert_allclose(np.quantile(levels, [0, 1]), [80, 120], atol=3)
    np.testing.assert_allclose(np.quantile(hues, [0, 1]), [-0.2, 0.2], atol=0.02)
    # Of mean 100, as grey
    pixels = np.array([[[60, 60, 60, 255], [140, 140, 140, 255], [150, 70, 98, 255]]], np.uint8)
    jittered = np.array(
        [RandomColor(probability=1.0)(pixels, rng)[0, :, :3] for _ in range(600)], dtype=float
    )
    brightness, contrast = jittered[:, :2].mean(axis=(1, 2)) / 100, np.diff(jittered[:, :2, 0])[:, 0] / 80
    saturation = np.ptp(jittered[:, 2], axis=1) / 80 / contrast  # whatever was drawn before
    contrast /= brightness
    for drawn in (brightness, contrast, saturation):
        np.testing.assert_allclose(np.quantile(drawn, [0, 1]), [0.8, 1.2], atol=0.04)
    assert np.abs(np.corrcoef([brightness, contrast, saturation]) - np.eye(3)).max() < 0.2


def test_colour_jitter_changes_colours_of_half_of_the_cutouts_and_no_shape():
    rng = np.random.default_rng(0)
    changed = 0
    for _ in range(200):
        jittered = RandomColor()(cutout(), rng)
        np.testing.assert_array_equal(jittered[..., 3], 255)
        assert jittered.dtype == np.uint8 and jittered.shape == (20, 30, 4)
        changed += not np.array_equal(jittered, cutout())
    assert 70 < changed < 130
    assert np.array_equal(RandomColor(probability=0.0)(cutout(), rng), cutout())
