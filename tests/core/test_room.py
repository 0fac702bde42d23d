"""How many turns may run at once."""

from __future__ import annotations

from functools import partial

from claude_daemon.core.room import Room


def test_there_are_so_many_places_and_no_more() -> None:
    room = Room(2)
    assert [room.take(holder) for holder in ("a", "b", "c")] == [True, True, False]
    assert (room.taken, room.free, repr(room)) == (2, 0, "<Room 2 of 2>")


def test_a_place_is_given_back_once_and_told() -> None:
    room, told = Room(1), list[int]()
    room.on_change(lambda: told.append(room.free))
    room.take("a")
    room.give_back("a")
    room.give_back("a")
    room.give_back("nobody")
    assert (room.free, told) == (1, [1])


def test_a_smaller_limit_takes_nobodys_place() -> None:
    room = Room(2)
    room.take("a")
    room.take("b")
    room.resize(1)
    assert (room.taken, room.free) == (2, 0)
    room.give_back("a")
    assert not room.take("c")
    room.give_back("b")
    assert room.take("c")


def test_more_room_is_told_and_less_is_not() -> None:
    room, told = Room(1), list[int]()
    room.on_change(lambda: told.append(room.limit))
    for limit in (0, 2, 2):
        room.resize(limit)
    assert told == [2]


def test_everybody_is_told() -> None:
    room, told = Room(1), list[str]()
    for name in "ab":
        room.on_change(partial(told.append, name))
    room.tell()
    assert told == ["a", "b"]
