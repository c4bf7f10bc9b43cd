"""What a generator shard planned and made in a round (``pool/manifests/manifest_rdNN_IofN.json``)."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from exchange import files
from exchange.errors import UserError
from exchange.layout import RunLayout
from exchange.typed import from_record, read_object

FORMAT_VERSION = 1
_LONGEST_NAME = 200  # bytes; file systems take 255, of which a writer adds some


@dataclass(frozen=True)
class GeneratedInstance:
    """One generated image. ``criterion_before`` is guidance's criterion at the first guided step, before
    anything was shifted, ``criterion_after`` that of the finished image; None where nothing was guided. ``model`` is
    what drew it, empty in files of older versions, which have one for all."""

    file: str
    category_id: int
    instance: int
    seed: int
    template: str
    prompt: str
    guided: bool
    criterion_before: float | None = None
    criterion_after: float | None = None
    model: str = ""


@dataclass(frozen=True)
class Manifest:
    """One shard of a round. ``instances`` are those on disk; ``asked`` counts all planned ones per
    category id; ``complete`` says that nothing of the plan is missing."""

    round: int
    shard: int
    num_shards: int
    complete: bool
    asked: dict[int, int]
    instances: list[GeneratedInstance]
    seconds: float


def write_manifest(layout: RunLayout, manifest: Manifest) -> None:
    """Writes the manifest to its place in the run."""
    content: dict[str, Any] = {"format": FORMAT_VERSION, **dataclasses.asdict(manifest)}
    files.write_json(layout.manifest(manifest.round, manifest.shard, manifest.num_shards), content)


def read_manifest(path: str) -> Manifest:
    """Reads a manifest; raises UserError if it is of another format, damaged or names a file out of place."""
    content = read_object(path, "manifest", FORMAT_VERSION, "generate it again")
    try:
        instances = [from_record(GeneratedInstance, item) for item in _part(content, "instances", list)]
        asked = {int(category): count for category, count in _part(content, "asked", dict).items()}
        manifest = from_record(Manifest, {**content, "instances": []})
        if manifest.round < 0 or not 0 <= manifest.shard < manifest.num_shards or manifest.seconds < 0:
            raise ValueError("round, shard, number of shards or seconds are out of range")
        if not all(0 <= category < 1 << 31 for category in [*asked, *(i.category_id for i in instances)]):
            raise ValueError("a category id is negative or beyond 32 bits")
        if any(number < 0 for number in [*asked.values(), *(i.instance for i in instances)]):
            raise ValueError("a number of images or of an image is negative")
    except ValueError as error:
        raise UserError(f"{path} is not a generator manifest ({error}): generate it again") from error
    for instance in instances:
        name = instance.file
        if not name or set(name) & set("/\\") or name.startswith(".") or len(name.encode()) > _LONGEST_NAME:
            raise UserError(f"{path} names the file {name[:80]!r}: only plain file names may stand there")
    return dataclasses.replace(manifest, asked=asked, instances=instances)


def _part(content: dict[str, Any], name: str, kind: type[Any]) -> Any:
    if not isinstance(content.get(name), kind):
        raise ValueError(f"{name!r} is no {kind.__name__}")
    return content[name]


def read_round(layout: RunLayout, round_: int, whole: dict[str, Manifest] | None = None) -> list[Manifest]:
    """The manifests of a round that exist, in order of their shards.

    ``whole``: by their paths, those that were complete before, which are not read again; it gets those that are now.

    Raises UserError when they disagree about the number of shards.
    """
    whole = {} if whole is None else whole
    found = {path: whole.get(path) or read_manifest(path) for path in layout.manifests(round_)}
    whole |= {path: manifest for path, manifest in found.items() if manifest.complete}
    manifests = found.values()
    counts = sorted({manifest.num_shards for manifest in manifests})
    if len(counts) > 1:
        raise UserError(
            f"round {round_} in {layout.root} has manifests for {' and '.join(map(str, counts))} shards: "
            "remove those of the division that was given up (pool/manifests, in old runs pool/raw)"
        )
    return sorted(manifests, key=lambda manifest: manifest.shard)


def is_complete(manifests: list[Manifest]) -> bool:
    """Whether these are all shards of a round, each with everything that it planned."""
    return (
        bool(manifests) and len(manifests) == manifests[0].num_shards and all(m.complete for m in manifests)
    )
