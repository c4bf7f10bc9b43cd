"""The benchmarks with a clock that only the work of the two sides moves: which way round their numbers are."""

import importlib
import itertools
import json
import re
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from detectron2_ext.evaluation import Evaluation
from detectron2_ext.evaluation.predictions import Predictions
from exchange.config import REPOSITORY
from exchange.errors import UserError
from tools import bench
from tools.benchmarks import eval as evaluation
from tools.benchmarks import (
    guidance,
    loader,
    lvis,
    matting,
    paste,
    pool,
    precision,
    segment,
    selection,
    times_as_much,
    times_faster,
    train_step,
)


def test_the_result_names_benchmark_machine_and_versions(monkeypatch, tmp_path, capsys, call):
    monkeypatch.setattr(
        pool,
        "measure",
        lambda _: {"ours": {"a_draw": {"seconds": 1 / 3}, "draws": 1}, "ratio": 2.0, "met": True},
    )
    path = tmp_path / "result.json"
    call(bench, "pool", "--json", str(path))
    result = json.loads(path.read_text())
    table = dict(re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert table["name"] == "pool" and table["ratio"] == "2" and table["met"] == "yes"
    assert table["ours: a draw: seconds"] == "0.3333" and table["ours: draws"] == "1"
    assert "versions: torch" in table
    call(bench, "pool", "--json", "-")
    assert json.loads(capsys.readouterr().out) == result
    assert result["name"] == "pool" and result["ratio"] == 2.0 and result["device"].startswith("cpu")
    assert result["versions"]["torch"] == torch.__version__.split("+")[0]


def test_several_benchmarks_are_told_one_after_the_other_and_land_in_one_file(
    monkeypatch, tmp_path, capsys, call
):
    for module, ratio in ((pool, 2.0), (paste, 3.0)):
        monkeypatch.setattr(module, "measure", lambda on, ratio=ratio: {"ratio": ratio, "on": on})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "the GPU")
    path = tmp_path / "result.json"
    call(bench, "paste", "pool", "--json", str(path), "--device", "cuda")
    assert re.findall(r"ratio +(\d)", capsys.readouterr().out) == ["3", "2"]
    results = json.loads(path.read_text())
    assert [(result["name"], result["ratio"]) for result in results] == [("paste", 3.0), ("pool", 2.0)]
    assert {(result["device"], result["on"]) for result in results} == {("the GPU", "cuda")}


def test_the_fastest_form_of_a_step_is_told_against_float32(monkeypatch):
    forms = {name: precision.FORMS[name] for name in ("float32", "float32, channels last")}
    monkeypatch.setattr(precision, "FORMS", forms)
    seconds = iter([4.0] * precision._TURNS + [1.0] * precision._TURNS)
    monkeypatch.setattr(precision, "timed", lambda step, device: next(seconds))
    told = precision.measure("cpu")
    assert (told["ours"], told["other"], told["ratio"], told["fastest"]) == (2.0, 0.5, 4.0, [*forms][1])
    first, last = told["networks"]["smallest network"].values()
    assert first["losses"] == 0.0 and last["losses"] < 1e-5


def test_the_losses_of_a_form_are_off_by_the_largest_relative_difference(monkeypatch):
    losses = {"float32": {"a": 2.0, "b": 4.0, "c": 0.0}, "other": {"a": 2.5, "b": 4.2, "c": 1.0}}

    def form(work, name, device):
        return SimpleNamespace(first_losses=lambda batch: losses[name], step=lambda batch: None)

    monkeypatch.setattr(precision, "FORMS", losses)
    monkeypatch.setattr(precision, "_Form", form)
    monkeypatch.setattr(precision, "timed", lambda step, device: step() or 0.5)
    found = precision._forms(SimpleNamespace(batch=2, size=64), "cpu")
    assert found["float32"] == {"images_per_second": 4.0, "losses": 0.0}
    assert found["other"] == {"images_per_second": 4.0, "losses": 0.25}


def test_an_unknown_benchmark_and_a_missing_gpu_are_refused(monkeypatch, capsys, call):
    with pytest.raises(SystemExit):
        call(bench, "everything")
    assert "paste" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        call(bench, "pool", "--device", "cuda")


def test_a_profile_is_printed_by_those_that_have_one(monkeypatch, capsys, call):
    monkeypatch.setattr(paste, "_PROFILED", 2)
    monkeypatch.setattr(paste, "_INSTANCES", 3)
    call(bench, "paste", "--profile")
    table = capsys.readouterr().out
    assert "imdecode" in table and "together" in table
    with pytest.raises(UserError, match="pool has no profile"):
        call(bench, "pool", "--profile")


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


