"""The example of docs/guidance.md runs as it is printed."""

import re
from pathlib import Path

import diffusers
import torchvision

import generator
from tests.generator.tiny_pipelines import make_pipeline

PAGE = Path(generator.__file__).parent.parent / "docs" / "guidance.md"


def test_example_of_fifteen_lines_runs(monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 15
    pipeline = make_pipeline("sd3")
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda name: pipeline)
    monkeypatch.setattr(torchvision.models, "resnet50", lambda weights: torchvision.models.resnet18())
    namespace: dict[str, object] = {}
    exec(code, namespace)
    assert len(namespace["images"]) == 2
    assert namespace["trace"].first.isfinite().all()
    assert "criterion at the first step" in capsys.readouterr().out
