"""A study's report in words and tables; every claim follows from the rows."""

from __future__ import annotations

from itertools import combinations

from diffvit.experiments.results import Line, Results, difference, over_all_arms
from diffvit.experiments.tiers import TIERS
from diffvit.experiments.trials import apart_in
from diffvit.reporting import markdown, stats
from diffvit.reporting.arms import MODEL_NAMES, points, span
from diffvit.reporting.tables import NONE, Table, big, duration, percent, threads

BEST = "best.yaml"
PLOTS = {
    "accuracy.png": "Test accuracy of every arm and seed",
    "curves.png": "Training loss and accuracy against the epoch, bands over seeds",
    "cost.png": "Test accuracy against the cost of training",
}
COLUMNS_NOTE = (
    "Mean and standard deviation over seeds. Difference: from the first line of the same attention, paired by seed, "
    "with a 95% interval for this one comparison, from the variation of these two arms (those above pool that of all "
    "arms, hold for all their pairs, and decide). Training accuracy: of the last epoch, on images as augmented. "
    "Training time: as measured, with other workers beside. FLOPs: of a whole training, three forward passes an image, "
    "matrix products only, a multiply-add counted as two; from the model's sizes, as models multiply today."
)

ARMS_NOTE = (
    "What tells the arms apart, by the settings' names; everything else is the same for all, and stands in best.yaml."
)


INTERVALS = (
    "95% intervals that hold together over all pairs (Tukey's HSD), paired over {seeds} seeds, test images included"
)
CHOSEN_ON_TEST = (
    "**These runs set no images aside for validation:** what is called best below was chosen by its accuracy on the "
    "test set, so its figure is a little too good. Newer runs choose on 5,000 validation images."
)


def report(results: Results) -> str:
    """The whole report as Markdown."""
    study = results.study
    opening = [f"Tier {results.tier}: {TIERS[results.tier].words}."]
    opening += [CHOSEN_ON_TEST] if results.chosen_on == "test" else []
    parts = [f"# {study.name}: {study.question}", " ".join(opening), *_body(results)]
    parts += [fit_words(results)] if results.study.fit else []
    parts += ["## Arms", markdown.table(arms(results)), ARMS_NOTE]
    parts += [f"![{alt}]({file})" for file, alt in PLOTS.items()]
    parts += ["## Best configuration", best_words(results), "## Circumstances", circumstances(results)]
    for other in results.others:
        parts += [f"## Apart: {', '.join(other.conditions.values())}", APART]
        parts += [CHOSEN_ON_TEST] if other.chosen_on == "test" else []
        parts += [*_body(other), circumstances(other)]
    parts.append(
        f"Generated from rows.csv and epochs.csv by `diffvit study report {study.name}`; the trials are run by "
        f"`diffvit study run {study.name} --tier {results.tier}`."
    )
    return "\n\n".join(parts) + "\n"


APART = (
    "Rows of other data, precision, hardware or number of training images are shown apart and never ranked together."
)


def _body(results: Results) -> list[str]:
    """What came out, of rows that may be ranked together."""
    parts = [*markdown.data_lines(record.row for record in results.records), *answers(results)]
    if results.missing:
        parts.append(f"**Not complete:** {len(results.missing)} trials have no row yet.")
    return [*parts, markdown.table(table(results)), COLUMNS_NOTE]


def table(results: Results) -> Table:
    """A row per line."""
    validated = results.chosen_on == "validation"
    columns = [
        "",
        "Test accuracy",
        *(["Validation"] if validated else []),
        "Difference",
        "Training accuracy",
        "Parameters",
        "FLOPs",
        "Training time",
        "Seeds",
    ]
    firsts: dict[str, Line] = {}
    rows = []
    for line in results.lines:
        against = results.lines[0] if not results.study.attentions else firsts.setdefault(line.attention, line)
        rows.append(
            [
                *(line.label, accuracy(line), *([percent(line.validation)] if validated else [])),
                *(_cell(line, against), percent(line.last_training_accuracy, 1)),
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
    best = results.best(lines)
    said = f"**{MODEL_NAMES[attention]}**: the best arm by {results.chosen_on} accuracy is {best.arm}, {accuracy(best)}"
    found = results.ranking(lines)
    if found is None:
        return f"{said}; {results.seeds} seed{'s' if results.seeds > 1 else ''}: no winner is named."
    beaten, open_ = [], []
    for line in (each for each in lines if each is not best):
        gap = found.between(lines.index(best), lines.index(line))
        if gap.low > 0:
            beaten.append(f"{line.arm} by {100 * gap.estimate:.2f} ({span(gap)})")
        else:
            open_.append(f"{line.arm} ({points(gap.estimate)}, {span(gap)})")
    said += f". It beats {'; '.join(beaten)}" if beaten else ". It beats no other surely"
    said += f". Not decided against {'; '.join(open_)}" if open_ else ""
    return f"{said}. Points of test accuracy; {INTERVALS.format(seeds=len(found.seeds))}."


def _attentions(results: Results) -> list[str]:
    """Differential beside softmax, over all arms."""
    found = over_all_arms(results, "differential", "softmax")
    if found is None:
        return []
    said = (
        f"**Diff-ViT minus ViT**, mean over the arms: {points(found.estimate)} (95% interval {span(found)}, paired by "
    )
    said += "seed, test images included)"
    if not results.may_rank:
        return [f"{said}; exploratory: no winner is named."]
    if not found.excludes_zero:
        return [f"{said}: not decided."]
    return [f"{said}: {'Diff-ViT' if found.estimate > 0 else 'ViT'} is ahead in this study."]


def _every_pair(results: Results) -> list[str]:
    said = []
    ranked = results.ranking(results.lines)
    for (first, one), (second, two) in combinations(enumerate(results.lines), 2):
        found = ranked.between(first, second) if ranked else difference(one, two)
        if found is None:
            continue
        text = f"{one.arm} minus {two.arm}: {points(found.estimate)} ({span(found)})"
        if ranked is None:
            said.append(f"{text}; no winner is named.")
        elif found.excludes_zero:
            winner, loser = (one, two) if found.estimate > 0 else (two, one)
            said.append(f"{text}: **{winner.arm} beats {loser.arm}**.")
        else:
            said.append(f"{text}: not decided.")
    if ranked:
        said.append(f"{INTERVALS.format(seeds=len(ranked.seeds))}.")
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
    """The best line, what it was chosen by, and how to run it."""
    best = results.best()
    if best.validation is None or results.chosen_on == "test":
        told = f"The highest mean test accuracy is that of {best.label}: {accuracy(best)}. It is the best of "
        told += f"{len(results.lines)} as measured on the test set, so its figure is a little too good."
    else:
        told = (
            f"Chosen by its mean validation accuracy ({percent(best.validation)}, the best of {len(results.lines)}): "
        )
        told += f"{best.label}, whose test accuracy is {accuracy(best)}."
    name = results.study.name
    command = f"diffvit train reports/{name}/{BEST} --out runs/{name}-best"
    return f"{told} To repeat its first seed:\n\n```\n{command}\n```"


def circumstances(results: Results) -> str:
    """Hardware, versions and data, each kind once."""
    found = []
    for record in results.records:
        row = record.row
        parts = [row["hardware"], row["device"], threads(row), row["precision"], f"torch {row['torch']}"]
        parts += [f"diffvit {row['diffvit']}", f"python {row['python']}", f"{row['train_images']:,} training images"]
        found.append(", ".join(str(part) for part in parts if part))
    return "; ".join(dict.fromkeys(found)) + "."
