"""Dry-runs a config: looks at everything once before it costs hours.

  python experiments/doctor.py \
    --config=configs/saw/tool_calling.py:row=gdpo_saw,scale=tiny

Checks the task (each gold answer scores the maximum, damaged ones what they
should), then samples a few responses and prints prompts, completions, masks and
rewards. Ends with status 1 if something is wrong: a gold answer that does not
score the maximum, a reward that is the same for every response, responses that
could not be scored.

Where the task has episodes, it plays some worlds and prints an episode of each.

With --data=FILE it only checks that file of ToolRL rows, or, with --task=math
or --task=knights, that file of mathematical problems or puzzles.
"""

import numpy as np
from absl import flags

from saw_jax.run import command_line

_CONFIG = command_line.define_config()
_DATA = flags.DEFINE_string(
  "data", None, "Check this file of rows of --task and nothing else."
)
_TASK = flags.DEFINE_enum(
  "task",
  "tool_calling",
  ["tool_calling", "math", "knights"],
  "What the rows of --data are.",
)
_PROMPTS = flags.DEFINE_integer("prompts", 8, "Prompts that are sampled.", 1)
_SHOW = flags.DEFINE_integer("show", 2, "Prompts that are printed.", 0)
_EXAMPLES = flags.DEFINE_integer(
  "examples", 200, "Examples of each split whose gold answers are checked.", 1
)


def main() -> int:
  from saw_jax.tasks import inspection
  from saw_jax.tasks.knights import task as knights
  from saw_jax.tasks.math import task as math_task
  from saw_jax.tasks.tool_calling import task as tool_calling

  if _DATA.value:
    if _TASK.value == "math":
      config = math_task.MathConfig(test_path=_DATA.value)
      task = math_task.MathTask(config)
    elif _TASK.value == "knights":
      config = knights.KnightsConfig(test_path=_DATA.value)
      task = knights.KnightsTask(config)
    else:
      config = tool_calling.ToolCallingConfig(test_path=_DATA.value)
      task = tool_calling.ToolCallingTask(config)
    with command_line.checking_input():
      return _report(_check_task(task, ["test"], inspection))
  if _CONFIG.value is None:
    raise command_line.UsageError(
      "give --config=configs/...py:arguments or --data=FILE"
    )

  from saw_jax.run import build

  with command_line.checking_input():
    experiment = build.build(_CONFIG.value)
    if experiment.method.per_step:
      return _report(_check_episodes(experiment))
    problems = _check_task(experiment.task, ["train", "test"], inspection)
  problems += _check_rollout(experiment)
  return _report(problems)


