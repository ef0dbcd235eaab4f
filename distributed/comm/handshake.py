"""The handshake: the first messages on a new connection.

Each side sends one map that describes it, reads the map of the other side, and derives from both
what the two sides agree upon (:func:`handshake_configuration`).  If a token is required, the maps
also carry the challenges of :mod:`distributed.comm.auth`, and each side then proves that it knows
the token: the client first, so that a server proves nothing to an unknown peer.

Whatever the original does not have is a *feature* (:class:`Feature`).  The map offers the features
of its side below the key ``"features"``, which the original ignores.  Both sides derive from both
offers which features they agree upon; these are in `Comm.features`.  A side uses a feature only if
it is there, so a peer of the original never receives anything new.

A server may answer peers without the token (*strangers*), which can ask it whether it serves.  For
the server, such a connection never leaves the handshake: the time limit, the maximum size and the
plain values of the handshake apply to all of its messages.

:func:`do_handshake` runs all of this on a comm.  It sets no time limit; its callers
(:func:`~distributed.comm.core.connect` and the listeners) do.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn, Protocol, TypeAlias

from distributed.base.text import shown, shown_repr
from distributed.comm.auth import Authentication, AuthenticationError
from distributed.comm.exceptions import CommClosedError, FatalCommClosedError
from distributed.comm.settings import CommSettings
from distributed.protocol.exceptions import ProtocolError
from distributed.protocol.pickle import HIGHEST_PROTOCOL

__all__ = [
    "NO_FEATURES",
    "AnswerStranger",
    "Endpoint",
    "Feature",
    "agreed_features",
    "do_handshake",
    "handshake_configuration",
    "handshake_info",
    "offered_features",
    "register_feature",
]

#: The version of Python, as in the handshake.
_PYTHON = tuple(sys.version_info)[:3]

#: Maximum number of characters of the peer's map or refusal that an error quotes.
_QUOTED = 200

#: Maximum number of features that a peer may offer.
MAX_FEATURES = 100

#: Maximum number of messages of a peer without a token that a server answers over one connection.
MAX_QUESTIONS = 100

#: The features of a comm whose peer has none.
NO_FEATURES: Mapping[str, Any] = MappingProxyType({})


#: Returns the answer, a map of plain values, to a message from a peer without a token.
AnswerStranger: TypeAlias = Callable[[Any], Awaitable[dict[str, Any]]]


class Endpoint(Protocol):
    """The part of a :class:`~distributed.comm.core.Comm` that the handshake uses."""

    @property
    def local_address(self) -> str: ...

    @property
    def peer_address(self) -> str: ...

    @property
    def carries_controls(self) -> bool: ...

    @property
    def passes_descriptors(self) -> bool: ...

    @property
    def allow_pickle(self) -> bool: ...

    @property
    def configured(self) -> CommSettings: ...

    def handshake_info(self) -> dict[str, Any]: ...

    async def write_handshake(self, msg: dict[str, Any]) -> None: ...

    async def read_handshake(self) -> Any: ...

    def complete_handshake(self, local: dict[str, Any], remote: dict[str, Any]) -> None: ...

    async def close(self) -> None: ...


class Feature(NamedTuple):
    """The two functions by which the sides of a connection agree upon a feature.

    Attributes
    ----------
    offer
        Return the parameter that this side offers on a comm, a plain value for msgpack; or None
        if it does not offer the feature there.  Called once per connection.
    agree
        Return the parameter that both sides use, from the one that this side offered and the one
        that the peer offered; or None to do without the feature.  Both sides must come to the same
        result.  The peer's parameter may be any plain value; the function raises a `ValueError`,
        which ends the handshake, if no honest peer sends it.  The result depends on the arguments
        alone, and is not changed: connections with the same arguments may share it.
    """

    offer: Callable[[Endpoint], Any]
    agree: Callable[[Any, Any], Any]


# name → feature; see `register_feature`
_features: dict[str, Feature] = {}

#: What the two sides of the latest connection have offered, as text, and what they have agreed on.
_latest: tuple[str, Mapping[str, Any]] = ("", NO_FEATURES)
#: Maximum number of characters of that text.
_LONGEST_OFFERS = 1000


def register_feature(
    name: str, offer: Callable[[Endpoint], Any], agree: Callable[[Any, Any], Any]
) -> None:
    """Let the handshake of each new connection negotiate a feature.

    The module that implements a feature registers it when it is imported.  The floor of that
    module may be above this one.

    Parameters
    ----------
    name
        The name of the feature on the wire.
    offer, agree
        See :class:`Feature`.

    Examples
    --------
    >>> register_feature("example", offer=lambda comm: 10, agree=min)
    >>> agreed_features({"features": {"example": 10}}, {"features": {"example": 7, "other": 1}})
    mappingproxy({'example': 7})
    >>> agreed_features({"features": {"example": 10}}, {})
    mappingproxy({})
    >>> del _features["example"]
    """
    global _latest
    if name in _features:
        raise ValueError(f"the feature {name!r} is registered already")
    _features[name] = Feature(offer, agree)
    _latest = "", NO_FEATURES


def offered_features(comm: Endpoint) -> dict[str, Any]:
    """Return the features that this side offers on *comm*, and their parameters."""
    offers = {}
    for name, feature in _features.items():
        offer = feature.offer(comm)
        if offer is not None:
            offers[name] = offer
    return offers


def agreed_features(local: Mapping[str, Any], remote: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the features that follow from the maps that both sides sent, and their parameters.

    Raises
    ------
    ValueError
        If *remote* offers features in a form that no honest peer sends.
    """
    global _latest
    ours, theirs = local.get("features"), remote.get("features")
    if theirs is None:
        return NO_FEATURES
    # Most connections of a process agree on the same.  The offers are compared as text, in which
    # True, 1 and 1.0 differ.
    try:
        offers = repr((ours, theirs))
    except RecursionError:
        offers = ""
    latest_offers, latest = _latest
    if offers and offers == latest_offers:
        return latest
    agreed = _agreed_features(ours, theirs)
    if len(offers) <= _LONGEST_OFFERS:
        _latest = offers, agreed
    return agreed


