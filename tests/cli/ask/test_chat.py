"""`aicli chat` at a real terminal, with a fake mesh: keys, commands, Ctrl-C, files, and what happens when it is killed."""

import json
import os
import signal
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.ask import chat_terminal
from tests.cli.ask.chat_terminal import ALT_ENTER, CTRL_C, CTRL_D, READY, UP, ChatTerminal
from tests.cli.fake_mesh import Shell

#: Follows each answer.
SUMMARY = "echo: 4 + 3 tokens, first after 10 ms, 100.0 tokens/s, 0.0008 credits"

Chat = Callable[..., AbstractContextManager[ChatTerminal]]


@pytest.fixture
def chat(shell: Shell) -> Chat:
    def start(*arguments: str, **variables: str) -> AbstractContextManager[ChatTerminal]:
        environment = {"HOME": str(shell.folder), "XDG_STATE_HOME": str(shell.folder / "state"), **variables}
        return chat_terminal.chatting(["tests.cli.ask.chat_program", str(shell.folder), *arguments], environment)

    return start


def chats_of(shell: Shell) -> list[Path]:
    return sorted((shell.folder / "state/aimesh/chats").glob("*.json"))


def seen_by(shell: Shell) -> Any:
    return json.loads((shell.folder / "seen.json").read_text())


def test_run_of_a_served_model_is_a_chat(shell: Shell, chat: Chat) -> None:
    with chat("run", "llama3") as terminal:
        terminal.sees("echo, 2048 tokens of context. /help lists the commands, Ctrl-D leaves.")
        terminal.sends("one two")
        terminal.sees(SUMMARY)
        terminal.types(CTRL_D)
        assert terminal.ends() == 0
    assert seen_by(shell)["messages"] == [["one two"]]


def test_conversation_with_its_summary_and_context(shell: Shell, chat: Chat) -> None:
    with chat("--system", "Be brief") as terminal:
        terminal.sees("echo, 2048 tokens of context. /help lists the commands, Ctrl-D leaves.")
        terminal.sends("one **two**")
        terminal.sees(SUMMARY)
        terminal.types(f"three{ALT_ENTER}four\nfive\r")
        terminal.sees(SUMMARY)
        terminal.types(CTRL_D)
        assert terminal.ends() == 0
    assert seen_by(shell)["messages"] == [["Be brief", "one **two**"], ["Be brief", "one **two**", "one **two** ", "three\nfour\nfive"]]
    # Markdown: the asterisks are removed and the word is bold.
    assert "one \x1b[1mtwo\x1b[0m" in terminal.raw
    (path,) = chats_of(shell)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((path.parent.parent / "chat-history").stat().st_mode) == 0o600


def test_ctrl_c_stops_the_answer_and_the_chat_continues(shell: Shell, chat: Chat) -> None:
    with chat() as terminal:
        terminal.sees(READY)
        terminal.sends("slow answer")
        terminal.sees("\nslow answer\r\n")
        terminal.types(CTRL_C)
        terminal.sees("Stopped. /retry answers again.")
        terminal.sends("next")
        terminal.sees(SUMMARY)
        terminal.types("half a line")
        terminal.sees("half a line")
        terminal.types(CTRL_C)
        terminal.sees("\n>")
        terminal.sends("/quit")
        assert terminal.ends() == 0
    seen = seen_by(shell)
    assert seen["left_early"] == ["gateway.processInferenceRequest"]
    assert seen["calls"].count("gateway.cancelInference") == 1
    # The partial answer is part of the conversation.
    assert seen["messages"][-1] == ["slow answer", "slow answer ", "next"]


@pytest.mark.parametrize("options", [(), ("--no-thoughts",)])
def test_thoughts_are_dimmed_and_sent_back(shell: Shell, chat: Chat, options: tuple[str, ...]) -> None:
    with chat("--reasoning-effort", "low", *options) as terminal:
        terminal.sees(READY)
        terminal.sends("think hard")
        terminal.sees(SUMMARY)
        terminal.sends("/set")
        terminal.sees("reasoning_effort low")
        terminal.sends("next")
        terminal.sees(SUMMARY)
        terminal.types(CTRL_D)
        assert terminal.ends() == 0
    assert ("\x1b[2mfirst of all\x1b[0m" in terminal.raw) is not bool(options)
    assert ("\x1b[2mthen\x1b[0m" in terminal.raw) is not bool(options)
    seen = seen_by(shell)
    assert seen["thoughts"] == [[], ["first of all\nthen"]]
    assert seen["efforts"] == ["low", "low"]


