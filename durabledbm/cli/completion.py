"""Completion in bash, zsh and fish: scripts made from the same descriptions as the help.

Commands, options and the choices of options are written into the script. File names are the shell's business,
and the keys of a file are asked for when they are needed: `durabledbm list FILE --keys --prefix …`. Only keys
of plain characters are offered, since others would have to be quoted in a different way in each shell.
"""

from __future__ import annotations

import argparse

from .app import all_commands
from .command import PROGRAM, Command, Parser

__all__ = ["script"]

_KEYS_SHOWN = 200
_TAKING_KEYS = ("get", "put", "del")


def script(shell: str) -> str:
    """The completion script for "bash", "zsh" or "fish"."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


def _options(parser: Parser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings]


def _takes_file(action: argparse.Action) -> bool:
    return action.metavar in ("FILE", "DIRECTORY")


def _choices(action: argparse.Action) -> str:
    return " ".join(map(str, action.choices)) if action.choices else ""


def _positional_choices(parser: Parser) -> str:
    return " ".join(_choices(action) for action in parser._actions if not action.option_strings and action.choices)


_BASH = r"""# {program} completion for bash. In ~/.bashrc:  source <({program} completion bash)

_{program}_keys() {{
    # keys of the file $1 that begin with $2 and need no quoting
    {program} list "$1" --keys --prefix "$2" --limit {keys} 2>/dev/null |
        LC_ALL=C grep -E '^[A-Za-z0-9_./,+=@%:-]+$'
}}

