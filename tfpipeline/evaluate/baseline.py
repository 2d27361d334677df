"""What BERT has to beat: TF-IDF and logistic regression, minutes cheaper and often close.

In: the training and test rows. Out: probabilities in the form every other model gives them, and a sentence that says what was fitted.
Not tuned: the settings are fixed (they give 81.8 % on the test split of SST-2, 90.1 % on a held-out fifth of ChnSentiCorp), so the row is the same
effort everywhere. For pairs it reads the two texts as one.

| rows | what happens |
|---|---|
| a class has one row, or none | it is learned from one row; a class without a row gets probability 0 |
| only one class has rows | no fit: that class gets 1 |
| no text has a word | character n-grams; without any character, the shares of the classes |
| weights of 0 | the row is left out |
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tfpipeline.errors import DataError, DependencyError
from tfpipeline.evaluate.rows import ExamplesLike, strings
from tfpipeline.evaluate.slices import without_spaces

WORD_NGRAMS, CHARACTER_NGRAMS = (1, 2), (1, 4)
MOST_FEATURES = 300_000
# More training rows add minutes and little accuracy to a linear model; a sample of this size is drawn and the description says so.
MOST_ROWS = 200_000
INVERSE_REGULARISATION = 10.0
MOST_ITERATIONS = 300
# Words of one letter count too ("I", "a", emoji): scikit-learn's own pattern drops them, and sentiment lives in some.
WORD_PATTERN = r"(?u)\w+|[^\w\s]+"


class TrainExamples(ExamplesLike, Protocol):
    """Examples with row weights."""

    @property
    def weights(self) -> npt.NDArray[Any]:
        """float32 `[n]`."""


def tfidf_baseline(
    train: TrainExamples, test: ExamplesLike, labels: tuple[str, ...], task: str, seed: int
) -> tuple[npt.NDArray[np.float32], str]:
    """Fits the baseline on `train` and answers for `test`.

    Features are words and word pairs, or 1 to 4 characters where the texts are mostly without spaces (`slices.without_spaces`).

    Args:
        train: labelled rows; `weights` become sample weights.
        test: rows to answer for.
        labels: label names.
        task: "single_label", or "multi_label" (one-versus-rest: one regression per label).
        seed: of the sample of the rows, where there are more than `MOST_ROWS`.

    Returns:
        float32 `[len(test), classes]`, and the description.

    Raises:
        DataError: no labelled training row of weight > 0.
        DependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise DependencyError(
            "the TF-IDF baseline needs scikit-learn: pip install 'tfpipeline[train]', or --set evaluate.tfidf_baseline=false"
        ) from error
    targets, weights = np.asarray(train.labels), np.asarray(train.weights, dtype=np.float64)
    labelled = targets >= 0 if task == "single_label" else (targets >= 0).all(axis=1)
    rows = np.flatnonzero((weights > 0) & labelled)
    if not len(rows):
        raise DataError(
            f"the TF-IDF baseline has nothing to learn from: none of the {len(train)} training rows has a label and a weight above 0."
        )
    sampled = len(rows) > MOST_ROWS
    if sampled:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST_ROWS, replace=False))
    train_texts, test_texts = _texts(train, rows), _texts(test, None)
    characters = without_spaces(train_texts) or not any(map(str.split, train_texts))
    notes = [f"a sample of {MOST_ROWS} of {len(train)} rows"] if sampled else []
    with warnings.catch_warnings():
        # An unfinished fit is still a baseline.
        warnings.simplefilter("ignore", ConvergenceWarning)
        features = _features(train_texts, test_texts, characters)
        if features is None:
            notes.append("no features: shares of the classes")
        parts = [_probabilities(features, column, weights[rows], len(test)) for column in _columns(targets[rows], task, len(labels))]
    probabilities = parts[0] if task == "single_label" else np.stack([part[:, 1] for part in parts], axis=1)
    kind = (
        f"character {CHARACTER_NGRAMS[0]}-{CHARACTER_NGRAMS[1]}-grams"
        if characters
        else f"words and word pairs ({WORD_NGRAMS[0]}-{WORD_NGRAMS[1]}-grams)"
    )
    one_vs_rest = ", one-versus-rest" if task == "multi_label" else ""
    size = 0 if features is None else features[0].shape[1]
    description = (
        f"TF-IDF of {kind}, {size} features, logistic regression (C={INVERSE_REGULARISATION:g}){one_vs_rest}, {len(rows)} training rows"
    )
    return probabilities.astype(np.float32), "; ".join([description, *notes])


def _texts(examples: ExamplesLike, rows: npt.NDArray[Any] | None) -> list[str]:
    """One text a row; a pair is read as one text."""
    columns = [examples.texts] if examples.pairs is None else [examples.texts, examples.pairs]
    taken = [strings(column if rows is None else column.take(rows)) for column in columns]
    return [" ".join(parts) for parts in zip(*taken, strict=True)]


def _features(train_texts: list[str], test_texts: list[str], characters: bool) -> tuple[Any, Any] | None:
    """Sparse TF-IDF matrices of both, or None where the training texts hold nothing to count."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    settings: dict[str, Any] = {"sublinear_tf": True, "lowercase": True, "max_features": MOST_FEATURES, "dtype": np.float64}
    if characters:
        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=CHARACTER_NGRAMS, **settings)
    else:
        vectorizer = TfidfVectorizer(ngram_range=WORD_NGRAMS, token_pattern=WORD_PATTERN, **settings)
    if not any(train_texts):
        return None
    return vectorizer.fit_transform(train_texts), vectorizer.transform(test_texts) if test_texts else None


def _columns(targets: npt.NDArray[Any], task: str, classes: int) -> list[tuple[npt.NDArray[np.int64], int]]:
    """(targets, number of classes) of each regression to fit: one, or one per label."""
    if task == "single_label":
        return [(targets.astype(np.int64), classes)]
    return [(targets[:, number].astype(np.int64), 2) for number in range(classes)]


def _probabilities(
    features: tuple[Any, Any] | None, column: tuple[npt.NDArray[np.int64], int], weights: npt.NDArray[np.float64], test_rows: int
) -> npt.NDArray[np.float64]:
    """float64 `[test_rows, classes]`; classes that the training rows do not have stay 0."""
    from sklearn.linear_model import LogisticRegression

    targets, classes = column
    shares = np.bincount(targets, weights=weights, minlength=classes)
    # Classes without a row have a share of 0 and keep it; the regression fills in the others.
    found = np.tile(shares / shares.sum(), (test_rows, 1))
    if features is None or features[1] is None or np.count_nonzero(shares) == 1:
        return found
    model = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=MOST_ITERATIONS)
    model.fit(features[0], targets, sample_weight=weights)
    found[:, model.classes_] = model.predict_proba(features[1])
    return found
