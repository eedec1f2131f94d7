"""The row contracts of every artifact, and the check at each stage's door."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from aqe.errors import InputError

CORPUS = pa.schema([("docid", pa.string()), ("title", pa.string()), ("text", pa.string())])

#: `positives` are docids that were judged for the query, `relevance` how much each is: 0 or less means not. Where
#: there are none, `answers` judge by the rule `match` (aqe.config.sources.AnswersConfig); `judge_queries` needs one of
#: the two. `excluded` docids are taken out of the query's ranking. `dataset` is where the query comes from: the name of
#: its file, or of the directory of its files.
QUERIES = pa.schema(
    [
        ("qid", pa.string()),
        ("text", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("positives", pa.list_(pa.string())),
        ("relevance", pa.list_(pa.int32())),
        ("match", pa.string()),
        ("excluded", pa.list_(pa.string())),
        ("dataset", pa.string()),
    ]
)

QRELS = pa.schema([("qid", pa.string()), ("docid", pa.string()), ("relevance", pa.int32())])

#: Queries that have a relevant passage, in the order of their split, with all that ranking needs to know of them:
#: `relevant` are docids, `grades` their relevance, both in the order of the docids.
JUDGED = pa.schema([*QUERIES, ("relevant", pa.list_(pa.string())), ("grades", pa.list_(pa.int32()))])

#: One row a query; the rows of a unit are generated together as one closed batch.
PLAN = pa.schema(
    [
        ("unit_id", pa.string()),
        ("qid", pa.string()),
        ("prompt", pa.string()),
        ("num_samples", pa.int32()),
        ("seed", pa.int64()),
    ]
)

#: `raw` is the exact decoded text, leading blank kept; `expansion` is what is searched: without reasoning blocks, on
#: one line. `token_ids` are all tokens that were drawn, in order, the end token or those of a stop text included:
#: `num_tokens` of them, over which `logprob` (nats) sums. `stop_at` is null unless a stop text ended the candidate: so
#: many of its first tokens hold the text before the stop text.
SAMPLES = pa.schema(
    [
        ("unit_id", pa.string()),
        ("qid", pa.string()),
        ("sample_idx", pa.int32()),
        ("raw", pa.string()),
        ("expansion", pa.string()),
        ("finish_reason", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("stop_at", pa.int32()),
        ("num_tokens", pa.int32()),
        ("logprob", pa.float32()),
        ("duplicate", pa.bool_()),
    ]
)

#: The part of SAMPLES that is ranked and searched; all that is kept of expansions that are made from others.
EXPANSIONS = pa.schema([("qid", pa.string()), ("sample_idx", pa.int32()), ("expansion", pa.string())])

#: `sample_idx` of the plain query among the candidates.
PLAIN = -1

#: `sample_idx` -1 is the plain query; `gold_rank` is 1-based and exact to any depth; `ndcg` is null unless
#: `rank.ndcg_at` asks for it. A `score` of 0 means that no relevant passage is found: `gold_rank` is then 1 + the
#: number of passages in the index, no hit at any depth, of which the reciprocal counts as 0; `gold_docid` is the
#: smallest of theirs.
RANKS = pa.schema(
    [
        ("qid", pa.string()),
        ("sample_idx", pa.int32()),
        ("gold_docid", pa.string()),
        ("gold_rank", pa.int32()),
        ("score", pa.float32()),
        ("ndcg", pa.float32()),
    ]
)

#: What a search found, one row a query; `docids` and `scores` of the best passages, all of them with a score above 0.
#: `gold_docid`, `gold_rank` and `score` as in RANKS: 0 means not found. `search_ms` is the search alone.
SEARCHED = pa.schema(
    [
        ("qid", pa.string()),
        ("expansion", pa.string()),
        ("composed", pa.string()),
        ("gold_docid", pa.string()),
        ("gold_rank", pa.int32()),
        ("score", pa.float32()),
        ("docids", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("search_ms", pa.float32()),
    ]
)

#: Token ids are what is trained: those of the prompt as the engines read it, and those of the completion as they were
#: drawn (`aqe.endings.completion_ids`). The texts are for people.
RSFT = pa.schema(
    [
        ("qid", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
        ("finished", pa.bool_()),
        ("gold_rank", pa.int32()),
        ("plain_rank", pa.int32()),
    ]
)

DPO = pa.schema(
    [
        ("qid", pa.string()),
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("rejected", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("chosen_ids", pa.list_(pa.int32())),
        ("rejected_ids", pa.list_(pa.int32())),
        ("chosen_finished", pa.bool_()),
        ("rejected_finished", pa.bool_()),
        ("chosen_rank", pa.int32()),
        ("rejected_rank", pa.int32()),
    ]
)

#: Rows that could not be processed: in which stage, where they stand (file and line, or the query's id), why, in words
#: that are the same for all of a kind, and the row itself as JSON.
DEAD_LETTERS = pa.schema(
    [("stage", pa.string()), ("place", pa.string()), ("reason", pa.string()), ("row", pa.string())]
)


def table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows -> a table of exactly `schema`; columns beyond it are left out."""
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)


def conform(data: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """Bring `data` to `schema`: columns in order and cast. InputError names what is missing and what is there."""
    missing = [name for name in schema.names if name not in data.column_names]
    if missing:
        raise InputError(
            f"{where}: missing column(s) {', '.join(missing)}; it has {', '.join(data.column_names) or 'none'}. "
            f"Expected: {', '.join(f'{f.name}: {f.type}' for f in schema)}."
        )
    try:
        return data.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise InputError(f"{where}: a column has another type than the contract asks: {error}") from error
