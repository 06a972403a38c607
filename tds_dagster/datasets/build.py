"""Turns a recipe into one version of a dataset: a folder that is written whole or not at all.

    shards → examples → splits, checked → files in `.building-…` → leak check → card, manifest → rename → latest.json

Killed before the rename: the next build of the model removes the folder. The version is a hash over the recipe and
the content, so a build of the same gives the same folder, and nothing in it tells when or where it was made. Inputs
that were built before are not built again, unless a file of that folder is not what its manifest says.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import msgspec

import ingest.records
from ingest.errors import InvalidRecipe, RedactionLeak, SourceMissing, Unbalanced
from ingest.pipeline.partitions import DataPaths, make_folder, replacing
from ingest.records import SCHEMA_VERSION
from ingest.redaction.redactor import open_redactor
from ingest.settings import Settings
from tds_dagster.curate.artifacts import code_version_of, locked
from tds_dagster.curate.folders import (
    FolderFile,
    begun_folder,
    described_files,
    is_as_described,
    put_in_place,
    remove_unfinished,
    synced_file,
)
from tds_dagster.datasets.examples import Example, ExtraFile
from tds_dagster.datasets.manifest import (
    CARD,
    CROISSANT,
    LATEST,
    MANIFEST,
    ROWS,
    Dataset,
    Duplicates,
    SourceDay,
    SplitFile,
    manifest_bytes,
    read_dataset,
)
from tds_dagster.datasets.recipe import PRIMARY, SPLITS, Entity, Recipe, Split, checked_recipe
from tds_dagster.datasets.sources import Progress, Sources, build_shards, open_sources, resolved_range
from tds_dagster.datasets.splits import Assigned, assign_splits, placed_rows, row_reader, write_examples
from tds_dagster.export import Shard, card, croissant, features, plot
from tds_dagster.export.features import Features

_CHECKED_AT_A_TIME = 1 << 20  # bytes of whole lines that the leak check gets
_VERSION_DIGITS = 12
_MOST_NAMED = 5  # classes that a warning names


class Model(Protocol):
    """What a model's module has."""

    TITLE: str
    DESCRIPTION: str
    FEATURES: Features  # of a row
    COLUMNS_FROM: Mapping[str, Sequence[str]]  # of each feature, the columns of exports, as `<kind>.<column>`
    ENTITY: Entity
    ENTITIES: tuple[Entity, ...]

    def examples(self, sources: Sources, recipe: Recipe) -> Iterator[Example]:
        """The examples, one entity in memory at most."""


class ModelWithMore(Model, Protocol):
    """What a model's module may have: files beside the splits."""

    EXTRA_FEATURES: Mapping[str, Features]  # by config; files of another config are listed only

    def extra_files(self, folder: Path, sources: Sources, recipe: Recipe) -> list[ExtraFile]:
        """Write them into the folder, in which the splits are."""


def model_named(name: str) -> Model:
    """The module of a model."""
    return cast("Model", import_module(f"tds_dagster.datasets.{name}"))


def code_version() -> str:
    """The version of the code that decides a dataset's bytes."""
    own = sorted(str(path) for path in Path(__file__).parent.glob("*.py"))
    modules = (card, croissant, features, plot, ingest.records)
    return code_version_of([*own, *(str(module.__file__) for module in modules)])


def build_dataset(settings: Settings, recipe: Recipe, *, progress: Progress | None = None) -> Dataset:
    """Build the dataset of a recipe, or find it built: `datasets/<model>/<version>/`, and point `latest.json` to it.

    Days of its range that are not exported, or no longer current, are exported first.

    Raises InvalidRecipe for a recipe that cannot be followed or that leaves a split empty, InvalidPredicate for its
    `where`, SourceMissing without any data, Unbalanced for days or records that do not add up, SplitLeak and
    RedactionLeak if the dataset would hold what it must not: then nothing is put in place.
    """
    paths, model = DataPaths(settings.data_dir), model_named(recipe.model)
    recipe = resolved_recipe(settings, recipe)
    redactor = open_redactor(settings, recipe.redaction or settings.dataset_redaction)
    report = progress or _say_nothing
    shards = build_shards(settings, recipe, progress=report)
    home = paths.datasets(recipe.model)
    make_folder(home)
    with locked(paths, f"dataset_{recipe.model}"):
        remove_unfinished(home)
        inputs = _inputs(recipe, redactor.version, shards)
        built = _built_before(home, inputs)
        if built is None:
            with open_sources(settings, recipe, shards=shards, redactor=redactor, progress=report) as sources:
                # The shards that were read, should another process have replaced one since.
                inputs = _inputs(recipe, redactor.version, sources.shards)
                built = _Build(sources, recipe, model, home, inputs, report).run()
        with replacing(home / LATEST) as out:
            out.write(msgspec.json.encode({"version": built.version}) + b"\n")
    return built


