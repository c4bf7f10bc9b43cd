"""A pool of X-Paste's, brought in by tools/pool.py, as training pastes from it."""

import json
import sys

import cv2
import numpy as np

from detectron2_ext.config import load_config
from detectron2_ext.data.loader import build_dataset, build_pool, build_train_loader
from exchange.layout import RunLayout
from tools import pool as command


def write_xpaste_pool(folder) -> str:
    """Two cropped instances and one of image and mask for each of three classes."""
    rng = np.random.default_rng(0)
    listed = {}
    for category in range(3):
        listed[str(category)] = []
        for number in range(3):
            size = 30 + 4 * number
            rgba = rng.integers(0, 255, (size, size, 4), dtype=np.uint8)
            rgba[..., 3] = 255
            name = f"{category}_{number}.png"
            if number < 2:
                cv2.imwrite(str(folder / name), rgba)
                listed[str(category)].append(f"*{name}")
            else:
                cv2.imwrite(str(folder / name), rgba[..., :3])
                mask = np.zeros((size, size), np.uint8)
                mask[5:25, 5:25] = 255
                cv2.imwrite(str(folder / f"mask_{name}"), mask)
                listed[str(category)].append(f"{name}|mask_{name}")
    path = folder / "LVIS_instance_pools.json"
    path.write_text(json.dumps(listed))
    return str(path)


def test_an_x_paste_pool_is_imported_and_pasted_from(filled_lvis, tmp_path, monkeypatch):
    source, run = write_xpaste_pool(tmp_path), str(tmp_path / "imported")
    arguments = ["import", run, source, "--from", "xpaste", "--annotations", str(filled_lvis.path)]
    monkeypatch.setattr(sys, "argv", ["pool.py", *arguments])
    command.main()
    settings = {
        "DATASETS": {
            "TRAIN": ["small"],
            "CUSTOM": [["small", str(filled_lvis.path), str(filled_lvis.folder)]],
        },
        "INPUT": {
            "TRAIN_SIZE": 64,
            "USE_COPY_METHOD": "syn_copy",
            "INST_POOL": True,
            "INST_POOL_PATH": run,
            "INST_POOL_SAMPLE_TYPE": "cas_random",
        },
        "SOLVER": {"IMS_PER_BATCH": 4, "MAX_ITER": 10, "ROUND_ITERS": 10},
        "DATALOADER": {"NUM_WORKERS": 0},
    }
    (tmp_path / "settings.yaml").write_text(json.dumps(settings))
    cfg = load_config(str(tmp_path / "settings.yaml"))
    dataset = build_dataset(cfg, "small")
    pool = build_pool(cfg, RunLayout("unused"), 0, dataset)
    assert np.bincount(pool.categories).tolist() == [3, 3, 3]
    assert {pool.load(index).shape[:2] for index in range(9)} == {(30, 30), (34, 34), (20, 20)}
    batches = build_train_loader(cfg, start_iteration=0, dataset=dataset, pool=pool)
    pasted = {info.pool_index for batch in batches for item in batch for info in item["paste_info"]}
    assert len(pasted) > 5
