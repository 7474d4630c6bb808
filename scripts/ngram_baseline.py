"""Computes the perplexity of a trigram model on exactly the tokens that a language model is evaluated on.

    python scripts/ngram_baseline.py model=gpt2_tiny                            # takes what train.py takes
    python scripts/ngram_baseline.py model=gpt2_tiny data=wikitext_2_valid_trained data.root=/data/lm

Interpolated modified Kneser-Ney smoothing with discounts from counts of counts (Chen and Goodman 1998), trained on the
training windows. Unlike a language model's, its contexts extend beyond the borders of windows. Exit codes: 0 done, 2
refused.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pdp.errors import Refusal

Gram = tuple[int, ...]


class KneserNey:
    """Interpolated modified Kneser-Ney up to trigrams, on top of a uniform distribution over the vocabulary."""

    def __init__(self, texts: list[list[int]], vocabulary: int, order: int = 3):
        self.vocabulary, self.order = vocabulary, order
        grams: list[Counter[Gram]] = [
            Counter(tuple(text[k : k + n]) for text in texts for k in range(len(text) - n + 1))
            for n in range(1, order + 1)
        ]
        # Below the highest order, the count of a gram is the number of different tokens that occur before it.
        for n in range(order - 1):
            grams[n] = Counter(gram[1:] for gram in grams[n + 1])
        self.counts = grams
        self.discounts = [self._discounts(one) for one in grams]
        self.totals: list[Counter[Gram]] = [Counter() for _ in grams]
        self.kinds: list[dict[Gram, list[int]]] = [defaultdict(lambda: [0, 0, 0]) for _ in grams]
        for n, one in enumerate(grams):
            for gram, count in one.items():
                self.totals[n][gram[:-1]] += count
                self.kinds[n][gram[:-1]][min(count, 3) - 1] += 1

    @staticmethod
    def _discounts(counts: Counter[Gram]) -> list[float]:
        often = Counter(counts.values())
        n1, n2, n3, n4 = (max(1, often[k]) for k in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return [min(max(value, 0.0), k) for k, value in enumerate(found, 1)]

    def probability(self, token: int, context: Gram) -> float:
        """p(token | at most two tokens before it)."""
        value = 1 / self.vocabulary
        for n in range(self.order):
            if n > len(context):
                break
            before = context[len(context) - n :]
            total = self.totals[n].get(before, 0)
            if not total:
                break
            count = self.counts[n].get((*before, token), 0)
            discounts = self.discounts[n]
            kept = count - discounts[min(count, 3) - 1] if count else 0.0
            spared = sum(one * kind for one, kind in zip(discounts, self.kinds[n][before], strict=True))
            value = kept / total + spared / total * value
        return value

    def perplexity(self, text: list[int]) -> float:
        """Perplexity per token, without the first token."""
        reach = self.order - 1
        logs = [math.log(self.probability(text[k], tuple(text[max(0, k - reach) : k]))) for k in range(1, len(text))]
        return math.exp(-math.fsum(logs) / len(logs))


def main(arguments: list[str]) -> int:
    """Prints the trigram model's perplexity; returns the exit code."""
    if not arguments or any(one in ("-h", "--help") for one in arguments):
        print(__doc__)
        return 0 if arguments else 2
    from pdp.config.compose import compose
    from pdp.tasks import build_task

    try:
        config = compose([*arguments, "prune=none"])
        task: Any = build_task(config)
        if config.model.task != "language_modelling":
            raise Refusal(f"model={config.model.name} is no language model: give model=gpt2_tiny, ...")
        task.open_data()
        print(f"{config.data.name}, {task.data_note}")
        train, test = task._part("train"), task._part("test")
        if config.data.validation and not getattr(config.data, "validation_files", ()):
            texts = [train.ids[start:end].tolist() for start, end in zip(train.starts, train.ends, strict=True)]
        else:
            texts = [train.ids.tolist()]
        model = KneserNey(texts, len(task.tokenizer))
        print(f"trigram, interpolated modified Kneser-Ney: perplexity {model.perplexity(test.ids.tolist()):.3f}")
    except Refusal as error:
        print(f"ngram_baseline: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