def test_images_go_with_the_next_message_and_stay_in_the_conversation(shell: Shell, chat: Chat) -> None:
    (shell.folder / "my cat.png").write_bytes(b"cat")
    (shell.folder / "dog.png").write_bytes(b"a dog")
    (shell.folder / "huge.png").write_bytes(bytes((15 << 20) + 1))
    os.mkfifo(shell.folder / "pipe")
    with chat() as terminal:
        terminal.sees(READY)
        terminal.types("/image ~/my\t")
        terminal.sees("cat.png")
        terminal.types("\r")
        terminal.sees("Images of the next message: ~/my cat.png\r\n")
        for name in ("~/nothing.png", "~", "~/pipe", "~nobody/x"):
            terminal.sends(f"/image {name}")
            terminal.sees(f"error: there is no file {name}")
        terminal.sends("/image ~/huge.png")
        terminal.sees("error: the images have more than 15 MiB – send smaller ones")
        terminal.sends("/image ~/dog.png")
        terminal.sees("Images of the next message: ~/my cat.png, ~/dog.png")
        terminal.sends("/image -")
        terminal.sees("Images of the next message: none")
        terminal.sends("/image ~/dog.png")
        terminal.sends("what is it?")
        terminal.sees(SUMMARY)
        terminal.sends("/model blind")
        terminal.sends("/image ~/dog.png")
        terminal.sees("error: blind doesn't support images – choose another model with /model")
        terminal.sends("/model echo")
        terminal.sends("/retry")
        terminal.sees(SUMMARY)
        terminal.types(CTRL_D)
        assert terminal.ends() == 0
    with chat("--continue") as terminal:
        terminal.sees(READY)
        terminal.sends("and?")
        terminal.sees(SUMMARY)
        terminal.types(CTRL_D)
        assert terminal.ends() == 0
    assert seen_by(shell)["images"] == [[5]]
    assert seen_by(shell)["messages"] == [["what is it?", "what is it? ", "and?"]]


def test_commands(shell: Shell, chat: Chat) -> None:
    with chat() as terminal:
        terminal.sees(READY)
        terminal.sends("/modle")
        terminal.sees("error: there is no command /modle – did you mean /model?")
        terminal.sends("/model vectors")
        terminal.sees("error: no worker serves 'vectors' – models: echo, blind")
        terminal.sends("/model llama3")
        terminal.sees("Model: llama3")
        terminal.sends("/set temperature 9")
        terminal.sees("error: temperature must be a number from 0 to 2")
        terminal.sends("/set seed 3")
        terminal.sees("seed 3")
        terminal.sends("/copy")
        terminal.sees("error: there is no answer to copy yet")
        terminal.sends("//etc")
        terminal.sees(SUMMARY)
        terminal.sends("/retry")
        terminal.sees(SUMMARY)
        terminal.sends("/copy")
        terminal.sees("Copied")
        terminal.sends("/save mine")
        terminal.sees("aicli chat --load mine")
        terminal.sends("/new")
        terminal.sees("New conversation.")
        terminal.sends("/load")
        terminal.sees("mine  1 message  /etc")
        terminal.sends("/load mine")
        terminal.sees("Continuing mine with 1 message.")
        terminal.sends("more")
        terminal.sees(SUMMARY)
        terminal.sends("/help")
        terminal.sees("/retry  ")
        terminal.types(CTRL_D)
        assert terminal.ends() == 0
    assert "\x1b]52;c;L2V0YyA=\x07" in terminal.raw
    assert seen_by(shell)["messages"] == [["/etc"], ["/etc"], ["/etc", "/etc ", "more"]]
    assert [path.name for path in chats_of(shell)] == ["mine.json"]
    saved = json.loads(chats_of(shell)[0].read_text())
    assert (saved["model"], saved["settings"]) == ("llama3", {"seed": 3})


def test_errors_are_one_line_and_the_chat_continues(shell: Shell, chat: Chat) -> None:
    with chat(COLUMNS="200") as terminal:
        terminal.sees(READY)
        terminal.sends("full")
        terminal.sees("error: the conversation no longer fits the model's context of 2048 tokens – /new starts a new one; /model chooses")
        terminal.sends("down")
        terminal.sees("error: no worker serves echo – start one")
        terminal.sends("lost")
        terminal.sees("Connection lost. Resuming …")
        terminal.sees("first second")
        terminal.sees(SUMMARY)
        terminal.types(CTRL_D)
        assert terminal.ends() == 0
    # Questions without an answer are not sent again.
    assert seen_by(shell)["messages"][-1] == ["lost"]


