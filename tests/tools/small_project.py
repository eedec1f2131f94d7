"""The README's configuration on a tiny model and a corpus of random words: the whole loop in a minute."""

import json
import random
import re
from pathlib import Path

from tests.tools import tiny_model

ROOT = Path(__file__).parents[2]
README_CONFIG = re.search(r"```yaml\n# mine\.yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
#: The README's configuration, on this machine's tiny model and at a test's counts.
SMALL = [
    "model.source=model", "engine.name=transformers", "engine.max_model_len=256", "sample.num_samples=4", "sample.max_tokens=12",
    "sample.queries_per_unit=2", "sample.prompt=passage", "models=[rsft,rsft_dpo]", "align.workers=1", "align.zero_stage=1", "align.max_length=256",
    "align.rsft.batch_size=8", "align.dpo.batch_size=8", "align.micro_batch_size=8", "rank.query_weight=2", "rank.distinct_words=true", "evaluate.bootstrap=500", "evaluate.cut_words=[1,2]",
    "evaluate.systems=[bm25, bm25_tuned, zero_shot, zero_shot_best, zero_shot_cut, best_of_n]",
]  # fmt: skip


def write_project(here: Path, train: int = 24) -> None:
    """Write mine.yaml, a corpus, queries (`train` of them to align on) and a model into the directory `here`."""
    assert README_CONFIG is not None, "README.md has no ```yaml block that begins with # mine.yaml"
    (here / "mine.yaml").write_text(README_CONFIG[1])
    tiny_model.save(here / "model", max_position_embeddings=512)
    draw = random.Random(0)
    # Single letters too: the random model writes some, so that its candidates rank differently.
    words = ["".join(draw.choices("bcdefgh", k=3)) for _ in range(30)] + list("bcdefghjklmnopqrstuvwxyz0123456789")
    corpus = [
        {"docid": f"d{i}", "title": draw.choice(words), "text": " ".join(draw.choices(words, k=12))} for i in range(80)
    ]
    (here / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    for split, count in (("train", train), ("dev", 6), ("test", 10)):
        rows = []
        for i in range(count):
            passage = draw.choice(corpus)
            text = " ".join([*draw.sample(passage["text"].split(), 2), split, str(i)])
            rows.append({"qid": f"{split}{i}", "text": text, "positives": [passage["docid"]]})
        (here / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
