"""``diffvit clip``: evaluate (compare and published are options of it), train, classify and precision."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from diffvit.cli import OPTIONS, show
from diffvit.cli.options import (
    OUTPUT,
    SWITCH,
    DataDir,
    DeviceFlag,
    Output,
    Quiet,
    Resume,
    flags_of,
    numbers_of,
    refuse_folder,
    settings_of,
)
from diffvit.cli.train import default_folder, resumed, run_and_report
from diffvit.config import ClipConfig, resolve
from diffvit.errors import ConfigError, EnvironmentFault, InputError

if TYPE_CHECKING:
    from diffvit.clip.evaluate import Evaluation
    from diffvit.clip.labelled import Labelled
    from diffvit.clip.load import Clip, Supervised
    from diffvit.data.shifts import Shift
    from diffvit.training.run_dir import RunDir

    Settings = dict[str, Any]
else:
    Settings = flags_of(ClipConfig, without=frozenset({"captions", "objective"}))

app = App(name="clip", help_format="plaintext", group_parameters=OPTIONS)
RESNET50 = "tv-v2"  # beside CLIP in a comparison where no other model is named
ALL = 20  # rows of a table; of more, so many of both ends together
TASKS = ("zero-shot", "linear-probe", "retrieval")
TEMPLATES = ("openai-80", "openai-7", "single")  # of a comparison; the first makes it
MODEL_HELP = "open_clip's architecture name, or a small CLIP trained with diffvit: cifar10-clip or a run folder"
Result = Mapping[str, Any]
Where = Annotated[str, Parameter(name="WHERE", help="cifar10, or a folder with a folder per class.")]


@Parameter(name="*")
@dataclass(frozen=True)
class ClipChoice:
    """A CLIP and where it runs."""

    model: Annotated[str, Parameter(help=f"{MODEL_HELP}.")] = "RN50"
    pretrained: str = "openai"
    """Tag of the weights; with --weights FILE, the tag of what the file holds, or none."""
    weights: Path | None = None
    """Weights from a file: OpenAI's archive, .pt, .safetensors."""
    device: DeviceFlag = None

    @property
    def place(self) -> str:
        """The device: flag > environment > default."""
        return settings_of(device=self.device).device

    def load(self) -> Clip:
        """The model."""
        from diffvit.clip.load import load_clip
        from diffvit.clip.small.load import is_own, load_small
        from diffvit.kernels import accelerate

        if self.weights is None and is_own(self.model):
            clip = load_small(self.model, device=self.place)
            accelerate(clip.model)
            return clip
        pretrained = None if self.pretrained == "none" else self.pretrained
        return load_clip(self.model, pretrained, self.weights, device=self.place)


CLIP = ClipChoice()


