"""The reference is what the code says, and it says something about everything."""

from __future__ import annotations

from support import command
from support.paths import ROOT

from hubkit.recipe import Recipe, block_of

PAGE = ROOT / "REFERENCE.md"


def printed(columns: str) -> str:
    """What `hubkit reference` prints in a terminal of that width."""
    return command.run("reference", COLUMNS=columns).stdout


def test_the_page_is_what_the_command_prints_on_any_terminal() -> None:
    assert printed("60") == printed("200") == PAGE.read_text("utf-8"), "run `make reference`"


def test_every_key_of_a_recipe_is_explained() -> None:
    def bare(block: type, path: str) -> list[str]:
        found = []
        for name, field in block.model_fields.items():
            found += [] if field.description else [f"{path}{name}"]
            inner = block_of(field.annotation)
            found += bare(inner, f"{path}{name}.") if inner else []
        return found

    assert bare(Recipe, "") == []


def test_every_option_of_every_command_is_explained() -> None:
    from hubkit import cli
    from hubkit.cli.reference import commands

    cli.register_all()
    silent = [
        f"{path} {option.opts[0]}"
        for path, command in commands(cli.app)
        for option in command.params
        if not getattr(option, "help", None) and not getattr(option, "hidden", False)
    ]
    assert silent == []
    assert all(command.help for _, command in commands(cli.app))
