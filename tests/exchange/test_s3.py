"""A run on S3: a server of its own on this machine stands in for it."""

import subprocess
import sys
import tempfile

import pytest
from fsspec.registry import filesystem, get_filesystem_class
from moto.server import ThreadedMotoServer

from diSegmenter.pool.move import pack
from exchange import files
from exchange.config import REPOSITORY
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.pool_index import PoolIndex, write_index
from exchange.waiting import wait_for
from tests.diSegmenter.conftest import pool_instance


@pytest.fixture(scope="module")
def server():
    """The requests that it gets, as "METHOD /path?query"; the environment names it as a user's would, with credentials
    of no account."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    requests, application = [], server._server.app

    def counted(environment, start_response):
        requests.append("{REQUEST_METHOD} {PATH_INFO}?{QUERY_STRING}".format(**environment))
        return application(environment, start_response)

    server._server.app = counted
    get_filesystem_class("s3").clear_instance_cache()  # those of another module know another server
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name, value in (
            ("ACCESS_KEY_ID", "a"),
            ("SECRET_ACCESS_KEY", "b"),
            ("DEFAULT_REGION", "us-east-1"),
        ):
            patch.setenv(f"AWS_{name}", value)
        yield requests
    server.stop()


@pytest.fixture
def root(server, request, tmp_path, monkeypatch) -> str:
    # Where the locks of a bucket lie: those of other tests that run on this machine have its name.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bucket = request.node.name.replace("_", "-")[:60].rstrip("-")
    filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}/run"


def elsewhere(code: str) -> int:
    """Runs ``code`` in another process; returns its exit code."""
    code = f"import os\nfrom exchange import files\n{code}"
    return subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode


def test_a_file_is_there_whole_or_not_at_all(root):
    path = files.join(root, "a", "b.bin")
    for old in (None, b"old"):
        with pytest.raises(KeyboardInterrupt), files.atomic_writer(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt
        assert files.list_dir(files.join(root, "a")) == ([] if old is None else ["b.bin"])
        files.write_bytes(path, b"old")
        assert files.read_bytes(path) == b"old"
    killed = f"with files.atomic_writer({path!r}) as file:\n    file.write(b'half')\n    os._exit(9)"
    assert elsewhere(killed) == 9
    assert files.read_bytes(path) == b"old"


def test_a_file_is_written_and_read_in_a_request_each_and_a_folder_listed_in_one(server, root):
    path = files.join(root, "a/b.bin")
    for data in (b"", b"small"):
        server.clear()
        files.write_bytes(path, data)
        assert [request.split()[0] for request in server] == ["PUT"]
        server.clear()
        assert files.read_bytes(path) == data
        assert [request.split()[0] for request in server][:1] == ["GET"] and (not data or len(server) == 1)
    files.write_bytes(files.join(root, "a/b/below.bin"), b"")
    server.clear()
    assert files.list_dir(files.join(root, "a")) == ["b", "b.bin"]
    assert files.names(files.join(root, "a"), "b") == {"b.bin"} and not files.names(
        files.join(root, "a"), "c"
    )
    assert len(server) == 3 and all("prefix" in request for request in server)


def test_an_object_of_any_size_is_read_whole(root, monkeypatch):
    monkeypatch.setattr(files, "_SMALL", 10)
    for size in (9, 10, 11, 25):
        data = bytes(range(size))
        files.write_bytes(files.join(root, "x.bin"), data)
        assert files.read_bytes(files.join(root, "x.bin")) == data


def test_what_another_process_writes_is_seen_at_once(root):
    marker = files.join(root, "pool", "rd00.done")
    files.write_done(files.join(root, "pool", "other.done"))
    assert files.list_dir(files.join(root, "pool")) == ["other.done"] and not files.exists(marker)
    assert elsewhere(f"files.write_done({marker!r})") == 0
    wait_for(marker, "the pool of round 0", "mrca segment", timeout_s=0)
    assert files.list_dir(files.join(root, "pool")) == ["other.done", "rd00.done"]


def test_an_index_and_its_cut_outs_are_read_back_single_and_packed(root):
    layout = RunLayout(root)
    instances = [pool_instance(0, 3, 0), pool_instance(0, 7, 1), pool_instance(0, 7, 2, reason="too small")]
    for instance in instances:
        files.write_bytes(layout.pool(instance.cutout), instance.file.encode() * 40)
    write_index(layout, 0, instances)
    for step in (lambda: None, lambda: pack(layout, 0)):
        step()
        index = PoolIndex(layout, layout.pool_rounds())
        assert index.category_ids.tolist() == [3, 7] and index[1].segmentation == instances[1].segmentation
        assert [index.read(row) for row in (0, 1)] == [i.file.encode() * 40 for i in instances[:2]]
    assert files.list_dir(layout.pool("cutouts")) == ["rd00_0000.tar"]


def test_what_is_missing_is_named(root):
    with pytest.raises(UserError, match=r"there is no file s3://.*x\.json"):
        files.read_json(files.join(root, "x.json"))
    with pytest.raises(UserError, match=r"no pool index s3://"):
        PoolIndex(RunLayout(root), [0])
    assert files.list_dir(root) == []
