"""The negotiation of features in the handshake."""

from __future__ import annotations

import asyncio
import logging

import pytest

from distributed.comm import handshake
from distributed.comm.handshake import MAX_FEATURES, agreed_features, register_feature
from distributed.comm.tests.raw_peers import HANDSHAKE
from distributed.comm.tests.transports import TRANSPORTS
from distributed.utils_test import captured_logger, gen_test


@pytest.fixture(params=TRANSPORTS)
def transport(request):
    return TRANSPORTS[request.param]


@pytest.fixture(autouse=True)
def features(monkeypatch):
    """Let the tests start without features; return name → feature."""
    features = {}
    monkeypatch.setattr(handshake, "_features", features)
    monkeypatch.setattr(handshake, "_latest", ("", handshake.NO_FEATURES))
    return features


def smaller(ours, theirs):
    """Agree upon the smaller number; 0 is to do without the feature."""
    if not isinstance(theirs, int) or not isinstance(ours, int):
        raise ValueError(f"{theirs!r} is not a number")
    return min(ours, theirs) or None


@gen_test()
async def test_both_sides_derive_the_same_parameter(transport):
    register_feature("window", lambda comm: 10, smaller)
    async with transport.pair(handshake_overrides={"features": {"window": 7}}) as (client, server):
        assert server.features == {"window": 7}
        # The override is what the client offered, too.
        assert client.features == {"window": 7}
        with pytest.raises(TypeError):
            client.features["window"] = 8


@gen_test()
async def test_features_that_one_side_lacks_are_not_agreed_upon(transport):
    register_feature("window", lambda comm: 10, smaller)
    for offered in (None, {}, {"window": None}, {"window": 0}, {"another": 1}):
        async with transport.pair(handshake_overrides={"features": offered}) as (client, server):
            assert client.features == server.features == {}


@gen_test()
async def test_without_features_the_map_is_that_of_the_original(transport, features):
    async with transport.pair() as (client, server):
        for comm in (client, server):
            assert set(comm.local_info) == {*HANDSHAKE, "address"}
            assert comm.features == {}
    register_feature("off", lambda comm: None, smaller)
    async with transport.pair() as (client, server):
        assert set(server.remote_info) == {*HANDSHAKE, "address"}


@gen_test()
async def test_an_offer_may_depend_on_the_comm(transport):
    register_feature("address", lambda comm: len(comm.local_address), lambda ours, theirs: theirs)
    async with transport.pair() as (client, server):
        assert client.features == {"address": len(server.local_address)}


def agreed(ours, theirs):
    return agreed_features({"features": ours}, {"features": theirs})


def test_connections_that_offer_the_same_share_what_they_agree_on():
    register_feature("window", lambda comm: 10, smaller)
    ours = {"window": 10}
    first = agreed(ours, {"window": 7})
    assert agreed(ours, {"window": 7}) is first
    assert agreed(ours, {"window": 8}) == {"window": 8}
    assert agreed({"window": 6}, {"window": 8}) == {"window": 6}
    # The offers themselves may change.
    theirs = {"window": 5}
    assert agreed(ours, theirs) == {"window": 5}
    theirs.clear()
    assert agreed(ours, theirs) == {}
    assert agreed_features({"features": ours}, {}) == {}


def test_a_wrong_offer_that_equals_a_valid_one_is_an_error():
    def version(ours, theirs):
        if type(theirs) is not int:
            raise ValueError(f"{theirs!r} is not a version")
        return theirs

    register_feature("acks", lambda comm: 1, version)
    for _ in range(2):
        assert agreed({"acks": 1}, {"acks": 1}) == {"acks": 1}
        for theirs in (True, 1.0):
            with pytest.raises(ValueError, match="is not a version"):
                agreed({"acks": 1}, {"acks": theirs})


def test_a_feature_that_is_registered_later_counts():
    ours, theirs = {"window": 10}, {"window": 7}
    assert agreed(ours, theirs) == {}
    register_feature("window", lambda comm: 10, smaller)
    assert agreed(ours, theirs) == {"window": 7}


def test_large_and_deep_offers_are_not_kept():
    register_feature("window", lambda comm: 10, smaller)
    deep = ()
    for _ in range(10_000):
        deep = (deep,)
    large = bytearray(2000)
    agreed({"window": 10}, {"other": deep})
    agreed({"window": 10}, {"other": deep})
    agreed({"window": 10}, {"window": 7, "other": bytes(large)})
    assert len(handshake._latest[0]) < 1000


HOSTILE = {
    "a number": 1,
    "a text": "window",
    "a list": ["window"],
    "names that are not texts": {1: 1},
    "too many": {str(i): i for i in range(MAX_FEATURES + 1)},
    "a wrong parameter": {"window": [1] * 10_000},
}


@pytest.mark.parametrize("theirs", HOSTILE.values(), ids=HOSTILE.keys())
def test_an_invalid_offer_is_a_short_error(theirs):
    register_feature("window", lambda comm: 10, smaller)
    with pytest.raises(ValueError, match=r"are not a map|offers 101|'window'") as error:
        agreed_features({"features": {"window": 10}}, {"features": theirs})
    assert len(str(error.value)) < 500


@gen_test()
async def test_an_invalid_offer_ends_the_handshake_with_an_error(transport):
    register_feature("window", lambda comm: 10, smaller)
    accepted = []
    async with transport.listening(accepted.append) as listener:
        with captured_logger("distributed", level=logging.INFO):
            async with asyncio.timeout(5):
                with pytest.raises(OSError, match=r"handshake between|Timed out"):
                    # Neither side accepts the text, whichever comes first.
                    await transport.connect(
                        listener.contact_address,
                        handshake_overrides={"features": {"window": "wide"}},
                        timeout=0.3,
                    )
        assert not accepted


def test_a_name_is_registered_once():
    register_feature("window", lambda comm: 10, smaller)
    with pytest.raises(ValueError, match="'window' is registered"):
        register_feature("window", lambda comm: 10, smaller)
