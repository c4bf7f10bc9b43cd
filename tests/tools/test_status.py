"""How far a run is, told from the files that the stages have written so far."""

import logging
import os
import signal
import time
from types import SimpleNamespace

import pytest
from fsspec.registry import get_filesystem_class

from exchange import files
from exchange.errors import UserError, run_cli
from exchange.layout import RunLayout
from exchange.logs import log_to_run
from exchange.manifest import read_manifest, write_manifest
from tests.exchange.test_s3 import root, server
from tests.tools.made_up_run import write_made_up_run
from tools import run_status, status
from tools.run_status import look

__all__ = ["root", "server"]
NAMES = ["red disc", "blue disc"]
SETTINGS = b"""settings: {SOLVER.MAX_ITER: 18, SOLVER.ROUND_ITERS: 10, FEEDBACK.STALENESS: 0,
  INPUT.USE_COPY_METHOD: syn_copy, INPUT.INST_POOL_FEED: true}
versions: {}"""
NOW = 1_800_000_000.0  # seconds since 1970


def write_run(root: str) -> RunLayout:
    """Two rounds are made; only the first is trained, to iteration 10."""
    layout = write_made_up_run(root, NAMES)
    files.write_bytes(layout.settings_file, SETTINGS)
    files.remove(layout.feedback_history(1))
    files.write_bytes(f"{layout.train_dir}/metrics.json", b'{"iteration": 10, "time": 30.0}\n')
    return layout


def unmake_round(layout: RunLayout, complete: bool) -> None:
    """Takes the pool of round 1 away; with ``complete`` its images are all there, and one of them is cut out."""
    files.remove(layout.annotations_done(1))
    path = layout.manifest(1, 0, 1)
    if complete:
        files.write_bytes(layout.segmented(layout.instance_name(1, 1, 1)), b"")
        files.remove(layout.raw(layout.instance_name(1, 1, 1)))
    else:
        manifest = read_manifest(path)
        write_manifest(layout, type(manifest)(**vars(manifest) | {"complete": False}))
        files.remove(layout.raw(layout.instance_name(1, 1, 1)))


def date(layout: RunLayout, **ages: float) -> None:
    """Everything is an hour old, but for the feedback of these rounds: so many seconds."""
    for folder, _, names in os.walk(layout.root):
        for name in names:
            os.utime(f"{folder}/{name}", (NOW - 3600, NOW - 3600))
    for name, age in ages.items():
        os.utime(f"{layout.root}/feedback/{name}.json", (NOW - age, NOW - age))


@pytest.fixture
def layout(tmp_path) -> RunLayout:
    return write_run(tmp_path / "run")


def test_a_trained_round_is_done_and_the_next_one_s_iterations_are_counted(layout):
    files.write_bytes(
        f"{layout.train_dir}/metrics.json",
        b'{"iteration": 9}\n{"iteration": 14, "losses": "%b", "time": 30.0}\n' % (b"a" * 999),
    )
    files.write_bytes(f"{layout.logs_dir}/train.log", b"12:00:00 INFO engine: PIXEL_ERROR 0.5\n")  # is none
    date(layout, rd00=60)
    found = look(layout, NOW, 900)
    assert found.lines() == [
        "running: 1 of 2 rounds are done",
        "round 1, stage 3: 4 of 8 iterations, 14 of 18 in all",
        "round 1: 4 of 6 instances kept, 1 images do not decode",
        "left: about 0:58:00",  # the round before took an hour less a minute, and a minute is over
        "last sign of life: 0:01:00 ago",
    ]
    signs = (f"{layout.train_dir}/metrics.json", f"{layout.logs_dir}/train.log", layout.annotations_done(1))
    for age, path in zip((50, 40, 30), signs, strict=True):
        os.utime(path, (NOW - age, NOW - age))
        assert look(layout, NOW, 900).quiet == age
    os.utime(signs[0], (NOW + 5, NOW + 5))  # by another machine's clock
    assert look(layout, NOW, 900).lines()[-1] == "last sign of life: 0:00:00 ago"
    files.write_json(layout.verdicts(1), files.read_json(layout.verdicts(1)) | {"unreadable": []})
    assert look(layout, NOW, 900).skipped == ["round 1: 4 of 6 instances kept"]
    files.write_done(layout.annotations_done(100))
    files.write_json(layout.verdicts(100), {"instances": [{"kept": True}], "unreadable": ["a.png"]})
    assert look(layout, NOW, 900).skipped == ["round 100: 1 of 1 instances kept, 1 images do not decode"]


