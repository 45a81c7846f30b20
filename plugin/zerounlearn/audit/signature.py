"""A certificate's signature, by model-signing with a key that its owner holds; nothing is sent anywhere.

The certificate has the digest of its audit, so that a signature of the one is one of both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zerounlearn.audit.certificate import FILE
from zerounlearn.errors import AuditError, reason_of

SIGNATURE = f"{FILE}.sig"


def check_key(key: Path) -> None:
    """Refuse a private key before any work.

    Raises:
        AuditError: it cannot be read, or model-signing is not installed.
    """
    _signer(key)


def sign(folder: Path, key: Path) -> None:
    """Sign the certificate in a folder: a file certificate.json.sig beside it.

    Args:
        folder: of the audit.
        key: a private key in PEM, of an elliptic curve; `openssl ecparam -name prime256v1 -genkey -noout` makes one.

    Raises:
        AuditError: model-signing is not installed, or refuses the key.
    """
    _signer(key).sign(folder / FILE, folder / SIGNATURE)


def wrong_signature(folder: Path, key: Path) -> str | None:
    """What is wrong with a certificate's signature by the owner's public key (PEM); None where nothing is.

    Raises:
        AuditError: there is no signature, model-signing is not installed, or refuses the key.
    """
    if not (folder / SIGNATURE).is_file():
        raise AuditError(f"{str(folder)!r} has no {SIGNATURE}: it was not signed")
    library = _library("verifying")
    try:
        config = library.Config().use_elliptic_key_verifier(public_key=key)
    except (OSError, ValueError, TypeError) as error:
        raise AuditError(f"{str(key)!r} is no public key in PEM: {reason_of(error)}") from error
    try:
        config.verify(folder / FILE, folder / SIGNATURE)
    except Exception as error:  # the library, and cryptography under it, raise too many kinds to list
        return f"the signature is not of this certificate and this key: {reason_of(error)}"
    return None


def _signer(key: Path) -> Any:
    library = _library("signing")
    try:
        return library.Config().use_elliptic_key_signer(private_key=key)
    except (OSError, ValueError, TypeError) as error:
        raise AuditError(f"--sign {str(key)!r} is no private key in PEM: {reason_of(error)}") from error


def _library(module: str) -> Any:
    try:
        import model_signing.signing
        import model_signing.verifying
    except ImportError:
        raise AuditError("signing needs model-signing: pip install 'zerounlearn[sign]'") from None
    return getattr(model_signing, module)
