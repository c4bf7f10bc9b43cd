"""The two sides of the benchmarks do the same work: for real, on little of it."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from PIL import Image

from diSegmenter.onnx_network import OnnxNetwork
from exchange.layout import RunLayout
from exchange.manifest import GeneratedInstance
from tools.benchmarks import eval as evaluation
from tools.benchmarks import guidance, loader, matting, paste, pool, segment


def test_the_scores_of_both_evaluations_are_equal_and_those_that_were_recorded(monkeypatch):
    monkeypatch.setattr(evaluation, "_IMAGES", 30)
    monkeypatch.setattr(evaluation, "_CLASSES", 60)
    monkeypatch.setattr(evaluation, "_REPEATS", 1)
    result = evaluation.measure("cpu")
    assert result["largest_difference"] < 1e-6 and result["ap_boxes"] == pytest.approx(19.02608, rel=1e-4)


def test_objects_to_evaluate_are_ellipses_that_fill_their_boxes(monkeypatch):
    monkeypatch.setattr(evaluation, "_IMAGES", 5)
    monkeypatch.setattr(evaluation, "_CLASSES", 60)
    content, found = evaluation._work(np.random.default_rng(0))
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        corners = np.reshape(annotation["segmentation"][0], (-1, 2))
        np.testing.assert_allclose([*corners.min(0), *corners.max(0)], [x, y, x + w, y + h])
        assert annotation["area"] == w * h
    of_boxes = [coco_mask.decode(mask).sum() for mask in found.masks()] / found.boxes[:, 2:].prod(1)
    assert 0.9 < np.median(of_boxes) / (np.pi / 4) < 1


def test_masks_of_stage_2_are_the_same_in_batches_and_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(segment, "_IMAGES", 5)
    monkeypatch.setattr(segment, "_BATCH", 2)
    models, masks = segment._models(torch.device("cpu")), {}
    images = segment._images(models.input_size)
    instances = [
        GeneratedInstance(RunLayout.instance_name(0, 1, i), 1, i, 0, "", "", False)
        for i in range(len(images))
    ]
    for side in (segment._one_by_one, segment._batched):
        layout = RunLayout(str(tmp_path / side.__name__))
        for folder in (layout.raw(""), layout.segmented("")):
            (tmp_path / folder).mkdir(parents=True)
        for instance, image in zip(instances, images, strict=True):
            Image.fromarray(image).save(layout.raw(instance.file))
        side(layout, instances, models)
        masks[side] = np.stack([np.asarray(Image.open(layout.segmented(i.file)), int) for i in instances])
    one_by_one, batched = masks.values()
    kept = batched > 0  # what is 128 or less is cleared
    assert one_by_one.std() > 50 and ((one_by_one > 128) == kept).mean() > 0.99
    assert np.abs(one_by_one - batched)[kept].mean() < 1


def test_pasting_from_halves_cut_outs_and_images_gives_the_same_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(paste, "_INSTANCES", 6)
    monkeypatch.setattr(paste, "_IMAGES", 3)
    sides = paste._sides(tmp_path)
    for k in range(6):
        made = {name: mapper[k, k % 3] for name, mapper in sides.items()}
        pictures = {name: example["image"].int() for name, example in made.items()}
        exact = pictures.pop("ours_images_from_png")
        other, *ours = ((picture - exact).abs().float().mean() for picture in pictures.values())
        assert max(ours) < other / 4
        objects = [len(example["instances"]) for example in made.values()]
        assert objects[0] < objects[1] and len(set(objects[1:])) == 1


def test_the_polygons_that_pasting_meets_lie_in_their_images_and_fill_them(tmp_path, monkeypatch):
    monkeypatch.setattr(paste, "_IMAGES", 40)
    content = paste.write_images(np.random.default_rng(0), tmp_path)
    corners = np.array([a["segmentation"][0] for a in content["annotations"]]).reshape(-1, 2)
    assert corners.min(0).tolist() == [0, 0] and corners.max(0).tolist() == [639, 479]


def test_the_profile_of_pasting_is_in_milliseconds_of_functions_without_those_that_they_call(monkeypatch):
    for name in ("_INSTANCES", "_IMAGES", "_PROFILED"):
        monkeypatch.setattr(paste, name, 3)
    *rows, together = paste.profile("cpu").splitlines()
    assert not any("mapper.__getitem__" in row for row in rows)  # which calls all others
    assert all(0.01 < float(milliseconds) < 1e5 for milliseconds in together.split("|")[2:5])


def test_both_forms_of_a_matting_network_give_the_same_masks(monkeypatch):
    monkeypatch.setattr(matting, "_IMAGES", 2)
    monkeypatch.setattr(matting, "_REPEATS", 1)
    sides = matting._sides(torch.device("cpu"))
    monkeypatch.setattr(matting, "_sides", lambda device: sides)
    assert matting.measure("cpu")["largest_difference_in_grey_levels"] <= 1
    assert {side: isinstance(of._network, OnnxNetwork) for side, of in sides.items()} == {
        "ours": True,
        "other": False,
    }


def test_guided_images_are_others_and_the_same_in_every_batch(monkeypatch):
    monkeypatch.setattr(guidance, "_STEPS", 3)
    work = guidance._small()
    alone, together = (guidance._draw(work, "exact", batch, 2) for batch in (1, 2))
    torch.testing.assert_close(together, alone, atol=2e-3, rtol=0)
    assert (guidance._draw(work, "off", 2, 2) - together).abs().max() > 1e-2


def test_the_pool_s_reader_sees_every_round(monkeypatch):
    monkeypatch.setattr(pool, "_PER_ROUND", 20)
    monkeypatch.setattr(pool, "_INSTANCES", 90)
    measured = pool.measure("cpu")
    assert measured["ours"]["instances"] == 100 and 0 < measured["ratio"] < np.inf
    assert 20 < measured["ours"]["resident_mb"] < 10_000


def test_loader_processes_give_batches_and_their_memory_is_read(monkeypatch):
    sizes = {"_IMAGES": 30, "_INSTANCES": 40, "_FILES": 20, "_BATCH": 2, "_WARM": 2, "_MEASURED": 4}
    for name, value in sizes.items():
        monkeypatch.setattr(loader, name, value)
    pools, build = [], loader.InstancePool
    loaders, begin = [], loader._loader
    monkeypatch.setattr(loader, "InstancePool", lambda *given: pools.append(build(*given)) or pools[-1])
    monkeypatch.setattr(loader, "_loader", lambda folder: loaders.append(begin(folder)) or loaders[-1])
    measured = loader.measure("cpu")
    assert [(one.batch_size, one.num_workers) for one in loaders] == [(2, 2)]
    assert {len(of_all_rounds) for of_all_rounds in pools} == {40}
    assert 1 < measured["other"] < 1e4 and measured["ratio"] == measured["ours"] / measured["other"]
