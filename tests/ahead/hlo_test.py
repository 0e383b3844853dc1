"""What a compiled program moves, by hand and against real ones."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from saw_jax.ahead import flops, hlo
from saw_jax.models import kernels
from saw_jax.rollout import refill
from tests.training.sampling_test import CONFIG, SETTINGS, seeds_of

# Two loops of 3 and of 4 - 1 trips, one in the other, as libtpu writes them: no
# count is said, a bound comes in with what is carried, and the inner condition
# asks for more than the counter. Then a loop that goes on from the outer's end.
TEXT = pathlib.Path(__file__).parents[1] / "data" / "loops.hlo.txt"
TEXT = TEXT.read_text(encoding="utf-8")


class TestByHand:
  found = hlo.Module(TEXT, 8).read()

  def test_loops_count_in_loops_and_from_where_others_ended(self):
    # 3 + 2 trips, and one of the loop that nobody knows the length of.
    times = {one.kind: 0 for one in self.found.moved}
    for one in self.found.moved:
      times[one.kind] += one.times
    outer = 3 + 2 + 1
    assert times == {
      "all-reduce": 3 * outer,
      "all-gather": outer,
      "collective-permute": 1,
    }
    assert self.found.unknown == 1

  def test_bytes_that_a_chip_receives(self):
    sizes = {one.kind: (one.size, one.elements) for one in self.found.moved}
    assert sizes == {
      "all-reduce": (2 * 3 / 4 * 8 * 4 * 4, 32),  # among four
      "all-gather": (16 * 2, 32),  # of two
      "collective-permute": (16 * 2, 16 * 8),
    }

  def test_what_is_read_and_written(self):
    # Of the last two lines: 32 bytes are read and sent; what arrives is not in
    # the chip's memory, and is copied there.
    module = hlo.Module(TEXT, 8)
    last = [module.computations["main"][name] for name in ("moved", "out")]
    assert [module.touched("main", one) for one in last] == [32, 32]


def test_a_sum_of_which_a_part_is_kept_is_sent_as_that():
  text = """
%all-reduce-scatter.1 (x: bf16[16,8]) -> bf16[2,8] {
  %x = bf16[16,8]{1,0} parameter(0)
  %sum = bf16[16,8]{1,0} all-reduce(%x), replica_groups={{0,1,2,3,4,5,6,7}}
  %at = s32[] constant(0)
  ROOT %own = bf16[2,8]{1,0} dynamic-slice(%sum, %at, %at)
}

