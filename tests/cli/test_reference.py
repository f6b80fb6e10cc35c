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


def test_help_cuts_no_sentence_and_names_values_by_words() -> None:
    import re

    from hubkit import cli
    from hubkit.cli.reference import commands

    cli.register_all()
    for path, shown in commands(cli.app):
        context = shown.context_class(shown, info_name=path, terminal_width=80)
        usage, _, help_text = shown.get_help(context).partition("\n")
        assert not re.search(r"[{<]", usage + help_text), path
        assert not re.search(r"\w\.\.\.$|x[<>]=", help_text, re.MULTILINE), path
        too_long = [line for line in help_text.splitlines() if len(line) > 80]
        assert all(line.startswith("  Example: ") for line in too_long), too_long


def test_every_column_that_is_written_has_its_meaning_and_no_other() -> None:
    from hubkit.cli.reference_tables import meanings_of, schemas

    for title, key, fields in schemas():
        assert [f.name for f in fields] == list(meanings_of(key)), title


def test_every_filter_variable_and_exit_status_stands_on_the_page() -> None:
    from hubkit import errors, settings
    from hubkit.cli.reference_tables import exit_statuses
    from hubkit.data.filters import FILTERS

    page = PAGE.read_text("utf-8").partition("\n## Filters\n")[2]
    variables = [v for v in vars(settings).values() if str(v).startswith("HUBKIT_")]
    codes = {e.exit_code for e in vars(errors).values() if hasattr(e, "exit_code")}
    filters = [n for n, made in FILTERS.items() if made.__module__.startswith("hubkit.")]
    assert len(variables) > 8 and len(filters) > 20
    for name in [*filters, *variables]:
        (line,) = [row for row in page.splitlines() if row.startswith(f"| `{name}` |")]
        assert len(line.split(" | ")[-1]) > 10, f"{name} is not explained"
    assert codes <= {int(status.strip("`")) for status, _ in exit_statuses()}
