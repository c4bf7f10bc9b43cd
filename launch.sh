#!/usr/bin/env bash
# Stage 3, one call per round, or one for a run without rounds (docs/scaling.md):
#   bash launch.sh --config FILE [--eval-only | --eval-initial] [--num-gpus N] [--engine detectron2] [KEY VALUE …]
# Several machines: --num-machines M --machine-rank R, with the same MASTER_ADDR and MASTER_PORT on all of them (or
# the variables of Azure ML and Azure Batch). The interpreter is $MRCA_PYTHON, or python. Every other argument goes to
# detectron2_ext/train_net.py.
set -euo pipefail

num_gpus=1
num_machines=${AZUREML_NODE_COUNT:-1}
machine_rank=${RANK:-0}
arguments=()
while [ $# -gt 0 ]; do
    case "$1" in
        --num-gpus | --num-machines | --machine-rank)
            if [ $# -lt 2 ]; then
                echo "error: $1 takes a number" >&2
                exit 2
            fi
            name=${1#--}
            printf -v "${name//-/_}" '%s' "$2"
            shift 2
            ;;
        *)
            arguments+=("$1")
            shift
            ;;
    esac
done

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONSAFEPATH=1 # a folder called tools where this is started is not ours
python=${MRCA_PYTHON:-python}
if [ "$num_gpus" -eq 1 ] && [ "$num_machines" -eq 1 ]; then
    unset RANK
    exec "$python" -m detectron2_ext.train_net "${arguments[@]}"
fi

if [ -n "${AZ_BATCH_MASTER_NODE:-}" ]; then
    MASTER_ADDR=${AZ_BATCH_MASTER_NODE%%:*}
    MASTER_PORT=${AZ_BATCH_MASTER_NODE##*:}
fi
# for the last checkpoint of a training that is stopped; torch 2.8 knows of no such time, and gives it 30 s
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}
exec "$python" -m detectron2_ext.engine.torchrun \
    --nproc-per-node "$num_gpus" --nnodes "$num_machines" --node-rank "$machine_rank" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-$((20000 + RANDOM % 20000))}" \
    -m detectron2_ext.train_net "${arguments[@]}"
