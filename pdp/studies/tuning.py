"""Tuning a study: which trials are still to be drawn or run, and their results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pdp.runs.record import RECORD
from pdp.studies.runs import kept_at, score_of, trials_of
from pdp.studies.search import BLIND, draw, seed_of, words_of
from pdp.studies.study import Cell, Study, merged


def groups(study: Study) -> Iterator[tuple[str, float | None]]:
    """Every method with every sparsity at which the study runs it."""
    for method in study.methods:
        for sparsity in study.sparsities_of(method):
            if study.wants(method, sparsity):
                yield method, sparsity


def draw_trials(study: Study, results: Path, batch: int) -> int:
    """Draws the trials that can be drawn now and saves them; returns how many.

    The first ones are drawn independently of results; later ones a batch at a time, when all before them are kept.
    """
    search = study.search
    assert search is not None
    trials, fresh = trials_of(study, results), 0
    for method, sparsity in groups(study):
        space, own = search.space(method), study.methods[method][0]
        settings = trials.settings(method, sparsity)
        if not settings:
            trials.add(method, sparsity, {}, own)
            settings, fresh = [own], fresh + 1
        blind = min(search.trials, BLIND) - len(settings)
        count = blind if blind > 0 else min(batch, search.trials - len(settings))
        if count <= 0 or not space:
            # Without a search space every trial is the method's default setting, which is run once.
            for _ in range(max(0, search.trials - len(settings)) if not space else 0):
                trials.add(method, sparsity, {}, own)
                fresh += 1
            continue
        scores: list[float | None] = [None] * len(settings)
        if blind <= 0:
            scores = [score_of(study.trial(method, sparsity, one), results) for one in settings]
            if None in scores:
                continue
        known = list(zip(trials.params(method, sparsity), scores, strict=True))[1:]
        for params in draw(space, known, count, seed_of(study.name, method, sparsity)):
            trials.add(method, sparsity, params, merged(own, words_of(space, params)))
            fresh += 1
    if fresh:
        trials.write()
    return fresh


def left_to_run(study: Study, results: Path) -> list[Cell]:
    """The drawn trials whose runs are not kept yet, in order of their number, without duplicates."""
    trials = trials_of(study, results)
    rounds: list[tuple[int, Cell]] = []
    for method, sparsity in groups(study):
        for number, setting in enumerate(trials.settings(method, sparsity)):
            rounds.append((number, study.trial(method, sparsity, setting)))
    cells = dict.fromkeys(cell for _, cell in sorted(rounds, key=lambda one: one[0]))
    return [cell for cell in cells if not (kept_at(cell, results) / RECORD).is_file()]


def report(study: Study, results: Path) -> str:
    """Markdown: each trial's arguments and validation score, with the chosen one in bold."""
    trials = trials_of(study, results)
    lines = ["| method | sparsity | validation | setting |", "|---|---|---|---|"]
    for method, sparsity in groups(study):
        settings = trials.settings(method, sparsity)
        scores = [score_of(study.trial(method, sparsity, one), results) for one in settings]
        known = [one for one in scores if one is not None]
        best = scores.index(max(known)) if known and len(known) == len(scores) else None
        for number, (setting, score) in enumerate(zip(settings, scores, strict=True)):
            words = " ".join(setting) or "its own"
            value = "" if score is None else f"{abs(score):.4f}"
            mark = "**" if number == best else ""
            lines.append(
                f"| {method} | {'' if sparsity is None else f'{sparsity:g}'} | {mark}{value}{mark} | {words} |"
            )
    return "\n".join(lines) + "\n"
