"""Training a small CLIP: its captions, its contrastive loss, and its score as a zero-shot classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional as F

from diffvit.clip.hub import tokenizer_of
from diffvit.clip.load import Clip
from diffvit.clip.small.load import as_clip
from diffvit.clip.small.model import SmallClip
from diffvit.clip.templates import Templates, load_templates
from diffvit.clip.zero_shot import known_share, label_rows
from diffvit.clip_settings import CaptionsConfig
from diffvit.config import ClipConfig, Config, to_dict
from diffvit.data.augment import Batch
from diffvit.data.batches import evaluation_batches
from diffvit.data.images import Images
from diffvit.data.random_draws import Stream, below, hash_words
from diffvit.errors import ConfigError, few
from diffvit.training.score import evaluating, metrics_of
from diffvit.training.task import Task, TrainingData, fresh_model


class ContrastiveTask(Task):
    """See :class:`diffvit.training.task.Task`; its configs are :class:`diffvit.config.ClipConfig`.

    Figures are those of the zero-shot classifier made of the class names, computed in float32 whatever the precision
    of the steps, as the commands that classify with a CLIP compute them.
    """

    def title(self, config: Config) -> str:
        """See the base class."""
        return f"CLIP with a {super().title(config)}"

    def model(self, config: Config, data: TrainingData) -> SmallClip:
        """Fresh weights; the image tower starts as its supervised twin does, but for the head."""
        config = _own(config)
        load_templates(config.captions.evaluated_with)  # refused now, not when the trained model is scored
        words = _captions(config, data).vocabulary
        tower = config.model.model_copy(update={"num_classes": config.joint_dim})
        visual = tower.model_dump(exclude={"preset"})
        torch.default_generator.manual_seed(config.seed)
        model = SmallClip(visual=visual, text=to_dict(config.text), joint_dim=config.joint_dim, vocabulary=len(words))
        model.text.token_embedding.know(words)
        twin = fresh_model(config, data).state_dict()
        start = {name: tensor for name, tensor in twin.items() if not name.startswith("head.")}
        model.visual.load_state_dict({**model.visual.state_dict(), **start})
        return model

    def image_tower(self, model: Any) -> nn.Module:
        """See the base class."""
        return model.visual

    def objective(self, config: Config, data: TrainingData) -> Contrastive:
        """See the base class."""
        return Contrastive(_captions(_own(config), data), config.seed)

    def score(
        self, model: Any, images: Images, config: Config, data: TrainingData, precision: str, device: torch.device
    ) -> dict[str, Any]:
        """See the base class."""
        del precision
        return score_clip(model, images, data.mean, data.std, _own(config).captions, device=device)

    def last_score(
        self, model: Any, images: Images, config: Config, data: TrainingData, precision: str, device: torch.device
    ) -> dict[str, Any]:
        """Also what :func:`names_tried` gives, and ``zero_shot_accuracy``."""
        del precision
        return score_clip(model, images, data.mean, data.std, _own(config).captions, device=device, names_too=True)


def _captions(config: ClipConfig, data: TrainingData) -> Captions:
    tokenizer = tokenizer_of(context_length=config.text.context_length)
    return Captions(data.train.classes, config.captions.names, config.captions.templates, tokenizer)


def _own(config: Config) -> ClipConfig:
    assert isinstance(config, ClipConfig)
    return config


class Captions:
    """Every caption there may be, as tokens: each template with each name of a class, which is by default its own.

    ``classes`` are in the order of the labels.

    Raises:
        ConfigError: names for a class that the data does not have.
    """

    def __init__(
        self,
        classes: Sequence[str],
        names: Mapping[str, Sequence[str]],
        templates: Sequence[str],
        tokenizer: Callable[[list[str]], Tensor],
    ) -> None:
        if strangers := [name for name in names if name not in classes]:
            raise ConfigError("captions.names", f"{strangers[0]!r} is no class of the data (have {few(classes, 10)})")
        sentences = Templates("captions", tuple(templates))
        self.names = [tuple(names.get(label, (label,))) for label in classes]
        self.texts = [prompt for own in self.names for name in own for prompt in sentences.prompts(name)]
        tokens = tokenizer(self.texts)
        longest = int(tokens.argmax(dim=1).max()) + 1  # a text's end is its largest token
        self.tokens = tokens[:, :longest].contiguous()
        self._templates = len(sentences.texts)
        self._counts = torch.tensor([len(own) for own in self.names])
        self._firsts = self._counts.cumsum(0) - self._counts

    @property
    def vocabulary(self) -> Int64[Tensor, " size"]:
        """The different tokens, ascending."""
        return self.tokens.unique()

    def draw(
        self, seed: int, epoch: int, indices: Int64[Tensor, " n"], labels: Int64[Tensor, " n"]
    ) -> Int64[Tensor, "n cut"]:
        """A caption for each sample; it depends on (seed, epoch, index) and the sample's class alone."""
        if labels.device != self.tokens.device:
            moved = (each.to(labels.device) for each in (self.tokens, self._counts, self._firsts))
            self.tokens, self._counts, self._firsts = moved
        words = hash_words(seed, epoch, indices, Stream.CAPTION, 2)
        name = self._firsts[labels] + below(words[:, 0], self._counts[labels])
        return self.tokens[name * self._templates + below(words[:, 1], self._templates)]


