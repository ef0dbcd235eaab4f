from __future__ import annotations

import pytest
from tornado.httputil import HTTPHeaders

from distributed.pages.access import Access, host_of_header, is_loopback

TOKEN = "correct-horse-battery-staple"


def check(access, cookie=None, method="GET", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return access.check(method, HTTPHeaders({"Host": "127.0.0.1", **named}), cookie)


@pytest.mark.parametrize("token", [TOKEN, TOKEN.encode()])
def test_the_token_gives_access(token):
    assert check(Access(token), Authorization=f"Bearer {TOKEN}") is None
    assert check(Access(token), Authorization=f"bearer  {TOKEN} ") is None


@pytest.mark.parametrize(
    "authorization", ["Bearer wrong", "Bearer ", f"Bearer {TOKEN}x", "Bearer \udce4", "Bearer ä"]
)
def test_a_wrong_token_is_refused(authorization):
    refusal = check(Access(TOKEN), Authorization=authorization)
    assert refusal.status == 401
    assert refusal.wrong_token


@pytest.mark.parametrize("headers", [{}, {"Authorization": f"Basic {TOKEN}"}])
def test_a_request_without_the_token_is_refused(headers):
    refusal = check(Access(TOKEN), **headers)
    assert refusal.status == 401
    assert not refusal.wrong_token


def test_the_cookie_of_the_token_gives_access_and_is_not_the_token():
    access = Access(TOKEN)
    assert check(access, access.cookie) is None
    assert TOKEN not in access.cookie
    assert check(access, Access("another-token-of-this-length").cookie).status == 401
    assert check(access, "é").status == 401


def test_the_cookie_stays_valid_when_the_server_restarts():
    assert Access(TOKEN).cookie == Access(TOKEN).cookie


def test_without_a_token_there_is_no_cookie():
    access = Access()
    assert access.cookie is None
    assert not access.knows_token("")
    assert check(access) is None


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8787", "localhost", "LOCALHOST:1", "[::1]:8787", "10.0.0.1", "[fe80::1]"]
)
def test_the_addresses_and_names_of_this_host_are_allowed(host):
    assert check(Access(), Host=host) is None


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8787", "localhost.evil.example"])
def test_another_name_in_the_host_header_is_refused(host):
    refusal = check(Access(), Host=host)
    assert refusal.status == 421
    assert host.partition(":")[0] in refusal.reason
    assert "allowed_hosts" in refusal.reason


@pytest.mark.parametrize("host", ["", "a b", "user@localhost", "localhost:port", "/localhost"])
def test_a_malformed_host_header_is_refused(host):
    assert check(Access(), Host=host).status == 400


def test_further_names_can_be_allowed():
    assert check(Access(allowed_hosts=["Box.Example"]), Host="box.example:80") is None
    assert check(Access(allowed_hosts=["*"]), Host="any.example") is None


def test_the_host_does_not_matter_to_clients_that_prove_something():
    assert check(Access(TOKEN), Host="a.example", Authorization=f"Bearer {TOKEN}") is None
    assert check(Access(encrypted=True), Host="a.example") is None


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_requests_of_other_sites_are_refused(site):
    assert check(Access(), Sec_Fetch_Site=site, Sec_Fetch_Mode="no-cors").status == 403
    link = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": "navigate"}
    assert check(Access(), **link) is None
    assert check(Access(), method="POST", **link).status == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
def test_another_origin_is_refused_also_with_the_token(origin):
    access = Access(TOKEN)
    assert check(access, access.cookie, Origin=origin).status == 403
    assert check(access, access.cookie, Origin="http://127.0.0.1") is None


def test_hosts_are_read_from_headers():
    assert host_of_header("[::1]") == "::1"
    assert host_of_header("a:99999") is None


def test_loopback_addresses_are_told_from_others():
    assert is_loopback("127.8.8.8")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("fe80::1%lo")
    assert not is_loopback("localhost.example")
