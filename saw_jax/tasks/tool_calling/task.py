"""Tool calling, as ToolRL has it: a request, tools on offer, JSON calls.

Qian et al., ToolRL: Reward is All Tool Learning Needs.
https://arxiv.org/abs/2504.13958
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saw_jax.tasks import answer_task, base, row_files
from saw_jax.tasks.draws import Draws
from saw_jax.tasks.row_files import field
from saw_jax.tasks.tool_calling import answers, bfcl, catalogue, rewards

# A byte-level BPE, made by experiments/make_vocabularies.py.
VOCABULARY = pathlib.Path(__file__).parent / "assets/tool_calling_bpe.json"
# What ToolRL's own ground truths have in place of a thought.
_PLACEHOLDER = (
  "I should use the appropriate tool with proper parameters to respond to the "
  "user's need."
)


def _read_row(row: Any) -> answer_task.Row:
  """Reads a row of verl's schema, or one with instruction, input and output.

  A thought of an output may name the tags: it becomes a placeholder.
  """
  if isinstance(row, Mapping) and {"prompt", "reward_model"} & set(row):
    messages, meta = row_files.messages(row), {}
    if not messages:
      raise ValueError("field 'prompt' is empty")
    model = field(row, "reward_model", dict)
    reference = field(model, "ground_truth", str).strip()
  else:
    system = {"role": "system", "content": field(row, "instruction", str)}
    messages = (system, *answer_task.ask(field(row, "input", str)))
    output = rewards.hide_tags(field(row, "output", str).strip())
    _, tag, rest = output.rpartition("</think>")
    reference = f"<think> {_PLACEHOLDER} </think>{rest}" if tag else output
    meta = {"output": output}
  rewards.read(reference)  # Raises what is wrong with it.
  return messages, reference, meta


@dataclasses.dataclass(frozen=True)
class ToolCallingConfig(answer_task.AnswerConfig):
  """Where examples come from, and what generated ones look like.

  Files are ToolRL's, in verl's schema (prompt, reward_model), or with
  instruction, input and output. BFCL's splits are always there.
  """

  call_weights: tuple[float, ...] = (0.7, 0.2, 0.1)  # One, two, three calls.
  no_call_share: float = 0.15
  num_distractors: tuple[int, int] = (1, 2)  # Offered, not needed.
  max_tools: int = 3  # Offered in all, unless the calls need more.

  def __post_init__(self):
    low, high = self.num_distractors
    if not 0 <= low <= high:
      raise ValueError(f"num_distractors is not a range: {low}, {high}.")
    base.check_range(self, "[0, 1]", "no_call_share")
    weights = self.call_weights
    if not 1 <= len(weights) <= 3 or min(weights) < 0 or sum(weights) <= 0:
      raise ValueError(f"call_weights are not one to three weights: {weights}.")
    super().__post_init__()

  @property
  def generated_splits(self) -> tuple[str, ...]:
    return bfcl.SPLITS


class ToolCallingTask(answer_task.AnswerTask):
  """Tool calling with the two rewards of ToolRL: correctness, then format."""

  name = "tool_calling"
  components = (
    base.Component("correctness", -3.0, 3.0),
    base.Component("format", 0.0, 1.0),
  )
  Config = ToolCallingConfig
  _parse = staticmethod(_read_row)
  _shows = "demonstration"
  _key_gaps = (1, 0)  # The first place is BFCL's.

  def score(self, example: base.Example, completion: str) -> base.Score:
    if bfcl.is_entry(example):
      return bfcl.score(example, completion)
    answer = rewards.extract_completion(completion)
    reference = example.reference
    is_formatted = rewards.format_reward(answer, reference)
    if rewards.CALL in reference:
      share = rewards.call_score(answer, rewards.read_calls(reference))
      correctness = -3.0 if share is None else 6.0 * share - 3.0
      readable, right = share is not None, share == 1.0
    else:
      correctness, right = 0.0, True
      readable = is_formatted or rewards.has_response(answer)
    outcome = base.Outcome.WRONG
    if not readable:
      outcome = base.Outcome.UNPARSABLE
    elif right and is_formatted:
      outcome = base.Outcome.RIGHT
    return base.Score((correctness, is_formatted), outcome)

  def observe(self, example: base.Example, completion: str) -> str:
    """Returns what the offered tools say to the calls; reads no reference."""
    if "offered" not in example.meta:
      raise ValueError(
        f"example {example.key} comes from a file, and its tools cannot be "
        "run: algorithm.world_model.loss has to be 'none'"
      )
    answer = rewards.extract_completion(completion)
    return catalogue.run_calls(answer, example.meta["offered"])

  def answer_key(
    self, completion: str, example: base.Example | None = None
  ) -> str | None:
    return answers.canonical(rewards.extract_completion(completion))

  def label_form(self, example: base.Example) -> str:
    return "calls"

  def with_label(self, example: base.Example, label: str) -> base.Example:
    """Takes a reference of the task, or calls as `answer_key` has them."""
    if rewards.format_reward(label, label) != 1.0:
      parsed = answers.parse_calls(label)
      if parsed is None:
        raise ValueError(f"these are no calls: {label[:60]!r}")
      calls, has_response = json.loads(parsed).values()
      said = "ok" if has_response else None
      label = rewards.write(rewards.Answer(_PLACEHOLDER, tuple(calls), said))
    return dataclasses.replace(example, reference=label)

  def gold_completion(self, example: base.Example) -> str:
    if bfcl.is_entry(example):
      return bfcl.gold_completion(example)
    return example.reference

  def best_values(self, example: base.Example) -> tuple[float, float]:
    has_calls = bfcl.is_entry(example) or rewards.CALL in example.reference
    return 3.0 if has_calls else 0.0, 1.0

  def damages(self, example: base.Example) -> Iterator[answer_task.Damage]:
    gold, (best, _) = self.gold_completion(example), self.best_values(example)
    yield from answers.format_damages(gold, best)
    if not bfcl.is_entry(example):  # Its checker knows right and wrong alone.
      offered = example.meta.get("offered", ())
      yield from answers.call_damages(example.key, gold, offered)

  def averages(
    self, examples: Sequence[base.Example], right: Sequence[float]
  ) -> dict[str, float]:
    """Averages right answers on BFCL; examples of other splits do not count."""
    return bfcl.averages(
      (example.meta["category"], value)
      for example, value in zip(examples, right, strict=True)
      if bfcl.is_entry(example)
    )

  def demonstrate(
    self,
    example: base.Example,
    draws: Draws,
    *,
    format_rate: float,
    call_rate: float,
  ) -> tuple[base.Example, str]:
    """Answers with a format and with calls that are each right at a rate.

    The two are independent, and no format mistake hides a call.
    """
    answer = rewards.read(example.reference)
    right_format = draws.chance(format_rate)
    body = None
    if not draws.chance(call_rate) and answer.calls:
      offered = example.meta.get("offered", ())
      body = answers.damage_calls(draws, answer.calls, offered)
    text = rewards.write(answer, body)
    return example, text if right_format else answers.damage_format(draws, text)

  def _make(self, split: str) -> Sequence[base.Example]:
    if split not in bfcl.SPLITS:
      return super()._make(split)
    # In the words of the files that the policy was trained on.
    trained = self.config.train_path or self.config.test_path
    frame = trained and bfcl.find_frame(self._read(trained, 0)[0])
    return bfcl.read_split(split, frame)

  def _draw(self, split: str, index: int) -> answer_task.Row:
    draws = Draws("tool_calling", self.config.seed, split, index)
    return catalogue.draw_row(draws, split, self.config)