def summed(faults: Sequence[InputError], kept: str = "") -> InputError:
    """The first of the faults, how many more there are, and what was done all the same."""
    first = faults[0]
    more = f"{len(faults) - 1} more could not be read either." if len(faults) > 1 else ""
    return InputError(first.what, first.why, f"{more} {kept}".strip())


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What is evaluated, on which pictures."""

    compare: Annotated[bool, SWITCH] = False
    """Compare both models by category, as one page."""
    robustness: Path | None = None
    """Folder of ImageNet-V2, -A, -R, -Sketch, ObjectNet, or of one: accuracy on each against WHERE, ImageNet."""
    published: Annotated[bool, SWITCH] = False
    """All results that need published weights; WHERE is ImageNet."""
    tasks: str = "zero-shot"
    """What is measured, separated by commas: zero-shot, linear-probe, retrieval."""
    probe_train: str | None = None
    """Pictures that a linear probe is fitted to: a folder with a folder per class; of cifar10 its training images."""
    captions: Path | None = None
    """For retrieval: CSV or JSON Lines file of paths in WHERE and captions."""
    supervised: str | None = None
    """Evaluate this model on the same pictures: tv-v1, tv-v2 (ResNet-50), timm:NAME, or a ViT run."""
    supervised_weights: Path | None = None
    """Weights of that model of timm's from a file."""
    templates: Annotated[tuple[str, ...], SWITCH] = ()
    """openai-80, openai-7, single, or a file with {} in each line; a comparison takes several."""
    labels_file: Path | None = None
    """Names for the classes, one per line in the folders' order."""
    limit: int | None = None
    """Largest number of pictures per class, spread evenly over it."""
    split: Literal["test", "train"] = "test"
    """Which images of cifar10."""
    data_dir: Path | None = None
    """Folder of CIFAR-10; default DIFFVIT_DATA."""
    shifts: str = "all"
    """For a comparison, corruptions: all (six), none, or some of edges,grey,blur,jpeg,noise,inversion,contrast."""
    shift_pictures: int = 500
    """Number of pictures that are corrupted, spread over the classes; 5 severities each."""
    v1_weights: Path | None = None
    """With --published: torchvision's ResNet-50, IMAGENET1K_V1, from a file."""
    v2_weights: Path | None = None
    """The same for IMAGENET1K_V2."""
    budget: float = 240.0
    """With --published: time budget for measuring precisions, seconds."""
    out: Path | None = None
    """Folder for the files; by default a comparison's is clip-compare, with --published reports/clip-published."""

    def check(self) -> None:
        """Refuse options that would have no effect.

        Raises:
            ConfigError: naming them.
        """
        given = {name for name, value in vars(self).items() if value != vars(USUAL)[name]}
        if self.published and given & {"compare", "labels_file", "supervised", "supervised_weights"}:
            hint = "Leave out --compare, --labels-file, --supervised and --supervised-weights."
            raise ConfigError("--published", "compares with both ResNet-50s by itself", hint)
        if self.robustness and (wrong := given & {"compare", "published", "labels_file", "tasks"}):
            flags = ", ".join(sorted(f"--{name.replace('_', '-')}" for name in wrong))
            raise ConfigError("--robustness", f"does not go with {flags}", "Leave one of them out.")
        if given & {"v1_weights", "v2_weights", "budget"} and not self.published:
            raise ConfigError("--v1-weights, --v2-weights, --budget", "are for --published alone", "Leave them out.")
        if given & {"shifts", "shift_pictures"} and not (self.compare or self.published):
            raise ConfigError("--shifts, --shift-pictures", "are for a comparison alone", "Add --compare.")
        if wrong := [task for task in self.wanted if task not in TASKS]:
            raise ConfigError("--tasks", f"no task {wrong[0]!r} (have {', '.join(TASKS)})")
        if "zero-shot" not in self.wanted and (self.compare or self.published):
            raise ConfigError("--tasks", "without zero-shot leaves nothing to compare", "Add zero-shot.")
        if (self.captions is None) == ("retrieval" in self.wanted):
            raise ConfigError("--captions", "is for --tasks retrieval, which needs it", "Give both, or none.")
        if self.probe_train and "linear-probe" not in self.wanted:
            raise ConfigError("--probe-train", "is for --tasks linear-probe", "Add it.")
        if self.supervised_weights and not (self.supervised or self.compare or self.robustness):
            raise ConfigError("--supervised-weights", "needs --supervised", "Say what they are: tv-v1 or tv-v2.")
        if self.shift_pictures < 1:
            raise ConfigError("--shift-pictures", f"must be at least 1 (found {self.shift_pictures})")

    @property
    def wanted(self) -> list[str]:
        """The tasks."""
        return [task.strip() for task in self.tasks.split(",")]

    def to_fit(self, where: str) -> Labelled:
        """The pictures that a linear probe is fitted to; ConfigError where a folder has none."""
        from diffvit.clip.labelled import CIFAR10, open_labelled

        place = self.probe_train or (CIFAR10 if where == CIFAR10 else None)
        if place is None:
            why = "must name the training pictures of a linear probe"
            raise ConfigError("--probe-train", why, "Give a folder with the same class folders as WHERE.")
        return open_labelled(place, split="train" if place == CIFAR10 else "test", data_dir=self.data_dir)

    def pictures(self, where: str) -> Labelled:
        """The pictures."""
        from diffvit.clip.labelled import open_labelled

        labelled = open_labelled(where, split=self.split, data_dir=self.data_dir)
        return labelled if self.limit is None else labelled.at_most(self.limit)


