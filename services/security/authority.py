"""A certificate authority for one site or one desk: itself, and what it issues to servers and clients."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from samix.errors import InputError

_CURVE = ec.SECP256R1()  # what every peer knows, and the quickest to sign with
_SLACK = timedelta(hours=1)  # for clocks that are behind
_AUTHORITY_LIFE = timedelta(days=3650)


@dataclass(frozen=True, kw_only=True, slots=True)
class Credential:
    """A certificate and its private key."""

    certificate: x509.Certificate
    """What is shown."""
    key: ec.EllipticCurvePrivateKey
    """What is kept."""

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as text."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The key as text, without a passphrase."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_authority(name: str, now: datetime) -> Credential:
    """Make an authority that signs itself, for ten years."""
    key = ec.generate_private_key(_CURVE)
    subject = _name(name)
    usage = _usage(key_cert_sign=True, crl_sign=True)
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    builder = _builder(subject, subject, key, now, now + _AUTHORITY_LIFE)
    builder = builder.add_extension(constraints, critical=True).add_extension(usage, critical=True)
    return Credential(certificate=builder.sign(key, hashes.SHA256()), key=key)


def issue_server(authority: Credential, names: Sequence[str], now: datetime, life: timedelta) -> Credential:
    """Issue a certificate for a server.

    Args:
        authority: who signs.
        names: DNS names and addresses that clients call the server by.
        now: when it begins, but for an hour of slack.
        life: how long it is good.

    Raises:
        InputError: for a name that is none.
    """
    alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
    return _issue(authority, names[0], [alternatives], ExtendedKeyUsageOID.SERVER_AUTH, now, life)


def issue_client(authority: Credential, name: str, now: datetime, life: timedelta) -> Credential:
    """Issue a certificate for a client, by which servers that ask for one know whom the authority trusts."""
    return _issue(authority, name, [], ExtendedKeyUsageOID.CLIENT_AUTH, now, life)


def parse_credential(certificate: bytes, key: bytes) -> Credential:
    """Read what `certificate_pem` and `key_pem` made.

    Raises:
        InputError: if it is something else.
    """
    try:
        private = load_pem_private_key(key, password=None)
        parsed = x509.load_pem_x509_certificate(certificate)
    except (ValueError, TypeError) as error:
        raise InputError(f"this is no certificate and key in PEM ({error})") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise InputError("the key of this authority is no elliptic one, so `samix certs` did not make it")
    return Credential(certificate=parsed, key=private)


def names_of(certificate: bytes) -> list[str]:
    """Read the names and addresses that a server's certificate is for.

    Raises:
        InputError: if it is none, or is for none.
    """
    try:
        parsed = x509.load_pem_x509_certificate(certificate)
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise InputError(f"this is no certificate of a server ({error})") from error
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def _issue(
    authority: Credential,
    name: str,
    extensions: Sequence[x509.ExtensionType],
    purpose: ObjectIdentifier,
    now: datetime,
    life: timedelta,
) -> Credential:
    key = ec.generate_private_key(_CURVE)
    builder = _builder(_name(name), authority.certificate.subject, key, now, now + life)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    for extension in (issuer, *extensions):
        builder = builder.add_extension(extension, critical=False)
    return Credential(certificate=builder.sign(authority.key, hashes.SHA256()), key=key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - _SLACK)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _usage(**uses: bool) -> x509.KeyUsage:
    none = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**none | uses)


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not name.isascii() or not name or set(name) & set(" /:@,"):
        raise InputError(f"a server's name is a DNS name or an address without a port, got {name!r}")
    return x509.DNSName(name)
