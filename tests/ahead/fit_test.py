"""What a run would need of a slice: its programs, and the command."""

import dataclasses
import importlib.util
import json
import types

import jax
import pytest

from experiments import scale_page
from saw_jax.ahead import compiled, footprint, programs, report, topology
from saw_jax.algorithms import AlgorithmConfig, KLConfig
from saw_jax.models import decoder
from saw_jax.models.lora import LoraConfig
from saw_jax.run import checks
from saw_jax.run.policy import Policy
from saw_jax.run.sections import LabelConfig, RunConfig
from saw_jax.training.parallel import ParallelConfig
from tests import helpers

MESHED = ParallelConfig(lift="meshed", fsdp=2, tensor=2)
ROWS = ParallelConfig(lift="meshed", fsdp=4)
KL = KLConfig("loss", "k3", 0.1)
V5E = topology.read("v5e-8")


def outline(parallel=MESHED, **changes) -> programs.Outline:
  made = helpers.experiment(parallel=parallel, **changes)
  return programs.Outline(made, jax.devices())


class TestPrograms:
  @pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(rank=2)])
  def test_the_state_is_the_run_s(self, lora):
    made = helpers.experiment(parallel=MESHED, lora=lora)
    real, planned = Policy(made, 1), programs.Outline(made, jax.devices())

    def where(tree):
      return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding.spec), tree)

    assert where(planned.state) == where(real.state)
    # A device holds the same bytes.
    size = sum(
      x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(real.state)
    )
    assert compiled.share(planned.state) == size

  @pytest.mark.parametrize(
    ("changes", "names"),
    [
      ({}, "weights generate update"),
      (
        {"algorithm": AlgorithmConfig(kl=KL)},
        "weights generate log_probs update",
      ),
      (
        {"labels": LabelConfig(method="entropy")},
        "weights generate observe update",
      ),
    ],
  )
  def test_those_that_a_method_runs(self, changes, names):
    found = list(programs.programs_of(outline(**changes)))
    assert [one.name for one in found] == names.split()

  def test_a_sampler_is_given_its_layers_one_at_a_time(self):
    # One that has them all takes one more, beside the learner's stack.
    params = helpers.stack_layers(helpers.start())
    config = dataclasses.replace(helpers.CONFIG, scan_layers=True)
    made = outline(ROWS, decoder=config, params=params)
    found = {one.name: one for one in programs.programs_of(made)}
    layers, sampler = found["layers"], made.weights.whole
    assert layers.runs == helpers.CONFIG.num_layers
    assert "layers" not in sampler and "layer_0" in sampler
    assert compiled.share(sampler) == compiled.share(
      outline(ROWS).weights.whole
    )
    result = jax.eval_shape(layers.kept.jitted, *layers.kept.args)
    of_one = [(x.shape, x.dtype) for x in jax.tree.leaves(sampler["layer_0"])]
    assert [(x.shape, x.dtype) for x in result] == of_one
    assert layers.kept.trace().lower().compile()

  def test_rows_as_long_as_they_may_be(self):
    found = {one.name: one for one in programs.programs_of(outline())}
    prompts, keys = found["generate"].kept.args[1:]
    assert (prompts.tokens.shape, keys.shape) == ((4, 48), (16,))
    assert found["update"].kept.args[1].tokens.shape == (16, 53)

  def test_flops_by_hand(self):
    D, F, V, N, K, H, S, T = 16, 24, 259, 2, 1, 8, 53, 5
    kernels = D * H * (2 * N + 2 * K) + 3 * D * F
    inside, head, scores = 2 * S * kernels, 2 * T * V * D, 4 * N * H * S * S
    sizes = footprint.Sizes.of(helpers.experiment(), 1)
    # Scales of norms are weights, too; causality leaves half of the scores.
    norms = 2 * S * 3 * D
    row = inside + norms + head + scores / 2
    assert sizes.forward_flops(16) == 16 * row
    # What is observed behind a response is read, and asked for.
    longer = (inside + norms) * 56 / 53 + head * 8 / 5
    longer += scores / 2 * (56 / 53) ** 2
    assert sizes.forward_flops(1, more=3) == pytest.approx(longer)
    update = list(programs.programs_of(outline(ROWS)))[-1]
    assert update.model_flops == 3 * 16 * row
    # The program computes all scores; a single chunk's logits are kept.
    done = 3 * 16 * (inside + scores + head)
    assert compiled.flops.count(update.kept.trace()) == done