USUAL = Options()


@app.command(help="Measure zero-shot accuracy on a labelled folder, ImageNet or CIFAR-10.")
def evaluate(where: Where, /, *, options: Options = USUAL, choice: ClipChoice = CLIP, output: Output = OUTPUT) -> None:
    """Accuracy on labelled pictures: CLIP zero-shot and, if asked, a supervised model on the same.

    Folders named by WordNet ids, as in ImageNet's validation layout, get its names. What was computed for a picture is
    kept in the user's cache: an interrupted call goes on, a repeated one reads.
    """
    options.check()
    way = _published if options.published else _robustness if options.robustness else _evaluated
    result, faults = way(where, options, choice)
    output.as_json(result)
    if faults:
        raise summed(faults, "Everything else is above.")


@app.command(help="Compare CLIP with a supervised model by class, as one page.")
def compare(where: Where, /, *, options: Options = USUAL, choice: ClipChoice = CLIP, output: Output = OUTPUT) -> None:
    """``diffvit clip evaluate WHERE --compare``."""
    evaluate(where, options=replace(options, compare=True), choice=choice, output=output)


@app.command(help="Compute all results that need published weights.")
def published(where: Where, /, *, options: Options = USUAL, choice: ClipChoice = CLIP, output: Output = OUTPUT) -> None:
    """``diffvit clip evaluate WHERE --published``: CIFAR-10 is left out, and said, where it is not at hand."""
    evaluate(where, options=replace(options, published=True), choice=choice, output=output)


def _evaluated(where: str, options: Options, choice: ClipChoice) -> tuple[dict[str, Any], list[InputError]]:
    """Do the tasks, or compare, tell it and write the files; the result, and the pictures that could not be read."""
    out, wanted = options.out or (Path("clip-compare") if options.compare else None), options.wanted
    if out is not None:
        refuse_folder(out)

    from diffvit.clip.encode import image_encoder
    from diffvit.clip.evaluate import evaluate as run
    from diffvit.clip.tasks import benchmark_files, captions_task, linear_probe
    from diffvit.clip.templates import load_labels, load_templates
    from diffvit.data.shifts import KINDS, shifts
    from diffvit.files import write_files

    kinds = {"all": KINDS, "none": ()}.get(options.shifts, [kind.strip() for kind in options.shifts.split(",")])
    changes = shifts(kinds) if options.compare else ()
    usual = TEMPLATES if options.compare else TEMPLATES[:1]
    prompts = [load_templates(name) for name in options.templates or usual]
    names = None if options.labels_file is None else load_labels(None, options.labels_file)
    labelled = train = supervised = None
    if wanted != ["retrieval"]:
        labelled, train = options.pictures(where), options.to_fit(where) if "linear-probe" in wanted else None
        if "zero-shot" in wanted:
            labelled.named(names)  # refused before weights are read or fetched
        supervised = _supervised(options, labelled, choice.place)
    clip = choice.load()
    result: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    faults: list[InputError] = []
    if labelled and "zero-shot" in wanted:
        how: Any = {"supervised": supervised, "names": names, "shifts": changes, "compare": options.compare}
        found = run(clip, labelled, prompts, **how, shift_images=options.shift_pictures, watch=show.Lines)
        result, faults = found.result, found.faults
        files = _tell(found, changes, options.compare)
    if labelled and train:
        probes = [linear_probe(each, train, labelled, show.Lines) for each in (clip, supervised) if each]
        result["linear_probe"] = [figures for figures, _ in probes]
        faults = [*faults, *(fault for _, more in probes for fault in more)]
        _tell_probes(result["linear_probe"])
    if options.captions:
        figures, more = captions_task(clip, Path(where), options.captions, show.Lines)
        result["retrieval"], faults = [figures], [*faults, *more]
        _tell_retrieval(figures)
    if out is not None:
        known = dict.fromkeys((clip.name, image_encoder(clip).name), (clip.name, clip.pretrained or "own"))
        known |= {supervised.title: (supervised.title, supervised.version)} if supervised else {}
        if not options.compare:
            files = _files(result) | benchmark_files(result, known, where if labelled is None else labelled.name)
        result["files"] = written = write_files(out, files, "The figures are above.")
        show.line(f"report  {written[0]}" if options.compare else f"files  {', '.join(map(str, written))}")
    return result, list({fault.what: fault for fault in faults}.values())


