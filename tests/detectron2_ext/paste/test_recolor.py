import colorsys

import numpy as np
import pytest

from detectron2_ext.data.dataset import DetectionDataset
from detectron2_ext.data.view import REAL, ObjectMask, Scene, SceneObject
from detectron2_ext.paste.build import _build_augmentations, build_recoloring
from detectron2_ext.paste.composite import RandomColor
from detectron2_ext.paste.recolor import PhotometricDistortion, RecolorObjects, color_jitter, photometric
from exchange.config import REPOSITORY, load_config
from exchange.errors import UserError


def expected(pixel, brightness, contrast, contrast_first, saturation, hue, channels):
    """SSD's distortion of one pixel, in float64."""
    before, after = (contrast, 1.0) if contrast_first else (1.0, contrast)
    h, s, v = colorsys.rgb_to_hsv(*((np.float64(value) + brightness) * before for value in pixel))
    rgb = np.array(colorsys.hsv_to_rgb((h + hue / 360) % 1, s * saturation, v)) * after
    return np.clip(rgb[list(channels)], 0, 255)


@pytest.mark.parametrize("contrast_first", [True, False])
@pytest.mark.parametrize("hue", [-18.0, 17.0])
def test_a_distortion_is_the_formula(contrast_first, hue):
    image = np.random.default_rng(0).integers(40, 256, (20, 30, 3), dtype=np.uint8)
    settings = (20.5, 1.3, contrast_first, 0.7, hue, (2, 0, 1))
    found = PhotometricDistortion(*settings)(image)
    for pixel, result in zip(image.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        assert np.abs(result - expected(pixel, *settings)).max() <= 1.01  # eight bits, rounded down


def test_each_part_of_a_distortion_is_drawn_by_itself_for_half_of_the_images_from_its_range():
    drawn = [PhotometricDistortion.draw(np.random.default_rng(seed)) for seed in range(3000)]
    parts = []
    for name, neutral, low, high in (
        ("brightness", 0, -32, 32), ("contrast", 1, 0.5, 1.5), ("saturation", 1, 0.5, 1.5), ("hue", 0, -18, 18)
    ):  # fmt: skip
        values = np.array([getattr(each, name) for each in drawn])
        parts.append(values != neutral)
        changed = values[parts[-1]]
        assert abs(len(changed) / 3000 - 0.5) < 0.04
        quantiles = [low, (low + high) / 2, high]
        np.testing.assert_allclose(np.quantile(changed, [0, 0.5, 1]), quantiles, atol=0.05 * (high - low))
    parts.append(np.array([each.contrast_first for each in drawn]))
    assert abs(parts[-1].mean() - 0.5) < 0.04
    parts.append(np.array([each.channels != (0, 1, 2) for each in drawn]))
    # half of the time one of six orders, one of which changes nothing
    assert abs(parts[-1].mean() - 5 / 12) < 0.04
    np.testing.assert_allclose(np.corrcoef(parts), np.eye(6), atol=0.08)


def test_torchvisions_jitter_scales_brightness_by_half_and_turns_hues_by_three_tenths():
    grey, red = (np.full((2, 2, 3), color, np.uint8) for color in (100, (160, 50, 50)))
    levels, hues, contrasts = [], [], []
    for seed in range(300):
        levels.append(color_jitter(grey, np.random.default_rng(seed))[0, 0, 0])
        pixel = color_jitter(red, np.random.default_rng(seed))[0, 0] / 255
        hues.append((colorsys.rgb_to_hsv(*pixel)[0] + 0.5) % 1 - 0.5)
        contrasts.append((pixel.max() - pixel.min()) * 255 / (levels[-1] / 100) / 110)
    np.testing.assert_allclose(np.quantile(levels, [0, 1]), [50, 150], atol=6)
    np.testing.assert_allclose(np.quantile(hues, [0, 1]), [-0.3, 0.3], atol=0.03)
    assert min(contrasts) < 0.4 and max(contrasts) > 1.6  # contrast and saturation, 0.5 to 1.5 each


def scene_of(*classes) -> Scene:
    image = np.full((20, 60, 3), 100, np.uint8)
    shape = np.array([[1, 1, 0], [0, 1, 1]], np.uint8)
    objects = [
        SceneObject((box := (10 * n + 3, 5, 10 * n + 6, 7)), ObjectMask(shape, box), c, REAL)
        for n, c in enumerate(classes)
    ]
    return Scene(image, objects)


def test_pixels_of_chosen_objects_alone_change_as_those_of_the_whole_image_would():
    scene = scene_of(0, 1, 0, 2)
    scene.image[0, 0] = 50
    RecolorObjects(np.array([True, False, False]), lambda image, _: image + image[0, 0])(
        scene, np.random.default_rng(0)
    )
    wanted = np.full((20, 60, 3), 100)
    wanted[0, 0] = 50
    for n in (0, 2):
        wanted[5, 10 * n + 3 : 10 * n + 5] = wanted[6, 10 * n + 4 : 10 * n + 6] = 150
    np.testing.assert_array_equal(scene.image, wanted)


@pytest.fixture
def dataset(small_lvis) -> DetectionDataset:
    """101 images of class 0 (f), 11 of class 1 (c), 10 of class 2 (r), and as many without an object."""
    small_lvis.add_image()
    name = small_lvis.images[0]
    small_lvis.images = [{**name, "id": n + 1} for n in range(202)]
    for n in range(101):
        for category in [0, *([1] if n < 11 else []), *([2] if n < 10 else [])]:
            small_lvis.add_object(n + 1, category, [4, 6, 20, 10])
    return small_lvis.read()


def settings(*pairs):
    return load_config(
        str(REPOSITORY / "configs/MRCA/MRCA_R50.yaml"), ["INPUT.USE_COLOR_JITTER", "True", *pairs]
    )


@pytest.mark.parametrize("groups", ["r", "c", "f", "r, f"])
def test_frequencies_say_which_classes_get_other_colours(dataset, groups):
    cfg = settings("INPUT.COLOR_JITTER_FREQ_FILTER", f"[{groups}]")
    (change,) = build_recoloring(cfg, "dst", dataset, np.arange(101))
    for class_index, group in enumerate("fcr"):
        scenes = [scene_of(class_index) for _ in range(20)]
        for seed, scene in enumerate(scenes):
            change(scene, np.random.default_rng(seed))
        assert any((scene.image != 100).any() for scene in scenes) == (group in groups)


@pytest.mark.parametrize(("of_torchvision", "recolor"), [("True", color_jitter), ("False", photometric)])
def test_colours_change_by_torchvision_s_jitter_or_ssd_s_distortion(dataset, of_torchvision, recolor):
    cfg = settings(
        "INPUT.COLOR_JITTER_USE_TORCHVISION", of_torchvision, "INPUT.COLOR_JITTER_FREQ_FILTER", "[f]"
    )
    (change,) = build_recoloring(cfg, "dst", dataset, np.arange(101))
    for seed in range(5):
        found, expected = scene_of(0), scene_of(0)
        change(found, np.random.default_rng(seed))
        RecolorObjects(np.array([True]), recolor)(expected, np.random.default_rng(seed))
        np.testing.assert_array_equal(found.image, expected.image)


@pytest.mark.parametrize(("kind", "parts"), [("both", {"src", "dst"}), ("src", {"src"}), ("dst", {"dst"})])
def test_the_type_says_whether_sources_and_pasted_instances_or_targets_change(dataset, kind, parts):
    cfg = settings("INPUT.COLOR_JITTER_APPLY_TYPE", kind)
    assert {part for part in ("src", "dst") if build_recoloring(cfg, part, dataset, np.arange(101))} == parts
    assert any(isinstance(each, RandomColor) for each in _build_augmentations(cfg)) == ("src" in parts)
    off = settings("INPUT.USE_COLOR_JITTER", "False")
    assert not build_recoloring(off, "dst", dataset, np.arange(101))
    with pytest.raises(UserError, match="COLOR_JITTER_APPLY_TYPE is 'neither'.*choose from both, src, dst"):
        build_recoloring(settings("INPUT.COLOR_JITTER_APPLY_TYPE", "neither"), "dst", dataset, np.arange(101))
