"""Security: its settings, its SSL contexts, and the absence of secrets in messages."""

from __future__ import annotations

import os
import pickle
import re
import ssl
import stat
import tempfile
from pathlib import Path

import pytest

from distributed.base import config
from distributed.security.settings import Security
from distributed.tests.environments import run_here
from distributed.utils_test import tls_security

CERTIFICATES = Path(__file__).parent / "data" / "tls"
CA, CERT, KEY, ENCRYPTED_KEY, OTHER = (
    str(CERTIFICATES / f"{name}.pem") for name in ("ca", "cert", "key", "encrypted-key", "other")
)
ROLES = ["client", "scheduler", "worker"]
FIELDS = [
    "tls_ca_file",
    "tls_ciphers",
    *(f"tls_{role}_{part}" for role in ROLES for part in ("cert", "key")),
]
CIPHER = "ECDHE-RSA-AES128-GCM-SHA256"


def text(path: str) -> str:
    return Path(path).read_text()


def client_security(**kwargs) -> Security:
    return Security(**{"tls_ca_file": CA, "tls_client_cert": CERT, "tls_client_key": KEY, **kwargs})


def assert_context_for_each_role(security: Security) -> None:
    for role in ROLES:
        assert isinstance(security.get_listen_args(role)["ssl_context"], ssl.SSLContext)
        assert isinstance(security.get_connection_args(role)["ssl_context"], ssl.SSLContext)


def secrets(pem: str) -> list[str]:
    """Return the lines of a private key."""
    match = re.search(r"PRIVATE KEY-----\n(.*?)\n-----END [A-Z ]*PRIVATE", pem, re.DOTALL)
    assert match is not None
    return match[1].split("\n")


# Fields


def test_nothing_is_set_by_default():
    security = Security()
    assert [getattr(security, name) for name in FIELDS] == [None] * len(FIELDS)
    assert security.require_encryption is False
    assert security.tls_min_version is ssl.TLSVersion.TLSv1_2
    assert security.tls_max_version is None
    assert security.extra_conn_args == {}
    assert security.token is None


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_is_set_by_keyword_or_else_by_configuration(name):
    _, *rest = name.replace("ca_file", "ca-file").split("_")
    with config.set({".".join(["distributed.comm.tls", *rest]): "value"}):
        assert getattr(Security(), name) == "value"
        assert getattr(Security(**{name: "other"}), name) == "other"
        assert getattr(Security(**{name: None}), name) is None


def test_the_configuration_is_read_once():
    security = Security()
    with config.set({"distributed.comm.tls.ca-file": "later"}):
        assert security.tls_ca_file is None


def test_a_file_can_be_a_path_object():
    assert Security(tls_ca_file=Path(CA)).tls_ca_file == CA


def test_an_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match=r"Unknown parameters: \['tls_cafile'\].*tls_ca_file"):
        Security(tls_cafile="x")


def test_an_unknown_attribute_cannot_be_set():
    with pytest.raises(AttributeError):
        Security().tls_cafile = "x"


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_not_text_is_a_type_error(name):
    with pytest.raises(TypeError, match=f"{name} must be a str, not 'int'"):
        Security(**{name: 3})


def test_the_token_is_kept():
    assert Security(token="open sesame, please").token == "open sesame, please"


def test_extra_conn_args_are_arguments_of_connect_only():
    security = Security(extra_conn_args={"headers": {"X": "y"}})
    assert security.get_connection_args("client")["extra_conn_args"] == {"headers": {"X": "y"}}
    assert "extra_conn_args" not in security.get_listen_args("client")


def test_it_can_be_pickled():
    security = client_security(token="open sesame, please", require_encryption=False)
    copy = pickle.loads(pickle.dumps(security))
    for name in Security.__slots__:
        assert getattr(copy, name) == getattr(security, name)


# Whether encryption is required


@pytest.mark.parametrize("configured", [True, False, None])
@pytest.mark.parametrize("given", [True, False])
def test_the_keyword_require_encryption_overrides_the_configuration(configured, given):
    with config.set({"distributed.comm.require-encryption": configured}):
        security = Security(require_encryption=given, tls_ca_file=CA)
    assert security.require_encryption is given


