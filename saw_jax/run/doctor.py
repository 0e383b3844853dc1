"""Dry-runs an experiment: prints what it sees and returns the problems."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from saw_jax.models.lora import LoraConfig
from saw_jax.run import experiment as experiment_lib
from saw_jax.run import rollouts
from saw_jax.run.sections import EvaluationConfig, Experiment
from saw_jax.tasks import inspection, panels
from saw_jax.tasks.base import Task
from saw_jax.tasks.workers.grading import Grader
from saw_jax.training.parallel import ParallelConfig

_LINE = "=" * 72
_NOTHING = "there is nothing to learn from it"
_MARKS = "-pXog"  # of roles: PAD, PROMPT, POLICY, OBSERVATION, GLUE


def check_sampling(
  experiment: Experiment, *, prompts: int, shown: int
) -> list[str]:
  """Samples and scores some prompts once, or plays some worlds."""
  # New adapters change nothing.
  bare = experiment._replace(parallel=ParallelConfig(), lora=LoraConfig())
  check = _check_episodes if experiment.method.per_step else _check_answers
  return list(check(bare, prompts, shown))


def check_task(task: Task, splits: Sequence[str], limit: int) -> list[str]:
  """Checks that gold answers score the maximum, and damaged ones as they must.

  For a task that knows neither, it only counts the examples.
  """
  problems, ways = [], {}
  if getattr(task, "stand_in", ""):
    print(f"rewards of this task: {task.stand_in}")
  if getattr(task, "has_gold", hasattr(task, "gold_completion")):
    ways["gold answers below the maximum"] = inspection.gold_failures
    if hasattr(task, "damages"):
      ways["damaged answers scored wrongly"] = inspection.damage_failures
  if hasattr(task, "answer_key"):
    ways["references without an answer"] = inspection.keyless_failures
  for split in splits:
    examples = task.examples(split)
    chosen = [examples[i] for i in range(min(len(examples), limit))]
    said = [f"{split}: {len(examples)} examples"]
    said += [f"{len(chosen)} checked"] * bool(ways)
    for what, check in ways.items():
      failures = check(task, chosen)
      said.append(f"{what}: {len(failures)}")
      problems += [f"{split}: {failure}" for failure in failures]
    print("; ".join(said))
  return problems


def _check_episodes(experiment: Experiment, worlds: int, shown: int):
  own = experiment.evaluation
  if found := panels.describe(experiment.task, own.split, own.num_examples):
    print("panel: {episodes} episodes of {split}, {digest}".format(**found))
  made = experiment._replace(
    evaluation=EvaluationConfig(
      split="train",
      num_examples=worlds,
      samples=experiment.loop.group_size,
      temperature=experiment.sampling.temperature,
    )
  )
  policy = experiment_lib.Policy(made, 1)
  played = experiment_lib.kind_of(made).play(policy)
  returns, steps = played.returns[0], played.steps[0]
  worlds, group = returns.shape
  for p in range(min(worlds, shown)):
    print(_LINE)
    for number, turn in enumerate(played.turns[0][p * group], 1):
      mark = "" if turn.valid else ", does not parse"
      print(f"[step {number}, prompt] {turn.prompt}")
      print(f"[policy{mark}] {turn.reply}")
      print(f"[observation, reward {turn.reward:g}] {turn.observation}")
  print(_LINE)
  invalid = played.invalid[0][steps]
  varied = (returns.max(-1) > returns.min(-1)).mean()
  print(
    f"{returns.size} episodes of {worlds} worlds: return mean "
    f"{returns.mean():.3f}, at most {made.task.max_return:g}; steps mean "
    f"{steps.sum(-1).mean():.1f} of {made.task.max_steps}; replies that do not "
    f"parse {100 * invalid.mean() if invalid.size else 0:.1f} %; groups whose "
    f"returns differ {100 * varied:.0f} %"
  )
  if played.failed.any():
    yield f"{played.failed.sum()} environments failed"
  if not np.ptp(returns):
    yield f"each episode pays {returns[0, 0]:g}: {_NOTHING}"


def _check_answers(experiment: Experiment, count: int, shown: int):
  task, group = experiment.task, experiment.loop.group_size
  policy = experiment_lib.Policy(experiment, 1)
  examples = policy.encoder.keep(task.examples("train"))
  chosen = [examples[i] for i in range(min(len(examples), count))]
  sampled = rollouts.sample(
    policy.make_generate(experiment.sampling, group),
    policy.params,
    [chosen],
    rollouts.example_keys([0], 0, [chosen], group),
    encoder=policy.encoder,
    multiple=experiment.rollout.completion_multiple,
  )
  grading = dataclasses.replace(experiment.grading, crash_tolerance=0.0)
  with Grader(task, **dataclasses.asdict(grading)) as grader:
    result = rollouts.score(sampled, [chosen], grader, policy.encoder)
  rewards, scored = result.rewards[0], result.scored[0]
  for p, example in enumerate(chosen[:shown]):
    print(_LINE)
    for message in example.messages:
      print(f"[{message['role']}] {message['content']}")
    print(f"[reference] {example.reference}")
    for g in range(min(group, 3)):
      row = p * group + g
      values = ", ".join(
        f"{c.name} {value:.3f}" if is_scored else f"{c.name} unscored"
        for c, value, is_scored in zip(
          task.components, rewards[p, g], scored[p, g], strict=True
        )
      )
      outcome = rollouts.OUTCOMES[result.outcomes[0, p, g]].value
      print(f"{'-' * 72}\n[response {g}: {values}, {outcome}; what is scored:]")
      print(result.completions[row])
      print("[mask]", "".join(_MARKS[role] for role in sampled.roles[0, row]))
  print(_LINE)
  if opening := policy.encoder.tokenizer.opening:
    print(f"what is scored begins with the end of the prompt, {opening!r}")
  print("mask: p prompt, X policy (in the loss), o observation, g glue, - pad")
  for m, component in enumerate(task.components):
    name, values = component.name, rewards[..., m][scored[..., m]]
    if not values.size:
      yield f"reward {name} scored no response"
      continue
    print(
      f"reward {name}: mean {values.mean():.3f}, std {values.std():.3f}, range "
      f"[{values.min():.3f}, {values.max():.3f}] of [{component.minimum:g}, "
      f"{component.maximum:g}], {(~scored[..., m]).sum()} unscored"
    )
    if not np.ptp(values):
      yield f"reward {name} is {values[0]:g} for each response: {_NOTHING}"
  print(
    f"length: mean {result.lengths.mean():.1f} tokens, "
    f"{100 * result.ended.mean():.0f} % ended by themselves"
  )
