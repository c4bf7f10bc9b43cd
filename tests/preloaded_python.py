"""An interpreter whose processes start in no time: they are forked from one that has the libraries behind it.

It takes a script, ``-m MODULE`` or ``-c CODE`` with arguments, as ``python`` does, and has the same standard streams,
folder, environment and exit code. The project's own modules are imported by each process anew. Not for tests of what
an interpreter finds, nor of signals: SIGINT and SIGTERM reach the process, but it is in no group with its parent.
"""

from __future__ import annotations

import array
import atexit
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_LIBRARIES = (
    *("torch._dynamo", "torch.distributed.launcher.api", "torch.utils.tensorboard", "torchvision", "kornia"),
    *(
        "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
        "transformers.models.clip.modeling_clip",
    ),
    *("transformers.models.auto.processing_auto", "faster_coco_eval", "pyarrow.compute", "matplotlib.pyplot"),
    *("sklearn.datasets", "jinja2"),
)
_LENGTH = 8  # bytes that say how long a request is


@contextmanager
def preloaded_python(folder: Path) -> Iterator[str]:
    """The path of such an interpreter in ``folder``, as long as the block lasts.

    Its libraries load when it is first called. Its processes have one thread each.
    """
    address, interpreter = folder / "socket", folder / "python"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {__file__} "$0" "$@"\n')
    interpreter.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(address))
        listening.listen()
        number = listening.fileno()
        # read as libraries load, and as the standard output is opened
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
        command = [sys.executable, __file__, "--serve", str(number)]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[number], env=environment)
    with server:  # which ends when its input does, even where this process is killed
        try:
            yield str(interpreter)
        finally:
            server.terminate()  # a loader's process that a failed test left behind holds its input, too


def ask(interpreter: str, arguments: list[str]) -> int:
    """Has a process run with the streams, folder and environment of this one; its exit code, or its end by a signal."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(str(Path(interpreter).with_name("socket")))
        request = json.dumps([interpreter, arguments, os.getcwd(), dict(os.environ)]).encode()
        streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
        server.sendmsg([len(request).to_bytes(_LENGTH, "big")], streams)
        server.sendall(request)
        answers = server.makefile()
        pid = int(answers.readline())

        def pass_on(number: int, frame: FrameType | None) -> None:
            os.kill(pid, number)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, pass_on)
        code = int(answers.readline())
    if code < 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def serve(listening: socket.socket) -> None:
    """Forks a process for each that asks, until the standard input ends."""
    del sys.path[0]  # the folder of this file
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    selector.register(listening, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                return
            if key.fileobj is listening:
                for library in _LIBRARIES:
                    importlib.import_module(library)
                connection, _ = listening.accept()
                pid = os.fork()
                if not pid:
                    selector.close()
                    listening.close()
                    end_as_python_does(connection)
                connection.sendall(f"{pid}\n".encode())
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
            else:
                pid, connection = key.data
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                connection.sendall(f"{code}\n".encode())
                connection.close()
                selector.unregister(key.fileobj)
                os.close(key.fd)


def end_as_python_does(connection: socket.socket) -> None:
    """Runs what is asked for and ends this process, without taking its thousands of modules apart."""
    code = 0
    try:
        run(connection)
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        if code and code is not exit_.code:
            print(exit_.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(connection: socket.socket) -> None:
    """What the process at the other end asks for, in this one."""
    length, streams, *_ = socket.recv_fds(connection, _LENGTH, 3)
    with connection.makefile("rb") as requests:
        request = requests.read(int.from_bytes(length, "big"))
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.executable, arguments, folder, environment = json.loads(request)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    while arguments[0] == "-u":
        arguments = arguments[1:]
    kind, *rest = arguments
    before = (
        []
        if "PYTHONSAFEPATH" in environment
        else [str(Path(kind).resolve().parent) if Path(kind).is_file() else folder]
    )
    sys.path[:0] = before + environment.get("PYTHONPATH", "").split(os.pathsep)
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = [kind, *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    else:
        sys.argv = arguments
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(socket.socket(fileno=int(sys.argv[2])))
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
