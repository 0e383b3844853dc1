"""Which tests `--since` leaves out."""

import pytest

from tests.conftest import untouched_families

FAMILIES = {"math", "shop"}


@pytest.mark.parametrize(
  ("changed", "left_out"),
  [
    ([], FAMILIES),
    (["README.md", "docs/notation.md"], FAMILIES),
    (["saw_jax/tasks/math/answers.py"], {"shop"}),
    (["tests/tasks/shop/shop_test.py", "README.md"], {"math"}),
    (["saw_jax/tasks/math/assets/stories.json"], {"shop"}),
    (["saw_jax/tasks/base.py"], set()),
    (["saw_jax/tasks/workers/pool.py"], set()),
    (["saw_jax/losses.py", "saw_jax/tasks/math/answers.py"], set()),
    (["tests/helpers.py"], set()),
  ],
)
def test_families_that_nothing_could_break(changed, left_out):
  assert untouched_families(changed, FAMILIES) == left_out
