"""Locks that keep other users of this machine out of a run's SeaweedFS: mutual TLS, signed requests, private files.

Loopback is open to every user of a machine. SeaweedFS checks S3's signatures on one of its eight ports; the others
(master, volume and filer, each with HTTP and gRPC, and S3's gRPC) are meant for a trusted network (Decision 12).
"""

import datetime
import ipaddress
import os
import secrets
import socket
import ssl
from pathlib import Path

from latte.errors import StorageError

CERTIFICATE, KEY, SETTINGS = "tls.crt", "tls.key", "security.toml"
_SERVERS = ("master", "volume", "filer")
_SIGNED = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
_ANSWERS_WITHIN_S = 30.0
# Fresh at each start: only a run that lasts longer would see its end, and a clock that was set back its beginning.
_VALID = datetime.timedelta(days=3650)


def write(folder: Path) -> None:
    """Write a fresh certificate, its key and SeaweedFS's settings into the folder that it is started in.

    Whoever wants to speak to a port of master, volume or filer, or to gRPC, must hold the key of the one certificate
    that was made for this start; requests for data are signed with fresh keys as well. Only the owner reads the files.
    """
    certificate, key = _certificate()
    write_private(folder / CERTIFICATE, certificate)
    write_private(folder / KEY, key)
    write_private(folder / SETTINGS, _settings().encode())


def write_private(path: Path, content: bytes) -> None:
    """Write a file anew that only its owner can read from its first moment on."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def require_tls(ports: dict[str, int]) -> None:
    """Look whether the server follows what was written; SeaweedFS itself only warns where it does not.

    Args:
        ports: the HTTP port of each of its parts; gRPC is 10000 higher.

    Raises:
        StorageError: a port speaks without TLS, so it would answer anybody.
    """
    # Who it is does not matter here, and this side shows no certificate: a server with TLS turns it away afterwards.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name, http in ports.items():
        for port in (http + 10000,) if name == "s3" else (http, http + 10000):
            try:
                with socket.create_connection(("127.0.0.1", port), _ANSWERS_WITHIN_S) as plain:
                    context.wrap_socket(plain).close()
            except ConnectionRefusedError:
                continue  # nobody gets in where nobody listens
            except OSError as error:
                raise StorageError(
                    f"SeaweedFS's {name} speaks without TLS on port {port} ({error}), so that any user of this machine "
                    "could read and delete the data: use the `weed` of `make setup`, or name a store with --root"
                ) from None


def _certificate() -> tuple[bytes, bytes]:
    """A certificate for 127.0.0.1 that is its own authority, and its key, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "latte-pipelines store")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID)
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    return certificate.public_bytes(encoding), key.private_bytes(
        encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _settings() -> str:
    """`security.toml`; without a `ca` SeaweedFS would ask its clients for no certificate."""
    pair: dict[str, str | bool] = {"cert": CERTIFICATE, "key": KEY}
    sections: dict[str, dict[str, str | bool]] = {"grpc": {"ca": CERTIFICATE}}
    sections |= {f"grpc.{name}": pair for name in (*_SERVERS, "s3", "client")}
    sections |= {f"https.{name}": {"ca": CERTIFICATE, **pair} for name in _SERVERS}
    sections["https.client"] = {"enabled": True, "ca": CERTIFICATE, **pair}
    sections |= {name: {"key": secrets.token_hex(32)} for name in _SIGNED}
    return "\n".join(
        f"[{section}]\n" + "".join(f"{name} = {_toml(value)}\n" for name, value in values.items())
        for section, values in sections.items()
    )


def _toml(value: str | bool) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()
