"""Object stores: from a URL to a client, and the one place where their errors become ours.

Whose library this is (obstore) nobody else needs to know, apart from the calls that read and write.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from obstore import exceptions as failures
from obstore import store as stores

from meshaudit.errors import BadArgument, StoreFailed

__all__ = ["connect", "directory", "errors", "failures"]


class _Kind(NamedTuple):
    open: Any
    credentials: str


_S3 = _Kind(stores.S3Store, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN)")
_GS = _Kind(stores.GCSStore, "GOOGLE_APPLICATION_CREDENTIALS")
_AZ = _Kind(
    stores.AzureStore, "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_SAS_TOKEN"
)
_KINDS = {"s3": _S3, "gs": _GS, "az": _AZ}
_EXAMPLES = "a directory, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"

# The library's own retries, in a bound that a user waits for; no metadata service answers outside a cloud.
_RETRY: Any = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}

_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "bucket does not exist")
_DENIED = ("403 Forbidden", "401 Unauthorized", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied")
# Where a machine's role would be had: whatever it answers, there is none.
_ROLES = ("169.254.169.254", "metadata.google.internal")
_NO_CREDENTIALS = ("credential", "Credential", "access token", "Account must be specified")
_NO_ANSWER = ("error sending request", "dns error", "onnection refused", "timed out", "onnection reset")


def directory(where: str | Path) -> Path | None:
    """The directory that is meant; None: an object store."""
    text = str(where)
    if isinstance(where, Path) or "://" not in text:
        return Path(where)
    url = urlsplit(text)
    if url.scheme == "file":
        return Path(unquote(url.path))
    return None


def connect(url: str) -> Any:
    """A client of the store, at the URL's prefix. Asks nobody yet."""
    parts = urlsplit(url)
    kind = _KINDS.get(parts.scheme)
    if kind is None or not parts.netloc or parts.query or parts.fragment:
        raise BadArgument(f"{url} is no place for archives", _EXAMPLES)
    http = any(
        name.find("ENDPOINT") >= 0 and value.startswith("http://") for name, value in os.environ.items()
    )
    client: Any = {"connect_timeout": "5s", "timeout": "120s", **({"allow_http": True} if http else {})}
    try:
        return kind.open.from_url(url, client_options=client, retry_config=_RETRY)
    except (failures.BaseError, ValueError) as exc:
        raise _translated(url, exc) from exc


@contextlib.contextmanager
def errors(url: str) -> Iterator[None]:
    """What a store refuses, in one line; that an object is missing, there, or another, stays as it is."""
    try:
        yield
    except (failures.AlreadyExistsError, failures.PreconditionError):
        raise
    except FileNotFoundError as exc:
        if _says(exc, _NO_BUCKET):
            raise _translated(url, exc) from exc
        raise
    except (failures.BaseError, PermissionError, NotImplementedError) as exc:
        raise _translated(url, exc) from exc


def _translated(url: str, exc: Exception) -> StoreFailed:
    kind = _KINDS[urlsplit(url).scheme]
    where = f"set {kind.credentials}"
    if _says(exc, _NO_BUCKET):
        return StoreFailed(
            f"{url}: there is no such bucket", "create it, or check its name and AWS_ENDPOINT_URL"
        )
    if _says(exc, _ROLES):
        return StoreFailed(f"{url}: there are no credentials for it", where)
    if _says(exc, _DENIED) or isinstance(exc, failures.PermissionDeniedError | failures.UnauthenticatedError):
        return StoreFailed(f"{url}: access is denied", f"{where}, of somebody who may read and write there")
    if _says(exc, _NO_CREDENTIALS):
        return StoreFailed(f"{url}: there are no credentials for it", where)
    if _says(exc, _NO_ANSWER):
        return StoreFailed(
            f"{url}: the store does not answer", "check the network, and AWS_ENDPOINT_URL if it is your own"
        )
    return StoreFailed(f"{url}: {(str(exc).splitlines() or [type(exc).__name__])[0][:200]}")


def _says(exc: Exception, texts: tuple[str, ...]) -> bool:
    return any(text in str(exc) for text in texts)