@pytest.mark.parametrize("configured", [True, False])
def test_the_configured_require_encryption_is_the_default(configured):
    with config.set({"distributed.comm.require-encryption": configured}):
        assert Security(tls_ca_file=CA).require_encryption is configured
        assert Security().require_encryption is configured


@pytest.mark.parametrize(
    ("keywords", "required"),
    [
        ({}, False),
        ({"tls_ca_file": "x"}, True),
        ({"tls_worker_key": "x"}, True),
        ({"tls_ca_file": None}, False),
        ({"token": "x" * 16}, False),
        ({"extra_conn_args": {"x": 1}}, False),
    ],
)
def test_without_configuration_encryption_is_required_if_a_tls_keyword_is_given(keywords, required):
    assert Security(**keywords).require_encryption is required


@pytest.mark.parametrize("role", ROLES)
def test_the_arguments_contain_require_encryption(role):
    security = Security(require_encryption=True)
    assert security.get_connection_args(role)["require_encryption"] is True
    assert security.get_listen_args(role)["require_encryption"] is True


# Versions


@pytest.mark.parametrize("bound", ["min", "max"])
@pytest.mark.parametrize(
    ("number", "version"), [(1.2, ssl.TLSVersion.TLSv1_2), (1.3, ssl.TLSVersion.TLSv1_3)]
)
def test_versions_are_numbers_in_the_configuration_and_constants_of_ssl_in_code(
    bound, number, version
):
    with config.set({f"distributed.comm.tls.{bound}-version": number}):
        assert getattr(Security(), f"tls_{bound}_version") is version
    security = Security(**{f"tls_{bound}_version": version})
    assert getattr(security, f"tls_{bound}_version") is version


def test_the_minimum_version_is_at_least_1_2():
    with config.set({"distributed.comm.tls.min-version": None}):
        assert Security().tls_min_version is ssl.TLSVersion.TLSv1_2
    assert Security(tls_min_version=None).tls_min_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("bound", ["min", "max"])
@pytest.mark.parametrize("bad", [1.1, "1.2", "bad", [1.2]])
def test_an_invalid_configured_version_is_an_error_that_names_the_key(bound, bad):
    key = f"distributed.comm.tls.{bound}-version"
    expected = re.escape(f"{key!r} is {bad!r} (from distributed.config.set")
    expected += ".*which is not 1.2 or 1.3, or null"
    with config.set({key: bad}), pytest.raises(ValueError, match=expected):
        Security()


@pytest.mark.parametrize("bound", ["min", "max"])
@pytest.mark.parametrize("bad", [1.3, "TLSv1_3", ssl.TLSVersion.MINIMUM_SUPPORTED])
def test_an_unsupported_version_is_an_error_that_names_the_field(bound, bad):
    with pytest.raises(ValueError, match=f"tls_{bound}_version=.* is not supported"):
        Security(**{f"tls_{bound}_version": bad})


def test_a_minimum_version_above_the_maximum_is_an_error():
    with pytest.raises(ValueError, match="no TLS version is allowed"):
        Security(
            tls_min_version=ssl.TLSVersion.TLSv1_3,
            tls_max_version=ssl.TLSVersion.TLSv1_2,
        )


# Roles


@pytest.mark.parametrize("role", ROLES)
def test_each_role_has_its_certificate_and_key(role):
    security = Security(
        **{
            "tls_ca_file": "ca",
            "tls_ciphers": "ciphers",
            f"tls_{role}_cert": "cert",
            f"tls_{role}_key": "key",
        }
    )
    assert security.get_tls_config_for_role(role) == {
        "ca_file": "ca",
        "ciphers": "ciphers",
        "cert": "cert",
        "key": "key",
    }
    another = next(other for other in ROLES if other != role)
    assert security.get_tls_config_for_role(another)["cert"] is None


@pytest.mark.parametrize(
    "method", ["get_tls_config_for_role", "get_connection_args", "get_listen_args"]
)
def test_an_unknown_role_is_a_value_error(method):
    with pytest.raises(ValueError, match="unknown role 'nanny'"):
        getattr(Security(), method)("nanny")


# Contexts


@pytest.mark.parametrize("missing", ["tls_ca_file", "tls_client_cert"])
def test_without_an_authority_or_certificate_the_context_is_none(missing):
    security = client_security(**{missing: None})
    assert security.get_connection_args("client")["ssl_context"] is None
    assert security.get_listen_args("client")["ssl_context"] is None


