"""The reference engine: Lucene itself scores, and counts what stands above the relevant passages.

Nothing is cut. A short result list shows the rank where it ends below the gold score; elsewhere FunctionRangeQuery
visits every passage that matches, with the scorer that also gives the gold score. Lucene adds a passage's term scores
in double precision and rounds once, so the order in which its different scorers add does not show in the float32,
but for sums that lie within 1e-16 (relative) of the middle between two floats.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import neg
from pathlib import Path
from typing import Any

import numpy as np

from aqe.config.data import IndexConfig
from aqe.errors import ArtifactError, DataError
from aqe.index import jvm
from aqe.index.lucene import analyzer
from aqe.ranker import GoldRank, Hit

#: Anserini's names for the indexed text and the docid.
CONTENTS, DOCID = "contents", "id"
#: Length of the result list that is looked at before anything is counted.
TOP = 100


class LuceneRanker:
    """Implements `aqe.ranker.Ranker` on a Lucene index. Starts the JVM of this process."""

    name = "lucene"

    def __init__(self, index: Path, config: IndexConfig) -> None:
        if not index.is_dir():
            raise ArtifactError(f"{index} is not a Lucene index directory. Run build_index first.")
        java = jvm.start(config.jvm_heap)
        from jnius import cast

        search = "org.apache.lucene.search."
        self._java = {name: java(search + name) for name in ("TermQuery", "TermRangeQuery", "BooleanQuery$Builder")}
        self._filter = java(search + "BooleanClause$Occur").FILTER
        self._term = java("org.apache.lucene.index.Term")
        self._range = java("org.apache.lucene.queries.function.FunctionRangeQuery")
        self._value_source = java("org.apache.lucene.queries.function.ValueSource")
        self._query_values = java("org.apache.lucene.queries.function.valuesource.QueryValueSource")
        self._cast = cast
        directory = java("org.apache.lucene.store.FSDirectory").open(java("java.nio.file.Paths").get(str(index)))
        self._reader = java("org.apache.lucene.index.DirectoryReader").open(directory)
        searcher_class = java(search + "IndexSearcher")
        # A long expansion may have more terms than Lucene's default limit of 1,024 clauses.
        searcher_class.setMaxClauseCount(2**31 - 1)
        self._searcher = searcher_class(cast("org.apache.lucene.index.IndexReader", self._reader))
        self._similarity = java(search + "similarities.BM25Similarity")
        self.set_bm25(config.k1, config.b)
        self._searcher.setQueryCache(None)
        self._leaves = list(self._reader.leaves())
        self._bases = [leaf.docBase for leaf in self._leaves]
        self._analyzer = analyzer(java, config.language)
        # Anserini's own: a term that occurs n times becomes one clause with boost n.
        self._words = java("io.anserini.search.query.BagOfWordsQueryGenerator")()
        self._documents: dict[str, int] = {}

    def set_bm25(self, k1: float, b: float) -> None:
        """Score with another setting from now on."""
        self._searcher.setSimilarity(self._similarity(k1, b))

    @property
    def num_passages(self) -> int:
        """Passages in the index."""
        return int(self._reader.numDocs())

    def _query(self, text: str) -> Any:
        return self._words.buildQuery(CONTENTS, self._analyzer, text)

    def _document(self, docid: str) -> int:
        """Lucene's internal number of a passage."""
        if docid not in self._documents:
            hits = self._searcher.search(self._java["TermQuery"](self._term(DOCID, docid)), 1).scoreDocs
            if not hits:
                raise DataError(
                    f"the relevant passage {docid!r} is not in the index. The qrels belong to another corpus, or the "
                    "index was built from a part of it: run judge_queries and build_index on the same corpus."
                )
            self._documents[docid] = hits[0].doc
        return self._documents[docid]

    def gold_ranks(self, texts: Sequence[str], relevant: Sequence[str]) -> list[GoldRank]:
        documents = [(self._document(docid), docid) for docid in sorted(set(relevant), key=str.encode)]
        return [self._gold_rank(text, documents) for text in texts]

    def _gold_rank(self, text: str, documents: Sequence[tuple[int, str]]) -> GoldRank:
        query = self._query(text)
        values = self._query_values(query, 0.0)
        scores = [self._score(values, document) for document, _ in documents]
        # max() takes the first of equals, which has the smallest docid.
        best = max(range(len(scores)), key=scores.__getitem__)
        score, docid = scores[best], documents[best][1]
        if score == 0:
            return GoldRank(docid, 1 + self.num_passages, score)
        if (rank := self._rank_in_top(query, score, docid)) is not None:
            return GoldRank(docid, rank, score)
        above = self._searcher.count(self._range(values, _java_float(score), None, False, False))
        return GoldRank(docid, 1 + above + self._equal_before(values, score, docid), score)

    def _rank_in_top(self, query: Any, score: float, docid: str) -> int | None:
        """The rank, where a result list that ends below the gold score shows it: finding the best passages is cheap."""
        hits = self._searcher.search(query, TOP).scoreDocs
        if len(hits) == TOP and hits[-1].score >= score:
            return None
        scores = [hit.score for hit in hits]
        equal = [hit.doc for hit in hits[bisect_left(scores, -score, key=neg) : bisect_right(scores, -score, key=neg)]]
        before = sum(self._docid(document).encode() < docid.encode() for document in equal) if len(equal) > 1 else 0
        return 1 + bisect_left(scores, -score, key=neg) + before

    def _docid(self, document: int) -> str:
        return str(self._searcher.storedFields().document(document).get(DOCID))

    def _score(self, values: Any, document: int) -> float:
        """Float32 score of one passage, 0 where it matches no term."""
        context = self._value_source.newContext(self._searcher)
        values.createWeight(context, self._searcher)
        leaf = int(np.searchsorted(self._bases, document, side="right")) - 1
        return float(values.getValues(context, self._leaves[leaf]).floatVal(document - self._bases[leaf]))

    def _equal_before(self, values: Any, score: float, docid: str) -> int:
        """Passages with exactly this score and a smaller docid."""
        before = self._java["TermRangeQuery"].newStringRange(DOCID, None, docid, False, False)
        equal = self._range(values, _java_float(score), _java_float(score), True, True)
        both = self._java["BooleanQuery$Builder"]().add(before, self._filter).add(equal, self._filter).build()
        return int(self._searcher.count(both))

    def search(self, text: str, k: int) -> list[Hit]:
        """Ties at the cut are resolved by docid too: the page is widened until the last score is complete."""
        query = self._query(text)
        wanted = k + 1
        while True:
            hits = [(float(h.score), h.doc) for h in self._searcher.search(query, wanted).scoreDocs]
            if len(hits) < wanted or hits[-1][0] < hits[k - 1][0]:
                break
            wanted *= 2
        kept = hits if len(hits) <= k else [h for h in hits if h[0] >= hits[k - 1][0]]
        best = [Hit(self._docid(doc), score) for score, doc in kept]
        return sorted(best, key=lambda h: (-h.score, h.docid.encode()))[:k]


def _java_float(score: float) -> str:
    """FunctionRangeQuery takes its bounds as text, which Java reads back to the same float32."""
    return np.format_float_positional(np.float32(score), unique=True, trim="0")
