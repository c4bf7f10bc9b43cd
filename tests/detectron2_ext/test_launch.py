"""What launch.sh makes of its arguments and of the variables of a cluster."""

import os
import subprocess

import pytest

from exchange.config import REPOSITORY

TORCHRUN = "-m detectron2_ext.engine.torchrun --nproc-per-node"
REST = "-m detectron2_ext.train_net --config a b.yaml"


@pytest.fixture
def launch(tmp_path):
    """Calls it with an interpreter that tells how it was called."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho $PYTHONPATH $PYTHONSAFEPATH $RANK $TORCH_ELASTIC_SHUTDOWN_TIMEOUT\necho "$*"\n'
    )
    python.chmod(0o755)

    def call(*arguments, **variables):
        return subprocess.run(
            ["bash", REPOSITORY / "launch.sh", *arguments],
            env={"PATH": os.environ["PATH"], "MRCA_PYTHON": str(python), **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return call


def test_one_gpu_needs_no_torchrun(launch):
    done = launch("--config", "a b.yaml", "--num-gpus", "1", RANK="3", PYTHONPATH="mine")
    assert done.stdout.splitlines() == [
        f"{REPOSITORY}:mine 1",
        "-m detectron2_ext.train_net --config a b.yaml",
    ]


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (
            "--num-gpus 2",
            {"MASTER_PORT": "7"},
            "2 --nnodes 1 --node-rank 0 --master-addr 127.0.0.1 --master-port 7",
        ),
        (
            "--num-gpus 4 --num-machines 3 --machine-rank 2",
            {"MASTER_ADDR": "a", "MASTER_PORT": "7", "AZUREML_NODE_COUNT": "9", "RANK": "8"},
            "4 --nnodes 3 --node-rank 2 --master-addr a --master-port 7",
        ),
        (
            "",
            {
                "MASTER_ADDR": "a",
                "MASTER_PORT": "7",
                "AZUREML_NODE_COUNT": "2",
                "RANK": "1",
                "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "900",
            },
            "1 --nnodes 2 --node-rank 1 --master-addr a --master-port 7",
        ),
        (
            "--num-machines 2 --machine-rank 1",
            {"AZ_BATCH_MASTER_NODE": "10.0.0.4:6000", "MASTER_ADDR": "a", "MASTER_PORT": "7"},
            "1 --nnodes 2 --node-rank 1 --master-addr 10.0.0.4 --master-port 6000",
        ),
    ],
)
def test_several_processes_are_torchrun_s_which_gives_them_time_for_a_checkpoint(
    arguments, variables, words, launch
):
    done = launch("--config", "a b.yaml", *arguments.split(), **variables)
    seconds = variables.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    environment = f"{REPOSITORY} 1 {variables.get('RANK', '')} {seconds}".split()
    assert done.stdout.splitlines() == [" ".join(environment), f"{TORCHRUN} {words} {REST}"]


def test_a_number_that_is_missing_is_one_sentence(launch):
    done = launch("--config", "a.yaml", "--num-gpus")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: --num-gpus takes a number\n")