def test_the_context_of_a_role_without_certificate_is_none():
    assert client_security().get_connection_args("worker")["ssl_context"] is None


@pytest.mark.parametrize(
    ("method", "protocol"),
    [
        ("get_connection_args", ssl.PROTOCOL_TLS_CLIENT),
        ("get_listen_args", ssl.PROTOCOL_TLS_SERVER),
    ],
)
def test_both_sides_require_a_certificate_of_the_authority_for_any_host(method, protocol):
    context = getattr(client_security(), method)("client")["ssl_context"]
    assert context.protocol == protocol
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname is False
    (authority,) = context.get_ca_certs()
    assert authority["subject"] == ((("commonName", "distributed tests: authority"),),)


def test_a_context_has_the_versions():
    security = client_security(
        tls_min_version=ssl.TLSVersion.TLSv1_2, tls_max_version=ssl.TLSVersion.TLSv1_2
    )
    context = security.get_connection_args("client")["ssl_context"]
    assert context.minimum_version == context.maximum_version == ssl.TLSVersion.TLSv1_2


def test_a_context_has_the_ciphers():
    context = client_security(tls_ciphers=CIPHER).get_listen_args("client")["ssl_context"]
    old = [cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] != "TLSv1.3"]
    assert old == [CIPHER]


@pytest.mark.parametrize("method", ["get_connection_args", "get_listen_args"])
def test_the_authority_certificate_and_key_can_be_text(method, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    security = client_security(
        tls_ca_file=text(CA), tls_client_cert=text(CERT), tls_client_key=text(KEY)
    )
    assert getattr(security, method)("client")["ssl_context"].cert_store_stats()["x509_ca"] == 1
    assert list(tmp_path.iterdir()) == []


def test_a_key_given_as_text_is_written_to_a_file_of_this_user_only(monkeypatch):
    seen = []

    load_cert_chain = ssl.SSLContext.load_cert_chain

    def watched(context, certfile, keyfile=None, password=None):
        seen.append((stat.S_IMODE(os.stat(keyfile).st_mode), text(keyfile) == text(KEY)))
        seen.append(stat.S_IMODE(os.stat(os.path.dirname(keyfile)).st_mode))
        load_cert_chain(context, certfile, keyfile, password)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
    client_security(tls_client_key=text(KEY)).get_listen_args("client")
    assert seen == [(0o600, True), 0o700]


@pytest.mark.parametrize("form", [str, text])
def test_the_key_can_be_in_the_file_of_the_certificate(form):
    security = client_security(tls_client_cert=form(OTHER), tls_client_key=None)
    assert isinstance(security.get_listen_args("client")["ssl_context"], ssl.SSLContext)


# Errors name the setting to change


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("tls_ca_file", "distributed.comm.tls.ca-file"),
        ("tls_client_cert", "distributed.comm.tls.client.cert"),
        ("tls_client_key", "distributed.comm.tls.client.key"),
    ],
)
def test_a_missing_file_is_an_error_with_its_field_and_key(field, key):
    security = client_security(**{field: "/nowhere/x.pem"})
    with pytest.raises(FileNotFoundError) as caught:
        security.get_connection_args("client")
    for part in (field, "/nowhere/x.pem", key):
        assert part in str(caught.value)


@pytest.mark.parametrize("field", ["tls_ca_file", "tls_client_cert", "tls_client_key"])
@pytest.mark.parametrize("as_text", [True, False])
def test_a_malformed_certificate_or_key_is_a_value_error_that_names_the_field(
    field, as_text, tmp_path
):
    path = tmp_path / "x.pem"
    path.write_text("rubbish\n")
    security = client_security(**{field: "rubbish\n" if as_text else str(path)})
    with pytest.raises(ValueError, match=field):
        security.get_connection_args("client")


def test_a_key_of_another_certificate_is_a_value_error_that_names_both():
    with pytest.raises(ValueError, match=r"tls_client_cert=.*tls_client_key=.*mismatch"):
        client_security(tls_client_key=OTHER).get_connection_args("client")


def test_an_encrypted_key_is_a_value_error_and_does_not_prompt():
    with pytest.raises(ValueError, match="the key is encrypted"):
        client_security(tls_client_key=ENCRYPTED_KEY).get_connection_args("client")


