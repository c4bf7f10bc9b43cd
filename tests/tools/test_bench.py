import json
import sys

import pytest
import torch

from exchange.errors import UserError
from tools import bench
from tools.benchmarks import guidance, paste, pool, train_step


def test_the_result_names_benchmark_machine_and_versions(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        pool, "measure", lambda device: {"ours": 1.0, "other": 2.0, "ratio": 2.0, "met": True}
    )
    path = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["bench.py", "pool", "--json", str(path)])
    bench.main()
    result = json.loads(path.read_text())
    assert result == json.loads(capsys.readouterr().out)
    assert result["name"] == "pool" and result["ratio"] == 2.0 and result["device"].startswith("cpu")
    assert result["versions"]["torch"] == torch.__version__.split("+")[0]


def test_an_unknown_benchmark_and_a_missing_gpu_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", "everything"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "paste" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench.py", "pool", "--device", "cuda"])
    with pytest.raises(UserError, match="no GPU"):
        bench.main()


def test_a_profile_is_printed_by_those_that_have_one(monkeypatch, capsys):
    monkeypatch.setattr(paste, "_PROFILED", 2)
    monkeypatch.setattr(paste, "_INSTANCES", 3)
    monkeypatch.setattr(sys, "argv", ["bench.py", "paste", "--profile"])
    bench.main()
    table = capsys.readouterr().out
    assert "imdecode" in table and "together" in table
    monkeypatch.setattr(sys, "argv", ["bench.py", "pool", "--profile"])
    with pytest.raises(UserError, match="pool has no profile"):
        bench.main()


def test_without_the_other_side_the_training_step_is_not_measured(monkeypatch):
    monkeypatch.setattr(train_step.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="Detectron2, which is not installed"):
        train_step.measure("cpu")
    monkeypatch.setattr(train_step.importlib.util, "find_spec", lambda name: object())
    monkeypatch.delenv("MRCA_ORIGINAL_NETWORK", raising=False)
    with pytest.raises(UserError, match="set MRCA_ORIGINAL_NETWORK"):
        train_step.measure("cpu")


@pytest.mark.parametrize("mode", ["off", "exact", "conditional", "decoder"])
def test_every_way_of_drawing_that_is_timed_draws(mode, monkeypatch):
    monkeypatch.setattr(guidance, "_STEPS", 2)
    images = guidance._draw(guidance._small(), mode, batch=2, count=4)
    assert images.shape == (4, 3, 64, 64) and images.isfinite().all()
