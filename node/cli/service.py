"""``service install`` and ``service uninstall``: the node under systemd.

Two forms: one service with everything under a supervisor, or (``--parts``) a target with a service
for each part. The files are written here; the system's own programs are run only by root, and
only where they change the system that runs. Every step is printed, and so is what is left to do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from node.cli.configuration import write_configuration
from node.cli.printing import complain, say
from node.domain.errors import NodeError

UNIT = "ai-node.service"
"""Everything as one service."""
TARGET = "ai-node.target"
NETWORKED = ("ai-node-receiver.service", "ai-node-gateway.service")
"""The parts that talk to the network, and show a certificate there."""
WORKER, GPU_WORKER = "ai-node-worker@.service", "ai-node-worker-gpu@.service"
PARTS = (TARGET, *NETWORKED, WORKER, GPU_WORKER)
"""The units of a node in parts."""

_SHIPPED_PROGRAM = "/opt/ai-node/bin/ai-node"
_TLS = "tls.conf"
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - named, not used
"""What ProtectHome= and PrivateTmp= hide from the service."""

PartsOption = Annotated[
    bool, typer.Option("--parts", help="A service for each part instead of one for everything.")
]
GpuOption = Annotated[
    bool, typer.Option("--gpu", help="With --parts: the worker runs on an NVIDIA GPU.")
]
TlsOption = Annotated[
    bool, typer.Option("--tls", help="The private key of TLS stays root's (LoadCredential=).")
]
RootOption = Annotated[Path, typer.Option("--root", help="Write under this folder instead of /.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


class NotPermitted(NodeError):
    """The files of the service cannot be written by this user."""


class OtherForm(NodeError):
    """What is asked for does not go together with itself or with what is installed."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files of the service lie under a root folder."""

    root: Path

    @property
    def unit(self) -> Path:
        """The unit file of the node as one service."""
        return self.of(UNIT)

    @property
    def configuration(self) -> Path:
        """The configuration file."""
        return self.root / "etc/ai-node/node.toml"

    @property
    def user(self) -> Path:
        """What tells systemd-sysusers about the user."""
        return self.root / "etc/sysusers.d/ai-node.conf"

    @property
    def folders(self) -> Path:
        """What tells systemd-tmpfiles about the folders."""
        return self.root / "etc/tmpfiles.d/ai-node.conf"

    @property
    def live(self) -> bool:
        """Whether this is the running system, and ours to change."""
        return self.root == Path("/") and os.geteuid() == 0

    def of(self, unit: str) -> Path:
        """The file of a unit."""
        return self.root / "etc/systemd/system" / unit

    def tls(self, unit: str) -> Path:
        """The drop-in of a unit that keeps the private key root's."""
        return self.of(f"{unit}.d") / _TLS

    def ours(self) -> list[Path]:
        """Every file that ``install`` may have written and ``uninstall`` removes."""
        units = (UNIT, *PARTS)
        drop_ins = (self.tls(unit) for unit in (UNIT, *NETWORKED))
        return [*map(self.of, units), *drop_ins, self.user, self.folders]


@dataclass(frozen=True, slots=True)
class Form:
    """What is installed: the options of ``install``."""

    parts: bool = False
    gpu: bool = False
    tls: bool = False

    @property
    def units(self) -> tuple[str, ...]:
        """The units that are written."""
        return PARTS if self.parts else (UNIT,)

    @property
    def networked(self) -> tuple[str, ...]:
        """Those that show a certificate."""
        return NETWORKED if self.parts else (UNIT,)

    @property
    def enabled(self) -> tuple[str, ...]:
        """What the person who installs it enables in the end."""
        if not self.parts:
            return ("ai-node",)
        return (TARGET, "ai-node-worker-gpu@0" if self.gpu else "ai-node-worker@worker")

    def files(self, places: Places, program: str) -> dict[Path, str]:
        """Every file with its text, in the order of writing."""
        texts = {places.user: shipped("sysusers.conf"), places.folders: shipped("tmpfiles.conf")}
        texts |= {places.of(unit): unit_text(unit, program) for unit in self.units}
        if self.tls:
            texts |= {places.tls(unit): shipped(_TLS) for unit in self.networked}
        return texts


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    commands = typer.Typer(help="The node as a systemd service.", no_args_is_help=True)
    commands.command()(install)
    commands.command()(uninstall)
    app.add_typer(commands, name="service")


def install(
    parts: PartsOption = False,
    gpu: GpuOption = False,
    tls: TlsOption = False,
    root: RootOption = Path("/"),
    dry_run: DryRunOption = False,
) -> None:
    """Write units, user, folders and, where there is none, a configuration.

    Again after an upgrade, it brings them up to date.
    """
    places, form = Places(root), Form(parts, gpu, tls)
    _refuse_mixture(places, form)
    program = _program()
    _warn_of_hidden(program)
    files = form.files(places, program)
    if dry_run:
        _say_plan(places, files)
        return
    with _permitted():
        for path, text in files.items():
            _write(path, text)
        _write_configuration(places.configuration)
    _run(places, "systemd-sysusers", str(places.user))
    _run(places, "systemd-tmpfiles", "--create", str(places.folders))
    _systemctl(places, "daemon-reload")
    _say_next(places, form, program)