ENTRY %main (x: bf16[16,8]) -> bf16[2,8] {
  %x = bf16[16,8]{1,0} parameter(0)
  ROOT %y = bf16[2,8]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
  (one,) = hlo.Module(text, 8).read().moved
  assert one == ("reduce-scatter", 16 * 8, 7 / 8 * 16 * 8 * 2, 1)


def test_what_several_fusions_have_part_in_is_sent_once():
  # As libtpu 0.0.46 gathers a kernel while something else is computed.
  gather = (
    "bf16[16,8]{1,0} all-gather(%x), replica_groups=[1,8]<=[8], "
    'dimensions={0}, frontend_attributes={chain_id="0"}'
  )
  all_of = "(bf16[2,8]{1,0}, bf16[16,8]{1,0}, u32[]{:S(2)})"
  text = f"""
%begin.1 (x: bf16[2,8]) -> {all_of} {{
  %x = bf16[2,8]{{1,0}} parameter(0)
  %g = {gather}
  ROOT %c = {all_of} custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%on.1 (x: bf16[2,8], to: bf16[16,8], y: f32[4]) -> (f32[4], bf16[16,8]) {{
  %x = bf16[2,8]{{1,0}} parameter(0)
  %to = bf16[16,8]{{1,0}} parameter(1)
  %y = f32[4]{{0}} parameter(2)
  %g = {gather}
  %z = f32[4]{{0}} negate(%y)
  ROOT %t = (f32[4]{{0}}, bf16[16,8]{{1,0}}, bf16[16,8]{{1,0}}) tuple(%z, %to, %g)
}}

%end.1 (x: bf16[2,8], to: bf16[16,8]) -> bf16[16,8] {{
  %x = bf16[2,8]{{1,0}} parameter(0)
  %to = bf16[16,8]{{1,0}} parameter(1)
  %g = {gather}
  ROOT %c = bf16[16,8]{{1,0}} custom-call(%x, %to, %g), custom_call_target="AsyncCollectiveDone"
}}

ENTRY %main (x: bf16[2,8], y: f32[4]) -> bf16[16,8] {{
  %x = bf16[2,8]{{1,0}} parameter(0)
  %y = f32[4]{{0}} parameter(1)
  %b = {all_of} fusion(%x), kind=kCustom, calls=%begin.1
  %to = bf16[16,8]{{1,0}} get-tuple-element(%b), index=1
  %o = (f32[4]{{0}}, bf16[16,8]{{1,0}}, bf16[16,8]{{1,0}}) fusion(%x, %to, %y), kind=kCustom, calls=%on.1
  %so = bf16[16,8]{{1,0}} get-tuple-element(%o), index=2
  ROOT %e = bf16[16,8]{{1,0}} fusion(%x, %so), kind=kCustom, calls=%end.1
}}
"""  # noqa: E501
  found = hlo.Module(text, 8).read()
  assert found.moved == [("all-gather", 16 * 8, 7 * 2 * 8 * 2, 1)]
  # A part is read and the kernel written; and four numbers are negated.
  assert found.memory == 32 + 256 + 16 + 16


def test_a_loop_reads_the_slice_and_not_the_stack():
  def f(stack, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

  L, D = 16, 128
  args = jnp.ones((L, D, D)), jnp.ones((8, D))
  text = jax.jit(f).lower(*args).compile().as_text()
  found = hlo.Module(text, 1).read()
  # Each weight twice, as the slice is written where it is multiplied, and the
  # rest is small; the whole stack in each of the L trips would be L times that.
  assert 1 <= found.memory / (L * D * D * 4) < 5
  assert not found.unknown


def test_what_a_fusion_hands_on_is_read_by_whom_it_is_handed_to():
  # A weight by another name, a slice of a stack by another, and a row that is
  # put in its place; each in a fusion of its own in a fusion, as libtpu does.
  text = """
%again (a: bf16[4,8,8]) -> bf16[4,64] {
  %a = bf16[4,8,8]{2,1,0} parameter(0)
  ROOT %b = bf16[4,64]{1,0} bitcast(%a)
}

%inside (w: bf16[4,8,8], i: s32[], x: bf16[2,4]) -> bf16[2,64] {
  %w = bf16[4,8,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = bf16[2,4]{1,0} parameter(2)
  %v = bf16[4,64]{1,0} fusion(%w), kind=kLoop, calls=%again
  ROOT %y = bf16[2,64]{1,0} WHAT
}

ENTRY %main (w: bf16[4,8,8], i: s32[], x: bf16[2,4]) -> bf16[2,64] {
  %w = bf16[4,8,8]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = bf16[2,4]{1,0} parameter(2)
  ROOT %y = bf16[2,64]{1,0} fusion(%w, %i, %x), kind=kOutput, calls=%inside
}
"""
  whole, result, row = 2 * 4 * 64, 2 * 2 * 64, 2 * 2 * 4

  def touched(what):
    module = hlo.Module(text.replace("WHAT", what), 1)
    return module.touched("main", module.computations["main"]["y"])

  assert touched("convolution(%x, %v)") == row + whole + result
  assert touched("dynamic-slice(%v, %i, %i)") == result + 4 + result
  assert touched("scatter(%v, %i, %x), to_apply=%z") == row + 4 + 2 * row


def test_a_kernel_reads_what_is_filled_of_its_pages():
  text = """
ENTRY %main (q: f32[2,4], pool: bf16[64,8]) -> f32[2,4] {
  %q = f32[2,4]{1,0} parameter(0)
  %pool = bf16[64,8]{1,0} parameter(1)
  ROOT %y = f32[2,4]{1,0} custom-call(%pool), metadata={op_name="NAME/call"}
}
"""
  for name, share in (("jit(paged_attention)", 0.25), ("other", 1)):
    module = hlo.Module(text.replace("NAME", name), 1, share=0.25)
    read = module.touched("main", module.computations["main"]["y"])
    assert read == 4 * 2 * 4 + share * 2 * 64 * 8


@pytest.mark.parametrize(
  ("what", "size"),
  [
    ("(bf16[64]{0:S(1)}, bf16[64]{0}, u32[]) copy-start(%x)", 2 * 64),
    ("(bf16[64]{0}, bf16[64]{0:S(1)}, u32[]) copy-start(%x)", 2 * 64),
    ("((bf16[64]{0}), bf16[16]{0:S(1)}, s32[]) slice-start(%x)", 2 * 16),
    ("((bf16[64]{0}), bf16[16]{0}, s32[]) slice-start(%x)", 2 * 2 * 16),
  ],
)
def test_what_is_fetched_ahead_is_read_once(what, size):
  text = f"""
ENTRY %main (x: bf16[64]) -> u32[] {{
  %x = bf16[64]{{0}} parameter(0)
  ROOT %y = {what}
}}
"""
  module = hlo.Module(text, 1)
  assert module.touched("main", module.computations["main"]["y"]) == size


def test_a_sampler_reads_prompts_once_for_their_rows():
  params, prompts, keys = jax.tree.map(lambda x: x[0], seeds_of(1))
  settings = dataclasses.replace(SETTINGS, cache_tokens=60)
  assert refill.slots(settings, 8, 5) == (4, 1, 0)
  fn = refill.make_generate(CONFIG, settings)
  text = jax.jit(fn).lower(params, prompts, keys).compile().as_text()
  module = hlo.Module(text, 1, steps=100, reads=8)
  times = {
    count
    for at, name, count in module.walk(module.entry)
    if re.search(r"prefill.*/dot_gen", module.computations[at][name].rest)
  }
  # XLA takes out of a loop what is alike in all its rounds: of each row, then.
  assert times == {8}


def test_a_real_program_on_four_devices():
  mesh = jax.make_mesh((4,), ("a",), (AxisType.Auto,))

  def f(x):
    def trip(x, _):
      return jax.lax.psum(x, "a") / 4, None

    return jax.lax.scan(
      lambda x, _: jax.lax.scan(trip, x, None, length=3), x, None, length=5
    )[0]

  spec = PartitionSpec("a")
  mapped = jax.shard_map(
    f, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
  )
  compiled = jax.jit(mapped).lower(jnp.ones((8, 16))).compile()
  moved = hlo.Module(compiled.as_text(), 4).read().moved
  sent = [one for one in moved if one.kind == "all-reduce"]
  assert sum(one.times for one in sent) == 15
  assert sum(one.size * one.times for one in sent) == 15 * 1.5 * 2 * 16 * 4


class TestFlops:
  W, X = jnp.ones((8, 8)), jnp.ones((4, 8))
  ONE = 2 * 4 * 8 * 8

  def count(self, f, *args):
    return flops.count(jax.jit(f).trace(*args)) / self.ONE

  def test_loops_gradients_and_what_nobody_needs(self):
    def f(w, x):
      x = jax.lax.scan(lambda x, _: (jnp.sin(x @ w), None), x, None, length=5)
      return x[0].sum()

    assert self.count(f, self.W, self.X) == 5
    assert self.count(jax.grad(f), self.W, self.X) == 15
    remat = jax.value_and_grad(jax.checkpoint(f))
    assert self.count(remat, self.W, self.X) == 20
    assert self.count(lambda w, x: (x @ w, x)[1], self.W, self.X) == 0

  def test_stages_of_a_sampler(self):
    def f(w, x):
      state = jnp.int32(0), x
      for bound in (3, 7):
        state = jax.lax.while_loop(
          lambda s, bound=bound: (s[0] < bound) & (s[1].sum() > 0),
          lambda s: (s[0] + 1, s[1] @ w),
          state,
        )
      return state

    assert self.count(f, self.W, self.X) == 7

  def test_a_device_s_own_part_counts_for_all(self):
    mesh = jax.make_mesh((4,), ("a",), (AxisType.Auto,))
    spec = PartitionSpec("a")
    f = jax.shard_map(
      lambda x, w: x @ w,
      mesh=mesh,
      in_specs=(spec, PartitionSpec()),
      out_specs=spec,
    )
    assert self.count(f, self.X, self.W) == 1

  def test_a_kernel_leaves_out_what_causality_does(self):
    S, N, K, H = 1536, 4, 2, 128
    kernel = kernels.Splash(jnp.ones((1, S), jnp.int32))
    shapes = (jax.ShapeDtypeStruct((1, S, n, H), "bfloat16") for n in (N, K, K))
    counted = flops.count(jax.jit(lambda *x: kernel(*x)).trace(*shapes))
    # Tiles of 512: of three times three, six.
    assert counted == 4 * S * S * N * H * 6 / 9


@pytest.mark.parametrize(
  ("text", "wanted"),
  [
    ("f32[2,3]{1,0:T(8,128)}", [(6, 24, True)]),
    ("(bf16[4]{0:S(1)}, s8[])", [(4, 8, False), (1, 1, True)]),
    ("pred[8]", [(8, 8, True)]),
    ("f8e4m3fn[16]", [(16, 16, True)]),
    ("s4[16]", [(16, 8, True)]),
    ("token[]", [(1, 0, True)]),
  ],
)
def test_types(text, wanted):
  np.testing.assert_equal(list(hlo.arrays(text)), wanted)