def test_a_ratio_is_met_from_its_target_on():
    assert times_faster(own=2.0, other=6.0, target=3.0) == {"ratio": 3.0, "target": 3.0, "met": True}
    assert times_as_much(own=6.0, other=2.0, limit=3.0) == {"ratio": 3.0, "target": 3.0, "met": True}
    assert not times_faster(2.0, 5.9, 3.0)["met"] and not times_as_much(6.1, 2.0, 3.0)["met"]


def test_the_targets_are_those_that_the_documentation_tells():
    page = (REPOSITORY / "docs/benchmarks.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)`.*\| [≤≥>] ([\d.]+) \| [^|]+ \|$", page, re.MULTILINE))
    del told["pool"]  # which is about what is allowed
    on_cpu = {"train_step": train_step.TARGETS["cpu"], "lvis": lvis._RATIO}
    on_cpu |= {"guidance": guidance.LIMIT, "matting": matting.LIMIT, "eval": evaluation.TARGET}
    on_cpu |= {"loader": loader.TARGET, "paste": paste.TARGET, "segment": segment.TARGET}
    on_cpu |= {"selection": selection.TARGET}
    assert {name: float(target) for name, target in told.items()} == on_cpu
    allowed = {"open_s": "2 s", "resident_mb": "600 MB", "draw_us": "20 µs", "add_round_growth": "1.5 ×"}
    assert {name: float(text.split()[0]) for name, text in allowed.items()} == pool.LIMITS
    assert all(f"{text} allowed" in page for text in allowed.values())
    assert (precision.TARGET, train_step.TARGETS["cuda"]) == (2.0, 2.0)  # not measured yet


class Clock:
    """Work takes the seconds that it is said to take."""

    now = 0.0

    def perf_counter(self):
        return self.now

    process_time = perf_counter

    def work(self, seconds, result=None):
        def run(*_, **__):
            self.now += seconds
            return result

        return run


@pytest.mark.parametrize(("benchmark", "timed"), [(train_step, "timed"), (selection, "_timed")])
@pytest.mark.parametrize(("device", "seconds"), [("cpu", 1.0), ("cuda", 4.0)])
def test_a_step_lasts_until_the_gpu_has_done_its_work_and_nothing_before_it_counts(
    benchmark, timed, device, seconds, monkeypatch
):
    clock, left = Clock(), [20.0]  # of something else

    def step():
        left.append(3.0)
        return clock.work(1.0)()

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: clock.work(left.pop() if left else 0.0)())
    monkeypatch.setattr(benchmark, "time", clock)
    assert getattr(benchmark, timed)(step, device) == seconds


def test_the_objects_of_the_noise_that_is_trained_on_are_in_their_boxes():
    objects = train_step.noise_image(3, side=256)["instances"]
    for (left, top, right, bottom), mask in zip(objects.gt_boxes, objects.gt_masks.to_full(), strict=True):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        torch.testing.assert_close(found.float(), torch.stack([left, top, right, bottom]), atol=1.5, rtol=0)


@pytest.fixture
def measured(monkeypatch):
    """Measures the benchmark called so with these of its parts replaced."""
    clock = Clock()

    def measure(name, parts):
        benchmark = importlib.import_module(f"tools.benchmarks.{name}")
        for part, replaced in {"time": clock, **parts(clock)}.items():
            monkeypatch.setattr(benchmark, part, replaced)
        return benchmark.measure("cpu")

    return measure


SUMMARY = {"AP": 50.0, "APr": None}
SCORES = Evaluation(SUMMARY, SUMMARY, [], [])


@pytest.mark.parametrize(("off_by", "met"), [(0.0, True), (1e-3, False)])
def test_evaluation_is_compared_in_seconds_and_by_its_largest_difference(measured, off_by, met):
    def parts(clock):
        theirs = {"bbox": {"AP": 0.5, "APr": -1.0}, "segm": {"AP": 0.5 - off_by, "APr": -1.0}}
        return {
            "_work": lambda rng: ({}, Predictions.concatenate([])),
            "_score_with_lvis": clock.work(6.0, theirs),
            "read_annotations": lambda path: None,
            "CocoTruth": lambda annotations: SimpleNamespace(score=clock.work(2.0, SCORES)),
        }

    result = measured("eval", parts)
    assert (result["ours"], result["other"], result["ratio"], result["met"]) == (2.0, 6.0, 3.0, met)
    assert result["largest_difference"] == pytest.approx(off_by)


