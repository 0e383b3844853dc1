"""A dry run of an experiment: prints what it sees, and returns the problems."""

from collections.abc import Sequence

from saw_jax.models.lora import LoraConfig
from saw_jax.rollout import transcript
from saw_jax.run import experiment as experiment_lib
from saw_jax.run import rollouts
from saw_jax.run.sections import EvaluationConfig, Experiment
from saw_jax.tasks import inspection
from saw_jax.tasks.base import Task
from saw_jax.tasks.workers.grading import Grader
from saw_jax.training.parallel import ParallelConfig

_LINE = "=" * 72
_MARKS = {
  transcript.PAD: "-",
  transcript.PROMPT: "p",
  transcript.POLICY: "X",
  transcript.OBSERVATION: "o",
  transcript.GLUE: "g",
}


def check_sampling(
  experiment: Experiment, *, prompts: int, shown: int
) -> list[str]:
  """Samples and scores some prompts, or plays some worlds, once."""
  # Adapters change nothing at the start.
  bare = experiment._replace(parallel=ParallelConfig(), lora=LoraConfig())
  check = _check_episodes if experiment.method.per_step else _check_answers
  return check(bare, prompts, shown)


def check_task(task: Task, splits: Sequence[str], limit: int) -> list[str]:
  """Checks that gold answers score the most, and damaged ones as they must."""
  problems = []
  if getattr(task, "stand_in", ""):
    print(f"rewards of this task: {task.stand_in}")
  for split in splits:
    examples = task.examples(split)
    # Where only a judge can say what is best, none is asked for that.
    has_gold = getattr(task, "has_gold", True)
    count = min(len(examples), limit) if has_gold else 0
    chosen = [examples[i] for i in range(count)]
    failures = inspection.gold_failures(task, chosen)
    damaged = inspection.damage_failures(task, chosen)
    print(
      f"{split}: {len(examples)} examples, {count} checked; gold answers below "
      f"the maximum: {len(failures)}; damaged answers scored wrongly: "
      f"{len(damaged)}"
    )
    problems += [f"{split}: {failure}" for failure in failures + damaged]
  return problems


def _check_episodes(
  experiment: Experiment, worlds: int, shown: int
) -> list[str]:
  made = experiment._replace(
    evaluation=EvaluationConfig(
      split="train",
      num_examples=worlds,
      samples=experiment.loop.group_size,
      temperature=experiment.sampling.temperature,
    ),
  )
  policy = experiment_lib.Policy(made, 1)
  played = experiment_lib.kind_of(made).play(policy)
  worlds, group = played.returns.shape[1:]
  for p in range(min(worlds, shown)):
    print(_LINE)
    for number, turn in enumerate(played.turns[0][p * group], 1):
      print(f"[step {number}, prompt] {turn.prompt}")
      mark = "" if turn.valid else ", does not parse"
      print(f"[policy{mark}] {turn.reply}")
      print(f"[observation, reward {turn.reward:g}] {turn.observation}")
  print(_LINE)
  returns, steps = played.returns[0], played.steps[0]
  invalid = played.invalid[0][steps]
  varied = (returns.max(-1) > returns.min(-1)).mean()
  print(
    f"{returns.size} episodes of {worlds} worlds: return mean "
    f"{returns.mean():.3f}, at most {made.task.max_return:g}; steps mean "
    f"{steps.sum(-1).mean():.1f} of {made.task.max_steps}; replies that do not "
    f"parse {100 * invalid.mean() if invalid.size else 0:.1f} %; groups whose "
    f"returns differ {100 * varied:.0f} %"
  )
  problems = []
  if played.failed.any():
    problems.append(f"{played.failed.sum()} environments failed")
  if returns.min() == returns.max():
    problems.append(
      f"each of {returns.size} episodes pays {returns.flat[0]:g}: there is "
      "nothing to learn from it"
    )
  return problems


def _check_answers(experiment: Experiment, count: int, shown: int) -> list[str]:
  task, group = experiment.task, experiment.loop.group_size
  examples = task.examples("train")
  chosen = [examples[i] for i in range(min(len(examples), count))]
  policy = experiment_lib.Policy(experiment, 1)
  sampled = rollouts.sample(
    policy.make_generate(experiment.sampling, group),
    policy.params,
    [chosen],
    rollouts.example_keys([0], 0, [chosen], group),
    encoder=policy.encoder,
    multiple=experiment.rollout.completion_multiple,
  )
  with Grader(
    task,
    num_workers=experiment.grading.num_workers,
    limit_s=experiment.grading.limit_s,
    crash_tolerance=0.0,
  ) as grader:
    result = rollouts.score(sampled, [chosen], grader, policy.encoder)

  for p in range(min(len(chosen), shown)):
    print(_LINE)
    for message in chosen[p].messages:
      print(f"[{message['role']}] {message['content']}")
    print(f"[reference] {chosen[p].reference}")
    for g in range(min(group, 3)):
      row = p * group + g
      rewards, scored = result.rewards[0, p, g], result.scored[0, p, g]
      values = ", ".join(
        f"{c.name} {rewards[m]:.3f}" if scored[m] else f"{c.name} unscored"
        for m, c in enumerate(task.components)
      )
      print("-" * 72)
      print(f"[response {g}: {values}, {result.outcomes[row].value}]")
      print(result.completions[row])
      print("[mask]", "".join(_MARKS[int(r)] for r in sampled.roles[0, row]))
  print(_LINE)
  print("mask: p prompt, X policy (in the loss), o observation, g glue, - pad")

  problems = []
  for m, component in enumerate(task.components):
    is_scored = result.scored[..., m]
    values = result.rewards[..., m][is_scored]
    if values.size == 0:
      problems.append(f"reward {component.name} scored no response")
      continue
    print(
      f"reward {component.name}: mean {values.mean():.3f}, std "
      f"{values.std():.3f}, range [{values.min():.3f}, {values.max():.3f}] of "
      f"[{component.minimum:g}, {component.maximum:g}], "
      f"{(~is_scored).sum()} unscored"
    )
    if values.min() == values.max():
      problems.append(
        f"reward {component.name} is {values[0]:g} for each of "
        f"{values.size} responses: there is nothing to learn from it"
      )
  print(
    f"length: mean {result.lengths.mean():.1f} tokens, "
    f"{100 * result.ended.mean():.0f} % ended by themselves"
  )
  return problems