@pytest.fixture
def far_from_greenwich():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "JST-9")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_from_greenwich")
@pytest.mark.parametrize(
    ("complete", "sentence"),
    [
        (True, "round 1, stage 2: 1 of 6 images are cut out"),
        (False, "round 1, stage 1: 5 of 6 images are drawn"),
    ],
)
def test_what_makes_the_pool_is_named_and_that_training_waits_for_it_and_since_when(
    layout, complete, sentence
):
    files.write_bytes(f"{layout.train_dir}/metrics.json", b'{"iteration": 9, "time": 30.0}\n')
    unmake_round(layout, complete)
    files.write_bytes(f"{layout.annotations_done(1)}.x-1.tmp", b"")  # is not there yet
    date(layout, rd00=60)
    waiting = "round 1, stage 3: waits for the pool of round 1 since 2027-01-15 16:59:00"
    assert look(layout, NOW, 900).doing == [sentence, waiting]
    path, number = (layout.segmented, 1) if complete else (layout.raw, 2)
    os.utime(path(layout.instance_name(1, 1, number)), (NOW - 5, NOW - 5))
    assert look(layout, NOW, 900).quiet == 5  # an image that was drawn or cut out is a sign of life
    files.write_bytes(layout.settings_file, SETTINGS.replace(b"syn_copy", b"none"))  # trains without
    assert look(layout, NOW, 900).doing[1] == "round 1, stage 3: 0 of 8 iterations, 9 of 18 in all"


def test_the_images_of_a_round_are_those_of_all_shards_and_drawn_when_each_is_complete(layout):
    unmake_round(layout, complete=False)
    manifest = read_manifest(layout.manifest(1, 0, 1))
    files.remove(layout.manifest(1, 0, 1))
    for shard, asked in ((0, {1: 4}), (1, {1: 1, 2: 4})):
        parts = {"shard": shard, "num_shards": 2, "asked": asked, "complete": not shard}
        write_manifest(layout, type(manifest)(**vars(manifest) | parts))
    assert look(layout, NOW, 900).doing[0] == "round 1, stage 1: 5 of 9 images are drawn"


def test_a_run_without_a_pool_of_its_own_is_one_round_that_waits_for_nothing(layout):
    settings = SETTINGS.replace(b"INST_POOL_FEED: true", b"INST_POOL_FEED: false")
    files.write_bytes(layout.settings_file, settings)
    for path in (layout.feedback_history(0), layout.annotations_done(0), layout.annotations_done(1)):
        files.remove(path)
    found = look(layout, NOW, 900)
    assert (found.rounds_done, found.rounds) == (0, 1)
    assert found.doing == ["round 0, stage 3: 10 of 18 iterations, 10 of 18 in all"]
    for round_ in (0, 1):
        files.write_bytes(layout.feedback_history(round_), b"{}")
    assert look(layout, NOW, 900).lines()[0] == "finished: 1 of 1 rounds are done"


def test_of_a_run_that_has_just_begun_little_is_known(tmp_path):
    layout = RunLayout(str(tmp_path))
    files.write_bytes(layout.settings_file, SETTINGS)
    assert look(layout, NOW, 900).lines() == [
        "running: 0 of 2 rounds are done",
        "round 0, stage 1: 0 of ? images are drawn",
        "round 0, stage 3: waits for the pool of round 0",
        "left: not known before a round is done",
        "last sign of life: 0:00:00 ago",
    ]


def test_the_generator_waits_for_the_feedback_that_its_round_is_drawn_from(layout):
    files.remove(layout.annotations_done(0))  # something of it was lost
    assert look(layout, NOW, 900).doing[0] == "round 0, stage 2: 0 of 6 images are cut out"
    files.write_done(layout.annotations_done(0))
    for path in (layout.annotations_done(1), layout.manifest(1, 0, 1)):
        files.remove(path)
    assert look(layout, time.time(), 900).doing[0].endswith(" of ? images are drawn")
    files.remove(layout.feedback_history(0))
    doing = look(layout, time.time(), 900).doing
    assert doing[0].startswith("round 1, stage 1: waits for the feedback of round 0 since ")
    assert doing[1] == "round 0, stage 3: evaluates"


def test_the_time_that_is_left_is_that_of_the_rounds_before_or_at_least_that_of_the_iterations(layout):
    date(layout, initial=2600, rd00=600)  # a round took 2000 s, of which the next has had 600
    assert look(layout, NOW, 900).left == 2000 - 600
    date(layout, initial=900, rd00=600)
    assert look(layout, NOW, 900).left == 8 * 30.0
    files.write_bytes(f"{layout.train_dir}/metrics.json", b'{"iteration": 18, "time": 30.0}\n')
    assert "left: about 0:00:00" in look(layout, NOW, 900).lines()
    files.write_bytes(layout.settings_file, SETTINGS.replace(b"18", b"38"))  # four rounds
    for round_ in (1, 2):
        files.write_bytes(layout.feedback_history(round_), b"{}")
    date(layout, initial=26_600, rd00=22_600, rd01=18_600, rd02=600)
    assert look(layout, NOW, 900).left == 4000 - 600  # the median
    files.write_bytes(layout.settings_file, SETTINGS.replace(b"18", b"58"))  # six rounds
    assert look(layout, NOW, 900).left == 3 * 4000 - 600
    files.remove(layout.feedback_history(0))
    for begun in (b'{"iteration": 18, "ti', b"[1]", b'{"iteration": 18}', b"[" * 100_000, b""):
        files.write_bytes(f"{layout.train_dir}/metrics.json", begun)
        assert look(layout, NOW, 900).left is None
    files.remove(f"{layout.train_dir}/metrics.json")
    assert look(layout, NOW, 900).left is None


