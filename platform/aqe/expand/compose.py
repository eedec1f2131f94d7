"""Query and expansion become the one query that is searched."""


def compose(query: str, expansion: str, query_weight: int = 1) -> str:
    """Query without its final question mark, ` ? `, expansion (EAR, arXiv 2305.17080).

    `query_weight` repeats the query, as query2doc does: BM25 counts repeated terms linearly. An empty expansion
    leaves the query as it is, because weighting all terms alike changes no rank.
    """
    if not expansion.strip():
        return query
    stripped = query.strip().rstrip("?").rstrip()
    return " ".join([stripped] * query_weight) + " ? " + expansion
