"""Tests of saw_jax/tasks/household/world.py."""

import collections

import pytest

from saw_jax.tasks.draws import Draws
from saw_jax.tasks.household import world as hw

SEEDS = range(300)


def worlds(split="train", **options):
  return [hw.draw_world(Draws(split, s), split, **options) for s in SEEDS]


class TestDrawWorld:
  def test_it_is_this_world(self):
    # What a seed means may not change: results depend on it.
    world = hw.draw_world(
      Draws("fixed"), "train", kinds=["heat"], receptacles=6, objects=4
    )
    assert world == hw.World(
      *("heat", "kitchen", "mug", "shelf", "put a hot mug in shelf."),
      places=(
        *("cabinet 1", "coffeemachine 1", "drawer 1"),
        *("garbagecan 1", "microwave 1", "shelf 1"),
      ),
      things=("mug 1", "knife 1", "lettuce 1", "dishsponge 1"),
      lies_in=(2, 2, 3, 0),
      lamp_in=-1,
    )

  def test_every_kind_and_every_room_occurs(self):
    assert len(set(worlds())) == len(SEEDS)
    found = collections.Counter(world.kind for world in worlds())
    assert set(found) == set(hw.KINDS)
    assert min(found.values()) > len(SEEDS) / 12
    assert {world.room for world in worlds()} == set(hw.ROOMS)

  @pytest.mark.parametrize(
    "options",
    [{}, dict(receptacles=3, objects=1)]
    + [dict(kinds=[kind], receptacles=5, objects=4) for kind in hw.KINDS],
  )
  def test_a_world_is_as_its_tables_and_what_was_asked_for_say(self, options):
    for split in ("train", "test"):
      for world in worlds(split, **options):
        room = hw.ROOMS[world.room]
        assert world.kind in room.tasks and world.thing in world.goal
        assert world.kind in options.get("kinds", hw.KINDS)
        assert len(world.places) == options.get("receptacles", 16)
        assert len(world.things) <= max(options.get("objects", 20), 2)
        assert len(set(world.places)) == len(world.places)
        assert len(set(world.things)) == len(world.things)
        counts = collections.Counter(map(hw.kind_of, world.places))
        assert all(n <= room.receptacles[k] for k, n in counts.items())
        for thing, index in zip(world.things, world.lies_in, strict=True):
          kind, place = hw.kind_of(thing), hw.kind_of(world.places[index])
          assert kind in room.objects and place in hw.FITS[kind]
          # Nothing is done yet.
          assert (kind, place) != (world.thing, world.place)
        wanted = list(map(hw.kind_of, world.things)).count(world.thing)
        assert wanted >= (2 if world.kind == "two" else 1)
        assert world.place in counts
        if world.kind in hw.TOOLS:
          assert hw.TOOLS[world.kind] in counts
          assert world.thing in hw.ABLE[world.kind]
        assert (world.lamp_in >= 0) == (world.kind == "look")
        if world.kind == "look":
          assert hw.kind_of(world.places[world.lamp_in]) == world.place
        else:
          assert world.place in hw.FITS[world.thing]

  def test_it_refuses_what_there_is_not(self):
    for split, kinds in (("valid", hw.KINDS), ("train", ["x"]), ("train", [])):
      with pytest.raises(ValueError):
        hw.draw_world(Draws(0), split, kinds=kinds)


class TestSplits:
  @pytest.mark.parametrize("options", [{}, dict(receptacles=3, objects=1)])
  def test_they_do_not_overlap(self, options):
    train, test = (
      {world._replace(goal="") for world in worlds(split, **options)}
      for split in ("train", "test")
    )
    assert not train & test
    assert set(map(hw.split_of, train)) == {"train"}
    assert set(map(hw.split_of, test)) == {"test"}

  def test_words_and_order_do_not_count(self):
    for world in worlds()[:50]:
      last = len(world.places) - 1
      other = world._replace(
        goal="?",
        places=world.places[::-1],
        things=world.things[::-1],
        lies_in=tuple(last - i for i in world.lies_in[::-1]),
        lamp_in=last - world.lamp_in if world.lamp_in >= 0 else -1,
      )
      assert hw.split_of(other) == hw.split_of(world) == "train"


def test_everything_fits_somewhere_in_each_of_its_rooms():
  rooms = hw.ROOMS.values()
  assert set(hw.FITS) == {thing for room in rooms for thing in room.objects}
  places = {place for room in rooms for place in room.receptacles}
  assert all(fitting <= places for fitting in hw.FITS.values())
  for room in rooms:
    for thing in room.objects:
      assert hw.FITS[thing] & set(room.receptacles), thing