def _check_episodes(experiment) -> list[str]:
  """Plays a few worlds, and prints one episode of some of them."""
  from saw_jax.run import experiment as experiment_lib

  made = experiment._replace(
    parallel=type(experiment.parallel)(lift="seeded"),
    lora=type(experiment.lora)(),  # Adapters change nothing at the start.
    evaluation=type(experiment.evaluation)(
      split="train",
      num_examples=_PROMPTS.value,
      samples=experiment.loop.group_size,
      temperature=experiment.sampling.temperature,
    ),
  )
  policy = experiment_lib.make_policy(made, 1)
  played = experiment_lib.play(made, policy, "sampled")
  shape = played.returns.shape[1:]
  for p in range(min(shape[0], _SHOW.value)):
    print("=" * 72)
    for number, turn in enumerate(played.turns[0][p * shape[1]], 1):
      print(f"[step {number}, prompt] {turn.prompt}")
      mark = "" if turn.valid else ", does not parse"
      print(f"[policy{mark}] {turn.reply}")
      print(f"[observation, reward {turn.reward:g}] {turn.observation}")
  print("=" * 72)
  returns, steps = played.returns[0], played.steps[0]
  invalid = played.invalid[0][steps]
  varied = (returns.max(-1) > returns.min(-1)).mean()
  print(
    f"{returns.size} episodes of {shape[0]} worlds: return mean "
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


def _check_task(task, splits, inspection) -> list[str]:
  problems = []
  if getattr(task, "stand_in", ""):
    print(f"rewards of this task: {task.stand_in}")
  for split in splits:
    examples = task.examples(split)
    # Where only a judge can say what is best, none is asked for that.
    has_gold = getattr(task, "has_gold", True)
    count = min(len(examples), _EXAMPLES.value) if has_gold else 0
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


def _check_rollout(experiment) -> list[str]:
  from saw_jax.rollout import transcript
  from saw_jax.run import experiment as experiment_lib
  from saw_jax.run import rollouts
  from saw_jax.tasks.workers.grading import Grader

  group = experiment.loop.group_size
  examples = experiment.task.examples("train")
  chosen = [examples[i] for i in range(min(len(examples), _PROMPTS.value))]
  lift_free = experiment._replace(
    parallel=type(experiment.parallel)(lift="seeded"),
    lora=type(experiment.lora)(),  # Adapters change nothing at the start.
  )
  policy = experiment_lib.make_policy(lift_free, 1)
  encoder = rollouts.Encoder(experiment.tokenizer, experiment.rollout)
  generate = rollouts.make_generate(
    policy.lift,
    policy.decoder,
    encoder.settings(experiment.sampling, group),
  )
  ids = np.array([[example.key for example in chosen]])
  sampled = rollouts.sample(
    generate,
    policy.params,
    [chosen],
    rollouts.row_keys([0], 0, ids, group),
    encoder=encoder,
    multiple=experiment.rollout.completion_multiple,
  )
  with Grader(
    experiment.task,
    num_workers=experiment.grading.num_workers,
    limit_s=experiment.grading.limit_s,
    crash_tolerance=0.0,
  ) as grader:
    result = rollouts.score(
      sampled, [chosen], tokenizer=experiment.tokenizer, grader=grader
    )

  marks = {
    transcript.PAD: "-",
    transcript.PROMPT: "p",
    transcript.POLICY: "X",
    transcript.OBSERVATION: "o",
    transcript.GLUE: "g",
  }
  components = experiment.task.components
  for p in range(min(len(chosen), _SHOW.value)):
    print("=" * 72)
    for message in chosen[p].messages:
      print(f"[{message['role']}] {message['content']}")
    print(f"[reference] {chosen[p].reference}")
    for g in range(min(group, 3)):
      row = p * group + g
      values = ", ".join(
        f"{component.name} {result.rewards[0, p, g, m]:.3f}"
        if result.scored[0, p, g, m]
        else f"{component.name} unscored"
        for m, component in enumerate(components)
      )
      print("-" * 72)
      print(f"[response {g}: {values}, {result.outcomes[row].value}]")
      print(result.completions[row])
      roles = "".join(marks[int(r)] for r in sampled.roles[0, row])
      print(f"[mask] {roles}")
  print("=" * 72)
  print("mask: p prompt, X policy (in the loss), o observation, g glue, - pad")

  problems = []
  for m, component in enumerate(components):
    values = result.rewards[..., m][result.scored[..., m]]
    if values.size == 0:
      problems.append(f"reward {component.name} scored no response")
      continue
    print(
      f"reward {component.name}: mean {values.mean():.3f}, std "
      f"{values.std():.3f}, range [{values.min():.3f}, {values.max():.3f}] of "
      f"[{component.minimum:g}, {component.maximum:g}], "
      f"{(~result.scored[..., m]).sum()} unscored"
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


def _report(problems: list[str]) -> int:
  for problem in problems[:20]:
    print(f"PROBLEM: {problem}")
  if len(problems) > 20:
    print(f"... and {len(problems) - 20} more")
  print(
    "doctor: " + (f"{len(problems)} problem(s)" if problems else "all well")
  )
  return 1 if problems else 0


if __name__ == "__main__":
  command_line.run(main)
