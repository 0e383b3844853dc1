"""Tool calling, as ToolRL has it: a request, tools on offer, JSON calls.

Examples come from a seeded generator (scale `tiny`) or from ToolRL's own files
(the other scales); the rewards are the same.

References:
  Qian et al., "ToolRL: Reward is All Tool Learning Needs".
  https://arxiv.org/abs/2504.13958
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

from saw_jax.tasks import base, row_files
from saw_jax.tasks.tool_calling import (
  answers as tool_answers,
)
from saw_jax.tasks.tool_calling import (
  bfcl,
)
from saw_jax.tasks.tool_calling import (
  catalogue as tool_catalogue,
)
from saw_jax.tasks.tool_calling import (
  results as tool_results,
)
from saw_jax.tasks.tool_calling import (
  rewards as tool_rewards,
)
from saw_jax.tasks.tool_calling.rewards import (
  correctness_reward,
  extract_completion,
  format_reward,
)

__all__ = [
  "VOCABULARY",
  "ToolCallingConfig",
  "ToolCallingTask",
  "correctness_reward",
  "extract_completion",
  "format_reward",
  "read_examples",
]

# A byte-level BPE of generated examples, see `tasks.make_tokenizer`.
VOCABULARY = pathlib.Path(__file__).parent / "assets/tool_calling_bpe.json"
# Keys of test examples start here, so that no sample of one shares a random
# key with a sample of a training example.
TEST_KEYS = 2**30

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
    """Names of the splits; those of BFCL need its package."""
    return ("train", "test", *bfcl.SPLITS)

  def score(self, example: base.Example, completion: str) -> base.Score:
    """Returns (correctness, format) of a completion."""
    if example.key >= bfcl.FIRST_KEY:
      return bfcl.score(example, completion)
    answer = extract_completion(completion)
    reference = example.reference
    is_formatted = format_reward(answer, reference)
    if tool_rewards.CALL in reference:
      gold = tool_rewards.read_calls(reference)
      share = tool_rewards.call_score(answer, gold)
      correctness = -3.0 if share is None else 6.0 * share - 3.0
      readable, right = share is not None, share == 1.0
    else:
      tags = (tool_rewards.RESPONSE, tool_rewards.END_RESPONSE)
      correctness, right = 0.0, True
      readable = bool(is_formatted) or all(tag in answer for tag in tags)
    if not readable:
      outcome = base.Outcome.UNPARSABLE
    elif right and is_formatted:
      outcome = base.Outcome.RIGHT
    else:
      outcome = base.Outcome.WRONG
    return base.Score((correctness, is_formatted), outcome)

  def observe(self, example: base.Example, completion: str) -> str:
    """Returns what the offered tools say to the calls of a completion.

    Args:
      example: a generated one; the reference is not read.
      completion: any text.

    Returns:
      A line a call, empty where nothing is called.

    Raises:
      ValueError: the example is from a file, whose tools cannot be run.
    """
    if "offered" not in example.meta:
      raise ValueError(
        f"example {example.key} comes from a file, and its tools cannot be "
        "run: algorithm.world_model.loss has to be 'none'"
      )
    return tool_results.run_calls(
      extract_completion(completion),
      [tool_catalogue.TOOLS[name] for name in example.meta["offered"]],
    )

  def answer_key(
    self, completion: str, example: base.Example | None = None
  ) -> str | None:
    """Returns what a completion votes for: its calls, whatever its format."""
    del example  # A call has one form, whatever was asked.
    return tool_answers.canonical(extract_completion(completion))

  def label_form(self, example: base.Example) -> str:
    """Returns the form of a label."""
    del example  # The same for each.
    return "calls"

  def with_label(self, example: base.Example, label: str) -> base.Example:
    """Returns the example with a label in place of its reference.

    Args:
      example: one of the task's.
      label: a reference of the task, or calls as `answer_key` has them.

    Returns:
      The example, with all else as it was.

    Raises:
      ValueError: the label is neither.
    """
    if format_reward(label, label) != 1.0:
      label = tool_answers.write_label(label, _PLACEHOLDER)
    return dataclasses.replace(example, reference=label)

  def gold_completion(self, example: base.Example) -> str:
    """Returns a completion that is right."""
    if example.key >= bfcl.FIRST_KEY:
      return bfcl.gold_completion(example)
    return example.reference

  def best_values(self, example: base.Example) -> tuple[float, float]:
    """Returns what the right answer scores: correctness is 0 without a call."""
    if example.key >= bfcl.FIRST_KEY:
      return (3.0, 1.0)
    return (3.0 if tool_rewards.CALL in example.reference else 0.0, 1.0)

  def averages(
    self, examples: Sequence[base.Example], right: Sequence[float]
  ) -> dict[str, float]:
    """Averages an evaluation on BFCL by category, and as BFCL does.

    Args:
      examples: what was evaluated.
      right: the share of right answers to each, from 0 to 1.

    Returns:
      See `bfcl.averages`; nothing for other splits.
    """
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

    A policy warmed up on them knows each of the two rewards in part. The mean
    format reward is `format_rate`; of the answers to a request that needs a
    call, a share `call_rate` has the full correctness reward; and the two are
    independent.

    Args:
      count: how many. The training examples are gone through in order, and
        again with other answers if they are too few.
      seed: of the answers.
      format_rate: probability of the right format.
      call_rate: probability of the right calls.

    Returns:
      Pairs of an example and an answer.
    """
    for rate in (format_rate, call_rate):
      if not 0 <= rate <= 1:
        raise ValueError(f"not a probability: {rate}.")
    examples = self.examples("train")
    pairs = []
    for index in range(count):
      example = examples[index % len(examples)]
      text = tool_answers.demonstrate(
        tool_catalogue.Draws("demonstration", seed, index),
        example.reference,
        example.meta.get("offered", ()),
        format_rate=format_rate,
        call_rate=call_rate,
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
    path = paths[split]
    if path is None:
      raise ValueError(f"{split}_path is not set, and the other path is.")
    return read_examples(path, first_key=TEST_KEYS if split == "test" else 0)


def _generate(
  config: ToolCallingConfig, split: str, index: int
) -> base.Example:
  scenario = tool_catalogue.draw_scenario(
    tool_catalogue.Draws("tool_calling", config.seed, split, index),
    split,
    call_weights=config.call_weights,
    no_call_share=config.no_call_share,
    num_distractors=config.num_distractors,
    max_tools=config.max_tools,
  )
  system = "\n".join(tool.signature for tool in scenario.offered)
  answer = tool_answers.Answer(
    scenario.thought, scenario.calls, scenario.response
  )
  return base.Example(
    key=index + (TEST_KEYS if split == "test" else 0),
    messages=(
      {"role": "system", "content": system},
      {"role": "user", "content": scenario.request},
    ),
    reference=tool_answers.write(answer),
    meta={
      "offered": tuple(tool.name for tool in scenario.offered),
      "asked": scenario.asked,
    },
  )


def read_examples(
  path: str | pathlib.Path, *, first_key: int = 0
) -> list[base.Example]:
  """Reads a file of ToolRL.

  Args:
    path: a `.parquet` file in verl's schema (prompt, reward_model), or a
      `.json` or `.jsonl` file with instruction, input and output. The thought
      of such an output becomes ToolRL's placeholder in the reference, since a
      thought may name the tags; `meta["output"]` keeps it.
    first_key: key of the first example.

  Returns:
    The examples, in the file's order.

  Raises:
    ValueError: a row is broken; file and row number (from 0) are named.
    OSError: there is no such file.
    ImportError: pyarrow is missing, for a parquet file.
  """
  path = pathlib.Path(path)
  convert = _from_verl if path.suffix == ".parquet" else _from_instruction
  examples = []
  for number, row in enumerate(row_files.read_rows(path)):
    try:
      messages, reference, meta = convert(row)
      if tool_rewards.CALL in reference:
        tool_rewards.read_calls(reference)
      if format_reward(reference, reference) != 1.0:
        raise ValueError("the reference is not in the rewarded format")
    except ValueError as error:
      raise ValueError(f"{path}, row {number}: {error}") from error
    example = base.Example(first_key + number, messages, reference, meta)
    examples.append(example)
  return examples


def _from_verl(row: Any):
  messages = tuple(
    {
      "role": row_files.field(m, "role", str),
      "content": row_files.field(m, "content", str),
    }
    for m in row_files.field(row, "prompt", list)
  )
  if not messages:
    raise ValueError("field 'prompt' is empty")
  reward_model = row_files.field(row, "reward_model", dict)
  return (
    messages,
    row_files.field(reward_model, "ground_truth", str).strip(),
    {},
  )


def _from_instruction(row: Any):
  messages = (
    {"role": "system", "content": row_files.field(row, "instruction", str)},
    {"role": "user", "content": row_files.field(row, "input", str)},
  )
  output = row_files.field(row, "output", str).strip()
  _, tag, rest = output.rpartition("</think>")
  reference = f"<think> {_PLACEHOLDER} </think>{rest}" if tag else output
  return messages, reference, {"output": output}
