"""What a verb says when a script has ended otherwise than it should."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from frostline.cli.screen import INTERRUPTED

if TYPE_CHECKING:
    from frostline.workflow.script import ScriptEnd


def exit_code_of(end: ScriptEnd, command: str, arguments: tuple[str, ...], outcome: str) -> int:
    """Ours, after a script has ended; one that is not 0 is explained on standard error.

    Args:
        end: How it ended.
        command: The verb and the script, such as "audit train.py" or "audit -m package.train".
        arguments: Those the script was given.
        outcome: What has become of it until then, such as "audited until then".
    """
    if end.reason == "interrupted":
        sys.stderr.write(f"frostline: interrupted; {outcome}\n")
        return INTERRUPTED
    if not end.exit_code:
        return 0
    do = _remedy(end, command, arguments)
    text = f"the script {end.reason} with exit code {end.exit_code}; {outcome}"
    sys.stderr.write(f"frostline: {text}\n" + (f"  do     {do}\n" if do else ""))
    return 2


def _remedy(end: ScriptEnd, command: str, arguments: tuple[str, ...]) -> str:
    verb, _, target = command.partition(" ")
    if end.reason == "exited" and end.exit_code == 2 and not arguments:  # as argparse and click end
        return f"give the script's arguments behind --: frostline {command} -- ARGS"
    if target.endswith(".py") and isinstance(end.error, ImportError) and "no known parent package" in str(end.error):
        script = Path(target).resolve()
        root = script.parent.parent
        while (root / "__init__.py").exists() and root != root.parent:
            root = root.parent
        name = ".".join(script.relative_to(root).with_suffix("").parts)
        place = "" if root == Path.cwd() else f", from {root}"
        return f"run it as a module of its package: frostline {verb} -m {name}{place}"
    return ""
