# SPDX-License-Identifier: Apache-2.0
"""The type aliases of the package, once."""

from typing import Any

import chex

# NumPy arrays are legal: tests and `check_grads` pass them.
Array = chex.Array
# What is selected; `None` selects everything.
Mask = chex.Array | None
# A Python or array scalar, or an array that broadcasts as the docstring says.
Numeric = chex.Numeric
# Any nesting of arrays that `jax.tree` walks.
PyTree = Any
# A `jax.random.key`, consumed by whoever receives it.
Key = chex.PRNGKey
# The name of a device axis that an array is split over; None: of no axis.
Axis = str | None
