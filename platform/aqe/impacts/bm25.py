"""Lucene's BM25 in its own arithmetic: float32 for each term, one byte for each length.

score(term) = w - w / (1 + tf / (k1 * (1 - b + b * length / mean length))) with
w = boost * ln(1 + (N - df + 0.5) / (df + 0.5)) (Robertson & Zaragoza 2009, without the constant factor k1 + 1). A
passage's score is the sum over terms, in float64, rounded once.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = np.float32


@dataclass(frozen=True)
class Collection:
    """What BM25 knows of the whole corpus, however it is cut into shards."""

    scored_passages: int
    total_terms: int
    k1: float
    b: float


def _length(byte: int) -> int:
    """SmallFloat.byte4ToInt: exact below 40, four significant bits above."""
    if byte < 24:
        return byte
    bits, shift = (byte - 24) & 7, ((byte - 24) >> 3) - 1
    return 24 + (bits if shift < 0 else (bits | 8) << shift)


def inverse_norms(collection: Collection) -> npt.NDArray[np.float32]:
    """1 / (k1 * (1 - b + b * length / mean length)) for each length byte, (256,)."""
    k1, b = F32(collection.k1), F32(collection.b)
    mean = F32(collection.total_terms / max(collection.scored_passages, 1))
    lengths = np.array([_length(byte) for byte in range(256)], F32)
    with np.errstate(divide="ignore"):  # k1 = 0: only whether a term occurs counts, tf / 0 is infinite, as in Lucene.
        return (F32(1) / (k1 * ((F32(1) - b) + b * lengths / mean))).astype(F32)


def idf(collection: Collection, df: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """Inverse document frequency of terms with these document frequencies."""
    df64 = df.astype(np.float64)
    return np.log(1 + (collection.scored_passages - df64 + 0.5) / (df64 + 0.5)).astype(F32)


def saturation(
    tf: npt.NDArray[np.integer], length_byte: npt.NDArray[np.integer], norms: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """score / w of a term, rounded once: for the fast pass, whose sums need only be near Lucene's."""
    x = tf.astype(np.float64) * norms[length_byte].astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(x), 1.0, x / (1 + x)).astype(F32)
