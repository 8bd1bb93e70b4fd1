"""Several servers as one source of sessions."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loguru import logger

from pipecat_duplex.remote.backend import Fuller, RemoteBackend
from pipecat_duplex.remote.discovery import ServerAddress, ServerSource, make_source
from pipecat_duplex.remote.load import ServerLoad, ask_loads
from pipecat_duplex.remote.session import RemoteLimits, RemoteSession
from pipecat_duplex.session import (
    AtCapacity,
    DuplexBackend,
    DuplexError,
    InvalidPrompt,
    SessionConfig,
)

CONNECT_SECS = 1.5
"""How long one of several servers may take to answer before the next is tried."""

SAMPLE = 8
"""Servers that are asked how full they are, at random where there are more."""

SLACKS = (0, 0, 1, 3, 7)
"""How many callers may have come to a server since it was asked how full it is, from try to try.
After these, a call goes where there is room."""

SHY_SECS = 0.01
"""About how long it waits before it asks again, at first; twice as long each time."""

MAX_TRIES = 32
"""Servers that are tried for one session: in a large fleet, that many are a fair sample."""

FAILED_SECS = 3.0
"""How long a server that failed comes last."""

SILENT_SECS = 0.35
"""A server that gives no sign of life for so long comes last, too: there may be others."""

WITH_ROOM, UNKNOWN, FULL, FAILED, DRAINING = range(5)
"""The order in which servers are tried. Servers of others do not tell how full they are."""

DEAD_SECS = 3.0
"""How long one of several servers may give no sign of life. Another is prepared long before, and
goes on as soon as it is ready; where all stand still at once, as with a network, none is lost."""

ONE_OF_SEVERAL: dict[str, Any] = {
    "attempts": 1,
    "connect_secs": CONNECT_SECS,
    "moves": True,
    "limits": RemoteLimits(dead_secs=DEAD_SECS),
}


class Member:
    """One server of a fleet, as this process knows it."""

    def __init__(self, address: ServerAddress, backend: RemoteBackend):
        """Initialize a server that has not been tried.

        Args:
            address: Where it is.
            backend: Opens sessions there.
        """
        self.address = address
        self.backend = backend
        self.failed_at_secs = float("-inf")
        # Calls that were sent here, and those of them whose beginning has been settled: what a
        # server says of itself does not hold the others yet.
        self.chosen = 0
        self.settled = 0


class RemoteFleet(DuplexBackend):
    """Opens sessions on the emptiest of several servers.

    Just before each call, the servers are asked how full they are. A server that is full, drains,
    fails or does not answer costs only the time to try the next one. A server that failed comes
    last for a few seconds.

    Example::

        RemoteFleet(["ws://gpu-1:8998", "ws://gpu-2:8998"])
        RemoteFleet("ws://workers.default.svc:8998")  # a name with many addresses
        RemoteFleet("http://head:8990/workers")  # a registry
    """

    def __init__(self, urls: str | Sequence[str], **options: Any):
        """Initialize; nothing is looked up or connected yet.

        Args:
            urls: Servers, names that stand for several, and registries. Names and registries are
                looked up again for later sessions.
            **options: Arguments of each :class:`~pipecat_duplex.remote.RemoteBackend`.

        Raises:
            DuplexError: There are no URLs, or one cannot be used.
        """
        named = [urls] if isinstance(urls, str) else list(urls)
        if not named:
            raise DuplexError("no server was named")
        self._sources: list[ServerSource] = [make_source(url) for url in named]
        self._options = options
        self._members: dict[tuple[ServerAddress, bool], Member] = {}
        self._sessions: list[tuple[Member, RemoteSession]] = []
        self._questions: dict[tuple[Member, ...], Question] = {}
        self._closed = False

    async def open(self, config: SessionConfig) -> RemoteSession:
        """Begin a conversation on the emptiest server, or the next that takes it.

        Args:
            config: What it asks of the model.

        Raises:
            AtCapacity: The servers that answer are full.
            InvalidPrompt: No server has the voice.
            DuplexError: None is known, none can be reached, or all refuse.
        """
        for number, slack in enumerate(SLACKS):
            try:
                return await self._open(config, slack)
            except Fuller:  # Callers of other processes were told the same, and came first.
                await asyncio.sleep(random.uniform(0, SHY_SECS * 2**number))
        return await self._open(config, slack=None)

    async def _open(self, config: SessionConfig, slack: int | None) -> RemoteSession:
        """Open a session where at most so many calls have come since the servers were asked.

        Raises:
            Fuller: More have come.
            DuplexError: As for ``open``.
        """
        if self._closed:
            raise DuplexError("the connection to the servers was closed")
        self._note_failures()
        left = await self._find_members()
        problems: list[DuplexError] = []
        while left and len(problems) < MAX_TRIES:
            sample = self._sample(left)
            for member, used in await self._rank(sample):
                most_used = None if used is None or slack is None else used + slack
                try:
                    return await self._open_at(member, config, most_used)
                except Fuller:
                    raise
                except DuplexError as error:
                    logger.debug(f"{member.backend.host} was tried: {error}")
                    problems.append(error)
            left = [member for member in left if member not in sample]
        raise _sum_up(problems, untried=len(left))

    async def close(self) -> None:
        """End every session. May be called any number of times."""
        self._closed = True
        for source in self._sources:
            source.close()
        await asyncio.gather(*(member.backend.close() for member in self._members.values()))

    async def _open_at(
        self, member: Member, config: SessionConfig, most_used: int | None
    ) -> RemoteSession:
        member.chosen += 1
        try:
            session = await member.backend.open(config, most_used=most_used)
        except (AtCapacity, InvalidPrompt):
            raise  # Neither a full server nor a voice that it lacks is a failure of the server.
        except DuplexError:
            member.failed_at_secs = time.monotonic()
            raise
        finally:
            member.settled += 1
        self._sessions.append((member, session))
        return session

    #
    # which servers there are
    #

    async def _find_members(self) -> list[Member]:
        found = await asyncio.gather(*(source.servers() for source in self._sources))
        addresses = list(dict.fromkeys(address for some in found for address in some))
        if not addresses:
            problems = [source.problem for source in self._sources if source.problem]
            raise DuplexError("; ".join(problems) or "no server is known")
        keys = [(address, len(addresses) > 1) for address in addresses]
        busy = {member for member, _ in self._sessions}
        self._members = {
            key: member
            for key, member in self._members.items()
            if key in keys or member in busy or member.chosen > member.settled
        }
        for key in keys:
            if key not in self._members:
                self._members[key] = self._make_member(*key)
        return [self._members[key] for key in keys]

    def _make_member(self, address: ServerAddress, one_of_several: bool) -> Member:
        options = (ONE_OF_SEVERAL if one_of_several else {}) | self._options
        return Member(address, RemoteBackend(address.url, ip=address.ip, **options))

    def _note_failures(self) -> None:
        silent_secs: dict[Member, float] = {}
        for member, session in self._sessions:
            outlook = session.outlook()
            if session.failed or (not session.ended and outlook.leave):
                member.failed_at_secs = time.monotonic()
            if not session.ended:
                # A server from which one of its calls hears is alive.
                heard_secs = outlook.silent_secs or 0.0
                silent_secs[member] = min(heard_secs, silent_secs.get(member, heard_secs))
        for member, secs in silent_secs.items():
            if secs > SILENT_SECS:
                member.failed_at_secs = time.monotonic()
        self._sessions = [each for each in self._sessions if not each[1].ended]

    #
    # which of them comes first
    #

    def _sample(self, members: list[Member]) -> list[Member]:
        if len(members) <= SAMPLE:
            return members
        sound = [each for each in members if not self._failed_lately(each)]
        return random.sample(sound if len(sound) >= SAMPLE else members, SAMPLE)

    async def _rank(self, members: list[Member]) -> list[tuple[Member, int | None]]:
        """Order servers: the emptiest first, those that can hardly take a call last.

        Returns:
            Each, with the calls that it has as far as is known.
        """
        # One that failed just now would only be waited for.
        sound = tuple(member for member in members if not self._failed_lately(member))
        if len(sound) < 2:
            return [(each, None) for each in sorted(members, key=lambda each: each not in sound)]
        question = self._ask(sound)
        told = await asyncio.shield(question.answer)
        loads: dict[Member, ServerLoad] = {}
        for member in sound:
            coming = member.chosen - question.settled[member]
            if member in told:
                load = told[member]
                loads[member] = ServerLoad(load.slots, load.used + coming, load.draining)
        places = {member: self._place(member, loads.get(member)) for member in members}
        with_room = {member: load for member, load in loads.items() if places[member] == WITH_ROOM}
        spread = {member: random.random() + self._calls_at(member) for member in members}
        spread |= spread_evenly(with_room)
        ranked = sorted(members, key=lambda member: (places[member], spread[member]))
        return [(each, with_room[each].used if each in with_room else None) for each in ranked]

    def _ask(self, members: tuple[Member, ...]) -> "Question":
        """Ask servers how full they are; callers who come at the same time share the answer."""
        question = self._questions.get(members)
        if question is None:
            addresses = {member: member.address for member in members}
            answer = asyncio.create_task(ask_loads(addresses, self._options.get("ssl_context")))
            question = Question({member: member.settled for member in members}, answer)
            self._questions[members] = question
            answer.add_done_callback(lambda _: self._questions.pop(members))
        return question

    def _place(self, member: Member, load: ServerLoad | None) -> int:
        if self._failed_lately(member):
            return FAILED
        if load is None:
            return UNKNOWN
        if load.draining:
            return DRAINING
        return WITH_ROOM if load.used < load.slots else FULL

    def _failed_lately(self, member: Member) -> bool:
        return time.monotonic() - member.failed_at_secs < FAILED_SECS

    def _calls_at(self, member: Member) -> int:
        """Count the calls of this process at a server, with those under way to it."""
        return member.chosen - member.settled + sum(each is member for each, _ in self._sessions)


@dataclass(frozen=True)
class Question:
    """A question to servers that is under way.

    Parameters:
        settled: Calls of each that had been settled when it was asked.
        answer: What they say.
    """

    settled: dict[Member, int]
    answer: "asyncio.Task[dict[Member, ServerLoad]]"


def spread_evenly(loads: Mapping[Member, ServerLoad]) -> dict[Member, float]:
    """Return a number for each server; the smallest is to be called first.

    It is the share of its slots that is used. Of those that are at most a call fuller than the
    emptiest, chance picks two, and the emptier one is first: callers from many processes who see
    the same numbers do not all run to one server, and yet none gets more than two calls ahead.

    Args:
        loads: How full each is.
    """
    least = min(((load.used + 1) / load.slots for load in loads.values()), default=0.0)
    shares = {member: load.used / load.slots for member, load in loads.items()}
    even = [member for member, share in shares.items() if share <= least]
    random.shuffle(even)
    even[:2] = sorted(even[:2], key=shares.__getitem__)
    return shares | {member: place - len(even) for place, member in enumerate(even)}


def _sum_up(problems: Sequence[DuplexError], *, untried: int) -> DuplexError:
    text = "; ".join(dict.fromkeys(map(str, problems)))
    if untried:
        text += f"; {untried} further servers were not tried"
    if any(isinstance(each, AtCapacity) for each in problems):
        return AtCapacity(text)
    if all(isinstance(each, InvalidPrompt) for each in problems):
        return InvalidPrompt(text)
    return DuplexError(text)
