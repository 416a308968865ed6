"""A name, buttons to save and to download, and the commands that read what was saved."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nerfcli.core.errors import NerfError
from nerfcli.view.run_files import AlreadyThere, can_save, ensure_name, save_in_run

if TYPE_CHECKING:
    from nerfcli.view.page import Page


COMMAND = (  # a click selects all of it
    '<pre style="margin:0 0.75em 0.75em; font-size:0.85em; white-space:pre-wrap; '
    'overflow-wrap:anywhere; user-select:all">{}</pre>'
)


class SaveControls:
    """Save a text into a folder of the run, or send it to the browser.

    Where the run has no folder, or a read-only one, it is only sent.

    Args:
        folder: in the run. name: that is proposed. make: the text, or a NerfError.
        commands: from the run and the file, quoted for a shell: what to do with it.
        saved: called after a file was written.
    """

    def __init__(
        self,
        page: Page,
        folder: str,
        name: str,
        make: Callable[[], str],
        commands: Callable[[str, str], str],
        saved: Callable[[], None] = lambda: None,
    ) -> None:
        gui, run = page.client.gui, page.sources[0].path
        self.page, self.make, self.commands, self.run = page, make, commands, run
        self._asked: str | None = None  # the name that the next press replaces
        self.name = gui.add_text("Name", name)
        if run is not None and can_save(run, folder):
            target = run
            save = gui.add_button("Save in the run")
            save.on_click(lambda _: self._try(lambda: self._save(target, folder, saved)))
        download = gui.add_button("Download")
        download.on_click(lambda _: self._try(self._download))
        self.words = gui.add_html("", visible=False)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except NerfError as fault:
            self.page.notify("Not saved", str(fault), is_fault=True)

    def _save(self, run: Any, folder: str, saved: Callable[[], None]) -> None:
        name, text = self.name.value.strip(), self.make()
        try:
            path = save_in_run(run, folder, name, text, replace=name == self._asked)
        except AlreadyThere:
            self._asked = name
            raise
        self._asked = None
        self._show_commands(str(path))
        saved()

    def _download(self) -> None:
        name, text = self.name.value.strip(), self.make()
        ensure_name(name)
        self.page.client.send_file_download(f"{name}.json", text.encode(), save_immediately=True)
        self._show_commands(f"{name}.json")

    def _show_commands(self, file: str) -> None:
        run = "RUN" if self.run is None else shlex.quote(str(self.run))
        lines = self.commands(run, shlex.quote(file)).splitlines()
        self.words.content = "".join(COMMAND.format(_whole_flags(line)) for line in lines)
        self.words.visible = True


def _whole_flags(line: str) -> str:
    """A command as HTML, whose flags are not broken after their dashes."""
    return re.sub(r"(--\w+)", r'<span style="white-space:nowrap">\1</span>', html.escape(line))