def test_typed_ahead_lines_are_sent_after_the_answer(shell: Shell, chat: Chat) -> None:
    os.mkfifo(shell.folder / "go")
    with chat() as terminal:
        terminal.sees(READY)
        terminal.sends("pause one")
        terminal.sees("\npause one\r\n")
        terminal.sends("two")
        (shell.folder / "go").write_text("now")
        terminal.sees(SUMMARY)
        terminal.sees("\ntwo\r\n")
        terminal.sees(SUMMARY)
        terminal.types(CTRL_D)
        assert terminal.ends() == 0
    assert seen_by(shell)["messages"][-1][-1] == "two"


def test_bytes_that_are_no_text_are_replaced_and_a_full_disk_stops_nothing(shell: Shell, chat: Chat) -> None:
    with chat() as terminal:
        terminal.sees(READY)
        (shell.folder / "state/aimesh/chats").rmdir()
        os.write(terminal.descriptor, b"a\xffb\r")
        terminal.sees("error: cannot save the conversation in ")
        terminal.sees(SUMMARY)
        terminal.types(CTRL_D)
        assert terminal.ends() == 0
    assert seen_by(shell)["messages"] == [["a?b"]]


def test_killed_chat_leaves_a_file_that_continues(shell: Shell, chat: Chat) -> None:
    with chat() as terminal:
        terminal.sees(READY)
        terminal.sends("one")
        terminal.sees(SUMMARY)
        terminal.sends("slow two")
        terminal.sees("\nslow two\r\n")
        os.kill(child_of(terminal), signal.SIGKILL)
        terminal.ends()
    (path,) = chats_of(shell)
    kept = [(turn["question"], turn["answer"]) for turn in json.loads(path.read_text())["turns"]]
    assert kept == [("one", "one "), ("slow two", "")]
    with chat("--continue") as terminal:
        terminal.sees("with 2 messages. The last one:")
        terminal.sees("> slow two")
        # The input history is restored too.
        terminal.types(UP + UP + "\r")
        terminal.sees(SUMMARY)
        terminal.types(CTRL_D)
        assert terminal.ends() == 0
    assert seen_by(shell)["messages"] == [["one", "one ", "one"]]


def child_of(terminal: ChatTerminal) -> int:
    """Return the process under `setsid`."""
    pid = terminal.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else pid


def test_sigterm_restores_the_terminal(chat: Chat) -> None:
    with chat() as terminal:
        terminal.sees("Ctrl-D leaves.")
        terminal.sees("\n>")
        os.kill(child_of(terminal), signal.SIGTERM)
        terminal.sees("error: interrupted")
        assert terminal.ends() == 130
    assert terminal.raw.rfind("\x1b[?2004l") > terminal.raw.rfind("\x1b[?2004h")


def test_closed_terminal_ends_the_chat(chat: Chat) -> None:
    with chat() as terminal:
        terminal.sees(READY)
        terminal.sends("slow one")
        terminal.sees("\nslow one\r\n")
        os.close(terminal.descriptor)
        terminal.descriptor = os.open(os.devnull, os.O_RDONLY)
        assert terminal.process.wait(chat_terminal.SECONDS) != 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "aicli chat needs a terminal; in scripts and pipes, use aicli infer"),
        (["--json"], "No such option '--json'"),
    ],
)
def test_without_a_terminal_it_points_to_infer(shell: Shell, arguments: list[str], message: str) -> None:
    result = shell("chat", *arguments, stdin="hello")
    assert (result.exit_code, result.stdout, shell.mesh.calls) == (2, "", [])
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--continue"], "there is no conversation to continue"),
        pytest.param(["--load", "none"], "there is no conversation 'none'", marks=pytest.mark.nightly("long")),
        (["--load", "../x"], "'../x' is not a valid name"),
        pytest.param(["--load", "x", "--continue"], "--continue and --load exclude each other", marks=pytest.mark.nightly("long")),
    ],
)
def test_wrong_options_are_one_line(chat: Chat, arguments: list[str], message: str) -> None:
    with chat(*arguments) as terminal:
        terminal.sees(f"error: {message}")
        assert terminal.ends() == 2