def rebuild_dataset(settings: Settings, built: Dataset, shards: Sequence[Shard], home: Path) -> Dataset:
    """Build a version again below another folder, from the shards that its manifest names, to hold the two together.

    Raises as `build_dataset` does.
    """
    model = model_named(built.model)
    make_folder(home)
    with open_sources(settings, built.recipe, shards=shards) as sources:
        return _Build(sources, built.recipe, model, home, built.inputs, _say_nothing).run()


def resolved_recipe(settings: Settings, recipe: Recipe) -> Recipe:
    """The recipe with its defaults filled in. Raises InvalidRecipe, InvalidPredicate, or SourceMissing without data."""
    model = model_named(recipe.model)
    entity = recipe.entity or model.ENTITY
    if entity not in model.ENTITIES:
        raise InvalidRecipe(
            f"entity={entity!r}: expected one of {', '.join(model.ENTITIES)} for {recipe.model}; pass one of these"
        )
    start, end = resolved_range(DataPaths(settings.data_dir), recipe.start, recipe.end)
    redaction = recipe.redaction or settings.dataset_redaction
    filled = msgspec.structs.replace(recipe, start=start, end=end, entity=entity, redaction=redaction)
    return checked_recipe(filled)


def is_whole(dataset: Dataset) -> bool:
    """Whether every file of the folder is what the manifest says, and no other is there."""
    found = {str(path.relative_to(dataset.folder)) for path in dataset.folder.rglob("*") if path.is_file()}
    if found != {MANIFEST, *(file.path for file in dataset.files)}:
        return False
    return is_as_described(dataset.folder, dataset.files)


