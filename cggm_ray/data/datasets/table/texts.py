"""Columns of texts: TF-IDF, or a frozen encoder of transformers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from cggm_ray.core.errors import DataError
from cggm_ray.core.kinds import SEQUENCE, VECTOR
from cggm_ray.core.optional import require
from cggm_ray.data.datasets.table.cells import Cells, as_texts, is_list, is_text
from cggm_ray.data.datasets.table.finetuned import TRAINED, pieces_of, trained_state
from cggm_ray.data.datasets.table.kinds import COLUMN_KINDS, ROWS, ColumnKind, Context, Encoded, Facts, State
from cggm_ray.data.datasets.table.pretrained import TextEncoder, model_again

LEAST_WORDS = 1.5
"""Mean number of words from which cells that are no categories are texts."""
TOKENS = r"(?u)\b\w+\b"


class Text(ColumnKind):
    """Texts, or lists of words."""

    order = 50

    def recognises(self, facts: Facts) -> bool:
        """Returns whether the cells have several words, or are lists of texts."""
        if is_list(facts.type):
            return is_text(facts.type.value_type)
        return facts.words >= LEAST_WORDS

    def read(self, cells: Cells, context: Context) -> pa.Array:
        """Returns texts; the pieces of a list are joined by spaces."""
        kind = cells.values.type
        if pa.types.is_struct(kind) or pa.types.is_binary(kind) or (is_list(kind) and not is_text(kind.value_type)):
            raise cells.wrong(int(np.flatnonzero(cells.there)[0]), "a text, or a list of texts")
        return as_texts(cells.values)

    def fit(self, name: str, cells: pa.Array, context: Context) -> State:
        """Returns the words that count with their weights, or the encoder."""
        options = context.options
        if options.text_model is not None:
            state = trained_state("text_model", options.text_model, "text", context)
            return state | {"length": options.text_length}
        known, idf = word_weights(cells, options.text_features)
        if not known:
            raise DataError(
                f"column {name}: has no words in the training split; leave it out with --column {name}=drop"
            )
        return {"words": known, "idf": idf}

    def encode(self, cells: pa.Array, state: State) -> np.ndarray | Encoded:
        """Returns TF-IDF of unit length, [N, words]; words that training does not know do not count.

        For an encoder that is trained it returns the numbers of the pieces.
        """
        if TRAINED in state:
            return pieces_of(cells, state)
        vectorizer = _vectorizer(vocabulary=state["words"])
        vectorizer.idf_ = np.array(state["idf"])
        texts = ["" if text is None else text for text in cells.to_pylist()]
        return np.asarray(vectorizer.transform(texts).toarray(), dtype=np.float32)

    def about(self, state: State) -> str:
        """Returns the encoder, or the number of words."""
        if "model" in state:
            how = "trained" if TRAINED in state else "frozen"
            return f"{how} {state['architecture']} of {state['model']}, {state['length']} pieces"
        return f"TF-IDF of {len(state['words']):,} words, no pretrained encoder (--text_model)"

    def load(self, state: State, context: Context) -> Callable[[pa.Array], Encoded]:
        """Loads tokenizer and model."""
        return TextEncoder(state, context)

    def again(self, state: State, context: Context) -> State:
        """Finds the encoder again and checks that it is the same."""
        return model_again("text_model", state, context) if "model" in state else state

    def input_kind(self, state: State, shape: tuple[int, ...]) -> str:
        """Returns a sequence of an encoder's states, or a vector."""
        return SEQUENCE if "model" in state else VECTOR


def word_weights(cells: pa.Array, most: int) -> tuple[list[str], list[float]]:
    """Returns the most frequent words by the alphabet, and the inverse document frequency of each.

    They are those of `TfidfVectorizer.fit`, which would hold the counts of all texts at once.

    Args:
        cells: texts.
        most: number of words.
    """
    analyse = _vectorizer().build_analyzer()
    texts, times, holders = 0, Counter[str](), Counter[str]()
    for start in range(0, len(cells), ROWS):
        for text in cells.slice(start, ROWS).drop_null().to_pylist():
            words = analyse(text)
            texts += 1
            times.update(words)
            holders.update(set(words))
    known = np.array(sorted(times), dtype=object)
    if len(known) > most:
        frequency = np.array([times[word] for word in known], np.int64)
        known = known[np.sort((-frequency).argsort()[:most])]
    held = np.array([holders[word] for word in known], np.float64)
    return known.tolist(), (np.log((texts + 1) / (held + 1)) + 1).tolist()


def _vectorizer(**more: object) -> Any:
    text = require("sklearn.feature_extraction.text", extra="table", purpose="table")
    return text.TfidfVectorizer(token_pattern=TOKENS, sublinear_tf=True, dtype=np.float64, **more)


COLUMN_KINDS.register("text")(Text())
