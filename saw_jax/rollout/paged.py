# SPDX-License-Identifier: Apache-2.0
"""Refilled slots whose cache is in pages: a row has as many as it fills.

All prompts are read first, into pages that their rows share. A row begins when
there is room for it beside what the live rows are expected to need, and takes
pages as it grows. If they run out, the row that began last leaves its slot and
begins anew later, and draws the same tokens, since their keys depend on their
places alone. The first row that has not ended never has to leave, and there is
room for all prompts and one whole response, so that it always goes on.

Nobody knows how long a row will be. Until one has ended by itself, each is
expected to be as long as it may, so that rows of one length are never turned
out. After that, it is expected to draw as many more tokens as all rows together
have drawn for each one that ended.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from saw_jax.models import paged as paged_lib
from saw_jax.rollout import generate as generate_lib
from saw_jax.rollout import pages
from saw_jax.rollout.generate import GenerateConfig
from saw_jax.rollout.slots import Loop, Sampler, Slots
from saw_jax.types import Array

WAITING, LIVE, ENDED = range(3)  # what a row is


@flax.struct.dataclass
class _Loop(Loop):
  state_B: Array  # int32
  book: pages.Book


def least(config: GenerateConfig, num_prompts: int, size: int) -> int:
  """The smallest budget: all prompts, one to read beside them, a response."""
  p, T = config.page_size, config.max_new_tokens
  response = -(-(T + p - 2) // p) * p
  return num_prompts * (-(-size // p) * p) + size + response


def room(
  config: GenerateConfig, num_prompts: int, size: int
) -> tuple[int, int, int] | None:
  """How many rows are sampled and prompts read at one time, and the pages.

  Prompts are read beside the pages, in an eighth of the budget at most. There
  are as many slots as if a row had half of the longest response on average.
  `None`: there is none for all prompts and a response.
  """
  p, T, budget = config.page_size, config.max_new_tokens, config.cache_tokens
  if not p or budget < least(config, num_prompts, size):
    return None
  left = budget - least(config, num_prompts, size) + size
  held = min(num_prompts, max(1, budget // (8 * size)), left // size)
  count = (budget - held * size) // p
  asked = num_prompts * (-(-size // p) * p)
  slots = int((count * p - asked) / (T / 2 + p))
  return max(1, min(slots, num_prompts * config.group_size)), held, count


class Paged(Sampler):
  """Slots that have the pages which their rows fill."""

  def _run(self) -> _Loop:
    _, S, T, _ = self._sizes
    loop = self._read_all()
    # A gather reads what the longest row might have: each stage is compiled.
    ends = [S + max(1, T - 1)]
    readers, _ = loop.cache.mixers(self._decoder)
    if T > 1 and not all(reader.kernel for reader in readers):
      ends = [S + bound for bound in generate_lib.stages(S, T)]

    def has_work(loop):
      return (loop.state_B != ENDED).any()

    def stages(loop):
      for first, end in zip([0, *ends], ends, strict=False):

        def goes_on(loop, first=first, end=end):
          slots = loop.slots
          last_N = self._lengths(slots) + slots.count_N
          last = jnp.where(slots.live_N, last_N, S + 1).max()
          return has_work(loop) & (last > first) & (last <= end)

        step = functools.partial(self._go_on, width=self._pages(end, 1))
        loop = jax.lax.while_loop(goes_on, step, loop)
      return loop

    loop = jax.lax.while_loop(has_work, stages, loop)
    # What a row had drawn before it began anew is no part of it.
    is_own_BT = jnp.arange(T)[None] < loop.counts_B[:, None]
    keep = lambda x, filler: jnp.where(is_own_BT, x, filler)  # noqa: E731
    return loop.replace(
      tokens_BT=keep(loop.tokens_BT, self._config.pad_id),
      recorded_BT={k: keep(x, 0.0) for k, x in loop.recorded_BT.items()},
    )

  def _pages(self, lengths, counts):
    """Pages of prompts with completions, of which the last is not written."""
    return -(-(lengths + counts - 1) // self._config.page_size)

  def _lengths(self, slots: Slots) -> Array:
    return self._prompts.lengths[slots.row_N // self._sizes[-1]]

  def _read_all(self) -> _Loop:
    """Reads all prompts into pages; their rows wait, but those that ended."""
    (B, S, T, G), W, X = self._sizes, self._num_held, self._num_pages
    lengths_P, p = self._prompts.lengths, self._config.page_size
    sizes_P = self._pages(lengths_P, 1)
    book = pages.start(X, self._num_slots, sizes_P, self._pages(S, T), G)
    cache = paged_lib.init_cache(self._decoder, X, p, book.table_NM)
    waiting_B = jnp.zeros(B, jnp.int32)
    loop = _Loop(**self._nothing(cache), state_B=waiting_B, book=book)
    asked_PM = book.prompts_PM[:, : self._pages(S, 1)]

    def read(part, loop):
      start = jnp.minimum(part * W, len(lengths_P) - W)
      cut = lambda x: jax.lax.dynamic_slice_in_dim(x, start, W)  # noqa: E731
      loop, cache = self._read(loop, start)
      known = cut(lengths_P), cut(asked_PM)
      return loop.replace(
        cache=paged_lib.write_prompts(loop.cache, cache, *known)
      )

    loop = jax.lax.fori_loop(0, -(-len(lengths_P) // W), read, loop)
    is_over_B = (T == 1) | jnp.isin(loop.tokens_BT[:, 0], self._eos_ids)
    return loop.replace(
      book=pages.end(book, jnp.arange(B) // G, is_over_B),
      counts_B=jnp.ones(B, jnp.int32),
      state_B=jnp.where(is_over_B, ENDED, WAITING),
    )

  def _expected(self, loop: _Loop, lengths, counts) -> Array:
    """Pages of rows when they end, as far as is known."""
    T = self._config.max_new_tokens
    ends = ((loop.state_B == ENDED) & (loop.counts_B < T)).sum()
    more = loop.counts_B.sum() // jnp.maximum(ends, 1)
    more = jnp.where(ends > 0, jnp.maximum(more, 1), T)
    return self._pages(lengths, jnp.minimum(counts + more, T))

  def _go_on(self, loop: _Loop, width: int) -> _Loop:
    loop = self._make_room(self._fill(loop))
    slots, table_NM = loop.slots, loop.cache.table
    own_NM = jnp.minimum(loop.book.table_NM, self._num_pages - 1)[:, :width]
    lengths_N = self._lengths(slots) + slots.count_N
    lengths_N = jnp.where(slots.live_N, lengths_N, 0)
    cache = loop.cache.replace(table=own_NM, lengths=lengths_N)
    loop = self._decode(loop, cache)
    loop = loop.replace(cache=loop.cache.replace(table=table_NM))
    has_row_N = loop.slots.row_N < self._sizes[0]
    return self._leave(loop, has_row_N & ~loop.slots.live_N, ENDED)

  def _leave(self, loop: _Loop, is_out_N: Array, state: int) -> _Loop:
    """Takes rows that have ended, or are to wait, out of their slots."""
    B, G, slots = self._sizes[0], self._sizes[-1], loop.slots
    at_N = jnp.where(is_out_N, slots.row_N, B)
    whole_N = self._lengths(slots) // self._config.page_size

    def leave(book):
      book = pages.leave(book, is_out_N, whole_N)
      if state == ENDED:
        book = pages.end(book, at_N // G, is_out_N)
      return book

    counts_B = loop.counts_B
    if state == WAITING:
      counts_B = counts_B.at[at_N].set(1, mode="drop")
    row_N = jnp.where(is_out_N, B, slots.row_N)
    return loop.replace(
      slots=slots.replace(row_N=row_N, live_N=slots.live_N & ~is_out_N),
      book=jax.lax.cond(is_out_N.any(), leave, lambda book: book, loop.book),
      state_B=loop.state_B.at[at_N].set(state, mode="drop"),
      counts_B=counts_B,
    )

  def _fill(self, loop: _Loop) -> _Loop:
    """Gives free slots to waiting rows, in their order, while there is room."""
    G, p = self._sizes[-1], self._config.page_size

    def following(loop):
      row = jnp.argmax(loop.state_B == WAITING)
      return row, row // G, self._prompts.lengths[row // G]

    def goes_on(loop):
      length, slots = following(loop)[-1], loop.slots
      need_N = self._expected(loop, self._lengths(slots), slots.count_N)
      need_N = jnp.maximum(need_N - loop.book.held_N, 0) * slots.live_N
      need = self._expected(loop, length, 1) - length // p
      fits = need_N.sum() + need <= loop.book.count
      is_asked = (loop.state_B == WAITING).any() & ~slots.live_N.all()
      return is_asked & (fits | ~slots.live_N.any())

    def begin(loop):
      row, prompt, length = following(loop)
      slot = jnp.argmin(loop.slots.live_N)
      asked = slot, prompt, length // p, length % p
      book, copied = pages.begin(loop.book, *asked)
      own = Slots(row, loop.tokens_BT[row, 0], 1, True)
      return loop.replace(
        slots=jax.tree.map(lambda x, new: x.at[slot].set(new), loop.slots, own),
        cache=paged_lib.copy_page(loop.cache, *copied),
        book=book,
        state_B=loop.state_B.at[row].set(LIVE),
      )

    return jax.lax.while_loop(goes_on, begin, loop)

  def _make_room(self, loop: _Loop) -> _Loop:
    """Has pages for the next tokens, at the price of rows that began last."""

    def wanted(loop):
      slots = loop.slots
      return self._pages(self._lengths(slots), slots.count_N + 1) * slots.live_N

    def lacks(loop):
      more_N = jnp.maximum(wanted(loop) - loop.book.held_N, 0)
      return more_N.sum() > loop.book.count

    def turn_out(loop):
      slots = loop.slots
      last = jnp.argmax(jnp.where(slots.live_N, slots.row_N, -1))
      return self._leave(loop, jnp.arange(self._num_slots) == last, WAITING)

    loop = jax.lax.while_loop(lacks, turn_out, loop)
    return loop.replace(book=pages.reach(loop.book, wanted(loop)))
