"""Refilled slots beside all rows at once: tokens per second, and a picture.

  python benchmarks/rollouts.py [--repetitions=7] [--only=picture]
  python benchmarks/rollouts.py --only=pages
  python benchmarks/rollouts.py --write=DIR
  python benchmarks/rollouts.py --engine=URL --model=DIR [--server="its name"]

A random policy answers prompts; of its tokens so many end a response that the
mean length is about 40 % of the most (lengths are then those of chance, as an
untrained policy's are: near to geometric, and cut), or none, so that all have
one length. Both samplers run in one process, in turn, and the ratio is the
median of those of neighbouring runs: of time on the clock, and of the time of
the processor, which other work on the machine does not count in. Writes
benchmarks/results/rollouts.{json,md} and docs/pictures/rollout_slots.png.

With --only=pages slots that have the longest row's room each are compared with
pages of as many tokens, and of fewer: benchmarks/results/rollouts_pages.md.

With --engine our sampler and a server (docs/rollouts.md has its flags) sample
in turn by the weights of --model, which the server was started with: the same
prompts, no end tokens, log-probs from both, and of the server what a run would
pay, requests included. --write makes a random Qwen2 of 33 M parameters for it.
Adds what it finds to benchmarks/results/rollouts_engine.md.
"""

import argparse
import dataclasses
import json
import pathlib
import statistics
import sys
import time

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "pictures" / "rollout_slots.png"
sys.path.insert(0, str(ROOT))

from saw_jax.models import config as config_lib  # noqa: E402
from saw_jax.models import decoder  # noqa: E402
from saw_jax.models.config import DecoderConfig  # noqa: E402
from saw_jax.models.hub import pretrained  # noqa: E402
from saw_jax.reporting import tables  # noqa: E402
from saw_jax.rollout import generate, refill, transcript  # noqa: E402
from saw_jax.rollout.engine import EngineConfig  # noqa: E402
from saw_jax.rollout.engine_servers import Servers  # noqa: E402
from saw_jax.rollout.generate import GenerateConfig  # noqa: E402
from saw_jax.rollout.sampling import SamplingConfig  # noqa: E402

KEY = jax.random.key(1)
VOCABULARY, WIDTH, LAYERS = 512, 128, 4
PROMPTS, GROUP, SIZE, MOST = 32, 8, 64, 256  # 256 rows of 64 + 256 tokens
SLOTS = (32, 64)
AT_ONCE = ((None, 0), (SLOTS[0], 0), (SLOTS[1], 0))  # slots, share of pages
PAGE, IN_PAGES = 16, ((SLOTS[0], 0), (SLOTS[0], 1.0), (SLOTS[0], 0.6))
ENDS = 5  # of 512 tokens: the mean is about 0.4 of the most
# Prompts, responses to each, and tokens of a response: 64 rows, and 16.
CALLS = ((16, 4, 64), (4, 4, 512))
QWEN = DecoderConfig(
  vocab_size=16_000,
  width=512,
  num_layers=8,
  num_heads=8,
  num_kv_heads=4,
  head_size=64,
  mlp_size=1536,
  qkv_bias=True,
)

HEAD = """\
# Our sampler beside a server

`python benchmarks/rollouts.py --engine=URL --model=DIR`, docs/rollouts.md has
the server's flags: rows of 64 + so many tokens, four to a prompt, float32, on
{cores} cores that both have. Tokens a second and ratios are medians over
neighbouring runs; a ratio above 1 says that ours is the faster one.

| model | server | rows | ours, tokens/s | server's | ratio | range | runs |
| --- | --- | --- | ---: | ---: | ---: | --- | ---: |"""


def model():
  config = dataclasses.replace(
    config_lib.TINY,
    vocab_size=VOCABULARY,
    width=WIDTH,
    num_layers=LAYERS,
    num_heads=4,
    num_kv_heads=2,
    head_size=32,
    mlp_size=3 * WIDTH,
  )
  return config, decoder.init_params(config, jax.random.key(0))


