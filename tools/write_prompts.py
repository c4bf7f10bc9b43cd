"""Has a language model write prompts for each category of the training set, for GENERATOR.PROMPT_FOLDER.

A text file per category, to be read and corrected. A category whose file is there is left alone, so that a call that
was stopped goes on, and what is wrong with one is written again once its file is gone. Lines that do not name the
category and those that are there already are dropped.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm

from exchange import files
from exchange.catalog import read_training_set
from exchange.command_line import make_parser, quiet_model_libraries
from exchange.config import add_config_arguments, load_config
from exchange.errors import UserError, run_cli
from exchange.shards import choose_gpu

_log = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(__doc__, "prompts --model Qwen/Qwen2.5-7B-Instruct --num 32")
    parser.add_argument("out", metavar="OUT", help="folder to write to")
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME",
        help="causal language model of transformers: hub name, or a folder",
    )
    parser.add_argument(
        "--revision", default="main", metavar="R", help="commit, tag or branch of the hub repository"
    )
    parser.add_argument("--num", type=int, default=32, metavar="N", help="sentences for each category")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of what is drawn")
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="the higher, the more varied"
    )
    parser.add_argument("--gpu", type=int, help="number of the GPU (default: 0)")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run code that the model's repository brings along",
    )
    add_config_arguments(parser)
    return parser


def main() -> None:
    args = build_parser().parse_intermixed_args()
    if args.num < 1 or not 0 < args.temperature < float("inf"):
        raise UserError(
            f"--num {args.num}, --temperature {args.temperature}: both have to be above 0, and finite"
        )
    cfg = load_config(args.config, args.opts)
    # By name, as files are: of categories that share one the first is written about
    categories = {category["name"]: category for category in reversed(read_training_set(cfg)[0].categories)}

    from generator.prompt_files import prompt_file_name, write_prompts

    files.remove_leftovers(args.out)
    there = set(files.list_dir(args.out))
    left = [name for name in sorted(categories) if prompt_file_name(name) not in there]
    numbers = {}
    if left:
        from generator.pipelines import choose_device  # only now: seconds that --help should not take
        from generator.sentence_writer import LanguageModel, write_sentences

        quiet_model_libraries()
        device = choose_device(choose_gpu(args.gpu))
        model = LanguageModel(args.model, args.revision, device, args.temperature, args.trust_remote_code)
        for name in tqdm(left, unit="category"):
            sentences = write_sentences(model, categories[name], args.num, args.seed)
            numbers[name] = len(sentences)
            if sentences:
                comment = f"{name}: {len(sentences)} sentences of {args.model}, seed {args.seed}"
                write_prompts(args.out, name, sentences, comment)
    written = [name for name in left if numbers[name]]
    print(
        f"{sum(numbers.values())} sentences for {len(written)} categories; {len(categories) - len(left)} had a file "
        f"already: {args.out}"
    )
    if few := [name for name in written if numbers[name] < args.num]:
        _log.warning(
            "%d categories have fewer than %d sentences, such as %s (%d)",
            len(few),
            args.num,
            few[0],
            numbers[few[0]],
        )
    if none := [name for name in left if not numbers[name]]:
        raise UserError(
            f"{args.model} wrote nothing about {none[0]!r} that names it, and {len(none)} categories have no file: "
            f"write {prompt_file_name(none[0])!r} by hand, a prompt a line, or try another --model or --seed"
        )


if __name__ == "__main__":
    run_cli(main)