def _tell(found: Evaluation, changes: Sequence[Shift], compare: bool) -> dict[str, bytes]:
    """Say what was found zero-shot; the files of a comparison."""
    from diffvit.clip.compare_page import comparison_files
    from diffvit.reporting.texts import render

    result = found.result
    if result["unreadable"] == result["images"]:
        raise summed(found.faults)
    show.warn(found.warnings)
    if compare:
        _tell_comparison(result)
        return comparison_files(found, changes, shlex.join(["diffvit", *sys.argv[1:]]))
    show.line(render("clip/pages/evaluate.txt", **result))
    _class_table(result["models"], result["classes"])
    return {}


def _tell_probes(probes: Sequence[Result]) -> None:
    rows = []
    for each in probes:
        end = ", the end of the range" if each["at_end"] else ""
        cells = [each["model"], f"{each['train_images']:,}", f"{each['images']:,}", _with_interval(each)]
        rows.append([*cells, f"{each['strength']:g}{end}"])
    show.table(["linear probe", "training pictures", "pictures", "accuracy", "C"], rows)


def _tell_retrieval(found: Result) -> None:
    from diffvit.clip.tasks import RANKS
    from diffvit.clip.zero_shot import ABSENT, some

    if found["unknown_words"]:
        show.warn([f"{ABSENT}: {some(found['unknown_words'])}"])
    rows = [
        [title, f"{count:,}", *(show.percent(found[f"{kind}_retrieval_recall@{rank}"]) for rank in RANKS)]
        for title, kind, count in (
            ("captions whose image is found", "image", found["captions"]),
            ("images of which a caption is found", "text", found["images"]),
        )
    ]
    show.table([f"retrieval, {found['model']}", "", *(f"R@{rank}" for rank in RANKS)], rows)


def _supervised(options: Options, labelled: Labelled, device: str) -> Supervised | None:
    """The model beside CLIP; a comparison and robustness have a ResNet-50 by default."""
    from diffvit.clip.labelled import imagenet_groups
    from diffvit.clip.load import load_supervised, load_vit
    from diffvit.clip.small.load import is_own
    from diffvit.kernels import accelerate

    name = options.supervised or (RESNET50 if options.compare or options.robustness else None)
    if name is None:
        return None
    if options.supervised_weights or not is_own(name):
        if "zero-shot" in options.wanted:
            imagenet_groups(labelled)  # refused before weights are read or fetched
        return load_supervised(name, options.supervised_weights, device=device)
    supervised = load_vit(name, device=device)
    accelerate(supervised.model)
    return supervised


def _robustness(where: str, options: Options, choice: ClipChoice) -> tuple[dict[str, Any], list[InputError]]:
    """Both models on ImageNet and on the sets with its classes."""
    out = options.out or Path("clip-robustness")
    refuse_folder(out)

    from diffvit.clip.robustness import find_sets, robustness, robustness_files
    from diffvit.clip.templates import load_templates
    from diffvit.files import write_files
    from diffvit.reporting.texts import render

    templates = load_templates((options.templates or TEMPLATES)[0])
    imagenet = options.pictures(where)
    sets, unknown = find_sets(options.robustness or Path(), imagenet)
    if options.limit is not None:
        sets = {name: labelled.at_most(options.limit) for name, labelled in sets.items()}
    supervised = _supervised(options, imagenet, choice.place)
    result, faults = robustness(choice.load(), supervised, imagenet, sets, templates, watch=show.Lines)
    show.warn(result["warnings"])
    show.line(render("clip/pages/robustness.txt", **result, unknown=unknown).rstrip())
    rows = []
    for each in result["sets"]:
        for model in each["models"]:
            own, known = model["imagenet"], model["published"]
            cells = [each["name"], model["model"], f"{model['images']:,}", _with_interval(model), _with_interval(own)]
            cells += [f"{100 * (own['accuracy'] - model['accuracy']):+.1f}", show.percent(known and known["accuracy"])]
            rows.append(cells)
    show.table(["set", "model", "pictures", "accuracy", "ImageNet, same classes", "loss", "published"], rows)
    result["files"] = files = write_files(out, robustness_files(result), "The figures are above.")
    show.line(f"files  {', '.join(map(str, files))}")
    return result, list({fault.what: fault for fault in faults}.values())


