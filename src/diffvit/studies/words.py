"""A study's report in words and tables; every claim follows from the rows."""

from __future__ import annotations

from itertools import combinations

from diffvit.reporting import markdown, stats
from diffvit.reporting.arms import MODEL_NAMES, points, span
from diffvit.reporting.tables import NONE, Table, big, duration, percent, threads
from diffvit.studies.results import Line, Results, difference, over_all_arms
from diffvit.studies.tiers import TIERS
from diffvit.studies.trials import apart_in

BEST = "best.yaml"
PLOTS = {
    "accuracy.png": "Test accuracy of every arm and seed",
    "curves.png": "Training loss and accuracy against the epoch, bands over seeds",
    "cost.png": "Test accuracy against the cost of training",
}
COLUMNS_NOTE = (
    "Mean and standard deviation over seeds. Difference: from the first line of the same attention, paired by seed, "
    "with its 95% interval (Student's t). Training accuracy: of the last epoch, on images as they were augmented. "
    "Training time: as measured, with other workers beside. FLOPs: of a whole training, three forward passes an image, "
    "matrix products only, a multiply-add counted as two; from the model's sizes, as models multiply today."
)

ARMS_NOTE = (
    "What tells the arms apart, by the settings' names; everything else is the same for all, and stands in best.yaml."
)


def report(results: Results) -> str:
    """The whole report as Markdown."""
    study = results.study
    names = dict.fromkeys(str(record.row["data"]) for record in results.records)
    parts = [f"# {study.name}: {study.question}"]
    parts.append(f"Tier {results.tier}: {TIERS[results.tier].words}.")
    parts += [markdown.data_line(name) for name in names]
    parts += answers(results)
    if results.missing:
        parts.append(f"**Not complete:** {len(results.missing)} trials have no row yet.")
    parts += [markdown.table(table(results)), COLUMNS_NOTE]
    parts += [fit_words(results)] if results.study.fit else []
    parts += ["## Arms", markdown.table(arms(results)), ARMS_NOTE]
    parts += [f"![{alt}]({file})" for file, alt in PLOTS.items()]
    parts += ["## Best configuration", best_words(results), "## Circumstances", circumstances(results)]
    parts.append(
        f"Generated from rows.csv and epochs.csv by `diffvit study report {study.name}`; the trials are run by "
        f"`diffvit study run {study.name} --tier {results.tier}`."
    )
    return "\n\n".join(parts) + "\n"


def table(results: Results) -> Table:
    """A row per line."""
    columns = ["", "Test accuracy", "Difference", "Training accuracy", "Parameters", "FLOPs", "Training time", "Seeds"]
    firsts: dict[str, Line] = {}
    rows = []
    for line in results.lines:
        against = results.lines[0] if not results.study.attentions else firsts.setdefault(line.attention, line)
        rows.append(
            [
                *(line.label, accuracy(line), _cell(line, against), percent(line.last_training_accuracy, 1)),
                *(f"{line.mean_of('parameters'):,.0f}", big(line.flops), duration(line.mean_of("train_seconds"))),
                f"{len(line.records)}",
            ]
        )
    return Table(columns, rows)


def arms(results: Results) -> Table:
    """The settings that are not the same in all arms."""
    apart = apart_in({line.arm: line.config for line in results.lines})
    keys = [key for key in next(iter(apart.values())) if key != "model.attention" or not results.study.attentions]
    rows = [
        [arm, *(f"{found[key]:g}" if isinstance(found[key], float) else str(found[key]) for key in keys)]
        for arm, found in apart.items()
    ]
    return Table(["", *(f"`{key}`" for key in keys)], rows)


def accuracy(line: Line) -> str:
    """Mean and standard deviation."""
    spread = stats.std(list(line.accuracies.values()))
    return percent(line.mean) + (f" ± {100 * spread:.2f}" if spread is not None else "")


def _cell(line: Line, against: Line) -> str:
    if line is against:
        return NONE
    found = difference(line, against)
    return f"{100 * found.estimate:+z.2f} ({span(found)})" if found else NONE


def answers(results: Results) -> list[str]:
    """What may be said."""
    if not results.study.attentions:
        return _every_pair(results)
    said = [_ranking(results, attention) for attention in results.study.attentions if results.of(attention)]
    return [*said, *_attentions(results)]


