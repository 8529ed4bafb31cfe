"""Rows that say the same in other words: a model makes a vector of each text, and rows with similar ones repeat.

Needs the extra `semantic` (model2vec: static vectors, Tulkens and van Dongen, 2024); a folder or hub id that is no
model2vec model is opened with sentence-transformers, if that is installed.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import near
from pipeline.errors import UserError

BLOCK = 1024
"""Rows compared at a time."""
DIGITS = 5
"""Decimals of a cosine that count: sums of 32-bit numbers differ in the last ones from machine to machine."""

Vectors = NDArray[np.float32]


def load(name: str) -> Any:
    """A model2vec or sentence-transformers model, by hub id or folder. Raises UserError if it cannot be opened."""
    try:
        config = Path(name) / "config.json"
        if not Path(name).is_dir():
            from huggingface_hub import hf_hub_download

            config = Path(hf_hub_download(name, "config.json"))
        # The configuration of a transformer always names its type; model2vec's need not.
        static = json.loads(config.read_text(encoding="utf-8")).get("model_type", "model2vec") == "model2vec"
    except (OSError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise UserError(
            f"dedupe.semantic.model: {name} cannot be opened ({said}). Name a folder that has the model, or a hub id "
            "that can be reached from here."
        ) from None
    try:
        if static:
            from model2vec import StaticModel

            return StaticModel.from_pretrained(name)
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(name)
    except ImportError:
        what = "pip install 'seqkd[semantic]'" if static else "pip install sentence-transformers"
        raise UserError(f"dedupe.semantic needs a package that is not installed for {name}. Run: {what}") from None
    except Exception as error:  # whatever the libraries make of a damaged model
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"dedupe.semantic.model: {name} cannot be opened ({said}).") from None


def embed(model: Any, texts: pa.Array) -> Vectors:
    """(texts, dimensions): unit vectors; zeros for a text of which the model knows nothing."""
    plain = [text.decode("utf-8", "replace").replace(near.PART, "\n") for text in texts.cast(pa.binary()).to_pylist()]
    found = np.asarray(model.encode(plain), np.float32).reshape(len(plain), -1)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return np.divide(found, length, out=np.zeros_like(found), where=length > 0)


def choose(vectors: Vectors, fixed: int, threshold: float) -> tuple[near.Rows, NDArray[np.float64]]:
    """Who repeats whom, as of near.choose, with the cosine in place of the Jaccard similarity and with all pairs.

    vectors: (n, dimensions) unit vectors, the best row first; the first `fixed` are kept whatever they repeat. Returns
    (leader or -1, cosine) of each. Takes n * kept * dimensions multiplications and memory for the vectors.
    """
    count = len(vectors)
    leader, cosine = np.full(count, -1, np.int64), np.ones(count)
    kept, kept_rows, many = np.empty_like(vectors), np.empty(count, np.int64), 0
    for begin in range(0, count, BLOCK):
        block = vectors[begin : begin + BLOCK]
        best, similarity = np.full(len(block), -1, np.int64), np.full(len(block), -np.inf, np.float32)
        for first in range(0, many, 8 * BLOCK):
            found = np.round(block @ kept[first : min(many, first + 8 * BLOCK)].T, DIGITS)
            place = found.argmax(axis=1)
            value = found[np.arange(len(block)), place]
            better = value > similarity
            best[better], similarity[better] = kept_rows[first + place[better]], value[better]
        inside = np.round(block @ block.T, DIGITS)
        here: list[int] = []  # rows of the block that are kept
        for row in range(len(block)):
            if here:
                place = int(inside[row, here].argmax())
                if inside[row, here[place]] > similarity[row]:
                    best[row], similarity[row] = begin + here[place], inside[row, here[place]]
            if begin + row >= fixed and similarity[row] >= threshold:
                leader[begin + row], cosine[begin + row] = best[row], min(1.0, round(float(similarity[row]), DIGITS))
                continue
            here.append(row)
        kept[many : many + len(here)] = block[here]
        kept_rows[many : many + len(here)] = begin + np.asarray(here, np.int64)
        many += len(here)
    return leader, cosine
