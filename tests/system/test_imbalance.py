"""Balanced accuracy, macro-F1, precision and recall against scikit-learn's."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn import config_context, metrics
from torch.nn import functional as F

from diffvit.training.score import metrics_of


@pytest.mark.system
def test_figures_of_imbalance_are_scikit_learns():
    """Over the classes that are there, as the docstring names its conventions; None is scikit-learn's NaN."""
    draw = np.random.default_rng(0)
    for _ in range(1000):
        classes, count = int(draw.integers(2, 12)), int(draw.integers(1, 60))
        with_images, answered = (draw.choice(classes, int(draw.integers(1, classes + 1)), False) for _ in range(2))
        truth, found = draw.choice(with_images, count), draw.choice(answered, count)
        figures = metrics_of(F.one_hot(torch.tensor(found), classes).float(), torch.tensor(truth))
        both = {"labels": range(classes), "zero_division": np.nan}
        with warnings.catch_warnings(), config_context(skip_parameter_validation=True, assume_finite=True):
            warnings.simplefilter("ignore")  # "y_pred contains classes not in y_true"
            balanced = metrics.balanced_accuracy_score(truth, found)
            precision, recall, _, _ = metrics.precision_recall_fscore_support(truth, found, **both)
            macro = metrics.f1_score(truth, found, average="macro", zero_division=0)
        assert figures["balanced_accuracy"] == pytest.approx(balanced, abs=1e-12)
        assert figures["macro_f1"] == pytest.approx(macro, abs=1e-12)
        for name, theirs in (("precision", precision), ("recall", recall)):
            ours = [math.nan if value is None else value for value in figures[f"per_class_{name}"]]
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        low, high = figures["accuracy_interval"]
        assert 0 <= low <= (truth == found).mean() <= high <= 1