def test_guidance_compares_the_largest_batch_in_exact_mode_with_the_same_not_guided(measured):
    def parts(clock):
        cost = {"off": 1.0, "exact": 8.0, "conditional": 6.0, "decoder": 4.0}

        def draw(work, mode, batch, count):
            clock.now += count * cost[mode] / batch
            return torch.full((count,), 1 + 0.25 * (batch > 1))

        work = guidance._Workload(None, None, {}, 64, (1, 4))
        return {"_small": lambda: work, "_draw": draw}

    result = measured("guidance", parts)
    assert (result["ours"], result["other"], result["ratio"], result["met"]) == (2.0, 0.25, 8.0, False)
    assert result["ways"]["conditional 4"] == 1.5 and len(result["ways"]) == 8
    assert result["largest_pixel_difference_from_one_by_one"] == 0.25
    assert result["unit"] == "seconds of the processor" and "peak_memory_gib" not in result


def test_memory_of_loader_processes_is_compared_with_that_after_the_first_batches(measured):
    def parts(clock):
        def batches():
            for number in range(loader._MEASURED):
                clock.now += 0.5
                memory[1], memory[2] = number, number + 2.0  # after n batches n on average
                yield

        memory = {}
        processes = SimpleNamespace(active_children=lambda: [SimpleNamespace(pid=pid) for pid in (1, 2)])
        replaced = {"multiprocessing": processes, "_private_mb": memory.__getitem__}
        return {"_loader": lambda folder: batches(), **replaced}

    result = measured("loader", parts)
    assert (result["ours"], result["other"]) == (loader._MEASURED, loader._WARM)
    assert result["ratio"] == loader._MEASURED / loader._WARM and not result["met"]
    assert result["images_per_second"] == loader._BATCH / 0.5


def test_pasting_is_compared_turn_by_turn_in_milliseconds_an_image(measured):
    class Mapper(defaultdict):
        """Takes a while longer from turn to turn, the side that pastes half as long again."""

        def __init__(self, clock, seconds):
            super().__init__()
            self.clock, self.seconds = clock, seconds

        def __missing__(self, item):
            self.clock.now += self.seconds * (1 + item[0] // paste._PER_TURN)

    def parts(clock):
        return {"_sides": lambda folder: {"other": Mapper(clock, 0.25), "ours": Mapper(clock, 0.375)}}

    result = measured("paste", parts)
    assert (result["other"], result["ours"]) == (250.0 * 5, 375.0 * 5)  # of nine turns the fifth
    assert result["ratio"] == 1.5 and not result["met"]


def test_of_the_pool_s_limits_the_one_that_is_exceeded_most_counts(measured):
    reader = {"instances": 6, "open_s": 1.0, "resident_mb": 300.0, "draw_us": 50.0}

    def parts(clock):
        adding = (
            clock.work(seconds)
            for seconds in itertools.chain([2.0, 2.0, 9.0, 2.0, 2.0], itertools.repeat(3.0))
        )
        run = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(stdout=json.dumps(reader)))
        files = SimpleNamespace(read_bytes=lambda _: b"", write_bytes=lambda *_: None)
        replaced = {"write_index": lambda *_: next(adding)(), "files": files, "subprocess": run}
        return {"_PER_ROUND": 2, "_INSTANCES": 6, **replaced}

    result = measured("pool", parts)
    assert result["ours"] == reader | {"add_round_s": 3.0, "add_round_growth": 1.5}
    assert (result["other"], result["ratio"], result["met"]) == (pool.LIMITS, 2.5, False)


def test_the_pool_s_reader_tells_seconds_to_open_it_and_microseconds_of_a_draw(monkeypatch):
    clock = Clock()

    class Index(list):
        category_ids, name = [1] * 7, staticmethod(clock.work(2.0))

    opened = clock.work(3.0, Index(range(7)))
    for name, replaced in {"time": clock, "PoolIndex": opened, "_DRAWS": 10}.items():
        monkeypatch.setattr(pool, name, replaced)
    told = pool._read("anywhere", 1)
    assert (told["instances"], told["open_s"], told["draw_us"]) == (7, 3.0, 2e6)


def test_stage_2_is_compared_in_images_a_second(measured):
    def parts(clock):
        sides = {"_one_by_one": clock.work(6.0), "_batched": clock.work(1.5)}
        images = [torch.zeros(4, 4, 3, dtype=torch.uint8).numpy()] * 3
        models = {"_models": lambda device: SimpleNamespace(input_size=4), "_images": lambda size: images}
        written = SimpleNamespace(fromarray=lambda image: SimpleNamespace(save=clock.work(100.0)))
        return {"_IMAGES": 3, "Image": written, **models, **sides}

    result = measured("segment", parts)
    assert (result["ours"], result["other"], result["ratio"], result["met"]) == (2.0, 0.5, 4.0, True)