def _agreed_features(ours: Any, theirs: Any) -> Mapping[str, Any]:
    """Return what `agreed_features` does, and raise its errors."""
    if not isinstance(theirs, dict) or not set(map(type, theirs)) <= {str}:
        raise ValueError(f"its 'features' are not a map of names: {str(theirs)[:_QUOTED]}")
    if len(theirs) > MAX_FEATURES:
        raise ValueError(f"it offers {len(theirs)} features; at most {MAX_FEATURES} are accepted")
    if not ours:
        return NO_FEATURES
    agreed = {}
    for name, offer in ours.items():
        theirs_too = theirs.get(name)
        if name in _features and offer is not None and theirs_too is not None:
            try:
                parameter = _features[name].agree(offer, theirs_too)
            except ValueError as exc:
                text = str(exc)[:_QUOTED]
                raise ValueError(f"its feature {name!r} is invalid: {text}") from exc
            if parameter is not None:
                agreed[name] = parameter
    return MappingProxyType(agreed) if agreed else NO_FEATURES


def handshake_info(compression: str | None, allow_pickle: bool) -> dict[str, Any]:
    """Return the map by which this side describes itself.

    Parameters
    ----------
    compression
        The name of the compression that this side proposes; None for none.
    allow_pickle
        Whether this side unpickles anything.
    """
    info = {
        "compression": compression,
        "python": _PYTHON,
        "pickle-protocol": HIGHEST_PROTOCOL,
    }
    if not allow_pickle:
        # The original does not know this key, and ignores it.
        info["allow-pickle"] = False
    return info


