"""Linear probes of image features, and retrieval by captions: further tasks of ``diffvit clip evaluate``.

Results also go into files as CLIP_benchmark (github.com/LAION-AI/CLIP_benchmark) writes them, for its tables.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from diffvit.clip.encode import Encoder, digest, encode_all, float32_products, image_encoder
from diffvit.clip.evaluate import Watch, predictions_of, summary
from diffvit.clip.hub import text_features
from diffvit.clip.labelled import Labelled, of_files
from diffvit.clip.load import Clip, Supervised
from diffvit.clip.zero_shot import unknown_words
from diffvit.data.layout import captioned
from diffvit.data.sources import validation_split
from diffvit.errors import InputError
from diffvit.files import to_json

STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-3, 12))  # scikit-learn's C, 0.03 to 300,000
RANKS = (1, 5, 10)
_STEPS = 1_000  # of L-BFGS, at most


def feature_encoder(of: Clip | Supervised) -> Encoder:
    """Image features at unit length: CLIP's, or what a supervised model's last linear layer reads."""
    base = image_encoder(of)
    if isinstance(of, Clip):
        return base
    *_, last = (module for module in of.model.modules() if isinstance(module, nn.Linear))
    given: list[Tensor] = []

    def encode(squares: Tensor) -> Tensor:
        hook = last.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
        try:
            images = of.preprocessing.normalised(squares).to(of.device, of.dtype)
            with torch.no_grad(), float32_products("ieee"):
                of.model(images)
        finally:
            hook.remove()
        return F.normalize(given.pop().flatten(1).float(), dim=1).cpu()

    return dataclasses.replace(base, width=last.in_features, key=digest([base.key, "features"]), encode=encode)


def fitted(
    features: Float[Tensor, "n width"],
    labels: Int64[Tensor, " n"],
    classes: int,
    strength: float,
    start: Float[Tensor, "classes columns"] | None = None,
) -> Float[Tensor, "classes columns"]:
    """Multinomial logistic regression by L-BFGS in float64: weights, and in the last column the intercept.

    It minimises ``sum(cross-entropy) + |weights|^2 / (2 strength)``, the intercept free, as scikit-learn's
    ``LogisticRegression(C=strength)``. ``start`` is where to begin.
    """
    rows = torch.cat([features.double(), torch.ones(len(features), 1, dtype=torch.float64)], dim=1)
    weights = torch.zeros(classes, rows.shape[1], dtype=torch.float64) if start is None else start.clone()
    weights.requires_grad_()
    search = torch.optim.LBFGS(
        [weights], max_iter=_STEPS, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        penalty = weights[:, :-1].square().sum() / (2 * strength * len(rows))
        found = F.cross_entropy(rows @ weights.T, labels) + penalty
        found.backward()
        return found

    with torch.enable_grad():
        search.step(loss)  # pyright: ignore[reportArgumentType]  (torch has it return a float)
    return weights.detach()


def probabilities(
    features: Float[Tensor, "n width"], weights: Float[Tensor, "classes columns"]
) -> Float[Tensor, "n classes"]:
    """Of each class, by the weights of :func:`fitted`."""
    return (features.double() @ weights[:, :-1].T + weights[:, -1]).softmax(dim=1)


def linear_probe(
    of: Clip | Supervised, train: Labelled, test: Labelled, watch: Watch | None = None
) -> tuple[dict[str, Any], list[InputError]]:
    """How well a linear classifier on a model's frozen features does; and the images that could not be read.

    The strength is chosen among :data:`STRENGTHS` by the accuracy on a tenth of the training images, the same number of
    each class, from the middle outwards in steps of 4, 2 and 1, only to where it is better (arXiv 2103.00020, appendix
    A.3, halves its steps too); then all of them are fitted. Returned is what
    :func:`diffvit.clip.evaluate.summary` gives, ``strength``, ``at_end`` (whether that is the first or the last of the
    range), ``train_images``, and ``searched``: the validation accuracy of each strength that was tried.

    Raises:
        InputError: the two sets have other classes, or features are not finite.
    """
    if train.classes != test.classes:
        apart = sorted({*train.classes} ^ {*test.classes})[:3]
        raise InputError(train.name, f"has other classes than {test.name} ({', '.join(apart) or 'in another order'})")
    encoder = feature_encoder(of)
    known, asked = (
        encode_all(encoder, each, progress=watch and watch(f"{name}, {encoder.name}"))
        for name, each in (("training pictures", train), ("pictures", test))
    )
    readable = ~known.rows.isnan().any(dim=1)
    rows, labels = known.rows[readable], torch.tensor(train.labels, dtype=torch.int64)[readable]
    ours, held = validation_split(labels, max(len(test.classes), len(labels) // 10))
    fits, found = dict[int, Tensor](), dict[int, float]()
    best = len(STRENGTHS) // 2
    for step in (4, 2, 1):
        near = (best, best - step, best + step)
        for place in (each for each in near if each not in found):
            fits[place] = fitted(rows[ours], labels[ours], len(test.classes), STRENGTHS[place], fits.get(best))
            right = probabilities(rows[held], fits[place]).argmax(1) == labels[held]
            found[place] = float(right.double().mean())
        best = max(near, key=found.__getitem__)
    weights = fitted(rows, labels, len(test.classes), STRENGTHS[best], fits[best])
    chances = probabilities(asked.rows, weights).float()
    truth = torch.tensor(test.labels, dtype=torch.int64)
    figures = summary(predictions_of(chances, truth, ~asked.rows.isnan().any(dim=1)), test.classes)
    searched = [{"strength": STRENGTHS[place], "accuracy": found[place]} for place in sorted(found)]
    about = {"model": encoder.name, "strength": STRENGTHS[best], "at_end": best in (0, len(STRENGTHS) - 1)}
    return {**about, "train_images": len(rows), **figures, "searched": searched}, [*known.faults, *asked.faults]


def retrieval(
    images: Float[Tensor, "images width"], texts: Float[Tensor, "texts width"], owners: Sequence[int]
) -> dict[str, float]:
    """Recall at 1, 5 and 10 of images by their texts and of texts by their image; both features at unit length.

    ``image_retrieval_recall@K``: the share of texts whose image is among the K most similar ones.
    ``text_retrieval_recall@K``: the share of images of which one text at least is among the K most similar ones. Of
    equal similarities all rank before the wanted one, so that a constant feature finds nothing.
    """
    similar, owner = texts.double() @ images.double().T, torch.tensor(owners)
    own = similar.gather(1, owner[:, None])
    rank = (similar >= own).sum(1) - 1
    mine = owner[:, None] == torch.arange(len(images))
    best = similar.masked_fill(~mine, -torch.inf).amax(0)
    others = ((similar >= best) & ~mine).sum(0)
    found = {f"image_retrieval_recall@{k}": float((rank < k).double().mean()) for k in RANKS}
    return found | {f"text_retrieval_recall@{k}": float((others < k).double().mean()) for k in RANKS}


def captions_task(
    clip: Clip, root: Path, table: Path, watch: Watch | None = None
) -> tuple[dict[str, Any], list[InputError]]:
    """:func:`retrieval` on a folder of pictures and a table of paths and captions; and what could not be read.

    Raises:
        ConfigError: captions without a word that a small CLIP knows.
        InputError: the table is damaged, names a missing file or has no caption; or no picture can be read.
    """
    pairs = captioned(root, table)
    files = list(dict.fromkeys(path for path, _ in pairs))
    pictures = of_files(root, [root / file for file in files], [0] * len(files), [""])
    found = encode_all(image_encoder(clip), pictures, progress=watch and watch("pictures"))
    place: dict[str, int] = {}
    for file, row in zip(files, found.rows, strict=True):
        if not bool(row.isnan().any()):
            place[file] = len(place)
    if not place:
        raise found.faults[0]
    kept = [(path, text) for path, text in pairs if path in place]
    unknown = unknown_words(clip, [text for _, text in kept], "captions")
    texts = F.normalize(text_features(clip.model, clip.tokenizer([text for _, text in kept])).float(), dim=-1)
    rows = found.rows[~found.rows.isnan().any(dim=1)]
    figures = retrieval(rows, texts, [place[path] for path, _ in kept])
    about = {"model": clip.name, "data": pictures.name, "images": len(rows), "captions": len(kept)}
    return {**about, **figures, "unknown_words": list(unknown)}, found.faults


# As CLIP_benchmark writes results


def benchmark_files(result: Mapping[str, Any], names: Mapping[str, tuple[str, str]], data: str) -> dict[str, bytes]:
    """A file for each model and task; ``names`` are architecture and weights of each model, by its name in results."""
    files = {}
    rows = [("zeroshot_classification", "", each) for each in result.get("models", ())[:1]]
    rows += [("linear_probe", "lp_", each) for each in result.get("linear_probe", ())]
    rows += [("zeroshot_retrieval", None, each) for each in result.get("retrieval", ())]
    for task, prefix, row in rows:
        model, weights = names[row["model"]]
        if prefix is None:
            metrics = {name: value for name, value in row.items() if "_recall@" in name}
        else:
            recalls = [each["accuracy"] for each in row["per_class"] if each["accuracy"] is not None]
            metrics = {f"{prefix}acc1": row["accuracy"], f"{prefix}acc5": row["top5"]}
            metrics[f"{prefix}mean_per_class_recall"] = sum(recalls) / len(recalls) if recalls else None
        known = {"dataset": row.get("data", data), "model": model, "pretrained": weights, "task": task}
        stem = "_".join(re.sub(r"[^A-Za-z0-9.-]+", "-", part) for part in (known["dataset"], weights, model, "en"))
        files[f"benchmark_{stem}_{task}.json"] = to_json({**known, "metrics": metrics, "language": "en"})
    return files
