"""Where everything of one run lies on disk."""

import functools
import re
from dataclasses import dataclass

from exchange import files

_MANIFEST = re.compile(r"manifest_rd(\d{2,})_(\d+)of(\d+)\.json")
_INDEX = re.compile(r"rd(\d{2,})\.arrow")
_DECISIONS = re.compile(r"rd(\d{2,})_(\d{7,})\.arrow")
_FEATURES = re.compile(r"rd(\d{2,})_(\d{3,})\.arrow")


@dataclass(frozen=True)
class RunLayout:
    """Paths of one run; ``root`` is a folder or an fsspec URL. Round -1 stands for the initial weights."""

    root: str

    @property
    def settings_file(self) -> str:
        return files.join(self.root, "run.yaml")

    @property
    def train_dir(self) -> str:
        return files.join(self.root, "train")

    def scores(self, dataset: str, checkpoint: str) -> str:
        """The scores of the checkpoint in the file ``checkpoint`` on a data set."""
        name = checkpoint.rsplit("/", 1)[-1].replace("model", "metrics").replace(".pth", ".json")
        return files.join(self.train_dir, "inference", dataset, name)

    def decisions(self, round_: int, iteration: int) -> str:
        """What gradient selection decided in a round, up to so many iterations, see exchange/decisions.py."""
        return files.join(self.train_dir, "decisions", f"rd{round_:02}_{iteration:07}.arrow")

    def decision_parts(self, round_: int) -> dict[int, str]:
        """The parts of a round's table of decisions that exist: path by the iterations done at its end, in order."""
        found = files.matches(files.join(self.train_dir, "decisions"), _DECISIONS)
        ends = sorted(int(match[2]) for match in found if int(match[1]) == round_)
        return {end: self.decisions(round_, end) for end in ends}

    @property
    def pictures_dir(self) -> str:
        return files.join(self.root, "pictures")

    def twins(self, round_: int) -> str:
        """What some images of a round are without guidance, see exchange/twins.py."""
        return files.join(self.pictures_dir, f"twins_rd{round_:02}.png")

    @property
    def logs_dir(self) -> str:
        """The logs of the stages, see exchange/logs.py."""
        return files.join(self.root, "logs")

    @property
    def locks_dir(self) -> str:
        """Who is at what, see exchange/locks.py."""
        return files.join(self.root, "locks")

    @property
    def seconds_dir(self) -> str:
        """What took how long, see exchange/seconds.py."""
        return files.join(self.root, "seconds")

    @property
    def report(self) -> str:
        """The page of the run, see tools/report.py; what it loads is in the folder of its name."""
        return files.join(self.root, "report.html")

    @property
    def feedback_file(self) -> str:
        """A copy of the newest feedback, for people: no stage reads it."""
        return files.join(self.root, "feedback.json")

    def feedback_history(self, round_: int) -> str:
        """The feedback of one round; of the initial weights for round -1."""
        return files.join(self.root, "feedback", "initial.json" if round_ < 0 else f"rd{round_:02}.json")

    @staticmethod
    def instance_name(round_: int, category_id: int, instance: int) -> str:
        """File name of a generated instance, the same in ``pool/raw`` and ``pool/segmented``."""
        return f"{round_:02}_{category_id:04}_{instance:04}.png"

    @staticmethod
    def instance_prefix(round_: int) -> str:
        """What the names of a round's instances begin with."""
        return f"{round_:02}_"

    def pool(self, path: str) -> str:
        """``path`` below the folder of the instance pool."""
        return files.join(self.root, "pool", path)

    def raw(self, name: str) -> str:
        """The generated image called ``name``."""
        return files.join(self.root, "pool/raw", name)

    def segmented(self, name: str) -> str:
        """The 8-bit alpha mask of the generated image called ``name``."""
        return files.join(self.root, "pool/segmented", name)

    def manifest(self, round_: int, shard: int, num_shards: int) -> str:
        """What shard ``shard`` of ``num_shards`` planned and made in a round."""
        return files.join(self.root, "pool/manifests", f"manifest_rd{round_:02}_{shard}of{num_shards}.json")

    def manifests(self, round_: int) -> list[str]:
        """The manifests of a round that exist, in the order of their names.

        Runs from before they had a folder of their own have them among the images, up to a million files, which are
        listed once in a process: nobody writes manifests there any more.
        """
        folder, images = files.join(self.root, "pool/manifests"), self.raw("")
        found = _of_round(folder, files.matches(folder, _MANIFEST), round_)
        return found or _of_round(images, _manifests_among(images), round_)

    @staticmethod
    def cutout_name(name: str) -> str:
        """Path, below the pool folder, of the object of the generated image ``name``, ready to paste."""
        return f"cutouts/{name.removesuffix('.png')}.webp"

    def cutout(self, name: str) -> str:
        """The object of the generated image ``name``, cropped and with alpha."""
        return self.pool(self.cutout_name(name))

    def pool_index(self, round_: int) -> str:
        """The columnar index of what a round added to the pool, see exchange/pool_index.py."""
        return files.join(self.root, "pool/index", f"rd{round_:02}.arrow")

    def pool_outlines(self, round_: int) -> str:
        """The polygons of the instances in :meth:`pool_index`, row by row."""
        return files.join(self.root, "pool/index", f"rd{round_:02}.outlines.arrow")

    def pool_parts(self, round_: int) -> str:
        """The folder of what an import has finished, see diSegmenter/pool/add.py; gone when all of it is."""
        return files.join(self.root, "pool/index", f"rd{round_:02}.parts")

    def pool_part(self, round_: int, part: int) -> str:
        """A part of the index that :meth:`pool_index` will be."""
        return files.join(self.pool_parts(round_), f"{part:06}.arrow")

    def pool_part_outlines(self, round_: int, part: int) -> str:
        """The polygons of the instances in :meth:`pool_part`."""
        return files.join(self.pool_parts(round_), f"{part:06}.outlines.arrow")

    def pool_part_done(self, round_: int, part: int) -> str:
        """What a part was made of, and what was left out; the marker that it is whole."""
        return files.join(self.pool_parts(round_), f"{part:06}.json")

    def pool_rounds(self) -> list[int]:
        """The rounds that have an index."""
        return sorted(int(match[1]) for match in files.matches(self.pool("index"), _INDEX))

    def pool_categories(self) -> str:
        """The categories of the data set that the pool is for, as an annotation file; old pools lack it."""
        return files.join(self.root, "pool/categories.json")

    def dropped_by_hand(self) -> str:
        """Names of the instances that a person took out, see diSegmenter/pool/drop.py."""
        return files.join(self.root, "pool/dropped.json")

    def real_features(self) -> str:
        """What the training set's objects look like, see diSegmenter/real_objects.py."""
        return files.join(self.root, "pool/real_features.safetensors")

    def rank(self, round_: int, kind: str) -> str:
        """How good the instances of a round are by one measure, see exchange/pool_rank.py."""
        return files.join(self.root, "pool/rank", f"rd{round_:02}.{kind}.arrow")

    def rank_done(self, round_: int, kind: str) -> str:
        """What :meth:`rank` was made from; the marker that it is whole."""
        return files.join(self.root, "pool/rank", f"rd{round_:02}.{kind}.json")

    def features(self, round_: int, part: int) -> str:
        """A part of what the instances of a round look like to an image encoder, see exchange/pool_features.py."""
        return self.pool(f"features/rd{round_:02}_{part:03}.arrow")

    def feature_parts(self, round_: int) -> list[int]:
        """The parts of :meth:`features` that there are."""
        found = files.matches(self.pool("features"), _FEATURES)
        return sorted(int(match[2]) for match in found if int(match[1]) == round_)

    def features_made_from(self) -> str:
        """Which encoder all of :meth:`features` are by."""
        return self.pool("features/made_from.json")

    def annotations(self, round_: int) -> str:
        """The pool of a round, cumulative, in LVIS/COCO format; there while the pool is small."""
        return files.join(self.root, "pool/annotations", f"rd{round_:02}.json")

    def verdicts(self, round_: int) -> str:
        """Which instances of a round were kept, and why the others were not."""
        return files.join(self.root, "pool/annotations", f"rd{round_:02}.filter.json")

    def annotations_done(self, round_: int) -> str:
        """The marker that the pool of a round is complete."""
        return files.join(self.root, "pool/annotations", f"rd{round_:02}.done")


@functools.cache
def _manifests_among(folder: str) -> list[re.Match[str]]:
    return files.matches(folder, _MANIFEST)


def _of_round(folder: str, found: list[re.Match[str]], round_: int) -> list[str]:
    return [files.join(folder, match[0]) for match in found if int(match[1]) == round_]
