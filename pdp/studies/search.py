"""A search: the ranges from which a method's trials are drawn, and how they are drawn by Optuna."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdp.errors import Refusal

Setting = tuple[str, ...]
Params = dict[str, Any]
BLIND = 12  # number of first trials, from a quasi-random sequence; later ones depend on results (TPE)


@dataclass(frozen=True)
class Span:
    """A range of numbers, optionally on a logarithmic scale."""

    low: float
    high: float
    log: bool = False


@dataclass
class Search:
    """What a study file says under tuning and search.

    `trials` is the number of trials of every method, and of the dense model, at each sparsity; the first one is the
    method's default setting. `words` are arguments of every trial (fewer epochs, for example), `of` those for one
    method. `spaces` holds the parameters of each method: a key with a `Span` or a list of values; a value that is
    itself a list is a list of arguments.
    """

    trials: int
    words: Setting = ()
    of: dict[str, Setting] = field(default_factory=dict)
    everywhere: dict[str, Span | list[Any]] = field(default_factory=dict)
    spaces: dict[str, dict[str, Span | list[Any]]] = field(default_factory=dict)

    def space(self, method: str) -> dict[str, Span | list[Any]]:
        """The method's parameters; those that apply to every method come first."""
        return self.everywhere | self.spaces.get(method, {})


def read_search(tuning: Mapping[str, Any], spaces: Mapping[str, Any]) -> Search:
    """Reads a study file's `tuning` and `search`; raises ValueError or KeyError if they are invalid."""
    read = {
        str(method): {str(key): _parameter(value) for key, value in (parameters or {}).items()}
        for method, parameters in spaces.items()
    }
    trials = int(tuning["trials"])
    if trials < 1:
        raise ValueError(f"tuning.trials={trials} must be at least 1")
    return Search(
        trials,
        tuple(map(str, tuning.get("words", []))),
        {str(method): tuple(map(str, words)) for method, words in (tuning.get("of") or {}).items()},
        read.pop("all", {}),
        read,
    )


def _parameter(value: Any) -> Span | list[Any]:
    if isinstance(value, Mapping):
        span = Span(float(value["low"]), float(value["high"]), bool(value.get("log", False)))
        if not span.low < span.high or (span.log and span.low <= 0):
            raise ValueError(f"{dict(value)} is no span: low must lie under high, and above 0 with log")
        return span
    if not isinstance(value, list) or not value:
        raise ValueError(f"{value!r} is no space: give {{low, high, log}} or a list of values")
    return value


def words_of(space: Mapping[str, Span | list[Any]], params: Params) -> Setting:
    """A trial's arguments; numbers from a span have three digits, a value that is a list is used as arguments."""
    words: list[str] = []
    for key, value in params.items():
        parameter = space[key]
        if isinstance(parameter, Span):
            words.append(f"{key}={value:.3g}")
        else:
            chosen = parameter[value]
            words += map(str, chosen) if isinstance(chosen, list) else [f"{key}={_text(chosen)}"]
    return tuple(words)


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def draw(
    space: Mapping[str, Span | list[Any]], known: Sequence[tuple[Params, float | None]], count: int, seed: int
) -> list[Params]:
    """The parameters of `count` further trials; `known` are those drawn before with their scores (higher is better).

    The trials depend only on the space, the seed and what is known, so that a resumed search draws the same ones.
    Raises `Refusal` if Optuna is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise Refusal("trials are drawn by Optuna, which is not installed: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, Any] = {
        key: optuna.distributions.FloatDistribution(value.low, value.high, log=value.log)
        if isinstance(value, Span)
        else optuna.distributions.CategoricalDistribution(tuple(range(len(value))))
        for key, value in space.items()
    }
    blind = len(known) < BLIND
    sampler: Any
    if blind:
        # A prefix of one sequence, drawn again from its beginning.
        sampler = optuna.samplers.RandomSampler(seed=seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        drawn = [study.ask(distributions).params for _ in range(len(known) + count)]
        return drawn[len(known) :]
    sampler = optuna.samplers.TPESampler(seed=seed + len(known), n_startup_trials=0, constant_liar=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for params, score in known:
        if score is not None and params:
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=score))
    return [study.ask(distributions).params for _ in range(count)]


def seed_of(study: str, method: str, sparsity: float | None) -> int:
    """The seed for a method's trials at a sparsity, the same on every machine."""
    return zlib.crc32(f"{study} {method} {sparsity}".encode())


class Trials:
    """The trials drawn for a study, in a file beside its table, so that a machine without Optuna can run them.

    By method and sparsity a list of {"params", "words"}; the first trial has no params, it is the method's default
    setting.
    """

    def __init__(self, path: Path):
        self.path = path
        self.drawn: dict[str, list[dict[str, Any]]] = {}
        if path.is_file():
            try:
                self.drawn = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise Refusal(f"{path} holds no trials ({error}): remove it, they are drawn anew") from None

    @staticmethod
    def key(method: str, sparsity: float | None) -> str:
        """The key of a method's trials at a sparsity."""
        return method if sparsity is None else f"{method} {sparsity:g}"

    def settings(self, method: str, sparsity: float | None) -> list[Setting]:
        """The arguments of each trial that was drawn."""
        return [tuple(one["words"]) for one in self.drawn.get(self.key(method, sparsity), [])]

    def params(self, method: str, sparsity: float | None) -> list[Params]:
        """The parameters of each trial that was drawn."""
        return [one["params"] for one in self.drawn.get(self.key(method, sparsity), [])]

    def add(self, method: str, sparsity: float | None, params: Params, words: Setting) -> None:
        """Adds a trial; `write` saves it."""
        self.drawn.setdefault(self.key(method, sparsity), []).append({"params": params, "words": list(words)})

    def write(self) -> None:
        """Writes the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}")
        beside.write_text(json.dumps(self.drawn, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        beside.replace(self.path)