def _published(where: str, options: Options, choice: ClipChoice) -> tuple[dict[str, Any], list[InputError]]:
    """Three comparisons, and the image encoder in several precisions."""
    out = options.out or Path("reports/clip-published")
    refuse_folder(out)

    from diffvit.clip.precision import Plan
    from diffvit.clip.precision import run as measure_precisions
    from diffvit.clip.precision_report import summary_table, write

    if options.pictures(where).wordnet_ids is None:
        why = "is not ImageNet's layout: its folders are not all named by WordNet ids of ImageNet-1k"
        raise InputError(where, why, "Give its validation set with a folder per class, as n01440764.")
    faults: dict[str, InputError] = {}
    for data, version, file in (
        ("imagenet", "tv-v2", options.v2_weights),
        ("imagenet", "tv-v1", options.v1_weights),
        ("cifar10", "tv-v2", options.v2_weights),
    ):
        place, shifts = (where, options.shifts) if data == "imagenet" else (data, "none")
        asked = replace(options, compare=True, out=out / f"{data}-{version}", split="test", shifts=shifts)
        asked = replace(asked, supervised=version, supervised_weights=file)
        try:
            faults |= {fault.what: fault for fault in _evaluated(place, asked, choice)[1]}
        except EnvironmentFault as fault:
            if data == "imagenet":
                raise
            show.line(f"note: without CIFAR-10: {fault.line}")
        show.line()
    clip = choice.load()
    result = measure_precisions(
        Plan(budget=options.budget),
        data_dir=Path(where),
        clip=clip,
        device=clip.device.type,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    precisions = summary_table(result)
    show.table(precisions.columns, precisions.rows)
    show.line(f"report  {write(result, out / 'precision')}")
    show.line(f"reports  {out}; take them into the page with: make docs")
    return {"out": out, "failed": [fault.line for fault in faults.values()]}, list(faults.values())


# What is said


def _with_interval(of: Result) -> str:
    return f"{show.percent(of['accuracy'])} ({show.percent(of['low'])} to {show.percent(of['high'])})"


def _ends(rows: Sequence[Any]) -> list[Any]:
    """All rows; of many, those at both ends."""
    return list(rows) if len(rows) <= ALL else [*rows[: ALL // 2], *rows[-ALL // 2 :]]


def _class_table(models: Sequence[Result], classes: Sequence[str]) -> None:
    """Each class; of many, those that the first model does worst and best at."""
    from diffvit.reporting.tables import reading_order

    first = models[0]["per_class"]
    chosen, title = [place for place in reading_order(classes) if first[place]["images"]], "each class"
    if len(classes) > ALL:
        chosen = _ends(sorted(chosen, key=lambda place: first[place]["accuracy"]))
        title = f"the worst and the best of {len(classes):,} classes, by {models[0]['model']}"
    show.line(title)  # the table's own title would be folded to its width
    rows = []
    for place in chosen:
        of = [model["per_class"][place] for model in models]
        cells = [_with_interval(each) for each in of]
        rows.append([classes[place], f"{first[place]['images']:,}", *cells])
    show.table(["class", "pictures", *(model["model"] for model in models)], rows)


def _files(result: Result) -> dict[str, bytes]:
    """The result, and a line per model and class."""
    from diffvit.files import to_csv, to_json

    if "models" not in result:
        return {"evaluate.json": to_json(dict(result))}
    ids = result["wordnet_ids"] or [""] * len(result["classes"])
    figures = ("images", "accuracy", "low", "high")
    rows = [
        {"model": model["model"], "class": row["class"], "wordnet_id": id, **{name: row[name] for name in figures}}
        for model in result["models"]
        for id, row in zip(ids, model["per_class"], strict=True)
    ]
    return {"evaluate.json": to_json(dict(result)), "per_class.csv": to_csv(rows)}


def _tell_comparison(result: Result) -> None:
    from diffvit.clip.compare_page import decided_note, in_order, shift_statements, statements
    from diffvit.reporting.texts import render

    said = statements(result) + shift_statements(result)
    show.line(render("clip/pages/compare.txt", **result, said=said).rstrip())
    columns = ["pictures", "first", "second", "difference", "95% interval", "decided"]
    for title, key, of in (("category", "class", "per_class"), ("superclass", "superclass", "superclasses")):
        if rows := in_order(result[of]):
            cells = []
            for row in _ends(rows):
                one = [row[key], f"{row['images']:,}", show.percent(row["first"]), show.percent(row["second"])]
                one += [f"{100 * row['difference']:+.1f}", f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"]
                cells.append([*one, "yes" if row["decided"] else "no"])
            show.table([title, *columns], cells)
            show.line(decided_note(rows))


@app.command(usage="Usage: diffvit clip train [CONFIG.yaml] [OPTIONS]")
def train(
    config: Annotated[Path | None, Parameter(help="YAML file with settings; see configs/clip_cifar10.yaml.")] = None,
    /,
    *,
    out: Annotated[Path | None, Parameter(help="Run folder; default runs/DATA-clip-...")] = None,
    resume: Resume = None,
    quiet: Quiet = False,
    output: Output = OUTPUT,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,
) -> None:
    """Train a small CLIP of our own: images against captions."""
    flags = settings or {}
    resolved = resumed(resume, out, config, flags, ClipConfig) if resume else resolve(config, flags, kind=ClipConfig)
    place = resume or out or default_folder(resolved, "clip-")

    from diffvit.clip.small.task import ContrastiveTask

    run_and_report(resolved, place, resume is not None, quiet, output, _summary, ContrastiveTask())


def _summary(run: RunDir, report: Path) -> dict[str, Any]:
    return {
        "zero-shot, class names": show.percent(run.result["zero_shot_accuracy"]),
        "zero-shot, unseen names": show.percent(run.result["unseen_names_accuracy"]),
        "run folder": run.path,
        "report": report,
        "next": f"diffvit clip classify IMAGE --model {run.path} --labels A,B,C",
    }


@app.command(usage="Usage: diffvit clip classify IMAGE... --labels A,B,... [OPTIONS]")
def classify(
    images: Annotated[list[Path], Parameter(name="IMAGE", help="Image files, folders or patterns.")],
    /,
    *,
    labels: Annotated[
        str | None, Parameter(help="Candidate labels, as cat,dog; imagenet-1k for its 1000 names.")
    ] = None,
    labels_file: Annotated[Path | None, Parameter(help="File with one label per line.")] = None,
    templates: Annotated[
        str, Parameter(help="openai-80, openai-7, single, or a file with {} in each line.")
    ] = "openai-80",
    top: Annotated[int, Parameter(help="Number of labels to print per image.")] = 5,
    out: Annotated[Path | None, Parameter(help="Folder for a figure and a JSON file.")] = None,
    choice: ClipChoice = CLIP,
    output: Output = OUTPUT,
) -> None:
    """Classify images zero-shot with your own labels; prints the most probable labels."""
    if top < 1:
        raise ConfigError("--top", f"must be at least 1 (found {top})")

    from diffvit.clip.classify import figures, name_pictures
    from diffvit.clip.templates import load_labels, load_templates
    from diffvit.clip.zero_shot import zero_shot_classifier
    from diffvit.data.images import read_each
    from diffvit.files import to_json, write_files
    from diffvit.reporting.texts import render

    given, prompts = load_labels(labels, labels_file), load_templates(templates)
    clip = choice.load()
    pictures, faults = read_each(images, lambda pixels, _: clip.preprocessing.square(pixels))
    if not pictures:
        raise summed(faults)
    made = zero_shot_classifier(clip, given, prompts, progress=show.Lines("labels"))
    show.warn(made.warnings)
    named = name_pictures(clip, made, pictures, top)
    result: dict[str, Any] = {
        "model": clip.name,
        "pretrained": clip.pretrained,
        **clip.facts,
        "templates": {"name": prompts.name, "count": len(prompts.texts)},
        "labels": len(given),
        "labels_computed": made.computed,
        "same_names": [list(group) for group in made.twins],
        "unknown_words": list(made.unknown),
        "cut_labels": list(made.cut),
        "images": [{"image": str(each.path), "top": [list(pair) for pair in each.top]} for each in named],
        "failed": [{"image": fault.what, "error": fault.line} for fault in faults],
    }
    show.line(render("clip/pages/classify.txt", **result, first=prompts.texts[0], names=given).rstrip())
    for each in named:
        rows = [[label, show.percent(chance)] for label, chance in each.top]
        show.table(["label", "probability"], rows, title=str(each.path))
    if out is not None:
        title = f"{clip.name} ({clip.pretrained or 'own weights'}), zero-shot"
        note = f"{len(given):,} labels, templates {prompts.name}; {clip.preprocessing.words}"
        files = {**figures(named, title=title, note=note), "classify.json": to_json(result)}
        result["files"] = write_files(out, files, "The answers are above.")
        show.line(f"files  {', '.join(str(file) for file in result['files'])}")
    output.as_json(result)
    if faults:
        raise summed(faults, "The other images are above.")


@app.command
def precision(
    *,
    batch_sizes: Annotated[str, Parameter(help="Batch sizes, separated by commas.")] = "1,8,32",
    budget: Annotated[float, Parameter(help="Time budget of the measurements, seconds.")] = 240.0,
    images: Annotated[int, Parameter(help="Number of images for the drift from FP32.")] = 32,
    data_dir: DataDir = None,
    model: Annotated[str, Parameter(help=f"{MODEL_HELP}.")] = "RN50",
    pretrained: Annotated[str | None, Parameter(help="Tag of the weights; by default RN50's are random.")] = None,
    weights: Annotated[Path | None, Parameter(help="Weights from a file.")] = None,
    device: DeviceFlag = None,
    threads: Annotated[int | None, Parameter(show_default="0", help="CPU threads; 0 is all usable cores.")] = None,
    out: Annotated[Path, Parameter(help="Folder for precision.json, the plot and report.md.")] = Path(
        "reports/clip-precision"
    ),
    quiet: Annotated[bool, SWITCH, Parameter(help="Show no progress.")] = False,
    output: Output = OUTPUT,
) -> None:
    """CLIP's image encoder in several precisions: speed, memory, drift of the embeddings, zero-shot accuracy.

    Strict FP32, TF32 (CUDA), FP16, BF16 and autocast, each in two memory formats, and int8 (CPU). A precision counts
    only where it was observed in the products of the pass. Accuracy is of trained weights on images with classes.
    """
    sizes = numbers_of("--batch-sizes", batch_sizes)
    refuse_folder(out)
    config = settings_of(device=device, threads=threads)

    from diffvit.clip import precision as measured
    from diffvit.clip.precision_report import drift_table, speed_tables, summary_table, write
    from diffvit.training.environment import resolve_device

    plan = measured.Plan(sizes, budget, images)
    trained = weights or pretrained or model != "RN50"
    clip = ClipChoice(model, pretrained or "openai", weights, device).load() if trained else None
    result = measured.run(
        plan,
        data_dir=data_dir,
        clip=clip,
        device=resolve_device(config.device),
        threads=config.threads,
        tell=lambda line: None if quiet else print(line, file=sys.stderr, flush=True),
    )
    if all(row["reason"] for row in result["rows"]):
        why = f"{budget:g} seconds were too short to time a single pass"
        raise ConfigError("--budget", why, "Nothing was written; give more, or smaller --batch-sizes.")
    show.warn(result["warnings"])
    for found in (*speed_tables(result), drift_table(result), summary_table(result)):
        show.table(found.columns, found.rows)
    report = write(result, out)
    show.line(f"report  {report}")
    output.as_json({**result, "report": report})
