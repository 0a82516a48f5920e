"""``frostline report``."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from frostline.cli.screen import output
from frostline.errors import ConfigError
from frostline.records import to_json
from frostline.reports.reading import Reading, read_records
from frostline.reports.views import record_views

_PATH = "A record that --json wrote, or the directory of a run; several of them."
_HTML = "Write one page with everything in it, which needs no network."
_JSON = "Print the records as JSON and nothing else: one file as it is, several or a directory as a list."
_NO_SOURCE = "Leave the source lines out, for a page to be shared."


def report(
    path: Annotated[Path, Parameter(help=_PATH)],
    *more: Annotated[Path, Parameter(show=False)],
    html: Annotated[Path | None, Parameter(help=_HTML)] = None,
    no_source: Annotated[bool, Parameter(negative="", help=_NO_SOURCE)] = False,
    json: Annotated[bool, Parameter(negative="", help=_JSON)] = False,
) -> int:
    """Look at records: on the terminal, as a page, or as JSON.

    frostline report runs/a --html a.html
    frostline report before.json after.json

    Of a run's directory, what is there is read: audit, memory, plan, proof,
    run, log, table, evaluation, and the configuration.

    Exit codes: 0 shown, 2 a path that is no record.
    """
    paths = (path, *more)
    readings = [read_records(one) for one in paths]
    for warning in (warning for one in readings for warning in one.warnings):
        sys.stderr.write(f"warning: {warning}\n")
    if html is not None:
        _write(html, paths, readings, source=not no_source)
    if json:
        output(_json(paths, readings))
    elif html is not None:
        output(f"{html}: {html.stat().st_size / 1000:.0f} kB")
    else:
        for at, view in enumerate(view for one in readings for view in record_views(one.records, source=not no_source)):
            if at:
                output("")
            output(view)
    return 0


def _write(html: Path, paths: Sequence[Path], readings: Sequence[Reading], *, source: bool) -> None:
    """Write the page.

    Raises:
        ConfigError: It cannot be written, or would take the place of a record.
    """
    read = [Path(name) for one in readings for name in one.names]
    if html.exists() and any(html.samefile(one) for one in read):
        raise ConfigError("the page would overwrite a record", where=f"--html {html}", do="give another file")
    from frostline.reports.html import render_html

    text = render_html(
        [record for one in readings for record in one.records],
        title=", ".join(dict.fromkeys(one.resolve().name for one in paths)),
        names=[name for one in readings for name in one.names],
        configuration="\n".join(one.configuration for one in readings if one.configuration),
        warnings=[warning for one in readings for warning in one.warnings],
        source=source,
    )
    try:
        html.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the page cannot be written: {error.strerror}", where=f"--html {html}") from None


def _json(paths: Sequence[Path], readings: Sequence[Reading]) -> str:
    records = [record for one in readings for record in one.records]
    if len(paths) == 1 and not paths[0].is_dir() and len(records) == 1:
        return to_json(records[0], indent=1)
    return json_module.dumps([json_module.loads(to_json(record)) for record in records], indent=1)