_{program}() {{
    local cur prev word words=() glue=""
    # bash splits words at colons, which are common in keys: put them together again.
    for word in "${{COMP_WORDS[@]:0:COMP_CWORD+1}}"; do
        if [[ ${{#words[@]}} -gt 2 && $COMP_WORDBREAKS == *:* && ( -n $glue || $word == :* ) ]]; then
            words[${{#words[@]}}-1]+=$word
        else
            words+=("$word")
        fi
        [[ $word == *: ]] && glue=1 || glue=""
    done
    local cword=$(( ${{#words[@]}} - 1 ))
    cur=${{words[cword]}}; prev=${{words[cword-1]}}
    COMPREPLY=()
    if (( cword == 1 )); then
        COMPREPLY=($(compgen -W "{commands} --help --version" -- "$cur"))
        return
    fi
    local command=${{words[1]}} options="" choices=""
    case "$command $prev" in
{values}
    esac
    case $command in
{options}
    esac
    if [[ -n $choices ]]; then
        COMPREPLY=($(compgen -W "$choices" -- "$cur"))
    elif [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
    elif (( cword > 2 )) && [[ " {taking_keys} " == *" $command "* ]] && [[ -f ${{words[2]}} ]]; then
        local IFS=$'\n'
        COMPREPLY=($(compgen -W "$(_{program}_keys "${{words[2]}}" "$cur")" -- "$cur"))
        # What stands before the last colon is there already.
        [[ $COMP_WORDBREAKS == *:* ]] && COMPREPLY=("${{COMPREPLY[@]#"${{cur%"${{cur##*:}}"}}"}}")
    else
        local IFS=$'\n'
        compopt -o filenames 2>/dev/null
        COMPREPLY=($(compgen -f -- "$cur"))
    fi
}}

complete -F _{program} {program}
"""


def _bash() -> str:
    commands = all_commands()
    values, options = [], []
    for command in commands:
        parser = command.parser()
        names = " ".join(name for action in _options(parser) for name in action.option_strings)
        line = f'        {command.name}) options="{names}"'
        if choices := _positional_choices(parser):
            line += f'; choices="{choices}"'
        options.append(f"{line} ;;")
        for action in _options(parser):
            if action.choices:
                patterns = "|".join(f'"{command.name} {name}"' for name in action.option_strings)
                values.append(
                    f'        {patterns}) COMPREPLY=($(compgen -W "{_choices(action)}" -- "$cur")); return ;;'
                )
            elif _takes_file(action):
                patterns = "|".join(f'"{command.name} {name}"' for name in action.option_strings)
                values.append(
                    f"        {patterns}) local IFS=$'\\n'; compopt -o filenames 2>/dev/null; "
                    'COMPREPLY=($(compgen -f -- "$cur")); return ;;'
                )
    return _BASH.format(
        program=PROGRAM, keys=_KEYS_SHOWN, commands=" ".join(command.name for command in commands),
        values="\n".join(values), options="\n".join(options), taking_keys=" ".join(_TAKING_KEYS),
    )  # fmt: skip


_ZSH = r"""#compdef {program}
# {program} completion for zsh. In ~/.zshrc, after compinit:  source <({program} completion zsh)

_{program}_keys() {{
    local file=$words[2]
    [[ -f $file ]] || return 1
    local -a keys
    keys=(${{(f)"$({program} list $file --keys --prefix "$PREFIX" --limit {keys} 2>/dev/null)"}})
    compadd -a keys
}}

_{program}() {{
    local -a commands
    commands=(
{commands}
    )
    if (( CURRENT == 2 )); then
        _describe -t commands command commands
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    case $command in
{cases}
    esac
}}

(( $+functions[compdef] )) && compdef _{program} {program}
"""


def _zsh_quoted(text: str) -> str:
    return text.replace("'", "'\\''").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")


def _zsh() -> str:
    commands = all_commands()
    listed = "\n".join(f"        '{command.name}:{_zsh_quoted(command.summary)}'" for command in commands)
    cases = "\n".join(_zsh_case(command) for command in commands)
    return _ZSH.format(program=PROGRAM, keys=_KEYS_SHOWN, commands=listed, cases=cases)


def _zsh_case(command: Command) -> str:
    specs = []
    parser = command.parser()
    for action in parser._actions:
        help = _zsh_quoted((action.help or "").split(";")[0])
        if action.option_strings:
            takes = (
                ""
                if action.nargs == 0
                else f":value:({_choices(action)})"
                if action.choices
                else ":file:_files"
                if _takes_file(action)
                else ":value:"
            )
            specs += [f"'{name}[{help}]{takes}'" for name in action.option_strings]
        elif action.choices:
            specs.append(f"'*:{action.dest}:({_choices(action)})'")
        elif action.metavar == "KEY":
            specs.append(f"'*:key:_{PROGRAM}_keys'" if action.nargs else f"':key:_{PROGRAM}_keys'")
        elif action.metavar != "VALUE":
            specs.append("'*:file:_files'" if action.nargs else "':file:_files'")
    return f"        {command.name}) _arguments -s " + " \\\n            ".join(specs) + " ;;"


_FISH = """# {program} completion for fish. In ~/.config/fish/config.fish:  {program} completion fish | source

function __{program}_keys
    set -l words (commandline -opc)
    test (count $words) -ge 3; and test -f $words[3]; or return
    {program} list $words[3] --keys --prefix (commandline -ct) --limit {keys} 2>/dev/null
end

complete -c {program} -n __fish_use_subcommand -f
complete -c {program} -n __fish_use_subcommand -l version -d 'show the version'
{lines}
"""


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish() -> str:
    lines = []
    for command in all_commands():
        lines.append(
            f"complete -c {PROGRAM} -n __fish_use_subcommand -a {command.name} -d {_fish_quoted(command.summary)}"
        )
        seen = f"-n '__fish_seen_subcommand_from {command.name}'"
        parser = command.parser()
        for action in _options(parser):
            names = " ".join(
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in action.option_strings
            )
            takes = (
                ""
                if action.nargs == 0
                else f" -x -a {_fish_quoted(_choices(action))}"
                if action.choices
                else " -r"
                if _takes_file(action)
                else " -x"
            )
            lines.append(f"complete -c {PROGRAM} {seen} {names}{takes} -d {_fish_quoted(action.help or '')}")
        if choices := _positional_choices(parser):
            lines.append(f"complete -c {PROGRAM} {seen} -f -a {_fish_quoted(choices)}")
        if command.name in _TAKING_KEYS:
            lines.append(f"complete -c {PROGRAM} {seen} -a '(__{PROGRAM}_keys)'")
    return _FISH.format(program=PROGRAM, keys=_KEYS_SHOWN, lines="\n".join(lines))
