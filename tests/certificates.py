"""Certificates for the tests, made on the spot by openssl: each is its own authority."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.places import tool


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as PEM files."""

    cert: Path
    key: Path


def certificate(folder: Path, name: str = "localhost") -> Certificate:
    """A self-signed certificate for a name and for 127.0.0.1, good for two days."""
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    command = [tool("openssl"), "req", "-x509", "-newkey", "ec"]
    command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1"]
    command += ["-keyout", str(made.key), "-out", str(made.cert)]
    subprocess.run(command, check=True, capture_output=True)
    return made


@dataclass(frozen=True)
class Authority:
    """Signs certificates of others. ``Authority.found(folder, name)`` makes one."""

    folder: Path
    own: Certificate

    @classmethod
    def found(cls, folder: Path, name: str) -> Authority:
        """A new authority with files in a folder."""
        return cls(folder, certificate(folder, name))

    def issue(self, name: str, days: int = 2) -> Certificate:
        """A certificate for localhost; with negative ``days`` it has expired."""
        made = Certificate(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        request, names = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        _openssl(
            "req", *key, "-subj", f"/CN={name}", "-keyout", str(made.key), "-out", str(request)
        )
        signed = ["-CA", str(self.own.cert), "-CAkey", str(self.own.key), "-days", str(days)]
        _openssl("x509", "-req", "-in", str(request), *signed, "-extfile", str(names),
                 "-out", str(made.cert))  # fmt: skip
        return made


def _openssl(*arguments: str) -> None:
    subprocess.run([tool("openssl"), *arguments], check=True, capture_output=True)