def test_a_run_that_is_finished_running_waiting_or_failed_ends_with_its_code(
    layout, monkeypatch, capsys, call
):
    def code(*options: str) -> int:
        with pytest.raises(SystemExit) as end:
            call(status, layout.root, *options)
        return int(str(end.value.code))

    monkeypatch.setattr(status.time, "time", lambda: NOW)
    date(layout, rd00=900)
    assert code() == 10
    date(layout, rd00=901)
    assert code() == 11 and "waiting: 1 of 2 rounds" in (told := capsys.readouterr().out)
    assert "left: about 0:29:58" in told and "last sign of life: 0:15:01 ago" in told
    assert code("--quiet", "1000") == 10
    _stage_that_fails(layout)
    date(layout, rd00=60)
    monkeypatch.setattr(status.time, "sleep", lambda _: pytest.fail("the run failed, and it is watched on"))
    assert code("--watch") == 12
    assert "train.log: " in (told := capsys.readouterr().out) and "UserError: no more room" in told
    assert "last sign of life: 0:01:00 ago" in told
    log_to_run(layout, "train")  # started again
    _close_logs()
    assert b"no more room" in files.read_bytes(f"{layout.logs_dir}/train.log")  # behind what was there
    date(layout, rd00=60)
    assert code() == 10
    write_made_up_run(layout.root, NAMES)
    files.write_bytes(layout.settings_file, SETTINGS)
    capsys.readouterr()
    monkeypatch.setattr(files, "disk_usage", lambda root: 1_500_000_000 * (root == layout.root))
    assert code() == 0 and "disk: 1.50 GB" in (told := capsys.readouterr().out)
    assert "left:" not in told and "sign of life" not in told


def test_a_stage_that_a_signal_ended_is_said_to_be_stopped_until_it_is_started_again(layout, listening):
    def stage() -> None:
        log_to_run(layout, "train", 0)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as end:
        run_cli(stage)
    assert end.value.code == 143
    _close_logs()
    date(layout, rd00=60)
    told = look(layout, NOW, 900)
    assert told.state == "waiting" and told.skipped[-1] == "train.log was stopped: the same command goes on"
    log_to_run(layout, "train", 0)
    _close_logs()
    date(layout, rd00=60)
    assert look(layout, NOW, 900).state == "running"


def test_watching_looks_at_the_clock_each_time_and_ends_with_the_run(layout, monkeypatch, capsys, call):
    slept, looked = [], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert len(slept) < 3, "the run is finished, and it is watched on"
        if len(slept) == 2:
            write_made_up_run(layout.root, NAMES)

    monkeypatch.setattr(status, "time", SimpleNamespace(time=lambda: NOW + sum(slept), sleep=sleep))
    monkeypatch.setattr(run_status, "look", lambda *args: looked.append(args[1]) or look(*args))
    with pytest.raises(SystemExit, match="0"):
        call(status, layout.root, "--watch", "--every", 7)
    assert looked == [NOW, NOW + 7, NOW + 14]
    assert slept == [7, 7] and capsys.readouterr().out.count("1 of 2 rounds are done") == 2


def test_of_a_bucket_a_few_small_reads_tell_it(root, tmp_path, monkeypatch, call, capsys):
    local, layout = write_run(tmp_path / "run"), RunLayout(root)
    unmake_round(local, complete=True)
    names = (
        "run.yaml",
        "feedback/rd00.json",
        "pool/annotations/rd00.done",
        "pool/manifests/manifest_rd01_0of1.json",
    )
    for name in (*names, "pool/segmented/01_0001_0001.png", "train/metrics.json"):
        files.write_bytes(f"{root}/{name}", files.read_bytes(f"{local.root}/{name}"))
    kind, calls = get_filesystem_class("s3"), []
    real = kind._call_s3

    async def counted(self, method, *given, **options):
        calls.append(method)
        return await real(self, method, *given, **options)

    monkeypatch.setattr(kind, "_call_s3", counted)
    found = look(layout, time.time(), 900)
    assert found.doing[0] == "round 1, stage 2: 1 of 6 images are cut out" and found.state == "running"
    assert len(calls) < 25
    with pytest.raises(SystemExit):
        call(status, f"{root}/")
    assert "disk:" not in capsys.readouterr().out  # nor are all files added up
    with pytest.raises(SystemExit):
        call(status, root, "--disk")
    assert "disk: 0.00 GB" in capsys.readouterr().out


def test_a_folder_without_a_run_is_one_sentence(tmp_path, call):
    with pytest.raises(UserError, match="holds no run, as it has no run.yaml"):
        call(status, tmp_path)


def _stage_that_fails(layout: RunLayout) -> None:
    def stage() -> None:
        log_to_run(layout, "train", rank=0)
        raise UserError("no more room")

    with pytest.raises(SystemExit):
        run_cli(stage)
    _close_logs()


def _close_logs() -> None:
    """As the end of a process does."""
    for handler in [h for h in logging.getLogger().handlers if type(h) is logging.FileHandler]:
        logging.getLogger().removeHandler(handler)
        handler.close()
