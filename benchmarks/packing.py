"""What packing is worth: an update on packed rows beside one on padded rows.

  python benchmarks/packing.py

Times the same GRPO update both ways in turn, in one process, on responses whose
lengths fill a quarter, a half and all of the padded batch, and writes
benchmarks/results/packing.{json,md}: medians of per-repetition ratios.
"""

import pathlib
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import shared  # noqa: E402

REPETITIONS = 7
ROWS, PROMPT, RESPONSE, LENGTH = 64, 32, 224, 512
FILLS = (0.25, 0.5, 1.0)


def main() -> None:
  import jax
  import jax.numpy as jnp

  from saw_jax import losses
  from saw_jax.models import decoder
  from saw_jax.models.config import DecoderConfig
  from saw_jax.rollout import transcript
  from saw_jax.training import batch as batch_lib
  from saw_jax.training import objective, update
  from saw_jax.training import optimizer as optimizer_lib

  config = DecoderConfig(
    vocab_size=8192, width=256, num_layers=4, num_heads=8, num_kv_heads=4,
    head_size=32, mlp_size=768,
  )  # fmt: skip
  optimizer = optimizer_lib.make_optimizer(optimizer_lib.OptimizerConfig(), 100)
  made = objective.make_objective(
    objective.make_forward(config),
    {"policy": objective.policy(losses.clipped_surrogate_loss)},
    [objective.mean_entropy],
  )
  step = jax.jit(update.make_update(made, optimizer))
  start = update.create_state(
    decoder.init_params(config, jax.random.key(0)), optimizer
  )

  def padded_batch(fill):
    rng = np.random.default_rng(0)
    # Long-tailed, as responses are, and at least one of the full length.
    lengths = rng.gamma(2.0, fill * RESPONSE / 2, ROWS).clip(1, RESPONSE)
    lengths[0] = RESPONSE
    lengths = np.full(ROWS, RESPONSE) if fill == 1.0 else lengths.astype(int)
    starts = rng.integers(0, PROMPT - 8, ROWS).astype(np.int32)
    columns = np.arange(PROMPT + RESPONSE)[None]
    roles = np.where(
      columns < PROMPT,
      np.where(columns >= starts[:, None], transcript.PROMPT, transcript.PAD),
      np.where(
        columns < PROMPT + lengths[:, None], transcript.POLICY, transcript.PAD
      ),
    ).astype(np.int8)
    return batch_lib.TrainBatch(
      tokens=rng.integers(0, 8192, roles.shape).astype(np.int32),
      roles=roles,
      starts=starts,
      advantages=rng.standard_normal(ROWS).astype(np.float32),
      prompt_size=PROMPT,
    )

  def seconds(batch):
    begin = time.perf_counter()
    jax.block_until_ready(step(start, batch))
    return time.perf_counter() - begin

  found = {}
  for fill in FILLS:
    padded = padded_batch(fill)
    begin = time.perf_counter()
    packed = jax.tree.map(
      lambda x: jnp.asarray(x[0]),
      batch_lib.pack_rows(jax.tree.map(lambda x: x[None], padded), LENGTH),
    )
    host = time.perf_counter() - begin
    padded = jax.tree.map(jnp.asarray, padded)
    losses = [float(step(start, x)[1]["loss"]) for x in (padded, packed)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4, atol=1e-6)
    ratios, times = [], []
    for repetition in range(REPETITIONS):
      taken = {
        name: seconds({"padded": padded, "packed": packed}[name])
        for name in shared.order(["padded", "packed"], repetition)
      }
      ratios.append(taken["padded"] / taken["packed"])
      times.append(taken["padded"])
    found[str(fill)] = {
      "real_share": float(np.mean(np.asarray(padded.roles) > 0)),
      "packed_rows": int(packed.packing.tokens.shape[0]),
      **shared.spread("speed", ratios),
      "host_share": host / float(np.median(times)),
    }
  shared.write(
    "packing",
    {"fills": found, "repetitions": REPETITIONS},
    "Packed rows",
    ["real tokens in the padded batch", "packed rows", "speed of an update"]
    + ["range", "packing on the host, share of a padded update"],
    [
      [
        f"{100 * row['real_share']:.0f} %",
        f"{row['packed_rows']} of {LENGTH}",
        f"{row['speed']:.2f}",
        shared.between(row["speed_range"]),
        f"{100 * row['host_share']:.2f} %",
      ]
      for row in found.values()
    ],
    f"{ROWS} rows of {PROMPT} + {RESPONSE} positions, decoder of 4 layers and "
    f"width 256, float32, {REPETITIONS} repetitions in turn, medians.",
    words=0,
  )


if __name__ == "__main__":
  main()
