"""The command ``mrca``: one name for the stages and the tools, each of which is also a script."""

import difflib
import importlib
import sys
from dataclasses import dataclass

from mrca import ROOT


@dataclass(frozen=True)
class Command:
    """A script: its module, what it does, an example, the extra of the package that it needs; ``preset`` stands in
    front of the arguments."""

    module: str
    summary: str
    example: str
    extra: str
    preset: tuple[str, ...] = ()


_ALL = "generate,segment,train,report"
_DIGITS = "--config configs/digits/MRCA_digits.yaml"
COMMANDS = {
    "quickstart": Command(
        "tools.quickstart",
        "three rounds on LVIS-Digits with the embedded models",
        "--seed 1 --out runs/second",
        _ALL,
    ),
    "generate": Command(
        "generator.generate", "stage 1: draw the images of a round", f"{_DIGITS} --dry-run", "generate"
    ),
    "segment": Command(
        "diSegmenter.segmentAndFilter",
        "stage 2: cut out, filter, add to the pool",
        f"{_DIGITS} --refilter 50",
        "segment",
    ),
    "train": Command(
        "detectron2_ext.train_net",
        "stage 3: train a round, evaluate it, write the feedback",
        _DIGITS,
        "train",
    ),
    "feedback": Command(
        "detectron2_ext.train_net",
        "the feedback of the starting weights alone",
        _DIGITS,
        "train",
        ("--eval-initial",),
    ),
    "evaluate": Command(
        "detectron2_ext.train_net",
        "scores of a checkpoint on the validation set",
        f"{_DIGITS} MODEL.WEIGHTS assets/digits/segmenter/model.safetensors",
        "train",
        ("--eval-only",),
    ),
    "rounds": Command(
        "tools.run_rounds", "all three stages, round by round", f"{_DIGITS} --out runs/mine", _ALL
    ),
    "predict": Command(
        "tools.predict",
        "what a network finds in a folder of images",
        "--run runs/quickstart photos --out found",
        "train",
    ),
    "draw": Command(
        "tools.draw",
        "images of one category, guided by a checkpoint",
        '"red three" --num 20 --run runs/quickstart --out threes',
        "generate",
    ),
    "write-prompts": Command(
        "tools.write_prompts",
        "prompts for each category, written by a language model",
        "prompts --model Qwen/Qwen2.5-7B-Instruct --num 32",
        "generate",
    ),
    "export": Command(
        "tools.export",
        "the weights that are evaluated, with names and settings, as one small file",
        "runs/quickstart/train/model_0000299.pth digits.safetensors",
        "train",
    ),
    "export-matting": Command(
        "tools.export_matting",
        "a matting network as an ONNX file, which stage 2 runs without its code",
        f"digits.onnx {_DIGITS}",
        "segment,report",
    ),
    "pool": Command(
        "tools.pool",
        "bring pools in, copy, check, measure and slim them",
        "stats runs/quickstart",
        "segment,report",
    ),
    "report": Command(
        "tools.report", "one page of a run, class by class; of several, side by side", "runs/quickstart", _ALL
    ),
    "status": Command(
        "tools.status", "how far a run is, and how long it will take", "runs/quickstart --watch", "report"
    ),
    "overview": Command(
        "tools.overview", "one picture of a finished quickstart", "runs/quickstart", "report"
    ),
    "compare": Command(
        "tools.compare", "methods against each other: a table and a plot", "--seeds 3 --jobs 2", _ALL
    ),
    "visualize": Command(
        "tools.visualize", "pictures of training images or of predictions", f"data {_DIGITS}", "train"
    ),
    "cache": Command(
        "tools.cache", "what large annotation files have become: list it, remove it", "--clear", "train"
    ),
    "bench": Command("tools.bench", "speed against something else on this machine", "paste", "report"),
}


def main() -> None:
    """Runs the command line of this process."""
    sys.path.insert(0, str(ROOT))  # in front: in a process of our own our names are ours
    from exchange.errors import run_cli

    run_cli(_main)


def _main() -> None:
    from exchange.errors import UserError

    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in ("-h", "--help"):
        sys.stdout.write(_overview())
        return
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"mrca has no command {name[:40]!r}: did you mean {nearest}? Without one it lists them all"
        )
    command = COMMANDS[name]
    sys.argv = [f"mrca {name}", *command.preset, *arguments]
    try:
        importlib.import_module(command.module).main()
    except ModuleNotFoundError as error:
        if error.name is None or (ROOT / error.name.partition(".")[0]).exists():
            raise
        raise UserError(
            f"mrca {name} needs {error.name}, which is not installed: pip install 'mrca[{command.extra}]'"
        ) from error


def _overview() -> str:
    lines = ["usage: mrca COMMAND …      mrca COMMAND --help says everything about one", ""]
    for name, command in COMMANDS.items():
        lines += [f"  {name:14} {command.summary}", f"{'':17}mrca {name} {command.example}"]
    return "\n".join([*lines, ""])
