"""What holds for every test."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import pytest

from exchange import stopping
from tests.preloaded_python import preloaded_python

# Whole rounds, other processes, full-size networks, fuzzing. `-m "not slow"` leaves them out.
SLOW = {
    "detectron2_ext/engine/test_round.py",
    "detectron2_ext/engine/test_round_watched.py",
    "detectron2_ext/modeling/test_full_size_configs.py",
    "detectron2_ext/test_distributed.py",
    "diSegmenter/test_segment_and_filter.py",
    "faults",
    "generator/test_generate.py",
    "mrca/test_installed.py",
    "test_end_to_end.py",
    "test_requirements.py",
    "test_rounds_on_s3.py",
    "test_x_paste_pool.py",
    "tools/test_export_matting.py",
    "tools/test_lvis_digits.py",
    "tools/test_report_of_a_run_in_a_browser.py",  # one of LVIS's size
    "tools/test_your_data.py",
}


@pytest.fixture(autouse=True)
def threads_stay_as_they_were() -> Iterator[None]:
    """What comes after a test computes the same bits as without it."""
    torch = sys.modules.get("torch")
    before = torch and torch.get_num_threads()
    yield
    assert not torch or torch.get_num_threads() == before


@pytest.fixture
def listening() -> Iterator[None]:
    """Signals raise in this process, and do as before afterwards."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in signals}  # perhaps ignored
    with stopping.listening():
        yield
    for number, handler in before.items():
        signal.signal(number, handler)
    stopping._Requests.number = None


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a script with these arguments."""

    def run(script: ModuleType, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, arguments)])
        script.main()

    return run


@pytest.fixture(autouse=True)
def logs_of_runs_are_closed() -> Iterator[None]:
    """A process logs to one run; here it would log to all that came before."""
    yield
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, logging.FileHandler):
            logging.getLogger().removeHandler(handler)
            handler.close()


@pytest.fixture(autouse=True, scope="session")
def cache_of_annotation_files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is written to the home folder, nor read from what is there."""
    os.environ["MRCA_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def nothing_waits_for_the_disk() -> Iterator[None]:
    """No test of ours cuts the power, and thousands of small files would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        patch.setattr(os, "sync", lambda: None)
        yield


def pytest_configure(config: pytest.Config) -> None:
    """One interpreter for all processes of the tests."""
    if "MRCA_TEST_PYTHON" not in os.environ and hasattr(os, "pidfd_open"):
        stack = ExitStack()
        folder = Path(stack.enter_context(TemporaryDirectory()))
        os.environ["MRCA_TEST_PYTHON"] = stack.enter_context(preloaded_python(folder))
        config.add_cleanup(stack.close)


@pytest.fixture(scope="session")
def python() -> str:
    """Path of an interpreter: one that starts in no time, where the system can fork such."""
    return os.environ.get("MRCA_TEST_PYTHON", sys.executable)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    slow = [folder / name for name in SLOW]
    for item in items:
        if any(item.path.is_relative_to(path) for path in slow):
            item.add_marker(pytest.mark.slow)
    if "PYTEST_XDIST_WORKER" in os.environ:  # so that no process is left alone with a long one at the end
        items.sort(key=lambda item: "slow" not in item.keywords)