@pytest.mark.parametrize(("seconds", "met"), [(2.0, False), (1.75, True)])
def test_the_onnx_form_is_compared_with_torch_s_in_time_and_grey_levels(measured, seconds, met):
    def parts(clock):
        def side(seconds, grey):
            mask = torch.full((4, 4), 7, dtype=torch.uint8)
            mask[0, 0] = grey
            return clock.work(seconds, [mask.numpy()] * matting._IMAGES)

        return {"_sides": lambda device: {"other": side(1.5, 7), "ours": side(seconds, 5)}}

    result = measured("matting", parts)
    assert (result["ours"], result["other"]) == (1000 * seconds / matting._IMAGES, 1500 / matting._IMAGES)
    assert (result["ratio"], result["met"]) == (seconds / 1.5, met)
    assert result["largest_difference_in_grey_levels"] == 2


def test_a_training_step_is_compared_in_seconds_after_the_losses_of_the_first(measured):
    def parts(clock):
        def step(seconds, loss):
            return lambda *_: clock.work(seconds, {"loss": torch.tensor(loss), "other": torch.tensor(1.0)})

        networks = {"_own_network": lambda device: (None, [], nn.Linear(1, 1))}
        networks["_original_network"] = lambda: lambda classes, counts: nn.Linear(1, 1)
        return {"_own_step": step(2.0, 3.0), "_detectron2_step": step(2.5, 4.0), **networks}

    result = measured("train_step", parts)
    assert (result["ours"], result["other"], result["ratio"], result["met"]) == (2.0, 2.5, 1.25, False)
    assert result["images_per_second"] == train_step._BATCH["cpu"] / 2.0
    assert result["largest_relative_loss_difference"] == 0.25


def test_a_step_with_a_selection_is_compared_with_a_plain_one_and_cheaper_ones_stand_beside(measured):
    def parts(clock):
        settings = SimpleNamespace(
            MODEL=SimpleNamespace(DEVICE="cpu"), SOLVER=SimpleNamespace(IMS_PER_BATCH=8)
        )
        seconds = {"plain": 2.0, "refused": 7.0}
        for layers in selection._LAYERS:
            seconds |= {f"{layers}, every 1": 5.0, f"{layers}, none due": 3.0}
        seconds["heads, every 1"] = 2.5
        steps = {name: clock.work(taken) for name, taken in seconds.items()}
        replaced = {"_config": lambda *_: settings, "_agreement": lambda cfg, steps: {"steps": steps}}
        return replaced | {"_steps": lambda cfg: steps}

    result = measured("selection", parts)
    assert (result["ours"], result["other"], result["ratio"], result["met"]) == (2.5, 2.0, 1.25, True)
    assert result["steps"]["refused"] == {"seconds": 7.0, "ratio": 3.5}
    assert result["steps"]["all, every 4"] == {"seconds": 3.5, "ratio": 1.75}
    assert result["agreement"] == {"steps": 150} and "all, none due" not in result["steps"]


def test_scores_beside_the_exact_one_are_of_their_own_caches(monkeypatch):
    monkeypatch.setattr(selection, "_LAYERS", {"all": [], "classifiers": ["cls_score"]})
    network = nn.ModuleDict(
        {"roi_heads": nn.ModuleDict({"cls_score": nn.Linear(1, 1)}), "fc2": nn.Linear(1, 1)}
    )
    cache = selection.Watched(network)
    gradients = torch.tensor([[1.0, 2, 3, 4], [4, -3, 2, 1], [1, 1, -1, 0.5]])
    for gradient in gradients:
        cache.update(gradient)
    judged = torch.tensor([1.0, 0.5, -2, 1])
    exact = cache.cosine(judged)
    expected = {}
    for momentum in (0.1, 0.9):
        for every in (1, 2):
            running = torch.zeros(4)
            for gradient in gradients[::every]:
                running = momentum * running + (1 - momentum) * gradient
            for layers, part in (("all", slice(0, 4)), ("classifiers", slice(0, 2))):
                pair = running[part], judged[part]
                expected[momentum, layers, every] = float(torch.cosine_similarity(*pair, dim=0))
    assert {which: cache.others[which][0] for which in expected} == pytest.approx(expected, rel=1e-5)
    assert exact == pytest.approx(expected[0.1, "all", 1], rel=1e-5)