def handshake_configuration(local: Mapping[str, Any], remote: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that follow from the maps that both sides sent.

    Raises
    ------
    ValueError
        If *remote* lacks a key that every peer sends.
    """
    try:
        protocol = min(local["pickle-protocol"], remote["pickle-protocol"])
        compression = local["compression"]
        if compression != remote["compression"]:
            compression = None
    except (KeyError, TypeError):
        raise ValueError(
            "the peer's handshake lacks 'pickle-protocol' or 'compression': "
            f"{shown_repr(dict(remote), _QUOTED)}; does it run a compatible version of distributed?"
        ) from None
    options = {"pickle-protocol": protocol, "compression": compression}
    if remote.get("allow-pickle") is False:
        options["allow-pickle"] = False
    return options


async def do_handshake(
    comm: Endpoint,
    overrides: Mapping[str, Any] | None = None,
    authentication: Authentication | None = None,
    delay: float = 0,
    answer_stranger: AnswerStranger | None = None,
) -> None:
    """Exchange the maps, authenticate, and let *comm* store the result.

    Parameters
    ----------
    comm
        A comm on which nothing was read or written yet.
    overrides
        Replace values of the map that this side sends.
    authentication
        This side's half of the authentication, or None if it has no token.
    delay
        Seconds that a server waits before it checks the client's proof.
    answer_stranger
        Answers the messages of a client without a token; None to refuse such clients.

    Raises
    ------
    FatalCommClosedError
        If the peer is not trusted, or does not speak this protocol.
    OSError
        If the connection ends before the handshake is complete; also if it was that of a client
        without a token, whose messages were answered.
    """
    local = {**comm.handshake_info()}
    if features := offered_features(comm):
        local["features"] = features
    local.update(overrides or {})
    hello = local
    if authentication is not None:
        hello = {**local, "auth": authentication.challenge()}
        if answer_stranger is not None:
            hello["auth"]["strangers"] = True
    await comm.write_handshake(hello)
    try:
        remote = await comm.read_handshake()
        challenge = remote.pop("auth", None) if isinstance(remote, dict) else None
        if authentication is not None:
            if challenge is None and answer_stranger is not None:
                await _answer_stranger(comm, answer_stranger)
            await _authenticate(comm, authentication, challenge, delay)
        elif challenge is not None and not _answers_strangers(challenge):
            raise AuthenticationError(
                "it requires a token, and none is given here ('distributed.comm.auth.token')"
            )
        if not isinstance(remote, dict):
            raise ValueError(f"the peer's handshake is not a map but {shown_repr(remote, _QUOTED)}")
        comm.complete_handshake(local, remote)
    except AuthenticationError as exc:
        raise FatalCommClosedError(
            f"{comm.peer_address} is not trusted by {comm.local_address}: {exc}"
        ) from exc
    except OSError as exc:
        if isinstance(exc.__cause__, ProtocolError):
            raise FatalCommClosedError(str(exc)) from exc.__cause__
        raise
    except Exception as exc:
        raise FatalCommClosedError(
            f"handshake between {comm.local_address} and {comm.peer_address} failed: {shown(exc)}"
        ) from exc


def _answers_strangers(challenge: Any) -> bool:
    """Return whether the server that sent *challenge* answers clients without a token."""
    return isinstance(challenge, dict) and challenge.get("strangers") is True


async def _answer_stranger(comm: Endpoint, answer: AnswerStranger) -> NoReturn:
    """Answer some messages of a client without a token, until the connection ends."""
    for count in range(MAX_QUESTIONS):
        try:
            message = await comm.read_handshake()
        except CommClosedError as exc:
            raise CommClosedError(
                f"the peer has no token; it got answers to {count} messages: {exc}"
            ) from exc
        await comm.write_handshake(await answer(message))
        # Neither reading nor writing waits if the peer sends many messages at once.
        await asyncio.sleep(0)
    await comm.close()
    raise CommClosedError(f"the peer has no token; it got answers to {MAX_QUESTIONS} messages")


async def _authenticate(
    comm: Endpoint, authentication: Authentication, challenge: Any, delay: float
) -> None:
    """Prove that this side knows the token, and check the peer's proof."""
    if authentication.role == "client":
        authentication.receive_challenge(challenge)
        await comm.write_handshake({"proof": authentication.proof()})
        answer = await comm.read_handshake()
        if isinstance(answer, dict) and "refused" in answer:
            reason = f"it refused this side: {shown(answer['refused'], _QUOTED)}"
            raise AuthenticationError(reason + authentication.hint)
        authentication.check(answer.get("proof") if isinstance(answer, dict) else None)
        return
    try:
        authentication.receive_challenge(challenge)
        answer = await comm.read_handshake()
        await asyncio.sleep(delay)
        authentication.check(answer.get("proof") if isinstance(answer, dict) else None)
    except AuthenticationError as exc:
        await comm.write_handshake({"refused": str(exc)})
        await comm.close()
        raise
    await comm.write_handshake({"proof": authentication.proof()})
