"""lm_eval.py: lm-eval's numbers beside ours, on task files of our own data."""

import json
import random
import sys

import pytest
import torch
import yaml

import minprune as mp
from minprune.evaluation.last_word import grammar, log_likelihood
from minprune.evaluation.lm_eval import load_tasks, run_tasks
from minprune.evaluation.minimal_pairs import PHENOMENA, minimal_pairs


@pytest.fixture(scope="module")
def pair(tiny_folder):
    return mp.load_model(tiny_folder)


@pytest.fixture(scope="module")
def pairs_task(tmp_path_factory):
    """A task file: which of two sentences is the grammatical one?"""
    folder = tmp_path_factory.mktemp("tasks")
    draw = random.Random(0)
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as out:
        for one in minimal_pairs(3):
            choices = [one.right, one.wrong]
            draw.shuffle(choices)
            out.write(json.dumps({"choices": choices, "answer": choices.index(one.right)}) + "\n")
    return _task(folder, {"data_files": {"test": str(folder / "pairs.jsonl")}})


def _task(folder, data, name="our_pairs", **changes):
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {**data, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "target_delimiter": "",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    } | changes
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def test_a_task_of_our_pairs_has_the_accuracy_that_we_measure(pair, pairs_task):
    before = torch.get_rng_state()
    found = run_tasks(*pair, [pairs_task])
    ours = grammar(*pair, minimal_pairs(3))
    assert [(row.task, row.metric, row.count) for row in found] == [("our_pairs", "acc", 3 * len(PHENOMENA))]
    assert found[0].value == pytest.approx(ours.value)
    assert 0 < found[0].error < 0.2
    assert torch.equal(torch.get_rng_state(), before)


def test_one_manager_serves_several_models_and_a_limit_takes_the_first_examples(pair, pairs_task):
    manager = load_tasks([pairs_task])
    first, second = (run_tasks(*pair, [pairs_task], limit=5, manager=manager) for _ in range(2))
    assert first == second and first[0].count == 5


def test_log_likelihoods_are_those_of_lm_eval(pair):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = pair
    requests = [
        ("the moon goes around", " a planet and its light"),
        ("the moon", " and its light comes from the sun while rivers carry water"),
        ("", "rivers carry water down to some sea"),
        ("the sun", " €"),
        *(("", one.right) for one in minimal_pairs(2)),
    ]
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3).loglikelihood(
        [Instance("loglikelihood", {}, request, index) for index, request in enumerate(requests)], disable_tqdm=True
    )
    ours = log_likelihood(model, tokenizer, requests)
    for (value, greedy), (other, also_greedy) in zip(ours, theirs, strict=True):
        assert value == pytest.approx(other, rel=1e-5)
        assert greedy == also_greedy


def test_what_cannot_be_run_is_refused_in_one_sentence(pair, pairs_task, tmp_path, monkeypatch):
    (tmp_path / "broken.yaml").write_text("task: [", encoding="utf-8")
    away = _task(tmp_path, {}, "away", dataset_path="nobody/has-such-data")
    wrong = _task(tmp_path, {"data_files": {"test": str(tmp_path / "none.jsonl")}}, "wrong")
    for names, said in [
        ([], "no task named"),
        (["gone.yaml"], "no task file gone.yaml"),
        ([str(tmp_path / "broken.yaml")], "check the file"),
        ([pairs_task, away], "cannot load the task .*away.yaml"),
        ([wrong], "cannot load the task .*wrong.yaml"),
    ]:
        with pytest.raises(mp.PruneError, match=said) as caught:
            load_tasks(names)
        assert "\n" not in str(caught.value)
    for options in ({"limit": 0}, {"shots": -1}):
        with pytest.raises(mp.PruneError, match="at least 1 example"):
            run_tasks(*pair, [pairs_task], **options)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(mp.PruneError, match=r"pip install 'minprune\[eval\]'"):
        load_tasks([pairs_task])


@pytest.mark.slow
def test_the_tasks_of_lm_eval_are_known_by_name_and_need_the_hub():
    with pytest.raises(mp.PruneError, match="no task 'arc_esay'"):
        load_tasks(["arc_esay"])
    with pytest.raises(mp.PruneError, match=r"cannot load the task arc_easy.*go online"):
        load_tasks(["arc_easy"])
