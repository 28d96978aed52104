"""``service install`` and ``service uninstall``: the node under systemd.

The files are written here; systemctl is left to the person who runs the command when it is not
run as root or when the files go under another root folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from node.cli.configuration import write_configuration
from node.cli.printing import complain, say
from node.domain.errors import NodeError

UNIT = "ai-node.service"

_SHIPPED_PROGRAM = "/opt/ai-node/bin/ai-node"
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 - named, not used
"""What ProtectHome= and PrivateTmp= hide from the service."""

RootOption = Annotated[Path, typer.Option("--root", help="Write under this folder instead of /.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


class NotPermitted(NodeError):
    """The files of the service cannot be written by this user."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the files of the service lie under a root folder."""

    root: Path

    @property
    def unit(self) -> Path:
        """The unit file."""
        return self.root / "etc/systemd/system" / UNIT

    @property
    def configuration(self) -> Path:
        """The configuration file."""
        return self.root / "etc/ai-node/node.toml"

    @property
    def live(self) -> bool:
        """Whether this is the running system, and ours to change."""
        return self.root == Path("/") and os.geteuid() == 0


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    commands = typer.Typer(help="The node as a systemd service.", no_args_is_help=True)
    commands.command()(install)
    commands.command()(uninstall)
    app.add_typer(commands, name="service")


def install(root: RootOption = Path("/"), dry_run: DryRunOption = False) -> None:
    """Write the unit and, where there is none, a configuration."""
    places = Places(root)
    program = _program()
    _warn_of_hidden(program)
    if dry_run:
        say(f"would write {places.unit}, starting {program}")
        if not places.configuration.exists():
            say(f"would write {places.configuration}")
        return
    try:
        _write(places, program)
    except PermissionError as error:
        raise NotPermitted(f"{error.filename} cannot be written: run this as root") from error
    _systemctl(places, "daemon-reload")
    say("Next:")
    say(f"  edit {places.configuration}")
    say(f"  {program} check --config {places.configuration}")
    say("  systemctl enable --now ai-node")


def uninstall(root: RootOption = Path("/"), dry_run: DryRunOption = False) -> None:
    """Remove the unit. Configuration and state stay."""
    places = Places(root)
    if not places.unit.exists():
        say(f"{places.unit} is not there; nothing to remove")
        return
    if dry_run:
        say(f"would remove {places.unit}")
        return
    _systemctl(places, "disable", "--now", UNIT)
    try:
        places.unit.unlink()
    except PermissionError as error:
        raise NotPermitted(f"{places.unit} cannot be removed: run this as root") from error
    say(f"removed {places.unit}")
    _systemctl(places, "daemon-reload")
    say("kept: /etc/ai-node (configuration), /var/lib/ai-node (state)")


def unit_text(program: str) -> str:
    """The shipped unit, starting the installed program."""
    from node.shipped import folder

    text = (folder("systemd") / UNIT).read_text(encoding="utf-8")
    return text.replace(_SHIPPED_PROGRAM, program)


def _write(places: Places, program: str) -> None:
    places.unit.parent.mkdir(parents=True, exist_ok=True)
    places.unit.write_text(unit_text(program), encoding="utf-8")
    say(f"wrote {places.unit}")
    if places.configuration.exists():
        say(f"kept {places.configuration}")
        return
    write_configuration(places.configuration.parent, {})
    say(f"wrote {places.configuration}")


def _program() -> str:
    """The ``ai-node`` of the interpreter that runs this command."""
    script = Path(sys.executable).parent / "ai-node"
    return str(script) if script.exists() else f"{sys.executable} -m node"


def _warn_of_hidden(program: str) -> None:
    for place in _HIDDEN:
        if Path(program).is_relative_to(place):
            complain(
                f"warning: the service cannot see {program}: the unit hides {place} from it. "
                "Install the node in a virtual environment elsewhere, e.g. /opt/ai-node."
            )


def _systemctl(places: Places, *arguments: str) -> None:
    """Run systemctl where that is ours to do, else say the command."""
    command = ["systemctl", *arguments]
    if not places.live or not Path("/run/systemd/system").is_dir():
        say(f"not run here: {' '.join(command)}")
        return
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        complain(f"warning: {' '.join(command)} failed: {done.stderr.strip()}")
