"""Methods by name: the keys that they set, and that those are a method."""

import numpy as np
import pytest

from saw_jax import algorithms
from saw_jax.run import config as config_lib
from saw_jax.run import methods

MINIMA = np.zeros(2, np.float32)


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_name_is_a_method_of_a_typed_config(name):
  config = config_lib.get_config()
  methods.set_method(config, name)
  if name == "static":
    config.algorithm.weights_options.values = (1.5, 0.5)
  run = config_lib.typed(config)
  assert algorithms.make_method(run.algorithm, MINIMA).advantage
  changed = config_lib.to_document(run) != config_lib.to_document(
    config_lib.typed(config_lib.get_config())
  )
  # The defaults of a config are GRPO's.
  assert changed == (name not in ("grpo", "equal"))


def test_parts_are_joined_and_a_loss_keeps_its_advantage_unless_told():
  assert methods.keys_of("asympo")["algorithm.advantage"] == "dr_grpo"
  found = methods.keys_of("gdpo + saw+asympo+care")
  assert found["algorithm.advantage"] == "gdpo"
  assert found["algorithm.weights"] == "saw"
  assert found["algorithm.loss"] == "asympo"
  assert found["labels.method"] == "care"
  assert methods.keys_of("grpo+paw")  # as in the tables


@pytest.mark.parametrize(
  ("method", "error", "word"),
  [
    ("gdpo+swa", KeyError, "'saw'"),
    ("", KeyError, "method"),
    ("gdpo+grpo", ValueError, "leave one"),
    ("spo+asympo", ValueError, "algorithm.loss"),
  ],
)
def test_what_does_not_go_together_is_one_sentence(method, error, word):
  with pytest.raises(error, match=word):
    methods.keys_of(method)
