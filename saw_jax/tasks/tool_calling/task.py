"""Tool calling, as ToolRL has it: a request, tools on offer, JSON calls.

Qian et al., ToolRL: Reward is All Tool Learning Needs.
https://arxiv.org/abs/2504.13958
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from saw_jax.tasks import answer_task, base, row_files
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.tool_calling import answers, bfcl, catalogue, rewards

# A byte-level BPE of generated examples, see `tasks.make_tokenizer`.
VOCABULARY = pathlib.Path(__file__).parent / "assets/tool_calling_bpe.json"
# What ToolRL's own ground truths have in place of a thought.
_PLACEHOLDER = (
  "I should use the appropriate tool with proper parameters to respond to the "
  "user's need."
)


@dataclasses.dataclass(frozen=True)
class ToolCallingConfig:
  """Where examples come from, and what generated ones look like."""

  seed: int = 0
  num_train: int = 8192
  num_test: int = 256
  call_weights: tuple[float, ...] = (0.7, 0.2, 0.1)  # One, two, three calls.
  no_call_share: float = 0.15
  num_distractors: tuple[int, int] = (1, 2)  # Offered, not needed.
  max_tools: int = 3  # Offered in all, unless the calls need more.
  # Files of ToolRL (.parquet, .json, .jsonl); with them, nothing is generated.
  train_path: str | None = None
  test_path: str | None = None

  def __post_init__(self):
    low, high = self.num_distractors
    if not 0 <= low <= high:
      raise ValueError(f"num_distractors is not a range: {low}, {high}.")
    if not 0 <= self.no_call_share <= 1:
      raise ValueError(f"no_call_share is not a share: {self.no_call_share}.")
    weights = self.call_weights
    if not 1 <= len(weights) <= 3 or min(weights) < 0 or sum(weights) <= 0:
      raise ValueError(f"call_weights are not one to three weights: {weights}.")


class ToolCallingTask(base.Splits):
  """Tool calling with the two rewards of ToolRL: correctness, then format."""

  name = "tool_calling"
  components = (
    base.Component("correctness", -3.0, 3.0),
    base.Component("format", 0.0, 1.0),
  )

  def __init__(self, config: ToolCallingConfig | None = None):
    self.config = ToolCallingConfig() if config is None else config

  @property
  def splits(self) -> tuple[str, ...]:
    return ("train", "test", *bfcl.SPLITS)

  def score(self, example: base.Example, completion: str) -> base.Score:
    if example.key >= bfcl.FIRST_KEY:
      return bfcl.score(example, completion)
    answer = rewards.extract_completion(completion)
    reference = example.reference
    is_formatted = rewards.format_reward(answer, reference)
    if rewards.CALL in reference:
      gold = rewards.read_calls(reference)
      share = rewards.call_score(answer, gold)
      correctness = -3.0 if share is None else 6.0 * share - 3.0
      readable, right = share is not None, share == 1.0
    else:
      tags = (rewards.RESPONSE, rewards.END_RESPONSE)
      correctness, right = 0.0, True
      readable = is_formatted or all(tag in answer for tag in tags)
    outcome = (
      base.Outcome.RIGHT if right and is_formatted else base.Outcome.WRONG
    )
    if not readable:
      outcome = base.Outcome.UNPARSABLE
    return base.Score((correctness, is_formatted), outcome)

  def observe(self, example: base.Example, completion: str) -> str:
    """Returns what the offered tools say to the calls; reads no reference."""
    if "offered" not in example.meta:
      raise ValueError(
        f"example {example.key} comes from a file, and its tools cannot be "
        "run: algorithm.world_model.loss has to be 'none'"
      )
    return catalogue.run_calls(
      rewards.extract_completion(completion),
      [catalogue.TOOLS[name] for name in example.meta["offered"]],
    )

  def answer_key(
    self, completion: str, example: base.Example | None = None
  ) -> str | None:
    return answers.canonical(rewards.extract_completion(completion))

  def label_form(self, example: base.Example) -> str:
    return "calls"

  def with_label(self, example: base.Example, label: str) -> base.Example:
    """Takes a reference of the task, or calls as `answer_key` has them."""
    if rewards.format_reward(label, label) != 1.0:
      label = answers.write_label(label, _PLACEHOLDER)
    return dataclasses.replace(example, reference=label)

  def gold_completion(self, example: base.Example) -> str:
    if example.key >= bfcl.FIRST_KEY:
      return bfcl.gold_completion(example)
    return example.reference

  def best_values(self, example: base.Example) -> tuple[float, float]:
    if example.key >= bfcl.FIRST_KEY:
      return (3.0, 1.0)
    return (3.0 if rewards.CALL in example.reference else 0.0, 1.0)

  def damages(self, example: base.Example) -> Iterator[answer_task.Damage]:
    best, _ = self.best_values(example)
    offered = example.meta.get("offered", ())
    return answers.damages(example.key, example.reference, offered, best)

  def averages(
    self, examples: Sequence[base.Example], right: Sequence[float]
  ) -> dict[str, float]:
    """Averages right answers on BFCL; examples of other splits do not count."""
    pairs = [
      (example.meta["category"], value)
      for example, value in zip(examples, right, strict=True)
      if example.key >= bfcl.FIRST_KEY
    ]
    return bfcl.averages(*zip(*pairs, strict=True)) if pairs else {}

  def demonstrations(
    self, count: int, *, seed: int, format_rate: float, call_rate: float
  ) -> list[tuple[base.Example, str]]:
    """Returns training examples with answers that are right at given rates.

    They are the rates of `answers.demonstrate`.
    """
    answer_task.check_rates(format_rate, call_rate)
    pairs = []
    for example, draws in answer_task.demonstration_draws(
      self, "demonstration", count, seed
    ):
      offered = example.meta.get("offered", ())
      text = answers.demonstrate(
        draws, example.reference, offered, format_rate, call_rate
      )
      pairs.append((example, text))
    return pairs

  def _make(self, split: str) -> Sequence[base.Example]:
    config = self.config
    paths = {"train": config.train_path, "test": config.test_path}
    if split in bfcl.SPLITS:
      # In the words of the files that the policy was trained on.
      trained = next((path for path in paths.values() if path), None)
      frame = trained and bfcl.find_frame(read_examples(trained)[0])
      return bfcl.read_split(split, frame=frame)
    if not any(paths.values()):
      sizes = {"train": config.num_train, "test": config.num_test}
      make = functools.partial(_generate, config, split)
      return base.LazyExamples(make, sizes[split])
    if paths[split] is None:
      raise ValueError(f"{split}_path is not set, and the other path is.")
    return read_examples(paths[split], first_key=_first_key(split))


def _first_key(split: str) -> int:
  return answer_task.TEST_KEYS if split == "test" else 0


def _generate(
  config: ToolCallingConfig, split: str, index: int
) -> base.Example:
  draws = Draws("tool_calling", config.seed, split, index)
  scenario = catalogue.draw_scenario(draws, split, config)
  signatures = "\n".join(tool.signature for tool in scenario.offered)
  offered = tuple(tool.name for tool in scenario.offered)
  return base.Example(
    _first_key(split) + index,
    _messages(signatures, scenario.request),
    answers.write(scenario),
    {"offered": offered, "asked": scenario.asked},
  )


def _messages(system: str, user: str) -> answer_task.Messages:
  return ({"role": "system", "content": system}, *answer_task.ask(user))


def read_examples(
  path: str | pathlib.Path, *, first_key: int = 0
) -> list[base.Example]:
  """Reads a file of ToolRL, counting keys by row.

  It is a `.parquet` file in verl's schema (prompt, reward_model), or a `.json`
  or `.jsonl` file with instruction, input and output. A thought may name the
  tags: that of an output becomes a placeholder; `meta["output"]` keeps it.
  """
  is_verl = pathlib.Path(path).suffix == ".parquet"
  parse = _from_verl if is_verl else _from_instruction
  rows = row_files.parse_rows(path, parse)
  return [base.Example(first_key + n, *row) for n, row in enumerate(rows)]


def _from_verl(row: Any):
  messages = row_files.messages(row)
  if not messages:
    raise ValueError("field 'prompt' is empty")
  model = row_files.field(row, "reward_model", dict)
  reference = row_files.field(model, "ground_truth", str).strip()
  return messages, _checked(reference), {}


def _from_instruction(row: Any):
  system = row_files.field(row, "instruction", str)
  messages = _messages(system, row_files.field(row, "input", str))
  output = row_files.field(row, "output", str).strip()
  _, tag, rest = output.rpartition("</think>")
  reference = f"<think> {_PLACEHOLDER} </think>{rest}" if tag else output
  return messages, _checked(reference), {"output": output}


def _checked(reference: str) -> str:
  if rewards.CALL in reference:
    rewards.read_calls(reference)
  if rewards.format_reward(reference, reference) != 1.0:
    raise ValueError("the reference is not in the rewarded format")
  return reference