def uninstall(root: RootOption = Path("/"), dry_run: DryRunOption = False) -> None:
    """Stop the node and remove what install wrote. Configuration, state and user stay."""
    places = Places(root)
    present = [path for path in places.ours() if path.exists()]
    if not present:
        say(f"no service of the node is installed under {places.root}; nothing to remove")
        return
    if dry_run:
        for path in present:
            say(f"would remove {path}")
        return
    units = [unit for unit in (UNIT, *PARTS) if places.of(unit) in present]
    if units:
        # A template has no process of its own; its instances have.
        _systemctl(places, "stop", *(unit.replace("@.", "@*.") for unit in units))
        _systemctl(places, "disable", *units)
    with _permitted():
        for path in present:
            _remove(path)
    _systemctl(places, "daemon-reload")
    say("kept: /etc/ai-node (configuration), /var/lib/ai-node (state), its owner, user ai-node")


def shipped(name: str) -> str:
    """The text of a file of the shipped folder ``systemd``."""
    from node.shipped import folder

    return (folder("systemd") / name).read_text(encoding="utf-8")


def unit_text(unit: str, program: str) -> str:
    """A shipped unit, starting the installed program."""
    return shipped(unit).replace(_SHIPPED_PROGRAM, program)


def hidden(*programs: Path) -> dict[Path, str]:
    """Those programs that the units hide from the service, each with the folder that does it."""
    return {
        program: place for program in programs for place in _HIDDEN if program.is_relative_to(place)
    }


def _refuse_mixture(places: Places, form: Form) -> None:
    if form.gpu and not form.parts:
        raise OtherForm("--gpu needs --parts: a single service sees no devices")
    other = places.of(UNIT if form.parts else TARGET)
    if other.exists():
        raise OtherForm(
            f"{other} is installed, and would want the same port: run `ai-node service uninstall` "
            "first (it keeps configuration and state), then this again"
        )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o644)  # whatever the umask of root
    say(f"wrote {path}")


def _write_configuration(path: Path) -> None:
    if path.exists():
        say(f"kept {path}")
        return
    write_configuration(path.parent, {})
    path.chmod(0o644)  # for the service to read
    say(f"wrote {path}")


def _remove(path: Path) -> None:
    path.unlink()
    say(f"removed {path}")
    if not path.parent.name.endswith(".d") or path.name != _TLS:
        return
    if any(path.parent.iterdir()):
        say(f"kept {path.parent}, where other drop-ins are")
    else:
        path.parent.rmdir()


@contextmanager
def _permitted() -> Iterator[None]:
    """Says in words what the file system refuses."""
    try:
        yield
    except OSError as error:
        raise NotPermitted(
            f"{error.filename} cannot be written or removed ({error.strerror}): run this as root, "
            "or name a folder of yours with --root"
        ) from error


def _say_plan(places: Places, files: dict[Path, str]) -> None:
    for path in files:
        say(f"would write {path}")
    if not places.configuration.exists():
        say(f"would write {places.configuration}")


def _say_next(places: Places, form: Form, program: str) -> None:
    say("Next:")
    say(f"  edit {places.configuration}")
    if form.tls:
        say("  install -m 600 YOUR_KEY /etc/ai-node/tls/node.key")
    say(f"  {program} check --config {places.configuration}")
    say(f"  systemctl enable --now {' '.join(form.enabled)}")
    if form.parts:
        say("The parts talk to private addresses only. To let others in (IPAddressAllow=):")
        say(f"  systemctl edit {' '.join(NETWORKED)}")


def _program() -> str:
    """The ``ai-node`` of the interpreter that runs this command."""
    script = Path(sys.executable).parent / "ai-node"
    return str(script) if script.exists() else f"{sys.executable} -m node"


def _warn_of_hidden(program: str) -> None:
    # A virtual environment elsewhere does not help when its Python is a link into a home folder.
    for path, place in hidden(Path(program), Path(sys.executable).resolve()).items():
        complain(
            f"warning: the service cannot see {path}: the unit hides {place} from it. Install the "
            "node in a virtual environment elsewhere, with a Python that is elsewhere too, e.g. "
            "/usr/bin/python3 -m venv /opt/ai-node"
        )


def _systemctl(places: Places, *arguments: str) -> None:
    """Run systemctl where systemd runs the system and that is ours to change."""
    _run(places, "systemctl", *arguments, possible=Path("/run/systemd/system").is_dir())


def _run(places: Places, *command: str, possible: bool = True) -> None:
    """Run a program of the system where that is ours to do, else say the command."""
    shown = " ".join(command)
    if not places.live or not possible or shutil.which(command[0]) is None:
        say(f"not run here: {shown}")
        return
    _say_outcome(shown, _outcome(command))


def _outcome(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603


def _say_outcome(shown: str, done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        complain(f"warning: {shown} failed: {done.stderr.strip()}")
    else:
        say(f"ran {shown}")
