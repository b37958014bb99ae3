"""What the site takes from the program itself: the help of every command."""

from __future__ import annotations

from typing import Any

import click

from ranksearch.cli.arguments import Group
from ranksearch.cli.commands import root

MARK = "<!-- the help of every command -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the help of the commands where a page asks for it."""
    return markdown.replace(MARK, commands()) if MARK in markdown else markdown


def commands() -> str:
    """The help of every command, a heading each."""
    group = root()
    assert isinstance(group, Group)
    context = click.Context(group, info_name="ranksearch", terminal_width=110, max_content_width=110)
    parts = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        text = command.get_help(click.Context(command, info_name=name, parent=context, terminal_width=110, max_content_width=110))
        parts.append(f"## {name}\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)
