"""Talks with a pretrained model, or with a policy that was exported.

  python experiments/generate.py --model=smollm2 --prompt="What is 2 + 3?"
  echo "What is 2 + 3?" | python experiments/generate.py --model=policies/mine

The answer is printed as it is sampled.
"""

import sys

from absl import flags

from saw_jax.run import command_line

_MODEL = flags.DEFINE_string(
  "model",
  None,
  "A Hugging Face directory, a .gguf file, or smollm2.",
  required=True,
)
_PROMPT = flags.DEFINE_string(
  "prompt", None, "What is asked; read from standard input by default."
)
_SYSTEM = flags.DEFINE_string("system", None, "A system message before it.")
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  "max_new_tokens", 256, "Where an answer is cut.", 1
)
_TEMPERATURE = flags.DEFINE_float(
  "temperature", 1.0, "Divides the logits; 0 takes the likeliest token.", 0.0
)
_TOP_K = flags.DEFINE_integer("top_k", 0, "Keep the k likeliest; 0: all.", 0)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Keep what holds this much.", 0, 1)
_MIN_P = flags.DEFINE_float(
  "min_p", 0.0, "Keep what is this likely, times the likeliest.", 0, 1
)
_STOPS = flags.DEFINE_multi_string(
  "stop", [], "A string that ends the answer; may be given several times."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples.")
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", ["float32", "bfloat16"], "Of weights and activations."
)


def main() -> int:
  prompt = _PROMPT.value
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
      temperature=_TEMPERATURE.value or 1.0,
      top_k=_TOP_K.value,
      top_p=_TOP_P.value,
      min_p=_MIN_P.value,
      greedy=_TEMPERATURE.value == 0,
    )
    ends = stops.check_stops(_STOPS.value)
    path = registry.find_checkpoint(_MODEL.value)
    tokenizer = registry.make_tokenizer(str(path))
    messages = [{"role": "user", "content": prompt}]
    if _SYSTEM.value:
      messages.insert(0, {"role": "system", "content": _SYSTEM.value})
    ids = tokenizer.encode_chat(messages)
    source = pretrained.open_checkpoint(
      path, max_length=len(ids) + _MAX_NEW_TOKENS.value
    )
    config = dataclasses.replace(
      source.config, dtype=_DTYPE.value, param_dtype=_DTYPE.value
    )
    params = source.load(config)

  chosen, shown = [], ""
  settings = generate.GenerateConfig(
    _MAX_NEW_TOKENS.value, 1, tokenizer.eos_ids, sampling=sampling
  )
  key = jax.random.key(_SEED.value)
  for token in generate.stream(config, settings, params, ids, key):
    chosen.append(token)
    # A character may take several tokens: its first bytes wait for the others.
    text = tokenizer.decode(chosen).rstrip("\ufffd")
    sure = stops.settled(text, ends)
    print(sure[len(shown) :], end="", flush=True)
    shown = sure
    if stops.find_stop(text, ends) is not None:
      print()
      return 0
  print(tokenizer.decode(chosen)[len(shown) :])
  return 0


if __name__ == "__main__":
  command_line.run(main)