class TestTopologies:
  @pytest.mark.parametrize(
    ("name", "same", "count"),
    [
      ("v5e-16", "v5e:4x4", 16),
      ("v5p-16", "v5p:2x2x4", 16),
      ("v6e:2x4", "v6e:2x4", 8),
      ("gpu:h100x8", "gpu:h100x8", 8),
      ("cpu:3", "cpu:3", 3),
    ],
  )
  def test_names(self, name, same, count):
    found = topology.read(name)
    assert (found.name, found.count) == (same, count)

  @pytest.mark.parametrize(
    ("name", "said"),
    [
      ("v5e-7", "chips"),
      ("v5e:3x3", "2x4"),
      ("v5x-8", "v5"),
      ("gpu:h200x8", "h100"),
      ("cpu:0", "cpu:8"),
      ("eight", "gpu:h100x8"),
    ],
  )
  def test_no_such_slice(self, name, said):
    with pytest.raises((ValueError, KeyError), match=said):
      topology.read(name)

  def test_each_chip_has_its_source(self):
    assert all("https://" in chip["source"] for chip in topology.CHIPS.values())


class TestMemory:
  def test_a_peak_is_what_libtpu_holds_against_a_chip(self):
    # care/math's update, of 32 and of 64 parts: v5e-8 refuses the first with
    # the figure that v6e-8 has as its peak, and takes the second.
    G = 2**30
    sizes = {"argument": 5.63, "output": 5.62, "alias": 5.62, "temp": 19.41}
    sizes = {f"{key}_size_in_bytes": x * G for key, x in sizes.items()}
    memory = types.SimpleNamespace(peak_memory_in_bytes=17.65 * G, **sizes)
    error = RuntimeError(
      "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
      "for HLO temporaries (17.65G) exceeds available HBM (15.75G)."
    )
    assert compiled.at_most(memory, True) == compiled.asked(error) == 17.65 * G
    assert compiled.at_most(memory, False) == pytest.approx(25.04 * G)

  def test_another_error_is_passed_on(self):
    with pytest.raises(RuntimeError, match="another"):
      compiled.asked(RuntimeError("another one"))


