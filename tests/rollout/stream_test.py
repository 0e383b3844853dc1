"""Tests of sampling a token at a time."""

import dataclasses

import jax
import pytest

from saw_jax.models import config as config_lib
from saw_jax.models import decoder
from saw_jax.rollout import generate, stream, transcript
from saw_jax.rollout.sampling import SamplingConfig

CONFIG = dataclasses.replace(config_lib.TINY, vocab_size=31, scan_layers=True)
PROMPT = [3, 1, 4, 1, 5]
SAMPLING = SamplingConfig(temperature=1.5)


@pytest.fixture(scope="module")
def params():
  return decoder.init_params(CONFIG, jax.random.key(0))


def whole(params, eos_ids):
  settings = generate.GenerateConfig(12, 1, eos_ids, sampling=SAMPLING)
  prompts, keys = transcript.pad_prompts([PROMPT]), jax.random.key(7)[None]
  found = generate.make_generate(CONFIG, settings)(params, prompts, keys)
  return found.tokens[0][found.roles[0] == transcript.POLICY].tolist()


def streamed(params, eos_ids):
  settings = {"sampling": SAMPLING, "max_new_tokens": 12, "multiple": 8}
  key = jax.random.key(7)
  return list(
    stream.stream(CONFIG, params, PROMPT, key, eos_ids=eos_ids, **settings)
  )


@pytest.mark.slow
def test_the_tokens_are_those_of_a_whole_completion(params):
  found = streamed(params, ())
  assert found == whole(params, ())
  assert len(found) == 12 and len(set(found)) > 3


def test_an_end_ends_it_and_belongs_to_it(params):
  tokens = streamed(params, ())
  end = tokens[4]
  assert streamed(params, (end,)) == tokens[: tokens.index(end) + 1]
  assert streamed(params, (end,)) == whole(params, (end,))