def test_an_unknown_cipher_is_a_value_error():
    with pytest.raises(ValueError, match="tls_ciphers='ROT13'"):
        client_security(tls_ciphers="ROT13").get_connection_args("client")


def test_no_error_shows_a_key():
    broken = text(KEY).replace("\n", "\n*", 5)
    with pytest.raises(ValueError, match="tls_client_key") as caught:
        client_security(tls_client_key=broken).get_connection_args("client")
    assert "PRIVATE" not in str(caught.value)
    assert not any(line in str(caught.value) for line in secrets(text(KEY)))


# Messages without secrets


def shown(security: Security) -> str:
    return repr(security) + security._repr_html_() + str(security)


def test_paths_versions_and_ciphers_are_shown():
    security = client_security(tls_ciphers=CIPHER, tls_max_version=ssl.TLSVersion.TLSv1_3)
    for form in (repr(security), security._repr_html_()):
        for part in (f"Local ({CA})", f"Local ({KEY})", CIPHER, "TLSv1_2", "TLSv1_3"):
            assert part in form
        assert "tls_worker_cert" not in form


def test_repr_is_short_if_no_field_is_set():
    assert repr(Security()) == "Security(require_encryption=False, tls_min_version=TLSv1_2)"


def test_no_key_is_shown():
    security = client_security(tls_client_key=text(KEY), tls_worker_key=text(KEY))
    assert "tls_client_key=Temporary (In-memory)" in repr(security)
    assert "PRIVATE" not in shown(security)
    assert not any(line in shown(security) for line in secrets(text(KEY)))


def test_a_key_in_one_line_without_header_is_not_shown_as_a_path():
    key = "".join(secrets(text(KEY)))
    assert key[:40] not in shown(client_security(tls_client_key=key))


def test_tokens_and_headers_are_not_shown():
    headers = {"Authorization": "Basic c2VzYW1l"}
    security = Security(token="open sesame, please", extra_conn_args={"headers": headers})
    assert "token" in repr(security)
    assert "sesame" not in shown(security)
    assert "c2VzYW1l" not in shown(security)


def test_html_is_escaped():
    security = Security(tls_ca_file="/<script>alert(1)</script>")
    assert "<script>" not in security._repr_html_()


# Temporary


def test_temporary_without_cryptography_names_the_extra_to_install():
    output = run_here("""
        import sys
        sys.modules["cryptography"] = None
        from distributed.security import Security
        try:
            Security.temporary()
        except ImportError as exc:
            print(exc)
    """).stdout
    assert "requires `cryptography`" in output
    assert "extra `security`" in output


class TestTemporary:
    @pytest.fixture(autouse=True)
    def _cryptography(self):
        pytest.importorskip("cryptography", reason="makes certificates")

    def test_all_roles_have_the_same_certificate_and_key(self):
        security = Security.temporary()
        for role in ROLES:
            tls = security.get_tls_config_for_role(role)
            assert tls["ca_file"] == tls["cert"] == security.tls_ca_file
            assert tls["key"] == security.tls_client_key
        assert_context_for_each_role(security)

    def test_encryption_is_required(self):
        assert Security.temporary().require_encryption is True

    def test_each_key_is_new(self):
        assert Security.temporary().tls_client_key != Security.temporary().tls_client_key

    def test_no_key_is_shown(self):
        security = Security.temporary()
        assert repr(security).count("Temporary (In-memory)") == 7
        assert not any(line in shown(security) for line in secrets(security.tls_client_key))

    def test_other_fields_can_be_given(self):
        security = Security.temporary(tls_ciphers=CIPHER, token="x" * 16)
        assert (security.tls_ciphers, security.token) == (CIPHER, "x" * 16)

    @pytest.mark.parametrize("field", ["tls_ca_file", "tls_worker_key", "require_encryption"])
    def test_fields_that_it_sets_cannot_be_given(self, field):
        with pytest.raises(TypeError, match=field):
            Security.temporary(**{field: "x"})

    def test_an_unknown_keyword_is_a_type_error(self):
        with pytest.raises(TypeError, match="Unknown parameters"):
            Security.temporary(tls_cafile="x")


# tls_security of distributed.utils_test


def test_tls_security_has_a_context_for_each_role():
    assert_context_for_each_role(tls_security())


def test_tls_security_takes_further_fields():
    assert tls_security(tls_ciphers=CIPHER).tls_ciphers == CIPHER