class TestReport:
  FOUND = {
    **{"program": "update", "runs": 2, "beside": 0.0, "arguments": 4 * 2**30},
    **{"flops": 197e12, "model_flops": 150e12, "memory": 819e9 / 2},
    **{"moved": [["all-gather", "weights mlp", 3, 400e9]], "compile_s": 1.0},
    **{"temporaries": 2**30, "needs": 5 * 2**30},
    "commit": "abc",
  }

  def test_the_roofline_by_hand(self):
    times = report.roofline(self.FOUND, V5E)
    assert times == pytest.approx({"compute": 1, "HBM": 0.5, "links": 2})
    assert report.seconds(self.FOUND, V5E) == pytest.approx(4)
    said = "\n".join(report.lines(self.FOUND, V5E))
    assert "fits, 5.00 of 15.75" in said and "1.31 to 1" in said

  def test_parts_run_one_after_the_other(self):
    first, rest = ({"memory": x, "sent": 0.0} for x in (0.0, 819e9))
    parts = {
      "prefill": first | {"flops": 197e12},
      "decode": rest | {"flops": 0},
    }
    found = self.FOUND | {"parts": parts, "memory": 819e9, "moved": []}
    # At once they would take a second; twice in a step.
    assert report.seconds(found, V5E) == pytest.approx(4)
    assert max(report.roofline(found, V5E).values()) == pytest.approx(1)
    said = "\n".join(report.lines(found, V5E))
    assert "prefill   compute 1 s (100%)" in said
    assert "decode    compute 0 s (0%), HBM 1 s (100%)" in said

  def made(self, remat="full", **loop):
    # 64 responses of 53 tokens, over 8 chips.
    loop = {"prompts_per_step": 16, "group_size": 4, **loop}
    made = helpers.experiment(loop=loop, parallel=ParallelConfig("meshed"))
    decoder = dataclasses.replace(made.decoder, remat=remat)
    return made._replace(decoder=decoder)

  def test_what_does_not_fit_is_cut_in_proportion(self):
    # 40 GiB of rows into 11.75: four times as many parts, or eight times.
    made, found = self.made(), {**self.FOUND, "needs": 44 * 2**30}
    first, *rest = report.choices(made, found, V5E)
    assert first == {"model.remat": "dots", "loop.num_microbatches": 8}
    assert {"loop.num_microbatches": 4} in rest
    # 8 rows on each chip are four times too many; matrices are cut last.
    first, *rest = report.choices(made, {**found, "program": "generate"}, V5E)
    assert first == {"rollout.cache_tokens": 8 * 53 // 4}
    assert rest[-1]["parallel.tensor"] == 2

  def test_logits_that_do_not_fit_are_of_fewer_tokens(self):
    made = self.made(num_microbatches=8, chunk_size=64)  # a row each
    found = {**self.FOUND, "needs": 20 * 2**30}
    first = next(report.choices(made, found, V5E))
    assert first == {"model.remat": "attention", "loop.chunk_size": 16}

  def test_what_fits_computes_no_more_again_than_it_has_to(self):
    made, sampler = self.made(num_microbatches=4), {"program": "generate"}
    found = list(report.choices(made, self.FOUND, V5E))
    assert found[0] == {"model.remat": "dots", "loop.num_microbatches": 1}
    # Nothing is offered that computes more. Fewer parts send less, where that
    # is what takes time.
    assert found[-1] == {"loop.num_microbatches": 2}
    near = {**self.FOUND, "moved": []}
    assert all("model.remat" in x for x in report.choices(made, near, V5E))
    assert not list(report.choices(made, self.FOUND | sampler, V5E))
    best = self.made("dots", num_microbatches=1)
    assert not list(report.choices(best, self.FOUND, V5E))
    # Without room to spare, one has to make some.
    full = {**self.FOUND, "needs": int(15.75 * 2**30)}
    first = next(report.choices(made, full, V5E))
    assert first == {"model.remat": "dots", "loop.num_microbatches": 8}

  @pytest.mark.parametrize(
    ("key", "names"),
    [
      ("loop.num_microbatches", "log_probs update"),
      ("model.remat", "update"),
      ("rollout.cache_tokens", "generate"),
      ("parallel.tensor", "weights generate log_probs update"),
    ],
  )
  def test_what_helps_one_program_may_change_another(self, key, names):
    every = "weights generate log_probs update".split()
    found = [name for name in every if report.reached(name, {}, {key: 2})]
    assert found == names.split()
    assert not any(report.reached(x, {key: 2}, {key: 2}) for x in every)

  def test_models_that_are_not_here(self):
    run = RunConfig(checkpoint="checkpoints/Qwen3-8B-Base")
    task = dataclasses.replace(run.task, name="math")
    run = dataclasses.replace(run, task=task)
    made = compiled.experiment_of(run, 1)
    shapes = jax.tree.leaves(decoder.param_shapes(made.decoder))
    assert sum(x.size for x in shapes) == 8_190_735_360
    with pytest.raises(ValueError, match="of 15.75: a larger slice"):
      report.check_room(made, V5E)
    report.check_room(self.made(), V5E)
    with pytest.raises((ValueError, KeyError), match="Qwen3-8B-Base"):
      compiled.experiment_of(dataclasses.replace(run, checkpoint="Qwen3-8"), 1)


class TestPages:
  # Of four prompts of 48 tokens, four responses of 40 each, in 400 tokens.
  ROLLOUT = {"max_new_tokens": 40, "cache_tokens": 400, "page_size": 16}

  def sizes(self, **changes) -> footprint.Sizes:
    made = helpers.experiment(rollout=self.ROLLOUT | changes)
    return footprint.Sizes.of(made, 1)

  def said(self, **changes) -> str:
    found = TestReport.FOUND | {"slots": self.sizes(**changes).slots()}
    return next(x for x in report.lines(found, V5E) if "slots" in x).strip()

  def test_slots_and_pages(self):
    # Twelve of 22 pages are the prompts'; a row has three more at its end.
    assert self.said().startswith(
      "slots     4 of 16 rows, 3 if all are of full length, in 22 pages of 16 "
      "tokens by a gather, for model.attention is not splash"
    )
    assert self.said(page_size=0) == "slots     4 of 16 rows"

  def test_what_cannot_be_is_said(self):
    assert self.said(cache_tokens=303) == (
      "slots     2 of 16 rows, without pages: 4 prompts of 48 tokens and a "
      "response of 40 take 304 of rollout.cache_tokens, which is 303"
    )
    assert self.said(cache_tokens=1392).endswith("all rows have room at once")
    with pytest.raises(ValueError, match="no rollout.cache_tokens"):
      checks.check(self.sizes(cache_tokens=0).made)

  @pytest.mark.parametrize(
    ("changes", "size", "why"),
    [
      ({}, 16, ""),
      ({"head_size": 64}, 16, "heads have 64 entries, no multiple of 128"),
      ({"dtype": "float32"}, 16, "activations are float32"),
      ({}, 24, "pages have 24 tokens, no multiple of 16"),
      ({"windows": (0, 5)}, 16, "layers have windows"),
    ],
  )
  def test_why_no_kernel_reads_them(self, monkeypatch, changes, size, why):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    sizes = self.sizes(page_size=size, cache_tokens=450)
    known = dict(head_size=128, dtype="bfloat16", num_layers=2) | changes
    model = dataclasses.replace(sizes.made.decoder, **known)
    sizes = sizes._replace(made=sizes.made._replace(decoder=model))
    assert sizes.slots()["apart"] == why

  def test_loops_of_rows_of_full_length(self):
    sizes = self.sizes()
    # Three at a time; of 352 tokens, three rows read 68 in the mean.
    share = pytest.approx(3 * 68 / 352)
    found = programs.loops_of(sizes)
    assert found == (6 * 39, 16, share)
    # A gather has a loop for each stage: here there are two.
    sizes = self.sizes(max_new_tokens=128, cache_tokens=500)
    drawn, begun, _ = programs.loops_of(sizes)
    assert (drawn, begun) == (8 * 127 / 2, 16 / 2)
    # So have slots without pages whose prompts are all held.
    sizes = self.sizes(max_new_tokens=128, cache_tokens=1000, page_size=0)
    found = programs.loops_of(sizes)
    assert found == (4 * 127 / 2, 1, 1.0)

  def test_a_device_that_needs_no_copy_of_the_weights(self):
    made = helpers.experiment(parallel=ParallelConfig("meshed"))
    planned = programs.Outline(made, jax.devices()[:1])
    found = [one.name for one in programs.programs_of(planned)]
    assert found == ["generate", "update"]

  def test_the_pool_is_counted(self):
    def room(size):
      rollout = dict(max_prompt_tokens=300_000, cache_tokens=1, page_size=size)
      made = helpers.experiment(
        loop={"prompts_per_step": 8_000}, rollout=rollout, parallel=ROWS
      )
      report.check_room(made, V5E)

    room(0)
    with pytest.raises(ValueError, match="pages of all prompts and a response"):
      room(16)

  def test_no_cache_is_offered_that_has_no_pages(self):
    found = {**TestReport.FOUND, "needs": 44 * 2**30, "program": "generate"}
    made = TestReport().made()
    for size, first in ((0, 106), (16, None)):
      rollout = dict(page_size=size, cache_tokens=424)
      rollout = dataclasses.replace(made.rollout, **rollout)
      every = report.choices(made._replace(rollout=rollout), found, V5E)
      assert next(every, {}).get("rollout.cache_tokens") == first


def test_the_page_recommends_what_fits_with_what_was_changed():
  update = TestReport.FOUND | {"with": {"loop.num_microbatches": 4}}
  parts = {"flops": 0, "memory": 819e9 / 2, "sent": 0}, {"sent": 300e9}
  parts = {"prefill": parts[0], "decode": parts[0] | parts[1]}
  generate = TestReport.FOUND | {"program": "generate", "runs": 1}
  generate |= {"parts": parts}
  big = {**update, "needs": 16 * 2**30}

  def one(where, *figures):
    words = f"saw fit --config=a/b:row=x,scale=paper --topology={where}"
    more = {"table": "a/b", "command": words, "slice": where, "refused": ""}
    return {("a/b", "x", where): more | {"figures": figures}}

  known = one("v5e-8", generate, big) | one("v5e-16", generate, update)
  known |= one("v5e-64", generate, update) | one("v6e-8", update)
  places = ["v5e-64", "v5e-8", "v5e-16", "v6e-8"]
  said = scale_page.lines({"a/b": [["x", "y"]]}, known, places)
  _, no, yes, part = (line for line in said if line.startswith("| x, y"))
  assert "| no: update | 16.00 of 15.75 | 1.31 |" in no
  # Two updates and a call, of 400 GB and two seconds each.
  assert "| yes `loop.num_microbatches=4` |" in yes
  assert yes.endswith("| 1,200 | 6.0 | 0.5 + 1.5 | abc |")
  assert "sampling not compiled" in part
  command = (
    "    saw train --config=a/b:row=x,scale=paper "
    "--config.loop.num_microbatches=4 --workdir=runs/a/b"
  )
  assert said[-3].startswith("Recommended: v5e-16") and said[-1] == command
  # Four times the chips, and a step in an eighth of the time.
  fast = {"runs": 1, "flops": 1e12, "memory": 819e9 * 0.75, "moved": []}
  none = {"parts": {x: {"flops": 0, "memory": 0, "sent": 0} for x in parts}}
  # What did not fit was compiled before, and has no time.
  lost = {key: x for key, x in big.items() if key != "moved"}
  known |= one("v5e-64", generate | none, lost, update | fast)
  said = scale_page.lines({"a/b": [["x", "y"]]}, known, places)
  assert said[-7].startswith("Recommended: v5e-64")
  smallest = "The smallest that fits is v5e-16, with 2.0 times the chip time:"
  assert said[-3] == smallest
  assert said[-5] == said[-1] == command


def fit(name: str, *words: str):
  return helpers.python(
    *("-m", "saw_jax", "fit", f"--topology={name}"),
    "--config=saw/tool_calling:row=gdpo_saw,scale=tiny",
    *("--config.parallel.lift=meshed", "--config.parallel.fsdp=-1"),
    *("--config.rollout.max_new_tokens=8", "--config.loop.group_size=4"),
    *("--config.model.width=16", *words),
  )


class TestCommand:
  def test_virtual_devices(self):
    # Of 64 responses, 16 parts do not split over eight devices; 8 do.
    done = fit(
      "cpu:8", "--json", "--suggest", "--config.loop.num_microbatches=16"
    )
    assert done.returncode == 0, done.stderr
    first, *rest = map(json.loads, done.stdout.splitlines())
    assert first["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    assert [one["program"] for one in rest] == ["weights", "generate", "update"]
    for one in rest:
      assert one["with"] == {"loop.num_microbatches": 8}
      assert one["needs"] > one["arguments"] > 0 and not one["unknown_loops"]
      sent = [what for _, what, *_ in one["moved"]]
      if one["program"] == "generate":
        for kind in ("flops", "memory"):
          first, rest = (one["parts"][x][kind] for x in ("prefill", "decode"))
          assert min(first, rest) > 0 and first + rest == one[kind]
      # A sampler has the weights of its own.
      assert ("weights mlp" in sent) == (one["program"] != "generate")

  def test_pages(self):
    words = "--page_size=8", "--config.rollout.cache_tokens=300"
    done = fit("cpu:8", *words, "--json", "--programs=generate")
    assert done.returncode == 0, done.stderr
    _, found = map(json.loads, done.stdout.splitlines())
    # Of 300 tokens, 88 are of the prompt that is read.
    assert found["slots"]["pages"] == (300 - 88) // 8
    assert found["slots"]["slots"] == 2
    # Nothing is sent for a token, and all its loops have a length.
    assert found["parts"]["decode"]["weights"] == 0
    assert found["unknown_loops"] == 1  # while there is work
    said = "\n".join(report.lines(found, V5E))
    assert "in 26 pages of 8 tokens by a gather" in said
    assert "no weights, to draw tokens" in said

  def test_rows_that_do_not_split_and_slices_that_are_none(self):
    done = fit("cpu:8", "--config.loop.num_microbatches=16")
    assert (done.returncode, done.stdout) == (2, "")
    assert "rows of a micro-batch do not split over the 8" in done.stderr
    assert "loop.num_microbatches=8 does" in done.stderr
    assert "Traceback" not in done.stderr
    done = fit("v5e-9")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1

  @pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is missing: pip install -e '.[tpu]'",
  )
  def test_a_real_slice(self):
    done = fit("v5e-8")
    assert done.returncode == 0, done.stderr
    assert "libtpu" in done.stdout and "of 15.75 GiB" in done.stdout
    assert "weights mlp" in done.stdout and "it fits" in done.stdout
