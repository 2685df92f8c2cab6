"""Zero-shot tasks through EleutherAI's lm-eval, the field's own harness, on a model that is in memory. Chapter 09.

The harness asks for the log-likelihood of each possible answer (`minprune.evaluation.last_word.log_likelihood` gives
the same numbers), takes the largest, and counts how often it is right; "acc_norm" divides by the answer's length first.
It is an extra: pip install 'minprune[eval]'. Its tasks come from the hub; a .yaml file of your own needs no network.
"""

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from minprune.errors import PruneError
from minprune.models.causality import check_causal, evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TaskScore:
    """One number of one task: `value` with its standard error (None if the harness gives none), of `count` examples."""

    task: str
    metric: str
    value: float
    error: float | None
    count: int


def load_tasks(names: Sequence[str]) -> Any:
    """lm-eval's manager of the named tasks, groups or .yaml files, with their data at hand: for `run_tasks`.

    Raises `PruneError` if lm-eval is not installed, a task is unknown, or its data cannot be had.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise PruneError("tasks need lm-eval, which is not installed: pip install 'minprune[eval]'") from None
    if not names:
        raise PruneError("no task named: name one or more, such as arc_easy,hellaswag")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    files = [name for name in names if name.endswith((".yaml", ".yml"))]
    for name in files:
        if not Path(name).is_file():
            raise PruneError(f"no task file {name}: name a .yaml file of lm-eval's form, or one of its tasks")
    manager = TaskManager(include_defaults=len(files) < len(names))  # its thousands of files take seconds to read
    for name in names:
        if name not in files and name not in manager.all_tasks:
            raise PruneError(f"lm-eval has no task {name!r}: see `lm-eval ls tasks`, or name a .yaml file")
        try:
            manager.load([name])
        except Exception as error:  # whatever the harness, the hub or a user's file may give
            said = " ".join(str(error).split())[:200]
            where = "check the file" if name in files else "go online once, or name a .yaml file with data of your own"
            raise PruneError(f"cannot load the task {name} ({type(error).__name__}: {said}): {where}") from error
    return manager


def run_tasks(
    model: "PreTrainedModel",
    tokenizer,
    names: Sequence[str],
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 4,
    seed: int = 0,
    progress: bool = False,
    manager: Any = None,
) -> list[TaskScore]:
    """Every number that lm-eval gives for a model on these tasks.

    limit: examples of each task, the first ones (None: all); shots: worked examples before each question, drawn by
    seed (None: as the task says, mostly none). manager: that of `load_tasks`, to load the tasks only once for several
    models. Raises as `load_tasks` does, for a model that is not causal, and if no example or no worked example could
    be.
    """
    if (limit is not None and limit < 1) or (shots is not None and shots < 0):
        raise PruneError(f"asked for {limit} examples with {shots} shots: at least 1 example and 0 shots are needed")
    manager = manager or load_tasks(names)
    check_causal(model)
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    hidden = contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO())  # its progress bars
    unasked = patch("lm_eval.evaluator.get_git_commit_hash", return_value=None)  # git would complain on the terminal
    with evaluating(model), hidden, unasked:
        found = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(names),
            task_manager=manager,
            limit=limit,
            num_fewshot=shots,
            bootstrap_iters=1000,
            log_samples=False,
            random_seed=None,  # these three would seed the caller's generators
            numpy_random_seed=None,
            torch_random_seed=None,
            fewshot_random_seed=seed,
        )
    assert found is not None  # it is so only in the other processes of a distributed run
    scores = []
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if not isinstance(value, (int, float)) or not kind or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            count = found["n-samples"].get(task, {}).get("effective", 0)
            scores.append(TaskScore(task, metric, value, error if isinstance(error, float) else None, count))
    return scores
