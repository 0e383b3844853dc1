"""What the driver and its workers share: shapes, jobs, and how they talk."""

import dataclasses
import json
import os
import sys
import time
import traceback

import numpy as np

JOBS = ("forward", "train", "generate")
# Tokens that no prompt and no completion holds.
PAD, EOS, FIRST = 0, 1, 3
# The same optimizer for all: clipped by the global norm, then AdamW.
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM, CLIP = 1e-6, 0.01, 1.0, 0.2


@dataclasses.dataclass(frozen=True)
class Shape:
  """A decoder of Qwen2's kind with a tied head, and a batch."""

  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_size: int
  mlp_size: int
  num_prompts: int
  group_size: int
  prompt_size: int
  new_tokens: int
  chunk_size: int = 1024  # config.loop.chunk_size of ours

  @property
  def rows(self) -> int:
    return self.num_prompts * self.group_size

  @property
  def length(self) -> int:
    return self.prompt_size + self.new_tokens

  @property
  def tokens(self) -> dict[str, int]:
    """Tokens that a job passes through the model, or samples."""
    read = self.rows * self.length
    return {
      "forward": read,
      "train": read,
      "generate": self.rows * self.new_tokens,
    }


SHAPES = {
  "S": Shape(512, 64, 2, 4, 2, 16, 192, 4, 2, 8, 16),
  "M": Shape(32_000, 256, 6, 8, 4, 32, 1024, 8, 8, 32, 96),
  # All logits would be 0.93 GB; a chunk of them is 78 MB.
  "L": Shape(151_936, 128, 2, 4, 2, 32, 512, 4, 4, 32, 96, chunk_size=128),
}
# In how many parts the rows of these jobs may pass through the model, one part
# after the other: what the driver tries for each peer.
PARTED, PARTS = ("forward", "train"), (1, 8, 16)


def memory() -> dict[str, int]:
  """Bytes of this process: resident now, and at most since the last reset."""
  found = {}
  with open("/proc/self/status", encoding="ascii") as file:
    for line in file:
      name, _, value = line.partition(":")
      if name in ("VmRSS", "VmHWM"):
        found[name] = int(value.split()[0]) * 1024
  return {"resident": found["VmRSS"], "peak": found["VmHWM"]}


def forget_peak() -> None:
  """Lets the peak of `memory` begin again at what is resident now."""
  with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
    file.write("5")


class Worker:
  """The operations of a worker; a peer fills in the jobs.

  A subclass has `load(directory)`, `versions()`, `logits(rows)`, `log_probs()`,
  `small_train(rows, variant)`, and one method for each of `JOBS` that returns
  numbers by name when it is done. It reads `shape`, `parts` and `data`.
  """

  parts = dict.fromkeys(PARTED, 1)

  def open(
    self, directory: str, data: str, shape: str, parts: dict[str, int]
  ) -> dict:
    self.shape, self.parts = SHAPES[shape], parts
    self.data = dict(np.load(data)) if os.path.exists(data) else {}
    self.load(directory)
    return {"versions": self.versions(), **memory()}

  def check(self, rows: int, path: str) -> dict:
    """Writes logits of some rows and log-probs of all, to be compared."""
    np.savez(path, logits=self.logits(rows), log_probs=self.log_probs())
    return {}

  def run(self, job: str) -> dict:
    begin = time.perf_counter()
    values = getattr(self, job)()
    return {"seconds": time.perf_counter() - begin, "values": values}

  def memory(self) -> dict:
    return memory()

  def forget_peak(self) -> dict:
    forget_peak()
    return {}

  def compile(self, shape: str, layers: int, rows: int, variant: str) -> dict:
    """Times a first train step, less what a later one takes."""
    self.shape = dataclasses.replace(SHAPES[shape], num_layers=layers)
    step = self.small_train(rows, variant)
    seconds = []
    for _ in range(4):
      begin = time.perf_counter()
      step()
      seconds.append(time.perf_counter() - begin)
    return {"seconds": seconds[0] - sorted(seconds[1:])[1]}


def random_batch(shape: Shape, rows: int, seed: int = 0) -> dict:
  """Draws prompts, completions, advantages and old log-probs."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(FIRST, shape.vocab_size, (rows, shape.length))
  tokens = tokens.astype(np.int32)
  # The rows of a group have one prompt.
  group = min(shape.group_size, rows)
  first = tokens[::group, : shape.prompt_size]
  tokens[:, : shape.prompt_size] = np.repeat(first, group, axis=0)[:rows]
  log_probs = np.full((rows, shape.new_tokens), -np.log(shape.vocab_size))
  return {
    "tokens": tokens,
    "advantages": rng.standard_normal(rows).astype(np.float32),
    "old_log_probs": log_probs.astype(np.float32),
  }


def serve(worker: Worker) -> None:
  """Answers a JSON object a line with one; the rest of stdout is stderr's."""
  answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
  os.dup2(2, 1)
  for line in sys.stdin:
    request = json.loads(line)
    try:
      answer = getattr(worker, request.pop("op"))(**request)
    except Exception as error:
      traceback.print_exc()
      answer = {"error": f"{type(error).__name__}: {error}"}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
