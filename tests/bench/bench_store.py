"""What the score store adds to a document that it has, beside a scores column: 512 tokens, every document read once a round.

Both ways edit the same rows from the same scores, in batches as loaders make them; they take turns.
"""

from __future__ import annotations

from pydoc_data.topics import topics
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from common import machine, take_turns
from tokenizers import Tokenizer

import toedit

LENGTH, DOCUMENTS, ROUNDS = 512, 256, 40


def main() -> None:
    prior = toedit.Prior.builtin()
    tokenizer = Tokenizer.from_file(str(prior.tokenizer_file))
    text = [i for topic in topics.values() for i in tokenizer.encode(topic).ids]
    # As many documents as are wanted, all different, out of a text that is shorter.
    rng = np.random.default_rng(0)
    starts = rng.choice(len(text) - LENGTH, DOCUMENTS, replace=False)
    ids = pa.array([text[i : i + LENGTH] for i in starts], pa.list_(pa.int32()))
    policy = toedit.Policy(threshold=0.9, exclude_original=True)
    scores = prior.score(pa.table({"input_ids": ids}), keep=policy)
    print(f"The score store, documents of {LENGTH} tokens, all of them there. {machine()}")
    with TemporaryDirectory() as folder:
        store = toedit.ScoreStore(folder)
        plain, stored = toedit.Editor(prior, policy), toedit.Editor(prior, policy, store=store)
        for i in range(0, DOCUMENTS, 8):
            stored({"input_ids": ids.slice(i, 8)})
        order = pa.array(rng.permutation(DOCUMENTS))
        ids, scores = ids.take(order), scores.take(order)
        for size in (1, 8, 64):
            batches = [
                ({"input_ids": ids.slice(i, size)}, {"input_ids": ids.slice(i, size), "scores": scores.slice(i, size)})
                for i in range(0, DOCUMENTS, size)
            ]
            timings = take_turns(
                {
                    "column": lambda batches=batches: [plain(with_scores) for _, with_scores in batches],
                    "store": lambda batches=batches: [stored(alone) for alone, _ in batches],
                },
                ROUNDS,
            )
            column, found = timings["column"], timings["store"]
            added = [(a - b) / DOCUMENTS * 1e6 for a, b in ((found.least, column.least), (found.median, column.median))]
            print(
                f"  batches of {size:2}: {found.median / DOCUMENTS * 1e6:5.1f} µs a document from the store, "
                f"{column.median / DOCUMENTS * 1e6:5.1f} from a column: {added[1]:5.1f} more, {added[0]:5.1f} by minima"
            )
        held = store.stats()
        print(f"  {held['files']} files, {held['bytes'] / held['tokens']:.1f} bytes a token, {held['hits']:,} documents read")


if __name__ == "__main__":
    main()