def asked():
  rng = np.random.default_rng(0)
  sizes = rng.integers(SIZE // 2, SIZE + 1, PROMPTS)
  prompts = transcript.pad_prompts(
    [rng.integers(0, VOCABULARY, size) for size in sizes], multiple=SIZE
  )
  keys = generate.row_keys(jax.random.key(1), 0, prompts.ids, GROUP)
  return prompts, keys


def settings(ends: int, slots: int | None, share: float) -> GenerateConfig:
  """Room for so many slots, or that share of it in pages."""
  room = (slots or 0) * (SIZE + MOST - 1) + PROMPTS * SIZE
  config = GenerateConfig(
    max_new_tokens=MOST,
    group_size=GROUP,
    eos_ids=tuple(range(ends)),
    cache_tokens=int(room * (share or 1)) if slots else 0,
    page_size=PAGE if share else 0,
  )
  if slots and not share:
    assert refill.slots(config, PROMPTS, SIZE) == (slots, PROMPTS, 0)
  return config


def timed(sample, args):
  clock, busy = time.perf_counter(), time.process_time()
  found = jax.block_until_ready(sample(*args))
  return found, time.perf_counter() - clock, time.process_time() - busy


def compare(ends: int, repetitions: int, choices=AT_ONCE) -> dict:
  """Runs all samplers in turn, and compares them with the first."""
  config, params = model()
  args = (params, *asked())
  how = [settings(ends, *choice) for choice in choices]
  samplers = [refill.make_generate(config, one) for one in how]
  firsts = [timed(sample, args)[0] for sample in samplers]
  lengths = np.asarray(firsts[0].completion_lengths)
  runs = [
    [timed(sample, args)[1:] for sample in samplers] for _ in range(repetitions)
  ]

  def ratio(k: int, what: int) -> float:
    return statistics.median(run[0][what] / run[k][what] for run in runs)

  def differing(k: int) -> int:
    others = np.asarray(firsts[k].tokens) != np.asarray(firsts[0].tokens)
    return int(others.any(-1).sum())

  return {
    "rows": len(lengths),
    "mean_length": float(lengths.mean() / MOST),
    "at_most": float((lengths == MOST).mean()),
    "lengths": lengths.tolist(),
    "samplers": [
      {
        "slots": refill.slots(one, PROMPTS, SIZE)[0],
        "cache_tokens": one.cache_tokens,
        "page_size": one.page_size,
        "tokens_per_second": float(
          lengths.sum() / statistics.median(run[k][0] for run in runs)
        ),
        "ratio": ratio(k, 0),
        "processor_ratio": ratio(k, 1),
        "rows_that_differ": differing(k),
      }
      for k, one in enumerate(how)
    ],
  }


def schedule(lengths, slots: int, period: int = 1) -> list[list[tuple]]:
  """When each slot has which row, as `refill` decides: `(row, begin, end)`.

  The first token of a row comes with its prompt; each other one is a step.
  """
  waiting, time_now = iter(enumerate(lengths)), 0
  left, busy = [0] * slots, [[] for _ in range(slots)]
  row = next(waiting, None)
  while row is not None or any(left):
    for slot in range(slots):
      if not left[slot] and row is not None:
        index, length = row
        left[slot] = length - 1
        busy[slot].append((index, time_now, time_now + length - 1))
        row = next(waiting, None)
    steps = min(period, max(left))
    left = [max(0, x - steps) for x in left]
    time_now += steps
  return busy


def picture(lengths, slots: int) -> None:
  import matplotlib as mpl

  mpl.use("Agg")
  from matplotlib import pyplot as plt

  plans = {
    f"all {len(lengths)} rows at once": schedule(lengths, len(lengths)),
    f"{slots} slots that are refilled": schedule(lengths, slots),
  }
  figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=(1, 2.2))
  colours = plt.get_cmap("tab20").colors
  for axis, (title, plan) in zip(axes, plans.items(), strict=True):
    for slot, own in enumerate(plan):
      for row, begin, end in own:
        colour = colours[(row // GROUP) % len(colours)]
        axis.barh(slot, end - begin, left=begin, height=1.0, color=colour)
    last = max(end for own in plan for *_, end in own)
    used = sum(lengths) - len(lengths)
    axis.set_xlim(0, last)
    axis.set_ylim(len(plan), 0)
    axis.set_facecolor("0.93")
    axis.set_xlabel("steps of the model")
    axis.set_ylabel("row" if len(plan) == len(lengths) else "slot")
    share = used / (last * len(plan))
    axis.set_title(f"{title}:\n{last} steps, {share:.0%} of them used")
  figure.tight_layout()
  PICTURE.parent.mkdir(exist_ok=True)
  figure.savefig(PICTURE, dpi=110)


def versus(url: str, folder: str, repetitions: int, named: str) -> list[str]:
  """A line for each call: our sampler and the servers, pair by pair."""
  source = pretrained.open_checkpoint(folder)
  config, params = source.config, source.load()
  millions = sum(x.size for x in jax.tree.leaves(params)) / 1e6

  def greedy(params, prompt, size):
    how = GenerateConfig(size, 1, (), sampling=SamplingConfig(greedy=True))
    batch, keys = transcript.pad_prompts([prompt]), jax.random.split(KEY, 1)
    found = generate.make_generate(config, how)(params, batch, keys)
    return found.tokens[0, found.prompt_size :], found.behave_log_probs[0]

  servers = Servers(
    *(url, EngineConfig()),
    vocab_size=config.vocab_size,
    max_length=SIZE + max(most for *_, most in CALLS),
    write=lambda params, path: pretrained.save_checkpoint(
      path, params, config, dtype="float32"
    ),
    greedy=greedy,
  )
  lines = []
  for count, group, most in CALLS:
    rng, how = np.random.default_rng(0), GenerateConfig(most, group, ())
    rows = rng.integers(0, config.vocab_size, (count, SIZE))
    batch = transcript.pad_prompts(list(rows), multiple=SIZE)
    keys = generate.row_keys(KEY, 0, batch.ids, group)
    ours = generate.make_generate(config, how)
    lifted = jax.tree.map(lambda x: np.asarray(x)[None], batch), keys[None]
    samplers = (
      lambda ours=ours, one=(batch, keys): ours(params, *one),
      lambda one=lifted, how=how: servers.sample(params, *one, how),
    )
    for sampler in samplers:  # compiles, and publishes
      timed(sampler, ())
    pairs = [
      [timed(sampler, ())[1] for sampler in samplers]
      for _ in range(repetitions)
    ]
    tokens = count * group * most
    speeds = [
      statistics.median(tokens / x for x in s) for s in zip(*pairs, strict=True)
    ]
    ratios = sorted(theirs / own for own, theirs in pairs)
    middle = statistics.median(ratios)
    lines.append(
      f"| {millions:.0f} M | {named} | {count * group} x {most} | "
      f"{speeds[0]:,.0f} | {speeds[1]:,.0f} | {middle:.2f} | "
      f"{ratios[0]:.2f} to {ratios[-1]:.2f} | {repetitions} |"
    )
  servers.close()
  return lines


def write_pages(cases: dict, repetitions: int) -> None:
  write(
    "rollouts_pages.md",
    "A cache in pages beside slots of the longest row's room",
    "`python benchmarks/rollouts.py --only=pages`: the model, prompts and "
    "lengths of [rollouts.md](rollouts.md). The cache is of tokens in each "
    "layer, what prompts are read beside it included. Ratios over slots "
    f"without pages: medians of {repetitions} neighbouring runs.",
    ["lengths", "page", "tokens of the cache"],
    [
      [name, str(one["page_size"] or ""), f"{one['cache_tokens']:,}", one]
      for name, case in cases.items()
      for one in case["samplers"]
    ],
  )


def write_slots(found: dict) -> None:
  write(
    "rollouts.md",
    "Refilled slots beside all rows at once",
    f"`python benchmarks/rollouts.py`: {PROMPTS} prompts of at most {SIZE} "
    f"tokens, {GROUP} responses each of at most {MOST}; a decoder of width "
    f"{WIDTH}, {LAYERS} layers and {VOCABULARY} tokens, float32, on "
    f"{found['cores']} cores. Ratios over all rows at once: medians of "
    f"{found['repetitions']} neighbouring runs. A row differs where a last "
    "digit has turned one token into another.",
    ["lengths", "mean of the most"],
    [
      [name, f"{case['mean_length']:.0%}", one]
      for name, case in found["cases"].items()
      for one in case["samplers"]
    ],
  )
  RESULTS.joinpath("rollouts.json").write_text(json.dumps(found) + "\n")


def write(file: str, title: str, said: str, head: list, rows: list) -> None:
  """Writes a page of samplers, each the last of its row."""
  head = [*head, "slots", "tokens/s", "ratio, clock", "ratio, processor"]
  head += ["rows that differ"]
  lines = []
  for *words, one in rows:
    speed, ratios = one["tokens_per_second"], (one["ratio"],)
    ratios += (one["processor_ratio"],)
    figures = [f"{speed:,.0f}", *(f"{ratio:.2f}" for ratio in ratios)]
    differ = str(one["rows_that_differ"])
    lines.append([*words, str(one["slots"]), *figures, differ])
  table = tables.grid(head, lines, words=len(head))
  text = "\n".join([f"# {title}", "", said, "", *table])
  RESULTS.joinpath(file).write_text(text + "\n")
  print(text)


def main() -> None:
  import os

  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--repetitions", type=int, default=7)
  parser.add_argument("--only", choices=("picture", "pages"))
  parser.add_argument("--write")
  parser.add_argument("--engine")
  parser.add_argument("--model")
  parser.add_argument("--server", default="vLLM")
  args = parser.parse_args()
  if args.write:
    params = decoder.init_params(QWEN, KEY)
    return pretrained.save_checkpoint(args.write, params, QWEN, dtype="float32")
  if args.engine:
    lines = versus(args.engine, args.model, args.repetitions, args.server)
    print("\n".join(lines))
    with RESULTS.joinpath("rollouts_engine.md").open("a") as file:
      heads = [] if file.tell() else [HEAD.format(cores=os.cpu_count())]
      return file.writelines(f"{line}\n" for line in heads + lines)
  if args.only == "pages":
    cases = {
      name: compare(ends, args.repetitions, IN_PAGES)
      for name, ends in (("of chance", ENDS), ("all alike", 0))
    }
    return write_pages(cases, args.repetitions)
  if args.only is None:
    found = {"repetitions": args.repetitions, "cores": os.cpu_count()}
    found["cases"] = {
      "of chance": compare(ENDS, args.repetitions),
      "all alike": compare(0, args.repetitions),
    }
    write_slots(found)
  found = json.loads((RESULTS / "rollouts.json").read_text())
  picture(found["cases"]["of chance"]["lengths"], SLOTS[0])


if __name__ == "__main__":
  main()
