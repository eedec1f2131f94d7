"""Exact gold ranks: the impact index against what peers do, the same texts, one run, one process an engine.

usage: python benchmarks/gold_rank.py [--corpora quickstart wiki_20k wiki synthetic_2m] [--seconds 30] [--out FILE]

Needs the runs that it takes real questions and real sampled candidates from: `make quickstart` and, for the others,
`make wiki-small`; a corpus whose run is absent is left out, and said so. What it builds lies in runs/bench_rank and is
used again. Process CPU time after a warm-up (Java's compiler threads are in it), so another program beside it matters
little; the two-thread row is wall-clock time and right only on an idle machine. About 20 minutes, 12 GB of disk.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "platform"))
BENCH = ROOT / "runs" / "bench_rank"
RUNS = {"quickstart": "quickstart", "wiki_20k": "wiki_small", "wiki": "wiki_small", "synthetic_2m": "wiki_small"}
SIZES = {"wiki_20k": 20_000, "synthetic_2m": 2_000_000}
ENGINES = {
    "impacts": "impact index, this engine",
    "lucene": "Lucene, 100 best first, then exact count",
    "lucene_count": "Lucene, exact count",
    "pyserini": "Pyserini batch_search, k = 1000",
    "bm25s": "bm25s scores, then count",
}
#: Texts that the engine and the reference are compared on, at least.
COMPARED = 2_000
#: The warm-up: Java compiles, and so does numba.
WARM = 12

Task = Mapping[str, Any]  # texts: the plain query and its candidates as searched; relevant: docids


def artifact(run: str, stage: str) -> Path:
    """The newest finished artifact of a stage."""
    found = sorted((ROOT / "runs" / run).glob(f"{stage}-*/manifest.json"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"runs/{run} has no finished {stage}: run `make {run.replace('_', '-')}` first")
    return found[-1].parent


def tasks_of(run: str, limit: int = 400) -> list[Task]:
    """Real training queries with all their sampled candidates."""
    from aqe.compose import compose
    from aqe.index.english import analyze

    rank_config = json.loads((artifact(run, "rank_train") / "manifest.json").read_text())["config"]
    weight, distinct = rank_config["query_weight"], rank_config["distinct_words"]
    queries = pq.read_table(artifact(run, "queries") / "train.parquet").to_pylist()
    texts = {row["qid"]: row["text"] for row in queries}
    gold: dict[str, str] = {}
    for row in pq.read_table(artifact(run, "rank_train") / "data").to_pylist():
        if row["sample_idx"] == -1:
            gold[row["qid"]] = row["gold_docid"]
    candidates: dict[str, list[str]] = {}
    for row in pq.read_table(artifact(run, "sample_train") / "data").to_pylist():
        candidates.setdefault(row["qid"], []).append(row["expansion"])
    tasks: list[Task] = []
    for qid, docid in list(gold.items())[:limit]:
        # Candidates that say the same are ranked once: they would flatter.
        composed = [compose(texts[qid], expansion, weight, distinct) for expansion in ["", *candidates.get(qid, [])]]
        different = {frozenset(Counter(analyze(text)).items()): text for text in reversed(composed)}
        tasks.append({"texts": list(reversed(different.values())), "relevant": [docid]})
    return tasks


def passages(name: str, run: str, tasks: Sequence[Task]) -> Iterator[pa.RecordBatch]:
    """The run's own corpus; a part of it, gold passages included; or it and passages sewn together from its halves."""
    table = pq.read_table(artifact(run, "corpus") / "data")
    draw = random.Random(0)
    if name == "wiki_20k":
        gold = {docid for task in tasks for docid in task["relevant"]}
        ids = table["docid"].to_pylist()
        kept = [i for i, docid in enumerate(ids) if docid in gold]
        rest = draw.sample([i for i, docid in enumerate(ids) if docid not in gold], SIZES[name] - len(kept))
        table = table.take(sorted(kept + rest))
    yield from table.to_batches(50_000)
    if name != "synthetic_2m":
        return
    bodies = [text.split() for text in table["text"].to_pylist()]
    for start in range(0, SIZES[name] - len(table), 50_000):
        made = []
        for _ in range(min(50_000, SIZES[name] - len(table) - start)):
            one, other = draw.choice(bodies), draw.choice(bodies)
            made.append(" ".join(one[: len(one) // 2] + other[len(other) // 2 :]))
        ids = [f"sewn-{start + i}" for i in range(len(made))]
        yield pa.RecordBatch.from_pydict({"docid": ids, "title": [""] * len(made), "text": made}, schema=table.schema)


def prepare(name: str) -> Path:
    """Tasks, Lucene index and impact index of a corpus, made once."""
    run, out = RUNS[name], BENCH / name
    if (out / "ready").exists():
        return out
    (out / "data").mkdir(parents=True, exist_ok=True)
    tasks = tasks_of(run)
    (out / "tasks.json").write_text(json.dumps(tasks))
    for i, batch in enumerate(passages(name, run, tasks)):
        pq.write_table(pa.Table.from_batches([batch]), out / "data" / f"{i:05d}.parquet")
    child("build", out)
    (out / "ready").touch()
    return out


def child(role: str, corpus: Path, *options: str) -> dict[str, Any]:
    """Run one role of this script in a process of its own; what it prints last is its answer."""
    command = [sys.executable, __file__, "--role", role, "--corpus", str(corpus), *options]
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}", "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def build(corpus: Path) -> dict[str, Any]:
    """Both indexes."""
    from aqe.config.data import IndexConfig
    from aqe.index.convert import build_impacts
    from aqe.index.lucene import build_index

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    lucene = build_index(corpus, corpus / "data", IndexConfig(), say)
    impacts = build_impacts(corpus / "impacts", corpus / "lucene", IndexConfig(), say)
    (corpus / "built.json").write_text(json.dumps({"lucene": lucene, "impacts": impacts}))
    return impacts


def ranks_by(engine: str, corpus: Path) -> Callable[[Task], list[int]]:
    """A function that ranks one task; 0 where the engine does not see the passage."""
    from aqe.config.data import IndexConfig

    if engine in ("impacts", "lucene", "lucene_count"):
        from aqe.impacts.gold import open_gold_ranker
        from aqe.rank import lucene
        from aqe.ranker import Ranker

        ranker: Ranker
        if engine == "impacts":
            ranker = open_gold_ranker(corpus / "impacts", IndexConfig())
        else:
            if engine == "lucene_count":
                lucene.TOP = 1
            ranker = lucene.LuceneRanker(corpus / "lucene", IndexConfig())
        return lambda task: [gold.rank for gold in ranker.gold_ranks(task["texts"], task["relevant"])]
    if engine == "pyserini":
        from aqe.index import jvm

        jvm.start("2g")
        from pyserini.search.lucene import LuceneSearcher

        searcher = LuceneSearcher(str(corpus / "lucene"))
        searcher.set_bm25(0.9, 0.4)

        def search(task: Task) -> list[int]:
            names = [str(i) for i in range(len(task["texts"]))]
            hits = searcher.batch_search(list(task["texts"]), names, k=1000, threads=1)
            gold = task["relevant"][0]
            return [next((r for r, hit in enumerate(hits[n], 1) if hit.docid == gold), 0) for n in names]

        return search
    import bm25s

    from aqe.index.english import analyze

    docids, tokens = [], []
    for path in sorted((corpus / "data").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            docids.append(row["docid"])
            tokens.append(analyze(f"{row['title']}\n{row['text']}"))
    model = bm25s.BM25(method="lucene", k1=0.9, b=0.4, backend="numba")
    model.index(tokens, show_progress=False)
    del tokens
    number = {docid: i for i, docid in enumerate(docids)}

    def count(task: Task) -> list[int]:
        found = []
        for text in task["texts"]:
            terms = [term for term in analyze(text) if term in model.vocab_dict]
            scores = model.get_scores(terms) if terms else np.zeros(len(docids), np.float32)
            found.append(1 + int((scores > scores[number[task["relevant"][0]]]).sum()))
        return found

    return count


def measure(engine: str, corpus: Path, seconds: float) -> dict[str, Any]:
    """Rank tasks for so many CPU seconds after the warm-up, round after round.

    In the first one most words are new, and the index is read for the first time: it is kept apart too.
    """
    tasks: list[Task] = json.loads((corpus / "tasks.json").read_text())
    rank = ranks_by(engine, corpus)
    warm = tasks[: WARM if engine in ("impacts", "bm25s") else 4 * WARM]
    for task in warm:
        rank(task)
    started, wall, ranks, texts = time.process_time(), time.perf_counter(), [], 0
    first: dict[str, float] = {}
    for i, task in enumerate(cycle(tasks)):
        if i == len(tasks):
            first = {"ms_first_round": 1000 * (time.process_time() - started) / texts}
        # The reference goes on until there is enough to compare.
        if time.process_time() - started > seconds and not (engine == "lucene" and texts < COMPARED):
            break
        found = rank(task)
        texts += len(found)
        if i < len(tasks):
            ranks.append(found)
    used, elapsed = time.process_time() - started, time.perf_counter() - wall
    answer: dict[str, Any] = {
        "candidates": texts,
        "ms_per_candidate": 1000 * used / texts,
        **first,
        "candidates_per_second": texts / elapsed,
        "cpu_seconds_per_million": 1e6 * used / texts,
        "resident_mb": round(peak_mb()),
        "ranks": ranks,
    }
    if engine == "impacts":
        answer |= {"thread_scaling_2": scaling(rank, tasks), **growth(rank, tasks), **floor(corpus, tasks)}
    return answer


def peak_mb() -> float:
    """Most memory this process held; getrusage would give its parent's, where that held more."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def scaling(rank: Callable[[Task], list[int]], tasks: Sequence[Task]) -> float:
    """Wall time of one thread over that of two, the best of ten rounds each, interleaved."""
    best = {1: float("inf"), 2: float("inf")}
    for _ in range(10):
        for threads in best:
            started = time.perf_counter()
            # All take from one list: a future each task would be measured too.
            todo = iter(tasks)
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda _, todo=todo: [rank(task) for task in todo], range(threads)))
            best[threads] = min(best[threads], time.perf_counter() - started)
    return best[1] / best[2]


def growth(rank: Callable[[Task], list[int]], tasks: Sequence[Task]) -> dict[str, Any]:
    """Milliseconds a text when the plain query and n candidates are ranked, and when each is twice as long."""
    found = {}
    for n in (1, 4, 8, 16):
        cut = [{**task, "texts": task["texts"][: n + 1]} for task in tasks]
        started = time.process_time()
        for task in cut:
            rank(task)
        found[str(n)] = 1000 * (time.process_time() - started) / sum(len(task["texts"]) for task in cut)
    longer = [
        {**task, "texts": [f"{a} {b}" for a, b in zip(task["texts"][1::2], task["texts"][2::2], strict=False)]}
        for task in tasks
    ]
    started = time.process_time()
    for task in longer:
        rank(task)
    twice = 1000 * (time.process_time() - started) / sum(len(task["texts"]) for task in longer)
    return {"ms_by_candidates": found, "ms_two_joined": twice}


def floor(corpus: Path, tasks: Sequence[Task]) -> dict[str, Any]:
    """What the additions that are made, and one comparison a passage, would take at this machine's rates in the cache.

    And where the time goes: each part alone, with all words known.
    """
    from aqe.compiled import compiled
    from aqe.impacts import kernel, vectors
    from aqe.impacts.scorer import ShardScorer
    from aqe.impacts.terms import count_terms
    from aqe.index.english import analyze
    from aqe.index.shard import BLOCK, open_shards

    shard = open_shards(corpus / "impacts")[0]
    scorer = ShardScorer(shard, 0.9, 0.4)
    sizes = np.diff(shard.arrays.posting_starts.astype(np.int64))
    candidates = sum(len(task["texts"]) for task in tasks)
    asked = [count_terms([analyze(text) for text in task["texts"]])[0] for task in tasks]
    union = sum(int(sizes[scorer.weights(texts)[0]].sum()) for texts in asked)
    for texts, task in zip(asked, tasks, strict=True):
        (gold,) = task["relevant"]
        scorer.counts(texts, [(float(score), gold) for score in scorer.scores(texts, [gold])[:, 0]])
    additions = int(scorer._scratch(0).added[0])

    @compiled
    def add(acc: Any, docs: Any, codes: Any, table: Any, rounds: int) -> None:
        for _ in range(rounds):
            vectors.add(acc, docs, codes, 0, len(docs), table, np.float32(1))

    @compiled
    def compare(base: Any, own: Any, rounds: int) -> int:
        found = 0
        for _ in range(rounds):
            for v in range(len(base) // vectors.WIDE):
                found += vectors.at_least(base, own, v * vectors.WIDE, np.float32(1))
        return found

    scratch = kernel.make_scratch(1, 1)
    docs = np.sort(np.random.default_rng(0).choice(BLOCK, BLOCK // 20, replace=False)).astype(np.uint16)
    codes, table = np.arange(len(docs)).astype(np.uint8), np.zeros(256, np.float32)
    per_addition = seconds(lambda n: add(scratch.own, docs, codes, table, n), 40_000) / (40_000 * len(docs))
    per_passage = seconds(lambda n: compare(scratch.base, scratch.own, n), 4_000) / (4_000 * BLOCK)
    memory = np.zeros(1 << 26, np.float32)
    bandwidth = memory.nbytes / seconds(lambda n: memory.sum(), 1)
    analysis = seconds(lambda n: [analyze(text) for task in tasks for text in task["texts"]], 1)
    golds = seconds(
        lambda n: [scorer.scores(texts, task["relevant"]) for texts, task in zip(asked, tasks, strict=True)], 1
    )
    return {
        "postings_per_candidate": union / candidates,
        "additions_per_candidate": additions / candidates,
        "floor_additions_ms": 1000 * additions * per_addition / candidates,
        "floor_comparisons_ms": 1000 * shard.num_passages * per_passage,
        "floor_bandwidth_ms": 1000 * union * 3 / bandwidth / candidates,
        "bandwidth_gb_per_second": bandwidth / 1e9,
        "ns_per_addition_in_cache": 1e9 * per_addition,
        "analysis_ms": 1000 * analysis / candidates,
        "gold_scores_ms": 1000 * golds / candidates,
    }


def seconds(work: Callable[[int], Any], rounds: int) -> float:
    """CPU seconds of work(rounds), after it has been compiled."""
    work(1)
    started = time.process_time()
    work(rounds)
    return time.process_time() - started


def compare(name: str, seconds: float) -> dict[str, Any]:
    """All engines on one corpus."""
    corpus = prepare(name)
    found: dict[str, dict[str, Any]] = {}
    for engine in ENGINES:
        if engine == "bm25s" and name == "synthetic_2m":
            print("synthetic_2m: bm25s is left out (its index takes some 9 GB of memory to build)", flush=True)
            continue
        try:
            found[engine] = child(engine, corpus, "--seconds", str(seconds))
        except subprocess.CalledProcessError:
            print(f"{name}: {engine} did not run", flush=True)
            continue
        shown = found[engine]
        print(
            f"{name:14} {ENGINES[engine]:42} {shown['ms_per_candidate']:9.3f} ms/candidate "
            f"{shown['candidates_per_second']:9.0f}/s {shown['cpu_seconds_per_million']:9.0f} CPU s/million "
            f"{shown['resident_mb']:6} MB",
            flush=True,
        )
    ours, reference = found["impacts"].pop("ranks"), found["lucene"].pop("ranks")
    pairs = [(a, b) for x, y in zip(ours, reference, strict=False) for a, b in zip(x, y, strict=True)]
    for other in found.values():
        other.pop("ranks", None)
    built = json.loads((corpus / "built.json").read_text())["impacts"]
    own = found["impacts"]["ms_per_candidate"]
    lowest = found["impacts"]["floor_additions_ms"] + found["impacts"]["floor_comparisons_ms"]
    differ = [pair for pair in pairs if pair[0] != pair[1]]
    if differ:
        raise SystemExit(f"{name}: {len(differ)} of {len(pairs)} ranks are not Lucene's; the first: {differ[0]}")
    result = {
        **{key: built[key] for key in ("passages", "postings", "terms", "bytes_per_posting")},
        "ms_per_candidate": own,
        "ms_first_round": found["impacts"].get("ms_first_round", own),
        "agreement_with_lucene": sum(a == b for a, b in pairs) / len(pairs),
        "compared": len(pairs),
        "speedup_pyserini_batch_1000": found["pyserini"]["ms_per_candidate"] / own,
        "speedup_lucene_count": found["lucene_count"]["ms_per_candidate"] / own,
        "thread_scaling_2": found["impacts"]["thread_scaling_2"],
        "share_of_floor": max(lowest, found["impacts"]["floor_bandwidth_ms"]) / own,
        "engines": found,
    }
    print(
        f"{name:14} " + ", ".join(f"{k} {v:.4g}" for k, v in result.items() if isinstance(v, (int, float))), flush=True
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "bench_gold_rank.json")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        made = build(args.corpus) if args.role == "build" else measure(args.role, args.corpus, args.seconds)
        print(json.dumps(made))
        return
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.corpora:
        try:
            results[name] = compare(name, args.seconds)
        except FileNotFoundError as error:
            print(f"{name}: left out, {error}", flush=True)
            continue
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    if {"wiki", "synthetic_2m"} <= set(results):
        # Cost is linear in passages: the slope between the two, carried to English Wikipedia in passages of 100 words.
        small, large = results["wiki"], results["synthetic_2m"]
        slope = (large["ms_per_candidate"] - small["ms_per_candidate"]) / (large["passages"] - small["passages"])
        each = large["ms_per_candidate"] + slope * (21_015_324 - large["passages"])
        hours = each * 4e6 / 3.6e6
        results["extrapolated_21m"] = {"ms_per_candidate": each, "cpu_hours_for_4m_ranks": hours}
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        print(f"21 M passages, 4 M ranks: {each:.1f} ms each, {hours:.0f} CPU hours (extrapolated)")


if __name__ == "__main__":
    main()
