"""Environments that do what they are told, without JAX: workers import it."""

import math
import string
import time

import gymnasium


class Says(gymnasium.Env):
  """Echoes, or does as told: "raise", "hang", "nan", "number", "end", "cut"."""

  observation_space = gymnasium.spaces.Text(99)
  action_space = gymnasium.spaces.Text(99, charset=string.ascii_letters + " ")

  def reset(self, *, seed=None, options=None):
    return f"seed {seed}", {}

  def step(self, action):
    if action == "raise":
      raise RuntimeError("as told")
    if action == "hang":
      time.sleep(60)
    said = 7 if action == "number" else action
    reward = math.nan if action == "nan" else 0.5
    return said, reward, action == "end", action == "cut", {}


gymnasium.register("Says-v0", Says)


def describe(env, observation, info):
  return f"you have {observation[0]}, and cards {len(env.player)}"