def _ranking(results: Results, attention: str) -> str:
    """The best arm of an attention, and which others it surely beats."""
    lines = results.of(attention)
    best = max(lines, key=lambda line: line.mean)
    name = MODEL_NAMES[attention]
    said = f"**{name}**: the highest mean is {accuracy(best)}, with {best.arm}"
    if not results.may_rank:
        return f"{said}; {results.seeds} seed{'s' if results.seeds > 1 else ''}: no winner is named."
    others = [line for line in lines if line is not best]
    beaten, open_ = [], []
    for line in others:
        found = difference(best, line, len(others))
        if found is not None and found.low > 0:
            beaten.append(f"{line.arm} by {100 * found.estimate:.2f} ({span(found)})")
        else:
            open_.append(line.arm + (f" ({points(found.estimate)}, {span(found)})" if found else ""))
    said += f". It beats {'; '.join(beaten)}" if beaten else ". It beats no other surely"
    said += f". Not decided against {'; '.join(open_)}" if open_ else ""
    confidence = 100 * (1 - (1 - stats.CONFIDENCE) / max(1, len(others)))
    return (
        f"{said}. Points of test accuracy; {confidence:.3g}% intervals paired over {results.seeds} seeds, which hold "
        "together with 95%."
    )


def _attentions(results: Results) -> list[str]:
    """Differential beside softmax, over all arms."""
    found = over_all_arms(results, "differential", "softmax")
    if found is None:
        return []
    said = f"**Diff-ViT minus ViT**, mean over the arms: {points(found.estimate)} ({span(found)}, paired by seed)"
    if not results.may_rank:
        return [f"{said}; exploratory: no winner is named."]
    if not found.excludes_zero:
        return [f"{said}: not decided."]
    return [f"{said}: {'Diff-ViT' if found.estimate > 0 else 'ViT'} is ahead in this study."]


def _every_pair(results: Results) -> list[str]:
    said = []
    pairs = list(combinations(results.lines, 2))
    for one, two in pairs:
        found = difference(one, two, len(pairs))
        if found is None:
            continue
        text = f"{one.arm} minus {two.arm}: {points(found.estimate)} ({span(found)})"
        if not results.may_rank:
            said.append(f"{text}; no winner is named.")
        elif found.excludes_zero:
            winner, loser = (one, two) if found.estimate > 0 else (two, one)
            said.append(f"{text}: **{winner.arm} beats {loser.arm}**.")
        else:
            said.append(f"{text}: not decided.")
    if said:
        confidence = 100 * (1 - (1 - stats.CONFIDENCE) / len(pairs))
        said.append(f"{confidence:.3g}% intervals paired over {results.seeds} seeds, which hold together with 95%.")
    return [" ".join(said)] if said else []


def fit_words(results: Results) -> str:
    """How close each arm came to its own training images, and what that says of a longer schedule."""
    known = [(line.last_training_accuracy, line) for line in results.lines]
    gaps = sorted(((seen - line.mean, line) for seen, line in known if seen is not None), key=lambda each: -each[0])
    if not gaps:
        return ""
    epochs = results.lines[0].config.epochs
    named = "; ".join(f"{line.label} {100 * gap:+.1f}" for gap, line in gaps)
    return (
        f"Training minus test accuracy after {epochs} epochs, points: {named}. Above zero an arm fits the images it "
        "has seen closer than new ones, and more epochs are expected to add little to it; far below zero it still "
        "learns from images made harder, and is expected to gain most from more epochs. How much these rows cannot "
        f"say: `diffvit study run {results.study.name} --tier full` trains for 50."
    )


def best_words(results: Results) -> str:
    """The line with the highest mean, and how to run it."""
    best = max(results.lines, key=lambda line: line.mean)
    return (
        f"The highest mean test accuracy is that of {best.label}: {accuracy(best)}. It is the best of "
        f"{len(results.lines)} as measured on the test set, so its figure is a little too good. To repeat its first "
        f"seed:\n\n```\ndiffvit train reports/{results.study.name}/{BEST} --out runs/{results.study.name}-best\n```"
    )


def circumstances(results: Results) -> str:
    """Hardware, versions and data, each kind once."""
    found = []
    for record in results.records:
        row = record.row
        parts = [row["hardware"], row["device"], threads(row), row["precision"], f"torch {row['torch']}"]
        parts += [f"diffvit {row['diffvit']}", f"python {row['python']}", f"{row['train_images']:,} training images"]
        found.append(", ".join(str(part) for part in parts if part))
    return "; ".join(dict.fromkeys(found)) + "."