class Contrastive:
    """The mean of image-to-text and text-to-image cross-entropy, nats, over the captions of the batch, drawn by a seed.

    CLIP's loss (arXiv 2103.00020, figure 3) takes the other captions of a batch as wrong answers. With ten classes many
    of them are right ones, so a right answer here is every caption of the image's class, as in arXiv 2204.03610,
    equations 2 and 3. An image that is mixed of two has captions of both classes as answers, each class with its share.

    Processes that train together contrast the whole step's batch: each has the features of all and computes the losses
    of its own images and captions, as open_clip's ``ClipLoss(local_loss=True, gather_with_grad=True)`` does.
    """

    def __init__(self, captions: Captions, seed: int) -> None:
        self.captions, self.seed = captions, seed

    def loss(self, model: nn.Module, batch: Batch, total: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """See :class:`diffvit.training.task.Classification.loss`; ``correct`` counts images whose best caption fits."""
        tokens = self.captions.draw(self.seed, batch.epoch, batch.indices, batch.labels)
        images, texts, scale = model(batch.images, tokens)
        images, texts, targets, labels = images.float(), texts.float(), batch.targets, batch.labels
        own = slice(None)
        if total is not None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            places = torch.arange(total).tensor_split(dist.get_world_size())
            mine = places[dist.get_rank()]
            own = slice(total - len(mine), total) if not len(mine) else slice(int(mine[0]), int(mine[-1]) + 1)
            columns = [images, texts, targets.to(images.dtype), labels[:, None].to(images.dtype)]
            gathered = _gathered(torch.cat(columns, dim=1), [len(each) for each in places])
            images, texts, targets, labels = gathered.split([each.shape[1] for each in columns], dim=1)
            labels = labels[:, 0].long()
        logits = scale.float() * images[own] @ texts.T
        of_texts = logits.T if own == slice(None) else scale.float() * texts[own] @ images.T
        to_text, to_image = answers(targets, labels)
        summed = F.cross_entropy(logits, to_text[own], reduction="sum")
        summed = summed + F.cross_entropy(of_texts, to_image[own], reduction="sum")
        best = labels[logits.detach().argmax(1)]
        return summed / 2, {"correct": (best == labels[own]).sum()}


def _gathered(rows: Float[Tensor, "n width"], counts: Sequence[int]) -> Float[Tensor, "total width"]:
    """The first ``counts`` rows of each process, in order; a row's gradient is the sum of all processes'."""
    kept = rows[: counts[dist.get_rank()]]
    padding = rows.new_zeros(max(counts) - len(kept), rows.shape[1])  # the exchange wants equal shapes
    parts = all_gather(torch.cat([kept, padding]))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def answers(
    targets: Float[Tensor, "n classes"], labels: Int64[Tensor, " n"]
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """How much each caption is an answer to each image, and each image to each caption; rows are distributions.

    ``targets`` are of the images, distributions over the classes; ``labels`` are the captions' classes.
    """
    fits = targets[:, labels]  # image i holds this much of caption j's class
    counts = torch.bincount(labels, minlength=targets.shape[1])
    to_text = fits / counts[labels]
    return to_text / to_text.sum(1, keepdim=True), (fits / fits.sum(0)).T


def score_clip(
    model: SmallClip,
    images: Images,
    mean: Sequence[float],
    std: Sequence[float],
    captions: CaptionsConfig,
    *,
    device: torch.device | str = "cpu",
    names_too: bool = False,
) -> dict[str, Any]:
    """What :func:`diffvit.training.score.metrics_of` gives of the classifier made of the class names, in float32.

    ``mean`` and ``std`` are per channel, 0 to 1; ``names_too`` adds ``zero_shot_accuracy`` and :func:`names_tried`.
    """
    templates = load_templates(captions.evaluated_with)
    with evaluating(model), torch.inference_mode():
        clip = as_clip(model, {"mean": mean, "std": std, "data": images.name}, "this model")
        batches = evaluation_batches(images.pixels, 500, mean, std, device)
        features = torch.cat([model.encode_image(batch, normalize=True).cpu() for batch in batches])
        rows = label_rows(clip, images.classes, templates)
        figures = metrics_of(model.logit_scale.exp().cpu() * features @ rows.T, images.labels)
        if names_too:
            tried = names_tried(clip, features, images, captions, templates)
            figures |= {"zero_shot_accuracy": figures["accuracy"], **tried}
    return figures


def names_tried(
    clip: Clip, features: Float[Tensor, "n dim"], images: Images, captions: CaptionsConfig, templates: Templates
) -> dict[str, Any]:
    """Every name in its class's place: the names that were in captions, and the unseen ones, put into the templates.

    ``unseen_names_accuracy`` is of the classifier whose every class is the mean of its unseen names (None where a class
    has none). Of each of ``names``, ``known_tokens`` is the share of its tokens that some caption holds, and ``recall``
    the fraction of its class's images that are given to it where it stands beside the other classes' own names.
    ``features`` are of the images, of unit length.
    """
    classes = images.classes
    own = label_rows(clip, classes, templates)
    tried: list[dict[str, Any]] = []
    means: list[Tensor] = []
    for place, label in enumerate(classes):
        here = features[images.labels == place]
        seen, new = captions.names.get(label, (label,)), captions.unseen.get(label, ())
        rows = label_rows(clip, [*seen, *new], templates)
        for name, row in zip([*seen, *new], rows, strict=True):
            classifier = own.clone()
            classifier[place] = row
            recall = float(((here @ classifier.T).argmax(1) == place).double().mean()) if len(here) else None
            known = known_share(clip, name)
            tried.append({"class": label, "name": name, "seen": name in seen, "known_tokens": known, "recall": recall})
        means.append(F.normalize(rows[len(seen) :].mean(0), dim=0))
    accuracy = None
    if all(captions.unseen.get(label) for label in classes):
        accuracy = float(((features @ torch.stack(means).T).argmax(1) == images.labels).double().mean())
    return {"unseen_names_accuracy": accuracy, "names": tried}
