"""Talks with a pretrained model, or with a policy that was exported.

  saw generate --model=smollm2 --prompt="What is 2 + 3?"
  echo "What is 2 + 3?" | saw generate --model=policies/mine

The answer is printed as it is sampled.
"""

import sys

from absl import flags

from saw_jax.run import command_line


def main() -> int:
  given = flags.FLAGS
  prompt = given.prompt
  if prompt is None:
    prompt = sys.stdin.read().strip()
  if not prompt:
    raise command_line.UsageError("there is no prompt")

  import dataclasses

  import jax

  from saw_jax.models.hub import pretrained
  from saw_jax.rollout import generate
  from saw_jax.rollout.sampling import SamplingConfig
  from saw_jax.run import registry
  from saw_jax.tasks import stops

  with command_line.checking_input():
    sampling = SamplingConfig(
      temperature=given.temperature or 1.0,
      top_k=given.top_k,
      top_p=given.top_p,
      min_p=given.min_p,
      greedy=given.temperature == 0,
    )
    ends = stops.check_stops(given.stop)
    path = registry.find_checkpoint(given.model)
    tokenizer = registry.make_tokenizer(str(path))
    messages = [{"role": "user", "content": prompt}]
    if given.system:
      messages.insert(0, {"role": "system", "content": given.system})
    ids = tokenizer.encode_chat(messages)
    longest = len(ids) + given.max_new_tokens
    source = pretrained.open_checkpoint(path, max_length=longest)
    config = dataclasses.replace(
      source.config, dtype=given.dtype, param_dtype=given.dtype
    )
    params = source.load(config)

  chosen, shown = [], ""
  sizes = given.max_new_tokens, 1, tokenizer.eos_ids
  settings = generate.GenerateConfig(*sizes, sampling=sampling)
  key = jax.random.key(given.seed)
  for token in generate.stream(config, settings, params, ids, key):
    chosen.append(token)
    # The first bytes of a character wait for the tokens of the others.
    text = tokenizer.decode(chosen).rstrip("\ufffd")
    sure = stops.settled(text, ends)
    print(sure[len(shown) :], end="", flush=True)
    shown = sure
    if stops.find_stop(text, ends) is not None:
      print()
      return 0
  print(tokenizer.decode(chosen)[len(shown) :])
  return 0