def _say_nothing(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody looks at."""


def _inputs(recipe: Recipe, redaction_version: str, shards: Sequence[Shard]) -> str:
    sources = [(shard.kind, shard.day, shard.sha256) for shard in shards]
    said = msgspec.json.encode([recipe, sources, redaction_version, code_version(), SCHEMA_VERSION])
    return hashlib.sha256(said).hexdigest()


def _built_before(home: Path, inputs: str) -> Dataset | None:
    """The version that was made of the same inputs, if it still is what its manifest says."""
    for folder in sorted(home.iterdir()):
        if (folder / MANIFEST).is_file():
            try:
                built = read_dataset(folder)
            except SourceMissing:
                continue  # of another version of this program, or damaged: it is built anew
            if built.inputs == inputs and is_whole(built):
                return msgspec.structs.replace(built, reused=True)
    return None


class _Build:
    """One version on its way."""

    def __init__(
        self, sources: Sources, recipe: Recipe, model: Model, home: Path, inputs: str, report: Progress
    ) -> None:
        self.sources, self.recipe, self.model, self.home = sources, recipe, model, home
        self.inputs, self.report = inputs, report
        self.folder = home  # until it runs

    def run(self) -> Dataset:
        with begun_folder(self.home) as self.folder:
            dataset = self._write()
            target = self.home / dataset.version
            put_in_place(self.folder, target)
        return msgspec.structs.replace(dataset, path=target)

    def _write(self) -> Dataset:
        rows, index = self.sources.folder / "examples.rows", self.sources.folder / "examples.parquet"
        made = write_examples(self._told(self.model.examples(self.sources, self.recipe)), rows, index, self.recipe.seed)
        records, no_example = self._account(made)
        assigned = assign_splits(self.sources.connection, index, self.recipe)
        splits = self._write_splits(rows)
        warnings = [
            *self._unknown_ids(),
            *_empty_splits(self.recipe, splits, no_example | assigned.left_out),
            *_odd_classes(splits),
        ]
        extra = self._write_extra()
        self._check_files(path for path in self.folder.rglob("*") if path.is_file())
        version = self._version()
        dataset = self._manifest(version, splits, assigned, records, no_example, warnings)
        self._write_card(dataset, extra)
        dataset = msgspec.structs.replace(dataset, files=self._files())
        self._check_files([self.folder / CARD, self.folder / CROISSANT])
        # Not its figures and hashes: `"birth_date": 160` is how often one was replaced, and is taken for one.
        self._check_text(MANIFEST, 0, msgspec.json.encode([dataset.recipe, warnings, dataset.facts, splits]))
        self._write_file(MANIFEST, manifest_bytes(dataset))
        return dataset

    def _told(self, examples: Iterator[Example]) -> Iterator[Example]:
        """The examples, with a word about how many there are so far, now and then."""
        for done, example in enumerate(examples):
            if done % 1000 == 0:
                self.report("examples", done, 0)
            yield example

    def _account(self, made: int) -> tuple[int, dict[str, int]]:
        """Rows of the predicted kind, and why which of them are no example. Raises Unbalanced if some are lost."""
        kind = PRIMARY[self.recipe.model]
        row = self.sources.connection.execute(
            f"SELECT count(*), count(*) FILTER (record_id NOT IN (SELECT record_id FROM targets)) FROM exported_{kind}"
        ).fetchone()
        records, not_chosen = row or (0, 0)
        reasons = {"not chosen by where, include and exclude": not_chosen, **self.sources.left_out}
        no_example = {reason: n for reason, n in reasons.items() if n}
        of_others = self.sources.others
        if records + of_others != made + sum(no_example.values()):
            more = f" and {of_others} other records" if of_others else ""
            raise Unbalanced(
                f"{self.recipe.model}: {records} {kind}{more}, but {made} examples + {sum(no_example.values())} left "
                "out; nothing was put in place: report this with the recipe"
            )
        return records + of_others, no_example

    def _unknown_ids(self) -> list[str]:
        """A warning about ids of the recipe's lists that name nothing: a typo leaves somebody in."""
        unknown = self.sources.unknown_ids
        if not unknown:
            return []
        shown = msgspec.json.decode(self._redacted_aside(msgspec.json.encode(unknown)), type=list[str])
        kind = PRIMARY[self.recipe.model]
        return [f"ids in include or exclude that no record of {kind} in the range has: {_named(shown)}"]

    def _write_splits(self, rows: Path) -> dict[str, SplitFile]:
        with row_reader(rows) as read, synced_file(self.folder / ROWS) as entries:
            return {split: self._write_split(split, read, entries) for split in SPLITS}

    def _write_split(self, split: Split, read: Callable[..., bytes], entries: BinaryIO) -> SplitFile:
        digest, size, line = hashlib.sha256(), 0, 0
        with synced_file(self.folder / f"{split}.jsonl") as out:
            for line, placed in enumerate(placed_rows(self.sources.connection, split), 1):
                row = read(placed) + b"\n"
                out.write(row)
                digest.update(row)
                size += len(row)
                # The entity under the name of its column, which redaction keeps as it is: ids are needed for joins.
                entry = {
                    "split": split, "line": line, "record_id": placed.record_id,
                    f"{self.recipe.entity}_id": placed.entity, "timestamp": placed.timestamp, "label": placed.label,
                    "row": placed.row_hash,
                }  # fmt: skip
                entries.write(msgspec.json.encode(entry) + b"\n")
        entities, classes = self._figures(split)
        return SplitFile(rows=line, bytes=size, sha256=digest.hexdigest(), entities=entities, classes=classes)

    def _figures(self, split: Split) -> tuple[int, dict[str, int]]:
        connection = self.sources.connection
        row = connection.execute("SELECT count(DISTINCT entity) FROM placed WHERE split = $1", [split]).fetchone()
        classes = connection.execute(
            "SELECT label, count(*) AS n FROM placed WHERE split = $1 GROUP BY label ORDER BY n DESC, label", [split]
        ).fetchall()
        return (row[0] if row is not None else 0), dict(classes)

    def _write_extra(self) -> list[ExtraFile]:
        if not hasattr(self.model, "extra_files"):
            return []
        return cast("ModelWithMore", self.model).extra_files(self.folder, self.sources, self.recipe)

    def _version(self) -> str:
        """A hash over the recipe and what is in the folder so far: all but the card and the manifest."""
        content = {file.path: file.sha256 for file in self._files()}
        said = msgspec.json.encode([self.recipe, content], order="sorted")
        return hashlib.sha256(said).hexdigest()[:_VERSION_DIGITS]

    def _files(self) -> list[FolderFile]:
        return described_files(self.folder, but=MANIFEST)

    def _manifest(
        self,
        version: str,
        splits: dict[str, SplitFile],
        assigned: Assigned,
        records: int,
        no_example: dict[str, int],
        warnings: list[str],
    ) -> Dataset:
        redactor = self.sources.redactor
        return Dataset(
            model=self.recipe.model,
            version=version,
            recipe=(shown := self._redacted_recipe()),
            recipe_redacted=shown != self.recipe,
            rule=assigned.rule,
            splits=splits,
            records=records,
            no_example=no_example,
            examples=assigned.examples,
            left_out=assigned.left_out,
            duplicates=Duplicates(
                groups=assigned.duplicate_groups, removed=assigned.duplicates_removed, kept=assigned.duplicates_kept
            ),
            warnings=warnings,
            sources=[
                SourceDay(kind=shard.kind, day=shard.day, rows=shard.rows, bytes=shard.bytes, sha256=shard.sha256)
                for shard in self.sources.shards
            ],
            redaction=redactor.level,
            redaction_version=redactor.version,
            redacted=dict(sorted(redactor.counts.items())),
            schema_version=SCHEMA_VERSION,
            code_version=code_version(),
            inputs=self.inputs,
            files=[],
            facts=dict(self.sources.notes),
        )

    def _redacted_recipe(self) -> Recipe:
        """The recipe as the manifest shows it: a predicate or a list of ids may name people."""
        named = {name: getattr(self.recipe, name) for name in ("where", "include", "exclude")}
        shown = msgspec.json.decode(self._redacted_aside(msgspec.json.encode(named)))
        return msgspec.convert({**msgspec.to_builtins(self.recipe), **shown}, Recipe)

    def _redacted_aside(self, line: bytes) -> bytes:
        """A line of the recipe's values, redacted; the redactor's counts are of the data and stay what they are."""
        redactor = self.sources.redactor
        counts = redactor.counts.copy()
        redacted = redactor.redact_line(PRIMARY[self.recipe.model], line)
        redactor.counts.clear()
        redactor.counts.update(counts)
        return redacted

    def _write_card(self, dataset: Dataset, extra: Sequence[ExtraFile]) -> None:
        model, described = self.model, {file.path: file for file in self._files()}
        more = getattr(model, "EXTRA_FEATURES", {})
        listed = [ExtraFile("default", split, f"{split}.jsonl", dataset.splits[split].rows) for split in SPLITS]
        files = [
            card.CardFile(file.config, file.split, file.path, file.rows, found.bytes, found.sha256)
            for file in [*listed, *(file for file in extra if file.config in more)]
            for found in [described[file.path]]
        ]
        features = {"default": model.FEATURES, **more}
        facts = _facts(dataset)
        text = card.card_text(
            title=model.TITLE, description=model.DESCRIPTION, files=files, features=features, facts=facts,
            plots=_plots(dataset), license=None,
        )  # fmt: skip
        self._write_file(CARD, text.encode())
        described_so = croissant.croissant(
            title=model.TITLE, description=model.DESCRIPTION, files=files, features=features, facts=facts,
            license=None, name=dataset.model, version=dataset.version, date=str(self.recipe.end),
        )  # fmt: skip
        self._write_file(CROISSANT, msgspec.json.format(msgspec.json.encode(described_so), indent=2) + b"\n")

    def _write_file(self, name: str, content: bytes) -> None:
        with synced_file(self.folder / name) as out:
            out.write(content)

    def _check_files(self, paths: Iterable[Path]) -> None:
        """Raise RedactionLeak if a file holds what the level promises to be gone."""
        for path in sorted(paths):
            for base, lines in _pieces(path):
                self._check_text(str(path.relative_to(self.folder)), base, lines)

    def _check_text(self, name: str, base: int, text: bytes) -> None:
        """Raise RedactionLeak if a text, at `base` in the file of this name, holds what must be gone."""
        for leak in self.sources.redactor.find_leaks(text):
            raise RedactionLeak(
                f"{self.recipe.model}, {name} at byte {base + leak.offset}: something that {leak.detector} finds, "
                f"expected none at level {self.sources.redactor.level}; nothing was put in place: widen the policy so "
                "that it covers this place"
            )


def _facts(dataset: Dataset) -> dict[str, str]:
    recipe = dataset.recipe
    asked = {name: value for name, value in msgspec.to_builtins(recipe).items() if value not in (None, (), [])}
    days = {(source.kind, source.day) for source in dataset.sources}
    return {
        "version": dataset.version,
        "days": f"{recipe.start} to {recipe.end}, {len(days)} day shards, each with its SHA-256 in {MANIFEST}",
        "splits": dataset.rule,
        "recipe": ", ".join(f"{name}={value}" for name, value in asked.items()),
        "records": _sum_text(dataset.records, dataset.examples, "examples", dataset.no_example),
        "examples": _sum_text(dataset.examples, dataset.rows, "rows", dataset.left_out),
        "duplicates": f"{dataset.duplicates.removed} copies removed, {dataset.duplicates.kept} kept in one split",
        "redaction": f"{dataset.redaction} ({sum(dataset.redacted.values())} values replaced in the sources)",
        **({"warnings": "; ".join(dataset.warnings)} if dataset.warnings else {}),
        **dataset.facts,
    }


def _plots(dataset: Dataset) -> list[str]:
    return [
        plot.splits_plot({name: split.rows for name, split in dataset.splits.items()}),
        plot.classes_plot({name: split.classes for name, split in dataset.splits.items()}),
    ]


def _sum_text(total: int, part: int, noun: str, others: Mapping[str, int]) -> str:
    """`12 = 10 examples + 2 (a task that is still open)`."""
    return " + ".join([f"{total} = {part} {noun}", *(f"{n} ({reason})" for reason, n in others.items())])


def _empty_splits(recipe: Recipe, splits: Mapping[str, SplitFile], left_out: Mapping[str, int]) -> list[str]:
    """A warning for each split that was asked for and has no row; an error unless the recipe allows them."""
    empty = [name for name, share in zip(SPLITS, recipe.fractions, strict=True) if share and not splits[name].rows]
    if not empty:
        return []
    total = sum(split.rows for split in splits.values())
    why = ", ".join(f"{n} for {reason}" for reason, n in left_out.items()) or "nothing"
    text = (
        f"{' and '.join(empty)} would have no row: {total} rows of "
        f"{sum(split.entities for split in splits.values())} {recipe.entity}s from {recipe.start} to {recipe.end} in "
        f"all (left out: {why})"
    )
    if recipe.allow_empty_splits:
        return [text]
    raise InvalidRecipe(
        f"{recipe.model}: {text}; expected a row in each split that has a fraction. Take more days, other fractions, "
        "another seed or split_by, a fraction of 0 for the split, or pass allow_empty_splits (`--allow-empty-splits`)"
    )


def _odd_classes(splits: Mapping[str, SplitFile]) -> list[str]:
    """Warnings about classes that a model can hardly learn, or that cannot be told from chance."""
    totals: dict[str, int] = {}
    for split in splits.values():
        for label, n in split.classes.items():
            totals[label] = totals.get(label, 0) + n
    warnings = []
    single = [label for label, n in totals.items() if n == 1]
    if single:
        warnings.append(f"classes with one example, which is in one split only: {_named(single)}")
    if len(totals) == 1:
        warnings.append(f"every example has the same class: {_named(list(totals))}")
    unseen = sorted({label for name in SPLITS[1:] for label in splits[name].classes} - set(splits["train"].classes))
    if unseen and splits["train"].rows:
        warnings.append(f"classes in validation or test that train does not have: {_named(unseen)}")
    return warnings


def _named(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _MOST_NAMED} more" if len(labels) > _MOST_NAMED else ""
    return ", ".join(labels[:_MOST_NAMED]) + more


def _pieces(path: Path) -> Iterator[tuple[int, bytes]]:
    """A file in pieces of whole lines, each with the offset at which it begins."""
    offset = 0
    with path.open("rb") as content:
        while lines := content.readlines(_CHECKED_AT_A_TIME):
            piece = b"".join(lines)
            yield offset, piece
            offset += len(piece)
