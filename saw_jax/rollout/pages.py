# SPDX-License-Identifier: Apache-2.0
"""Whose the pages of a cache are; number X, behind the last, is no page.

All rows of a prompt read its pages, which are free again when the last of them
has ended. The page in which the prompt ends, and what follows, is a row's own.
"""

import flax.struct
import jax.numpy as jnp

from saw_jax.types import Array


@flax.struct.dataclass
class Book:
  """Of `X` pages, `N` slots of `M` pages at most, and `P` prompts."""

  free_X: Array  # int32, of which the first `count` are free
  count: Array  # int32 []
  table_NM: Array  # int32, pages of a slot's row in the order of its tokens
  prompts_PM: Array  # int32, pages of prompts
  left_P: Array  # int32, rows of a prompt that have not ended

  @property
  def none(self) -> int:
    return len(self.free_X)

  @property
  def held_N(self) -> Array:
    return (self.table_NM < self.none).sum(-1)


def start(
  num_pages: int, num_slots: int, sizes_P: Array, most: int, rows: int
) -> Book:
  """Gives prompts so many pages; each has `rows`, of `most` pages each."""
  P, free = len(sizes_P), jnp.arange(num_pages, dtype=jnp.int32)
  none_NM = jnp.full((num_slots, most), num_pages, jnp.int32)
  all_P = jnp.full(P, rows, jnp.int32)
  book = Book(free, jnp.int32(num_pages), none_NM, none_NM, all_P)
  book, pages_PM = take(book, jnp.arange(most)[None] < sizes_P[:, None])
  return book.replace(prompts_PM=pages_PM)


def take(book: Book, is_wanted: Array) -> tuple[Book, Array]:
  """Takes a page for each place where one is wanted; there must be enough."""
  order = jnp.cumsum(is_wanted).reshape(is_wanted.shape)
  pages = book.free_X[jnp.maximum(book.count - order, 0)]
  book = book.replace(count=book.count - is_wanted.sum())
  return book, jnp.where(is_wanted, pages, book.none)


def give(book: Book, pages: Array) -> Book:
  """Gives pages back, where they are any."""
  is_page = pages < book.none
  order = book.count + jnp.cumsum(is_page).reshape(pages.shape) - 1
  at = jnp.where(is_page, order, book.none)
  free_X = book.free_X.at[at].set(pages, mode="drop")
  return book.replace(free_X=free_X, count=book.count + is_page.sum())


def begin(
  book: Book, slot: Array, prompt: Array, whole: Array, rest: Array
) -> tuple[Book, tuple[Array, Array]]:
  """Gives a slot the `whole` pages of a prompt, and a copy of one with a rest.

  Returns the pages from and to which that is copied, or none and none.
  """
  order_M = jnp.arange(book.table_NM.shape[1])
  book, (page,) = take(book, (rest > 0)[None])
  own_M = book.prompts_PM[prompt]
  row_M = jnp.where(order_M < whole, own_M, book.none)
  row_M = jnp.where(order_M == whole, page, row_M)
  source = jnp.where(rest > 0, own_M[whole], book.none)
  table_NM = book.table_NM.at[slot].set(row_M)
  return book.replace(table_NM=table_NM), (source, page)


def reach(book: Book, sizes_N: Array) -> Book:
  """Takes pages until each slot has so many; there must be enough."""
  order_M = jnp.arange(book.table_NM.shape[1])[None]
  is_new_NM = (order_M >= book.held_N[:, None]) & (order_M < sizes_N[:, None])
  book, pages_NM = take(book, is_new_NM)
  return book.replace(table_NM=jnp.where(is_new_NM, pages_NM, book.table_NM))


def leave(book: Book, is_out_N: Array, whole_N: Array) -> Book:
  """Takes rows out of slots, but for the pages that are their prompts'."""
  is_own_NM = jnp.arange(book.table_NM.shape[1])[None] >= whole_N[:, None]
  is_own_NM &= is_out_N[:, None]
  book = give(book, jnp.where(is_own_NM, book.table_NM, book.none))
  table_NM = jnp.where(is_out_N[:, None], book.none, book.table_NM)
  return book.replace(table_NM=table_NM)


def end(book: Book, prompts_A: Array, is_over_A: Array) -> Book:
  """Counts rows of prompts that have ended for good."""
  left_P = book.left_P.at[prompts_A].add(-is_over_A.astype(jnp.int32))
  over_P1 = ((left_P == 0) & (book.left_P > 0))[:, None]
  book = give(book, jnp.where(over_P1, book.prompts_PM, book.none))
  pages_PM = jnp.where(over_P1, book.none, book.prompts_PM)
  return book.replace(prompts_PM=pages_PM, left_P=left_P)
