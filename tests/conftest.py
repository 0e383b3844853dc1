"""Settings that have to be made before JAX starts."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax

# Four devices, so that meshes, `pmap` and `shard_map` are tested for real.
jax.config.update("jax_num_cpu_devices", 4)
# `[B, T] + [T]` is a bug more often than a wish: ranks are written out.
jax.config.update("jax_numpy_rank_promotion", "raise")
# A key that is used twice raises.
jax.config.update("jax_debug_key_reuse", True)

# The first example compiles, so a deadline would measure the compiler.
hypothesis.settings.register_profile(
  "local", deadline=None, max_examples=30, print_blob=True
)
hypothesis.settings.register_profile(
  "ci", deadline=None, max_examples=30, derandomize=True, database=None
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items):
  """Puts the slow tests last, so that a mistake shows in the first minute."""
  items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
